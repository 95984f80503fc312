/** Two knobs against the objective: coarse cells first, the number with its error under the pointer, a click opens that state in the Lab. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const axis = (which) => {
    const knob = h("select", { "aria-label": `Knob along ${which}`, "data-part": `map-${which}`, onchange: () => send({ type: "axis", which, knob: knob.value }) });
    const low = numberField({ "aria-label": `${which} from`, "data-part": `map-${which}-low` }, (value) => send({ type: "axis", which, low: value, high: high.valueAsNumber }));
    const high = numberField({ "aria-label": `${which} to`, "data-part": `map-${which}-high` }, (value) => send({ type: "axis", which, low: low.valueAsNumber, high: value }));
    return { knob, low, high, node: h("div", { class: "ends" }, h("b", {}, which === "x" ? "→" : "↑"), knob, low, h("span", {}, "–"), high) };
  };
  const axes = { x: axis("x"), y: axis("y") };
  const go = h("button", { class: "btn small", type: "button", "data-act": "map", title: "Measure the objective on a grid of both knobs around the baseline, coarse cells first (m)", onclick: () => send({ type: model.job.running ? "cancel" : "map" }) }, "Measure");
  const fill = h("i"), bar = h("div", { class: "bar", role: "progressbar", "aria-label": "Progress of the map", "aria-valuemin": 0, "aria-valuemax": 100 }, fill), words = h("span", { "data-part": "map-job" });
  const chart = s("svg", { role: "group", "aria-label": "Map of two knobs" }), ramp = h("div", { class: "ramp" }), caption = h("p", { class: "fine", "data-part": "map-caption" });
  const pane = h("section", { class: "pane card map", "aria-label": "Map of two knobs" }, h("div", { class: "head" }, h("h2", { style: "flex: 1" }, "Map of two knobs"), go),
    axes.x.node, axes.y.node, h("div", { class: "go" }, bar, words), chart, ramp, caption);
  const tip = tooltip(pane);
  let offered = "";

  function draw() {
    const d = model.data, m = d.map;
    if (!d.offers) return;
    const key = JSON.stringify(d.offers);
    if (key !== offered) {
      offered = key;
      for (const a of Object.values(axes)) a.knob.replaceChildren(...d.offers.map((o) => h("option", { value: o.name, title: o.doc }, o.title)));
    }
    for (const [which, a] of Object.entries(axes)) if (d.axes[which]) { a.knob.value = d.axes[which].knob; a.low.show(d.axes[which].low); a.high.show(d.axes[which].high); }
    go.disabled = Boolean(d.missing);
    chart.toggleAttribute("hidden", !m); ramp.hidden = !m || !m.best;
    caption.textContent = d.missing || (m ? `${m.name || "objective"} around ${m.of}, n = ${m.n}; ${m.done} of ${m.count} cells${m.stale ? "; the baseline has changed since" : ""}. Dots: not distinguishable from the best (paired, 2 standard errors). Click: that state in the Lab.`
      : "How the objective depends on two knobs together, on the same noise for every cell. Choose them and press Measure.");
    tip.hide();
    if (!m) return;
    const width = chart.clientWidth || 300, height = chart.clientHeight || width * 0.92, left = 46, bottom = height - 34, right = width - 6, top = 4;
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    chart.classList.toggle("stale", m.stale && !model.job.running);
    const cw = (right - left) / m.x.values.length, ch = (bottom - top) / m.y.values.length;
    const good = m.cells.filter((c) => Number.isFinite(c.value)), values = good.map((c) => c.value).sort((a, b) => a - b);
    const low = values[0], high = values[Math.min(values.length - 1, Math.floor(values.length * 0.95))] ?? low;
    const logs = low > 0 && high / low > 8, share = (v) => (high > low ? (logs ? Math.log(v / low) / Math.log(high / low) : (v - low) / (high - low)) : 0);
    const parts = [s("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "var(--sheet)", rx: 3 })];
    for (const c of m.cells) {
      const x = left + c.i * cw, y = bottom - (c.j + 1) * ch, at = `${m.x.title} ${short(m.x.values[c.i])}, ${m.y.title} ${short(m.y.values[c.j])}`;
      const best = m.best && m.best[0] === c.i && m.best[1] === c.j, fails = !Number.isFinite(c.value);
      const cell = s("a", { class: "cell", href: c.link, "data-cell": `${c.i},${c.j}`, "aria-label": `${at}: ${fails ? c.failed : c.text}` },
        s("rect", { x: x + 0.5, y: y + 0.5, width: Math.max(cw - 1, 1), height: Math.max(ch - 1, 1), rx: 2, fill: fails ? "var(--bad-wash)" : shade(share(c.value)), stroke: best ? "var(--ink)" : "none", "stroke-width": best ? 2 : 0 }),
        fails ? s("text", { x: x + cw / 2, y: y + ch / 2 + 4, "text-anchor": "middle", style: "fill: var(--bad)" }, "×") : "",
        c.tie ? s("circle", { cx: x + cw / 2, cy: y + ch / 2, r: 2.6, fill: share(c.value) < 0.5 ? "#16191d" : "#fff" }) : "");
      const tell = () => tip.show(cell, h("div", {}, h("b", {}, fails ? "no number" : c.text), c.nfe ? `  ${c.nfe} NFE` : ""), h("div", { class: "range" }, at), fails ? h("div", { class: "why" }, c.failed) : h("div", { class: "range" }, best ? "the best cell" : c.tie ? "not distinguishable from the best" : "worse than the best"), h("div", { class: "range" }, "click: open in the Sampler Lab"));
      cell.addEventListener("pointerenter", tell); cell.addEventListener("focus", () => { if (cell.matches(":focus-visible")) tell(); });
      cell.addEventListener("pointerleave", tip.hide); cell.addEventListener("blur", tip.hide);
      parts.push(cell);
    }
    const some = (values, most) => values.map((v, i) => [v, i]).filter(([, i]) => i % Math.ceil(values.length / most) === 0);
    for (const [v, i] of some(m.x.values, 5)) parts.push(s("text", { x: left + (i + 0.5) * cw, y: bottom + 14, "text-anchor": "middle" }, short(v)));
    for (const [v, j] of some(m.y.values, 9)) parts.push(s("text", { x: left - 5, y: bottom - (j + 0.5) * ch + 4, "text-anchor": "end" }, short(v)));
    parts.push(s("text", { x: (left + right) / 2, y: bottom + 29, "text-anchor": "middle", class: "title" }, m.x.title), s("text", { x: 11, y: (top + bottom) / 2, "text-anchor": "middle", class: "title", transform: `rotate(-90 11 ${(top + bottom) / 2})` }, m.y.title));
    chart.replaceChildren(...parts);
    if (values.length) ramp.replaceChildren(h("span", {}, short(low)), h("i", { style: `background: linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(shade).join(", ")})` }), h("span", {}, `${short(high)}${logs ? ", log" : ""}`));
  }
  function drawJob() {
    const j = model.job;
    go.textContent = j.running ? "Stop" : "Measure";
    bar.hidden = !j.running;
    fill.style.width = `${100 * (j.fraction || 0)}%`;
    bar.setAttribute("aria-valuenow", Math.round(100 * (j.fraction || 0)));
    words.textContent = j.text || "";
    bar.parentElement.hidden = !j.running;
  }
  model.on("data", draw);
  model.on("job", () => { drawJob(); });
  draw(); drawJob();
  new ResizeObserver(draw).observe(chart);
  return pane;
}
