/** Value against trial with the best so far, and value against cost with the front; bars are one standard error. */
export function render({ model, el }) {
  const down = new Frame(), across = new Frame(), cost = new Frame();
  let search = null;
  const send = (message) => model.send_msg(message);
  const byTrial = s("svg", { role: "group", "aria-label": "Value of each trial, and the best so far" });
  const byCost = s("svg", { role: "group", "aria-label": "Value against network evaluations, and the front" });
  const said = h("figcaption"), front = h("figcaption");
  const refit = h("button", { class: "btn small", type: "button", title: "Fit the frames to what is shown", onclick: () => { down.reset(); across.reset(); cost.reset(); draw(); } }, "refit");
  const note = h("span", { class: "note" });
  const none = h("p", { class: "none" }, "No trials yet.");
  const both = h("div", { class: "both" }, h("figure", {}, byTrial, said), h("figure", {}, byCost, front));
  const pane = h("section", { class: "pane card course", "aria-label": "Course of the search" }, h("div", { class: "head" }, h("h2", {}, "Trials"), note, refit), none, both);
  const tip = tooltip(pane);
  const small = (list) => (list.length > 220 ? 2 : list.length > 90 ? 2.6 : 3.4);

  function mark(dot, cx, cy, top, bottom, color, size, d) {
    const shown = dot.number === d.picked;
    const g = s("g", { class: "dot", tabindex: shown || dot.number === d.best ? 0 : -1, role: "button", "data-trial": dot.number, "aria-label": `trial ${dot.number}: ${dot.text}` },
      top === null ? "" : s("line", { x1: cx, x2: cx, y1: top, y2: bottom, stroke: color, "stroke-width": shown ? 4 : 3, opacity: 0.22 }),
      s("circle", { class: "mark", cx, cy, r: shown ? size + 2 : size, fill: dot.whole ? color : "none", stroke: dot.whole ? "var(--card)" : color, "stroke-width": 1 }));
    const tell = () => tip.show(g, h("div", {}, h("b", {}, dot.number ? `trial ${dot.number}` : "baseline"), ` ${d.name} ${dot.text}${dot.nfe ? `, ${dot.nfe} NFE` : ""}`), h("div", { class: "range" }, dot.what), dot.note ? h("div", { class: "range" }, dot.note) : "", dot.whole ? "" : h("div", { class: "why" }, "on fewer samples than the others"));
    g.addEventListener("pointerenter", tell); g.addEventListener("focus", () => { if (g.matches(":focus-visible")) tell(); });
    g.addEventListener("pointerleave", tip.hide); g.addEventListener("blur", tip.hide);
    g.addEventListener("click", () => send({ type: "pick", number: dot.number }));
    g.addEventListener("keydown", (e) => { if (e.key === "Enter" || e.key === " ") { e.preventDefault(); send({ type: "pick", number: dot.number }); } });
    return g;
  }
  const rules = (axis, left, right) => axis.marks.flatMap((v) => [s("line", { class: "gridline", x1: left, x2: right, y1: axis.at(v), y2: axis.at(v) }), s("text", { x: left - 6, y: axis.at(v) + 4, "text-anchor": "end" }, short(v))]);

  function draw() {
    const d = model.data;
    const dots = (d.dots || []).filter((t) => t.value !== null), failed = (d.dots || []).filter((t) => t.failed);
    none.hidden = dots.length > 0; both.hidden = refit.hidden = !dots.length;
    note.textContent = dots.length ? `${d.name}, lower is better; bars ± 1 standard error` : "";
    tip.hide();
    if (!dots.length) return;
    if (d.search !== search) { search = d.search; down.reset(); across.reset(); cost.reset(); }
    const base = dots.find((t) => t.number === 0), whole = dots.filter((t) => t.whole);
    // Hopeless trials would squeeze the others: the frame reaches a little beyond the baseline, they stand at its edge.
    const roof = base ? base.value * (base.value > 0 ? 1.6 : 1) + 3 * (base.se || 0) : Math.max(...dots.map((t) => t.value));
    const floor = Math.min(...dots.map((t) => t.value));
    const lowest = (value, se) => (floor > 0 ? Math.max(value - (se || 0), 0.8 * floor) : value - (se || 0));
    for (const t of dots) if (t.value <= roof) down.add(Math.min(t.value + (t.se || 0), roof), lowest(t.value, t.se)); else down.add(roof);
    for (const p of d.held || []) if (p.value !== null && p.value <= roof) down.add(p.value + (p.se || 0), Math.min(p.value, lowest(p.value, p.se)));
    const pad = 0.06 * (down.high - down.low || Math.abs(down.high) || 1), low = down.low > 0 ? Math.max(down.low - pad, down.low * 0.8) : down.low - pad, high = down.high + pad;

    const width = byTrial.clientWidth || 520, height = byTrial.clientHeight || 216, left = 48, right = width - 10, top = 8, bottom = height - 32;
    byTrial.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const y = axisOf(low, high, bottom, top);
    across.add(0, Math.max(d.planned || 1, dots.at(-1).number));
    const x = (v) => left + 8 + (v - across.low) / (across.high - across.low || 1) * (right - left - 16);
    const parts = [...rules(y, left, right), s("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
      ...ticks(across.low, across.high, Math.floor(width / 90)).map((v) => s("text", { x: x(v), y: bottom + 14, "text-anchor": "middle" }, v)), s("text", { x: right, y: height - 4, "text-anchor": "end" }, "trial")];
    if (base) {
      const up = y.at(Math.min(base.value + (base.se || 0), high)), lo = y.at(Math.max(base.value - (base.se || 0), low));
      parts.push(s("rect", { x: left, y: up, width: right - left, height: Math.max(lo - up, 0), fill: "var(--pinned)", opacity: 0.1 }), s("line", { x1: left, x2: right, y1: y.at(base.value), y2: y.at(base.value), stroke: "var(--pinned)", "stroke-width": 1, "stroke-dasharray": "4 3" }),
        s("text", { x: right, y: y.at(base.value) - 4, "text-anchor": "end" }, "baseline"));
    }
    let best = Infinity;
    const path = [];
    for (const t of whole) { if (t.value < best) { path.push(path.length ? `H${x(t.number)}` : `M${x(t.number)},${y.at(t.value)}`, `V${y.at(t.value)}`); best = t.value; } }
    if (whole.length) parts.push(s("path", { d: `${path.join("")}H${x(whole.at(-1).number)}`, fill: "none", stroke: "var(--c0)", "stroke-width": 1.6, "data-part": "best" }));
    const size = small(dots), color = (t) => (t.number === 0 ? "var(--pinned)" : "var(--c0)");
    const place = (t) => y.at(clamp(t.value, low, high));
    for (const t of dots) if (t.number !== d.best && t.number !== d.picked) parts.push(mark(t, x(t.number), place(t), dots.length > 160 ? null : y.at(Math.min(t.value + (t.se || 0), high)), y.at(clamp(t.value - (t.se || 0), low, high)), color(t), size, d));
    for (const t of dots) if (t.number === d.best || t.number === d.picked) parts.push(mark(t, x(t.number), place(t), y.at(Math.min(t.value + (t.se || 0), high)), y.at(clamp(t.value - (t.se || 0), low, high)), color(t), size + 1, d));
    for (const t of failed) parts.push(s("text", { x: x(t.number), y: top + 8, "text-anchor": "middle", style: "fill: var(--bad)" }, "×", s("title", {}, `trial ${t.number}: ${t.failed}`)));
    byTrial.replaceChildren(...parts);
    said.textContent = `Each trial on the same n = ${d.n} samples of noise${dots.some((t) => !t.whole) ? "; hollow: on fewer" : ""}${failed.length ? `; ×: ${failed.length} without a number` : ""}. Click one to look at it.`;

    const w = byCost.clientWidth || 380, end = w - 12;
    byCost.setAttribute("viewBox", `0 0 ${w} ${height}`);
    const priced = whole.filter((t) => t.nfe);
    cost.add(...priced.map((t) => t.nfe), ...(d.held || []).map((p) => p.nfe));
    const lowX = cost.empty ? 1 : cost.low / 1.25, highX = cost.empty ? 2 : cost.high * 1.25;
    const px = (v) => left + Math.log(v / lowX) / Math.log(highX / lowX) * (end - left);
    const nfes = [...new Set(priced.map((t) => t.nfe))].sort((a, b) => a - b), keep = [];
    for (const v of nfes) if (!keep.length || px(v) - px(keep.at(-1)) > 24) keep.push(v);
    const out = [...rules(y, left, end), s("line", { class: "axis", x1: left, x2: end, y1: bottom, y2: bottom }), ...keep.map((v) => s("text", { x: px(v), y: bottom + 14, "text-anchor": "middle" }, v)), s("text", { x: end, y: height - 4, "text-anchor": "end" }, "NFE, log scale")];
    const edge = (d.front || []).map((n) => priced.find((t) => t.number === n)).filter(Boolean);
    for (const t of priced) out.push(s("circle", { cx: px(t.nfe), cy: place(t), r: 2, fill: "var(--c0)", opacity: 0.35 }));
    if (edge.length > 1) out.push(s("polyline", { points: edge.map((t) => `${px(t.nfe)},${place(t)}`).join(" "), fill: "none", stroke: "var(--c0)", "stroke-width": 1.5 }));
    for (const t of edge) out.push(mark(t, px(t.nfe), place(t), y.at(Math.min(t.value + (t.se || 0), high)), y.at(clamp(t.value - (t.se || 0), low, high)), color(t), 4, d));
    if (base?.nfe && !edge.includes(base)) out.push(mark(base, px(base.nfe), place(base), y.at(base.value + (base.se || 0)), y.at(Math.max(base.value - (base.se || 0), low)), "var(--pinned)", 4, d));
    for (const p of d.held || []) {
      if (p.value === null || p.value > high) continue;
      const cx = px(p.nfe) + 9;
      out.push(s("line", { x1: cx, x2: cx, y1: y.at(p.value + (p.se || 0)), y2: y.at(Math.max(p.value - (p.se || 0), low)), stroke: "var(--c3)", "stroke-width": 2 }), s("path", { d: `M${cx},${y.at(p.value) - 4.5}l4.5,4.5l-4.5,4.5l-4.5,-4.5z`, fill: "var(--card)", stroke: "var(--c3)", "stroke-width": 1.6, "data-part": "held-out" }));
    }
    byCost.replaceChildren(...out);
    front.replaceChildren("Front of cost and value", ...(d.held?.length ? ["; ", h("span", { style: "color: var(--c3)" }, "◇"), " the same on held-out noise, beside it"] : [": no trial beats these at their cost"]), ".");
  }
  model.on("data", draw);
  draw();
  new ResizeObserver(draw).observe(both);
  return pane;
}
