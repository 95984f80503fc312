export function render({ model, el }) {
  const across = new Frame(), down = new Frame();
  let sort = { by: null, up: true }, metric = null;

  const body = h("tbody");
  const heading = (by, words) => h("th", { scope: "col" }, h("button", { type: "button", title: "Sort", onclick: () => { sort = { by, up: sort.by === by ? !sort.up : true }; draw(); } }, words));
  const valueHead = h("span", {}, "value ± se");
  const table = h("table", {}, h("thead", {}, h("tr", {}, heading(null, "setting"), heading("nfe", "NFE"), heading("value", valueHead), heading("n", "n"))), body);
  const verdict = h("div", { class: "verdict", "data-part": "verdict", "aria-live": "polite" });
  const chart = s("svg", { role: "group", "aria-label": "Number of network evaluations against the metric" });
  const caption = h("figcaption");
  const reframe = h("button", { class: "btn", type: "button", style: "font-size: 11.5px; padding: 0 8px", title: "Fit the frame to what is shown", onclick: () => { across.reset(); down.reset(); draw(); } }, "refit");
  const clear = h("button", { class: "btn", type: "button", style: "font-size: 11.5px; padding: 0 8px", "data-act": "clear", onclick: () => { across.reset(); down.reset(); model.send_msg({ type: "clear" }); } }, "clear");
  const pane = h("section", { class: "pane card history", "aria-label": "History" }, h("div", { class: "head" }, h("h2", {}, "History"), reframe, clear),
    h("div", { class: "scroll" }, table), verdict, h("figure", {}, chart, caption));
  const tip = tooltip(pane);
  const recall = (key) => model.send_msg({ type: "recall", key });

  function draw() {
    const d = model.data;
    if (d.metric !== metric) { metric = d.metric; across.reset(); down.reset(); }
    valueHead.textContent = d.metric ? `${d.short_metric} ± se` : "value ± se";
    const rows = sort.by ? [...d.rows].sort((a, b) => (sort.up ? 1 : -1) * ((a[sort.by] ?? Infinity) - (b[sort.by] ?? Infinity))) : d.rows;
    body.replaceChildren(...rows.map((r) => h("tr", { class: `row${r.current ? " current" : ""}`, "data-key": r.key, title: r.title, onclick: () => recall(r.key) },
      h("td", {}, h("div", { class: "name" }, h("span", { class: "chip", style: `background: ${r.color}` }), r.letter ? h("span", { class: "letter" }, r.letter) : "",
        h("button", { class: "text", type: "button" }, r.label),
        r.pinned ? h("button", { class: "off", type: "button", title: "Unpin", "aria-label": "Unpin A", onclick: (e) => { e.stopPropagation(); model.send_msg({ type: "unpin" }); } }, "✕") : "")),
      h("td", {}, r.nfe ?? "–"),
      h("td", {}, r.text ? [r.text[0], h("span", { class: "pm" }, ` ± ${r.text[1]}`)] : "…"),
      h("td", { class: "pm" }, h("span", { class: "pm" }, r.n ? r.n_text : "")))));
    clear.disabled = d.rows.length < 2;
    verdict.className = `verdict ${d.verdict.kind || ""}`;
    verdict.replaceChildren(h("div", {}, d.verdict.text), d.verdict.fine ? h("div", { class: "fine" }, d.verdict.fine) : "");
    drawChart(d);
  }

  function drawChart(d) {
    const width = chart.clientWidth || 350, height = chart.clientHeight || 210;
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const dots = d.rows.filter((r) => Number.isFinite(r.value) && r.comparable && r.settled);
    for (const r of dots) { across.add(r.nfe); down.add(Math.max(r.value - r.se, 0), r.value + r.se); }
    caption.textContent = dots.length ? `${d.metric} against network evaluations per sample; bars ± 1 standard error; n as in the table.` : "";
    if (!dots.length || across.empty) { chart.replaceChildren(); return; }
    const left = 44, right = 12, top = 10, bottom = 30;
    const lowX = Math.log(across.low / 1.35), highX = Math.log(across.high * 1.35);
    const pad = 0.08 * (down.high - down.low || Math.abs(down.high) || 1);
    const lowY = Math.min(down.low - pad, down.low >= 0 && down.low < 0.35 * down.high ? 0 : Infinity), highY = down.high + pad;
    const x = (v) => left + (Math.log(v) - lowX) / (highX - lowX) * (width - left - right);
    const y = (v) => top + (highY - v) / (highY - lowY) * (height - top - bottom);
    const nfes = [1, 2, 3, 5, 7, 9, 12, 17, 25, 35, 50, 70, 100, 150, 250].filter((v) => Math.log(v) > lowX && Math.log(v) < highX);
    const keep = []; for (const v of nfes) if (!keep.length || x(v) - x(keep.at(-1)) > 30) keep.push(v);
    const parts = [
      ...ticks(lowY, highY, 5).flatMap((v) => [s("line", { class: "gridline", x1: left, x2: width - right, y1: y(v), y2: y(v) }), s("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v))]),
      s("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
      ...keep.map((v) => s("text", { x: x(v), y: height - bottom + 14, "text-anchor": "middle" }, v)),
      s("text", { x: width - right, y: height - 3, "text-anchor": "end" }, "NFE, log scale"),
      s("text", { x: left, y: height - 3 }, `${d.short_metric} ↑ worse`),
    ];
    const front = []; let best = Infinity;
    for (const r of [...dots].sort((a, b) => a.nfe - b.nfe || a.value - b.value)) if (r.value < best) { best = r.value; front.push(r); }
    if (front.length > 1) parts.push(s("polyline", { points: front.map((r) => `${x(r.nfe)},${y(r.value)}`).join(" "), fill: "none", stroke: "var(--line-strong)", "stroke-width": 1.5, "stroke-dasharray": "3 3" }));
    for (const r of [...dots].reverse()) {
      const g = s("g", { class: "mark", tabindex: 0, role: "button", "data-key": r.key, "aria-label": `${r.label}: ${r.text?.[0]} at NFE ${r.nfe}` },
        s("circle", { class: "hit", cx: x(r.nfe), cy: y(r.value), r: 11, fill: "transparent" }),
        s("line", { x1: x(r.nfe), x2: x(r.nfe), y1: y(r.value - r.se), y2: y(r.value + r.se), stroke: r.color, "stroke-width": 5, opacity: 0.25 }),
        s("circle", { cx: x(r.nfe), cy: y(r.value), r: r.current ? 5.5 : 4, fill: r.color, stroke: "var(--card)", "stroke-width": 1.5 }),
        r.letter ? s("text", { x: x(r.nfe) + 9, y: y(r.value) + 4, style: "font-weight: 700; fill: var(--ink)" }, r.letter) : "");
      g.addEventListener("click", () => recall(r.key));
      g.addEventListener("keydown", (e) => { if (e.key === "Enter") recall(r.key); });
      const tell = () => tip.show(g, h("div", {}, h("b", {}, r.letter ? `${r.letter} · ${r.label}` : r.label)), h("div", {}, `${d.metric} ${r.text?.[0]} ± ${r.text?.[1]} · NFE ${r.nfe} · n ${r.n_text}`), h("div", { class: "range" }, "click to return to this setting"));
      g.addEventListener("pointerenter", tell); g.addEventListener("focus", tell);
      g.addEventListener("pointerleave", tip.hide); g.addEventListener("blur", tip.hide);
      parts.push(g);
    }
    chart.replaceChildren(...parts);
  }

  model.on("data", draw);
  draw();
  new ResizeObserver(() => drawChart(model.data)).observe(chart);
  return pane;
}
