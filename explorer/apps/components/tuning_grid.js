/** The baseline's grid as ticks that can be dragged, the error of each step over it, and the grid of the trial that is looked at below. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const preview = throttle((nodes) => send({ type: "preview", knob: "nodes", value: nodes }), 80);
  const up = new Frame();
  let held = null, moving = null, modelKey = null, geometry = null;

  const note = h("span", { class: "note", "data-part": "grid-note", "aria-live": "off" }), fixed = h("p", { class: "fine fixed", "data-part": "grid-fixed", hidden: true });
  const named = h("button", { class: "btn small", type: "button", "data-act": "named", title: "Back to the grid that the knobs name", onclick: () => send({ type: "reset", knob: "nodes" }) }, "named grid");
  const take = h("button", { class: "btn small", type: "button", "data-act": "take-grid", title: "Make the grid of the trial that is looked at the baseline's", onclick: () => commit(model.data.other.nodes) }, "take the found grid");
  const lab = h("a", { class: "btn small", "data-act": "grid-lab", title: "Open the baseline with this grid in the Sampler Lab" }, "open in Lab");
  const chart = s("svg", { role: "group", "aria-label": "Noise levels of the grid, with the error of each step; drag a tick, or move it with the arrow keys" });
  const legend = h("div", { class: "legend" }), sheets = h("div", { class: "sheets" }), none = h("p", { class: "none", hidden: true });
  const pane = h("section", { class: "pane card grid", "aria-label": "Grid" }, h("div", { class: "head" }, h("h2", {}, "Grid"), note, h("div", { class: "acts" }, take, named, lab)), none, chart, fixed, legend, sheets);

  const round = (v) => Number(v.toPrecision(5));
  const nodesNow = () => held ?? model.data.nodes;
  function commit(nodes) { preview.drop(); held = null; send({ type: "set", knob: "nodes", value: nodes.map(round) }); }
  function between(nodes, i, v) {
    const [low, high] = model.data.range;
    const most = i > 0 ? nodes[i - 1] / 1.01 : high, least = i < nodes.length - 1 ? nodes[i + 1] * 1.01 : low;
    return most < least ? nodes[i] : clamp(v, least, most);
  }
  function move(i, v, done) {
    held = [...nodesNow()];
    held[i] = round(between(held, i, v));
    if (done) commit(held); else { preview(held); draw(); }
  }

  function draw() {
    const d = model.data;
    none.hidden = !d.missing; chart.toggleAttribute("hidden", Boolean(d.missing)); legend.hidden = sheets.hidden = Boolean(d.missing);
    take.hidden = !d.other || Boolean(d.other.fixed || d.fixed); named.hidden = !d.own; lab.hidden = !d.link;
    fixed.textContent = d.fixed || (d.other?.fixed ? `${d.other.label[0].toUpperCase()}${d.other.label.slice(1)}: ${d.other.fixed}` : "");
    fixed.hidden = Boolean(d.missing) || !fixed.textContent;
    if (d.missing) { none.textContent = d.missing; note.textContent = ""; return; }
    if (!d.nodes) return;
    if (moving === null && !d.dragged) held = null;
    if (d.model !== modelKey) { modelKey = d.model; up.reset(); held = null; }
    lab.href = d.link;
    const nodes = nodesNow(), width = chart.clientWidth || 640, height = chart.clientHeight || 222;
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const left = 48, right = 16, zero = 34, end = width - right - zero, row = d.other ? 22 : 0, bottom = height - 38 - row - 22, top = 12;
    const others = d.other ? d.other.nodes : [];
    const hi = Math.log(Math.max(d.range[1], nodes[0], ...others)), lo = Math.log(Math.min(d.range[0], nodes.at(-1), ...others));
    const x = (v) => (v > 0 ? left + (hi - Math.log(v)) / (hi - lo || 1) * (end - left) : width - right - 8);
    const sigmaAt = (px) => Math.exp(hi - clamp((px - left) / (end - left), 0, 1) * (hi - lo));
    geometry = { x, sigmaAt, left, end };
    const sets = [[d.other, d.other?.errors, "var(--c0)", others], [d, d.errors, "var(--accent)", nodes]];
    for (const [, errors] of sets) if (errors?.mean) up.add(0, ...errors.mean.map((v, i) => (v ?? 0) + (errors.se[i] ?? 0)));
    const parts = [];
    const roof = up.empty || up.high <= 0 ? 1 : up.high * 1.06, y = (v) => bottom - v / roof * (bottom - top);
    for (const v of ticks(0, roof, 4)) parts.push(s("line", { class: "gridline", x1: left, x2: width - right, y1: y(v), y2: y(v) }), s("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v)));
    const box = (errors, levels, color, front) => {
      if (!errors?.mean || errors.mean.length !== levels.length) return;
      levels.forEach((v, i) => {
        const a = x(v), b = x(levels[i + 1] ?? 0), e = errors.mean[i], se = errors.se[i] ?? 0, mid = (a + b) / 2;
        if (e === null) return;
        if (front) parts.push(s("rect", { x: a + 1, y: y(e), width: Math.max(b - a - 2, 1), height: bottom - y(e), fill: color, opacity: 0.3, "data-step": i }, s("title", {}, `step ${i + 1}: σ ${short(v)} → ${short(levels[i + 1] ?? 0)}, error ${short(e)} ± ${short(se)}`)),
          s("line", { x1: mid, x2: mid, y1: y(e + se), y2: y(Math.max(e - se, 0)), stroke: color, "stroke-width": 2, opacity: 0.75 }));
        else parts.push(s("path", { d: `M${a + 1},${y(e)}H${b - 1}`, stroke: color, "stroke-width": 2.5, fill: "none" }), s("path", { d: `M${a},${bottom}V${y(e)}`, stroke: color, "stroke-width": 1, opacity: 0.4, fill: "none" }));
      });
    };
    box(d.errors, nodes, "var(--accent)", true);
    box(d.other?.errors, others, "var(--c3)", false);
    // The axis, with 0 behind the break.
    const base = bottom + 22 + row;
    parts.push(s("line", { class: "axis", x1: left, x2: width - right, y1: bottom, y2: bottom }), s("line", { class: "axis", x1: left, x2: end + 4, y1: base, y2: base }), s("path", { class: "axis", d: `M${end + 4},${base + 4}l4,-8 M${end + 9},${base + 4}l4,-8 M${end + 11},${base}H${width - right}` }),
      s("text", { x: x(0), y: base + 15, "text-anchor": "middle" }, "0"), s("text", { x: left - 8, y: base + 15, "text-anchor": "end", class: "title" }, "σ"),
      s("text", { x: left, y: base + 31 }, "noise"), s("text", { x: width - right, y: base + 31, "text-anchor": "end" }, "data"), s("text", { x: (left + end) / 2, y: base + 31, "text-anchor": "middle" }, "σ = noise / signal, log scale"));
    for (const v of logTicks(Math.exp(lo), Math.exp(hi), Math.floor((end - left) / 40))) parts.push(s("line", { class: "axis", x1: x(v), x2: x(v), y1: base, y2: base + 4 }), s("text", { x: x(v), y: base + 15, "text-anchor": "middle" }, short(v)));
    if (d.other) {
      parts.push(s("text", { x: left - 6, y: bottom + 22 + 14, "text-anchor": "end" }, "found"));
      for (const v of [...others, 0]) parts.push(s("line", { x1: x(v), x2: x(v), y1: bottom + 24, y2: bottom + 38, stroke: "var(--c3)", "stroke-width": 2, "data-found": v }));
    }
    parts.push(s("text", { x: left - 6, y: bottom + 15, "text-anchor": "end", class: "title" }, "grid"), s("line", { x1: x(0), x2: x(0), y1: bottom + 2, y2: bottom + 18, stroke: "var(--accent)", "stroke-width": 2, opacity: 0.5 }));
    const focused = pane.getRootNode().activeElement?.dataset?.tick;
    if (d.fixed) nodes.forEach((v, i) => parts.push(s("line", { x1: x(v), x2: x(v), y1: bottom + 2, y2: bottom + 18, stroke: "var(--accent)", "stroke-width": 2, "data-level": i }, s("title", {}, `σ ${short(v)}`))));
    else nodes.forEach((v, i) => parts.push(tick(v, i, x(v), bottom, top)));
    chart.replaceChildren(...parts);
    if (focused !== undefined) chart.querySelector(`[data-tick="${focused}"]`)?.focus({ preventScroll: true });
    drawSheets(d);
    const e = d.errors;
    note.textContent = e?.reason || (e ? "" : "measuring the steps…");
    legend.replaceChildren(h("span", { class: "key" }, h("span", { class: "chip", style: "background: var(--accent)" }), `this grid, the baseline${e?.total ? `: Σ error ${e.total}` : ""}`),
      ...(d.other ? [h("span", { class: "key" }, h("span", { class: "chip", style: "background: var(--c3)" }), `${d.other.label}${d.other.errors?.total ? `: Σ error ${d.other.errors.total}` : ""}`)] : []),
      h("span", {}, `local error of each step, data units, mean ± 1 standard error${e?.n ? `, n = ${e.n}` : ""}.${d.fixed ? "" : " Double click adds a tick, Del removes one."}`));
  }

  /** What both draw from the same noise: pictures, or points of the plane. */
  let sheeted = "";
  function drawSheets(d) {
    const all = [[d.dragged ? "this grid, dragged" : "this grid", "var(--accent)", d.preview], ...(d.other ? [[d.other.label, "var(--c3)", d.other.preview]] : [])].filter(([, , p]) => p);
    const key = JSON.stringify(all);
    if (key === sheeted) return;
    sheeted = key;
    sheets.replaceChildren(...all.map(([name, color, p]) => {
      const words = `First ${p.n} samples of ${name}`;
      const size = 2 * p.extent, at = (v, flip) => ((flip ? -v : v) + p.extent) / size * 100;
      const body = p.sheet ? h("img", { src: p.sheet, alt: words })
        : s("svg", { viewBox: "0 0 100 100", role: "img", "aria-label": words }, ...p.points.map(([a, b]) => s("circle", { cx: at(a, false), cy: at(b, true), r: 1.1, fill: color, opacity: 0.75 })));
      return h("figure", { "data-preview": name }, body, h("figcaption", {}, h("span", { class: "chip", style: `background: ${color}` }), ` ${name}: the same noise, n = ${p.n}`));
    }));
  }

  function tick(v, i, at, bottom, top) {
    const node = s("g", { class: `tick${moving === i ? " held" : ""}`, tabindex: 0, role: "slider", "data-tick": i, "aria-label": `noise level ${i + 1}`, "aria-valuenow": v, "aria-valuetext": `σ ${short(v)}`, "aria-orientation": "horizontal" },
      s("rect", { x: at - 8, y: bottom - 8, width: 16, height: 30, fill: "transparent" }), s("line", { x1: at, x2: at, y1: bottom - 6, y2: bottom + 8 }), s("rect", { class: "handle", x: at - 5, y: bottom + 4, width: 10, height: 14, rx: 3 }), s("title", {}, `σ ${short(v)}`),
      moving === i ? s("text", { x: clamp(at, 60, geometry.end), y: top, "text-anchor": "middle", class: "title" }, `σ ${short(v)}`) : "");
    node.addEventListener("keydown", (e) => {
      const step = { ArrowLeft: 1.03, ArrowRight: 1 / 1.03, PageUp: 1.2, PageDown: 1 / 1.2 }[e.key];
      if (step) { e.preventDefault(); e.stopPropagation(); move(i, nodesNow()[i] * step, true); }
      if ((e.key === "Delete" || e.key === "Backspace") && nodesNow().length > 1) { e.preventDefault(); commit(nodesNow().filter((_, k) => k !== i)); }
      if (e.key === "Escape" && held) { e.stopPropagation(); held = null; moving = null; draw(); }
    });
    return node;
  }
  const place = (e) => geometry.sigmaAt(e.clientX - chart.getBoundingClientRect().left);
  chart.addEventListener("pointerdown", (e) => {
    const grip = e.target.closest?.(".tick");
    if (!grip || e.button) return;
    moving = Number(grip.dataset.tick);
    chart.setPointerCapture(e.pointerId);
    grip.focus({ preventScroll: true, focusVisible: false });
  });
  chart.addEventListener("pointermove", (e) => { if (moving !== null) move(moving, place(e), false); });
  const drop = (e) => {
    if (moving === null) return;
    const nodes = held;
    moving = null;
    if (e.type === "pointerup" && nodes) commit(nodes); else { held = null; draw(); }
  };
  chart.addEventListener("pointerup", drop);
  chart.addEventListener("pointercancel", drop);
  chart.addEventListener("dblclick", (e) => {
    if (e.target.closest?.(".tick") || !geometry || model.data.fixed) return;
    const v = round(place(e)), nodes = nodesNow();
    if (nodes.every((n) => Math.abs(Math.log(n / v)) > 0.01)) commit([...nodes, v].sort((a, b) => b - a));
  });
  model.on("data", draw);
  draw();
  new ResizeObserver(draw).observe(chart);
  return pane;
}
