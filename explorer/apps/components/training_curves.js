/** Quality, loss, gradient norms and straightness along one axis of training; bands of one standard error. */
export function render({ model, el }) {
  const spot = spotOf(model.page_id), send = (message) => model.send_msg(message);
  let frames = new Map(), charts = [], key = "";
  const refit = h("button", { class: "btn small", type: "button", title: "Fit the frames to what is shown", onclick: () => { frames = new Map(); spot.end = 0; draw(); } }, "refit");
  const row = h("div", { class: "row" });
  const pane = h("section", { class: "pane card curves", "aria-label": "Curves of training" }, h("div", { class: "head" }, h("h2", { style: "flex: 1" }, "While it trains"), refit), row);
  const DASHES = ["", "5 3", "2 3", "8 3 2 3"];

  function draw() {
    const d = model.data;
    if (!d.charts) return;
    const runs = `${d.by} ${d.runs.join(" ")}`;
    if (runs !== key) { key = runs; frames = new Map(); }
    const ends = d.charts.flatMap((c) => c.lines.flatMap((l) => l.x.slice(-1)));
    spot.reach(d.runs.join(" "), d.by, Math.max(0, ...ends, ...d.reach.filter(Boolean)));
    if (charts.length !== d.charts.length) {
      charts = d.charts.map(() => s("svg", { role: "img", tabindex: 0 }));
      row.replaceChildren(...charts.map((chart, i) => h("figure", { "data-chart": d.charts[i].key }, h("figcaption"), chart)));
      charts.forEach(listen);
    }
    d.charts.forEach((c, i) => { caption(row.children[i].firstChild, c, i); drawOne(charts[i], c, d); });
    spot.tell("axis");
    light();
  }

  function caption(node, c, i) {
    const d = model.data, last = i === d.charts.length - 1;
    const about = h("span", { class: "said" }, c.about);
    if (!last || d.extras.length < 2) { node.replaceChildren(h("b", {}, c.title), about); return; }
    const options = JSON.stringify(d.extras);
    let pick = node.querySelector("select");
    if (!pick || pick.dataset.options !== options) {
      pick = h("select", { "aria-label": "What this curve shows", "data-part": "extra", onchange: () => send({ type: "look", extra: pick.value }) }, d.extras.map((name) => h("option", { value: name }, name)));
      pick.dataset.options = options;
      node.replaceChildren(pick, about);
    } else node.querySelector(".said").textContent = c.about;
    pick.value = d.extra;
  }

  function drawOne(chart, c, d) {
    const width = chart.clientWidth || 300, height = chart.clientHeight || 150;
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    chart.setAttribute("aria-label", `${c.title} of ${c.lines.map((l) => `run ${l.letter} ${l.label}`).join(", ")}`);
    const left = 44, right = width - 12, top = 8, bottom = height - 32, place = placeOf(spot, left, right);
    chart.place = place; chart.lines = c.lines; chart.unit = c;
    const frame = frames.get(c.title) ?? frames.set(c.title, new Frame()).get(c.title);
    for (const l of c.lines) l.y.forEach((v, i) => { if (v === null || (c.log && v <= 0)) return; frame.add(v + (l.se?.[i] || 0)); frame.add(c.log ? v : v - (l.se?.[i] || 0)); });
    if (frame.empty || !spot.end) {
      chart.replaceChildren(s("text", { x: (left + right) / 2, y: height / 2 - 8, "text-anchor": "middle" }, c.lines.length || d.waiting ? c.missing : "no run is shown"), ...trainingAxis(spot, place, bottom));
      Object.assign(chart, { cursor: null, now: null });
      return;
    }
    const floor = c.log ? Math.max(frame.low, frame.high * 1e-5) : frame.low, map = c.log ? (v) => Math.log(Math.max(v, floor)) : (v) => v;
    const lo = map(floor), hi = map(frame.high), pad = 0.07 * (hi - lo || Math.abs(hi) || 1);
    const base = c.log || lo < 0 || lo > 0.5 * hi ? lo - pad : 0;
    const y = (v) => bottom - (map(v) - base) / (hi + pad - base || 1) * (bottom - top);
    let levels = c.log ? decadesBetween(floor, frame.high) : ticks(base, hi + pad, 4);
    if (levels.length < 2) levels = ticks(floor, frame.high, 3);
    const parts = (levels.length ? levels : [frame.high]).flatMap((v) => [s("line", { class: "gridline", x1: left, x2: right, y1: y(v), y2: y(v) }), s("text", { x: left - 5, y: y(v) + 4, "text-anchor": "end" }, short(v))]);
    parts.push(...trainingAxis(spot, place, bottom));
    const labels = [];
    for (const l of c.lines) {
      const points = l.x.map((v, i) => [place.x(v), l.y[i], l.se?.[i] || 0]).filter((p) => p[1] !== null && (!c.log || p[1] > 0));
      if (!points.length) continue;
      if (l.se) parts.push(s("polygon", { points: [...points.map((p) => `${p[0]},${y(p[1] + p[2])}`), ...points.toReversed().map((p) => `${p[0]},${y(c.log ? Math.max(p[1] - p[2], floor) : p[1] - p[2])}`)].join(" "), fill: l.color, opacity: 0.2 }));
      parts.push(s("polyline", { points: points.map((p) => `${p[0]},${y(p[1])}`).join(" "), fill: "none", stroke: l.color, "stroke-width": 1.7, "stroke-linejoin": "round", "stroke-dasharray": DASHES[l.dash % 4] }));
      if ((l.dots && points.length < 40) || points.length === 1) parts.push(...points.map((p) => s("circle", { cx: p[0], cy: y(p[1]), r: 2.2, fill: l.color })));
      const end = points.at(-1), text = [d.runs.length > 1 ? l.letter : "", l.label].filter(Boolean).join(" ");
      if (text) labels.push([end[0], y(end[1]), text, l.color]);
    }
    labels.sort((a, b) => a[1] - b[1]);
    labels.forEach(([px, py, text, color], i) => {            // beside the end of its line, moved aside where two meet
      const at = labels[i][4] = Math.max(clamp(py - 6, top + 9, bottom - 4), i ? labels[i - 1][4] + 12 : 0);
      const flip = px + 7 * text.length > right;
      parts.push(s("text", { x: flip ? right - 2 : px + 4, y: at, "text-anchor": flip ? "end" : "start", class: "own", style: `fill: ${color}` }, text));
    });
    const cursor = s("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" }), now = s("line", { class: "now", y1: top, y2: bottom, visibility: "hidden" });
    chart.replaceChildren(...parts, now, cursor);
    Object.assign(chart, { cursor, now });
  }

  function light() {
    charts.forEach((chart, i) => {
      if (!chart.cursor) return;
      const mark = (line, v) => { line.setAttribute("visibility", v === null ? "hidden" : "visible"); if (v !== null) { line.setAttribute("x1", chart.place.x(v)); line.setAttribute("x2", chart.place.x(v)); } };
      mark(chart.cursor, spot.at); mark(chart.now, spot.open);
      const said = row.children[i].querySelector(".said");
      if (!said) return;
      if (spot.at === null) { said.textContent = chart.unit.about; return; }
      said.textContent = chart.lines.map((l) => {
        let best = -1;
        l.x.forEach((v, k) => { if (l.y[k] !== null && (best < 0 || Math.abs(v - spot.at) < Math.abs(l.x[best] - spot.at))) best = k; });
        return best < 0 ? "" : `${[model.data.runs.length > 1 ? l.letter : "", l.label].filter(Boolean).join(" ")} ${short(l.y[best])}${l.se?.[best] ? ` ± ${short(l.se[best])}` : ""}`;
      }).filter(Boolean).join("  ·  ") + `  at ${amount(spot.at, spot.by)}`;
    });
  }

  function listen(chart) {
    const at = (e) => chart.place.value(e.clientX - chart.getBoundingClientRect().left);
    chart.addEventListener("pointermove", (e) => { if (chart.place) { spot.at = at(e); spot.tell("point"); } });
    chart.addEventListener("pointerleave", () => { spot.at = null; spot.tell("point"); });
    chart.addEventListener("click", (e) => { if (chart.place) spot.seek(at(e)); });
  }
  const deaf = spot.listen((what) => { if (what === "point" || what === "book") light(); });
  model.on("remove", deaf);
  model.on("data", draw);
  draw();
  new ResizeObserver(draw).observe(row);
  return pane;
}
