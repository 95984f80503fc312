/** Which step cost what, where the cost of the coupling goes, and the coupling microscope. */
export function render({ model, el }) {
  const clock = clockOf(model.page_id), send = (message) => model.send_msg(message);
  const bars = h("div", { class: "bars" }), said = h("p", { class: "fine" });
  const stacks = h("div", { class: "stacks" }), sum = h("p", { class: "fine" });
  const sight = h("div", { class: "sight", "data-part": "microscope" });
  const pane = h("section", { class: "pane side", "aria-label": "Errors, budget and microscope" },
    h("section", { class: "card", "aria-label": "Error by step" }, h("h2", {}, "Which step cost what"), bars, said),
    h("section", { class: "card", "aria-label": "Budget" }, h("h2", {}, "Budget of the coupling"), stacks, sum),
    h("section", { class: "card", "aria-label": "Coupling microscope" }, h("h2", {}, "Coupling microscope"), sight));
  const tip = tooltip(pane);
  let wide = new Frame(), tall = new Frame(), space = null, cursors = [];

  function draw() {
    const d = model.data;
    if (!d.opened) return;
    if (d.space !== space) { space = d.space; wide = new Frame(); tall = new Frame(); }
    drawBars(d); drawBudget(d); drawSight(d);
    light();
  }

  function drawBars(d) {
    for (const e of d.errors) {
      for (const v of e.sigmas || []) if (v > 0) wide.add(v);
      for (const [i, v] of (e.cost || []).entries()) tall.add(v + (e.se[i] || 0), Math.min(v, 0));
    }
    said.textContent = d.errors_note;
    cursors = [];
    bars.replaceChildren(...d.errors.map((e, r) => {
      const head = h("div", { class: "barhead", style: `--own: ${e.color}` }, h("b", { class: "letter" }, e.letter), h("span", {}, e.total || e.words));
      if (!e.cost) return h("div", {}, head, e.failed ? h("p", { class: "fine" }, e.failed) : h("div", { class: "ghost" }));
      const width = bars.clientWidth || 280, last = r === d.errors.length - 1, height = 50 + (last ? 30 : 0);
      const axis = spine(wide.low, wide.high, 4, width - 4), low = Math.min(tall.low, 0), high = tall.high || 1;
      const y = (v) => 46 - (v - low) / (high - low || 1) * 42;
      const chart = s("svg", { viewBox: `0 0 ${width} ${height}`, style: `height: ${height}px`, role: "img", "aria-label": `Error by step of ${e.letter}` });
      const parts = [s("line", { class: "gridline", x1: 4, x2: width - 4, y1: y(0), y2: y(0) })];
      e.cost.forEach((v, i) => {
        const x1 = axis.x(e.sigmas[i]), x2 = axis.x(e.sigmas[i + 1]), gap = x2 - x1 > 4 ? 0.8 : 0.2;
        parts.push(s("rect", { x: x1 + gap / 2, width: Math.max(x2 - x1 - gap, 0.6), y: Math.min(y(v), y(0)), height: Math.max(Math.abs(y(v) - y(0)), 0.6), fill: e.color, opacity: v < 0 ? 0.45 : 0.9 }));
        if (x2 - x1 > 5) parts.push(s("line", { x1: (x1 + x2) / 2, x2: (x1 + x2) / 2, y1: y(v - e.se[i]), y2: y(v + e.se[i]), class: "whisker" }));
        const hit = s("rect", { x: x1, width: Math.max(x2 - x1, 1), y: 0, height: 48, fill: "transparent" });
        hit.addEventListener("pointerenter", () => { clock.hover = e.sigmas[i]; clock.tell("hover"); tip.show(hit, h("div", {}, h("b", {}, `step ${i + 1} of ${e.cost.length}`), ` σ ${short(e.sigmas[i])} → ${short(e.sigmas[i + 1])}`), h("div", {}, `${short(v)} ± ${short(e.se[i])} data units of the final error`), h("div", { class: "range" }, `missed by ${short(e.local[i])} where it was taken`)); });
        hit.addEventListener("pointerleave", () => { clock.hover = null; clock.tell("hover"); tip.hide(); });
        hit.addEventListener("click", () => clock.seek(clock.place(e.sigmas[i])));
        parts.push(hit);
      });
      if (last) parts.push(...spineAxis(axis, 50, false), s("text", { x: 4, y: 78, }, "noise"), s("text", { x: width - 30, y: 78, "text-anchor": "end" }, "σ"));
      const cursor = s("line", { class: "cursor", y1: 2, y2: 48, visibility: "hidden" });
      parts.push(cursor);
      chart.append(...parts);
      cursors.push([cursor, axis]);
      return h("div", {}, head, chart);
    }));
  }

  function drawBudget(d) {
    const most = Math.max(...d.budget.map((b) => (b.parts ? Math.max(b.cost, b.parts.reduce((a, p) => a + p.value, 0)) : 0)), 1e-9);
    stacks.replaceChildren(...d.budget.map((b) => {
      const head = h("b", { class: "letter", style: `--own: ${b.color}` }, b.letter);
      if (!b.parts) return h("div", { class: "stack" }, head, b.failed ? h("p", { class: "fine" }, b.failed) : h("div", { class: "ghost thin" }));
      const segments = b.parts.map((p, i) => {
        const cell = h("i", { style: `width: ${100 * p.value / most}%; background: ${b.color}; opacity: ${[0.95, 0.58, 0.3][i]}` });
        cell.addEventListener("pointerenter", () => tip.show(cell, h("div", {}, h("b", {}, p.name), ` ${p.text}`), h("div", { class: "range" }, p.about)));
        cell.addEventListener("pointerleave", tip.hide);
        return cell;
      });
      const tick = h("em", { style: `left: ${100 * b.cost / most}%`, title: `cost ${b.cost_text}` });
      return h("div", { class: "stack" }, head, h("div", { class: "track" }, segments, tick), h("div", { class: "fine numbers" }, b.text));
    }));
    sum.replaceChildren(...d.budget_note.map((words, i) => (i < 3 ? h("span", { class: "key" }, h("i", { style: `opacity: ${[0.95, 0.58, 0.3][i]}` }), words) : h("span", {}, words))));
  }

  const shapes = {
    "": null, "upper half": [[-0.98, 0], [0.98, 0], [0.98, 0.98], [-0.98, 0.98]], "right half": [[0, -0.98], [0.98, -0.98], [0.98, 0.98], [0, 0.98]],
    "the middle": [...Array(24).keys()].map((i) => [0.2 * Math.cos(i * Math.PI / 12), 0.2 * Math.sin(i * Math.PI / 12)]),
  };
  function drawSight(d) {
    const m = d.sight;
    const pick = h("select", { "aria-label": "Choose noise without a lasso", "data-part": "region",
      onchange: () => { if (shapes[pick.value]) send({ type: "select", slot: d.errors[0].slot, sigma: d.sigma_max, loop: shapes[pick.value].map(([x, y]) => [Number(x.toFixed(3)), Number(y.toFixed(3))]) }); } },
      Object.keys(shapes).map((name) => h("option", { value: name }, name || "choose a region…")));
    if (m.empty) {
      sight.replaceChildren(h("div", { class: "empty" }, h("p", {}, m.empty), h("div", {}, pick, " ", h("button", { class: "btn small", type: "button", onclick: () => send({ type: "clear" }) }, "clear"))));
      return;
    }
    const table = m.rows ? h("table", {}, h("thead", {}, h("tr", {}, m.columns.map((c) => h("th", { title: c.title }, c.name)))),
      h("tbody", {}, m.rows.map((r) => h("tr", { style: `--own: ${r.color}` }, h("td", {}, h("b", { class: "letter" }, r.letter)), r.cells.map((cell) => h("td", { title: cell.title }, cell.text, cell.error ? h("span", { class: "pm" }, `± ${cell.error}`) : "")))))) : "";
    if (m.all) {
      sight.replaceChildren(h("div", { class: "empty" },
        s("svg", { viewBox: "0 0 48 48", "aria-hidden": "true" }, s("path", { d: "M10 26c-4-10 6-18 17-17s16 10 11 17-14 9-20 6", "stroke-dasharray": "3 3" }), [[20, 20], [27, 17], [30, 24], [22, 27]].map(([cx, cy]) => s("circle", { cx, cy, r: 2 }))),
        h("p", {}, "Drag a loop around noise in any square: the same noise lights up in all of them. At the data end it asks which noise came here."), pick),
        m.rows ? h("p", { class: "lead" }, "all ", h("b", {}, m.total), " noise points") : "", table, m.note ? h("p", { class: "fine" }, m.note) : "");
      return;
    }
    sight.replaceChildren(
      h("p", { class: "lead" }, h("b", {}, m.count), ` of ${m.total} noise points`, h("button", { class: "btn small", type: "button", "data-act": "clear", onclick: () => send({ type: "clear" }) }, "clear")),
      table || h("div", { class: "ghost" }), m.note ? h("p", { class: "fine" }, m.note) : "");
  }

  function light() {
    for (const [cursor, axis] of cursors) {
      cursor.setAttribute("visibility", clock.hover === null ? "hidden" : "visible");
      if (clock.hover !== null) { cursor.setAttribute("x1", axis.x(clock.hover)); cursor.setAttribute("x2", axis.x(clock.hover)); }
    }
  }
  const deaf = clock.listen((what) => { if (what === "hover") light(); });
  model.on("remove", deaf);
  model.on("data", draw);
  draw();
  new ResizeObserver(() => { if (model.data.opened) drawBars(model.data); }).observe(bars);
  return pane;
}
