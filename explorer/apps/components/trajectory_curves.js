/** Straightness, curvature and turning against sigma: one line per sampler in its colour, bands of one standard error. */
export function render({ model, el }) {
  const clock = clockOf(model.page_id), frames = new Map();
  let wide = new Frame(), shownModel = null, charts = [];
  const note = h("span", { class: "note", "data-part": "curve-note" });
  const refit = h("button", { class: "btn small", type: "button", title: "Fit the frames to what is shown", onclick: () => { frames.clear(); wide = new Frame(); draw(); } }, "refit");
  const row = h("div", { class: "row" });
  const facts = h("div", { class: "facts" });
  const pane = h("section", { class: "pane card curves", "aria-label": "Curves along the noise level" },
    h("div", { class: "head" }, h("h2", {}, "Along σ"), note, refit), row, facts);

  function draw() {
    const d = model.data;
    if (!d.opened) return;
    if (d.space !== shownModel) { shownModel = d.space; frames.clear(); wide = new Frame(); }
    for (const v of d.sigmas) if (v > 0) wide.add(v);
    if (row.children.length !== d.curves.length) {
      charts = d.curves.map(() => s("svg", { role: "img", tabindex: 0 }));
      row.replaceChildren(...charts.map((chart, i) => h("figure", {}, h("figcaption", {}), chart)));
      charts.forEach(listen);
    }
    d.curves.forEach((c, i) => { row.children[i].firstChild.replaceChildren(h("b", {}, c.title), ` ${c.unit}`); drawOne(charts[i], c, d); });
    facts.replaceChildren(...d.facts.map((f) => h("div", { class: "fact", style: `--own: ${f.color}` }, h("b", { class: "letter" }, f.letter),
      f.items.map((it) => h("span", { title: it.title }, h("span", { class: "muted" }, it.name), " ", it.value, it.error ? h("span", { class: "muted" }, ` ± ${it.error}`) : "")))));
    light();
  }

  function drawOne(chart, c, d) {
    const width = chart.clientWidth || 320, height = chart.clientHeight || 170;
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    chart.setAttribute("aria-label", `${c.title} by noise level; ${c.lines.map((l) => l.letter).join(", ")}`);
    const left = 44, right = 20, top = 8, bottom = height - 32;
    if (wide.empty) { chart.replaceChildren(s("text", { x: left, y: 40 }, "…")); return; }
    const axis = spine(wide.low, wide.high, left, width - right);
    const frame = frames.get(c.name) || frames.set(c.name, new Frame()).get(c.name);
    for (const l of c.lines) l.mean.forEach((v, i) => { if (Number.isFinite(v)) { frame.add(v + (l.se[i] || 0)); if (!c.log || v > 0) frame.add(c.log ? v : Math.min(v, 0)); } });
    const parts = [];
    if (frame.empty) {
      chart.replaceChildren(s("text", { x: (left + width) / 2, y: height / 2, "text-anchor": "middle" }, d.waiting ? "measuring…" : c.missing), ...spineAxis(axis, bottom));
      return;
    }
    const floor = c.log ? Math.max(frame.low, frame.high * 1e-4) : frame.low, map = c.log ? (v) => Math.log(Math.max(v, floor)) : (v) => v;
    const lo = map(floor), hi = map(frame.high), pad = 0.06 * (hi - lo || Math.abs(hi) || 1);
    const y = (v) => bottom - (map(v) - lo) / (hi + pad - lo || 1) * (bottom - top);
    const levels = c.log ? decadesBetween(floor, frame.high) : ticks(lo, hi, 4);
    for (const v of levels) parts.push(s("line", { class: "gridline", x1: left, x2: width - right, y1: y(v), y2: y(v) }), s("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end" }, short(v)));
    parts.push(...spineAxis(axis, bottom));
    const ends = [];
    for (const l of c.lines) {
      const points = l.sigma.map((v, i) => [axis.x(v), l.mean[i], l.se[i] || 0]).filter((p) => Number.isFinite(p[1]) && (!c.log || p[1] > 0));
      if (!points.length) continue;
      const up = points.map((p) => `${p[0]},${y(p[1] + p[2])}`), down = points.toReversed().map((p) => `${p[0]},${y(c.log ? Math.max(p[1] - p[2], floor) : p[1] - p[2])}`);
      parts.push(s("polygon", { points: [...up, ...down].join(" "), fill: l.color, opacity: 0.2 }),
        s("polyline", { points: points.map((p) => `${p[0]},${y(p[1])}`).join(" "), fill: "none", stroke: l.color, "stroke-width": 1.8, "stroke-linejoin": "round" }));
      if (points.length < 24) parts.push(...points.map((p) => s("circle", { cx: p[0], cy: y(p[1]), r: 2.3, fill: l.color })));
      const peak = points.reduce((a, b) => (b[1] > a[1] ? b : a));
      ends.push([peak[0], y(peak[1]), l]);
    }
    ends.sort((a, b) => a[1] - b[1]);
    ends.forEach(([px, py, l], i) => {                   // the letter stands at the line's peak, moved aside where two meet
      let at = Math.max(py - 6, top + 9);
      for (const [qx, , , q] of ends.slice(0, i)) if (Math.abs(qx - px) < 14 && Math.abs(q - at) < 12) at = q + 12;
      ends[i][3] = at;
      parts.push(s("text", { x: clamp(px, left + 6, width - right - 6), y: at, "text-anchor": "middle", class: "own", style: `fill: ${l.color}` }, l.letter));
    });
    const cursor = s("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" }), now = s("line", { class: "now", y1: top, y2: bottom });
    parts.push(now, cursor);
    chart.replaceChildren(...parts);
    Object.assign(chart, { axis, cursor, now });
  }

  function decadesBetween(low, high) {
    const out = [], few = Math.log10(high / low) < 1.6;
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) for (const m of few ? [1, 3] : [1]) { const v = m * 10 ** p; if (v >= low * 0.999 && v <= high * 1.001) out.push(v); }
    return out.length > 5 ? out.filter((_, i) => i % 2 === 0) : out;
  }

  function light() {
    for (const chart of charts) {
      if (!chart.axis) continue;
      const here = chart.axis.x(clock.sigma < SIGMA_FLOOR ? 0 : clock.sigma);
      chart.now.setAttribute("x1", here); chart.now.setAttribute("x2", here);
      const at = clock.hover;
      chart.cursor.setAttribute("visibility", at === null ? "hidden" : "visible");
      if (at !== null) { chart.cursor.setAttribute("x1", chart.axis.x(at)); chart.cursor.setAttribute("x2", chart.axis.x(at)); }
    }
    const d = model.data;
    if (clock.hover === null || !d.curves) { note.textContent = d.caption || ""; note.title = note.textContent; return; }
    const said = d.curves.map((c) => `${c.title} ${c.lines.map((l) => {
      let best = null;
      l.sigma.forEach((v, i) => { if (Number.isFinite(l.mean[i]) && (best === null || Math.abs(Math.log((v || SIGMA_FLOOR) / (clock.hover || SIGMA_FLOOR))) < best[0])) best = [Math.abs(Math.log((v || SIGMA_FLOOR) / (clock.hover || SIGMA_FLOOR))), l.mean[i]]; });
      return best ? `${l.letter} ${short(best[1])}` : "";
    }).filter(Boolean).join(" ")}`);
    note.textContent = [`σ ${short(clock.hover)}`, ...said].join("  ·  ");
    note.title = note.textContent;
  }

  function listen(chart) {
    const at = (e) => chart.axis.sigma(e.clientX - chart.getBoundingClientRect().left);
    chart.addEventListener("pointermove", (e) => { if (chart.axis) { clock.hover = at(e); clock.tell("hover"); } });
    chart.addEventListener("pointerleave", () => { clock.hover = null; clock.tell("hover"); });
    chart.addEventListener("click", (e) => { if (chart.axis) clock.seek(clock.place(at(e))); });
    chart.addEventListener("keydown", (e) => {
      const move = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
      if (!move) return;
      e.preventDefault(); e.stopPropagation();
      clock.seek(clock.u + 0.01 * move);
    });
  }
  const deaf = clock.listen((what) => { if (what === "time" || what === "hover") light(); });
  model.on("remove", deaf);
  model.on("data", draw);
  draw();
  new ResizeObserver(draw).observe(row);
  return pane;
}
