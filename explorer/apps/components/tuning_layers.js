/** Step by block: what each step of the trial that is looked at leaves out of the network. */
export function render({ model, el }) {
  const note = h("span", { class: "note", "data-part": "layers-note" });
  const chart = s("svg", { role: "img" }), said = h("p", { class: "fine", "data-part": "layers-words" });
  const pane = h("section", { class: "pane card layers", "aria-label": "Layers left out" }, h("div", { class: "head" }, h("h2", {}, "Layers left out"), note), h("div", { class: "scroll" }, chart), said);
  const tip = tooltip(pane);

  function draw() {
    const d = model.data, there = Boolean(d.levels);
    pane.hidden = !there;
    el.style.display = there ? "" : "none";
    tip.hide();
    if (!there) return;
    note.textContent = `${d.trial ? `trial ${d.trial}` : "the baseline"}: ${d.acting} of ${d.full} blocks act in one sample's run`;
    const row = 15, left = 132, top = 8, n = d.levels.length, room = (pane.clientWidth || 640) - 34;
    const width = Math.max(room, left + 22 * n + 10), cell = clamp((width - left - 10) / n, 14, 64), bottom = top + row * d.blocks.length;
    chart.setAttribute("viewBox", `0 0 ${width} ${bottom + 36}`);
    chart.style.width = `${width}px`; chart.style.height = `${bottom + 36}px`;
    const parts = [];
    d.blocks.forEach((name, i) => parts.push(s("text", { x: left - 8, y: top + i * row + 11, "text-anchor": "end" }, name)));
    d.levels.forEach((level, k) => {
      const x = left + k * cell;
      d.blocks.forEach((name, i) => {
        const off = level.out.includes(i);
        const box = s("rect", { x: x + 1, y: top + i * row + 1, width: cell - 2, height: row - 2, rx: 2, fill: off ? "var(--c3)" : "var(--sheet)", "data-block": i, "data-level": k, "data-out": off ? "yes" : null });
        box.addEventListener("pointerenter", () => tip.show(box, h("div", {}, h("b", {}, name), ` ${off ? "left out" : "acts"}`), h("div", { class: "range" }, `step ${k + 1}, σ ${short(level.sigma)}`)));
        box.addEventListener("pointerleave", tip.hide);
        parts.push(box);
      });
      if (n <= 24 || k % Math.ceil(n / 24) === 0) parts.push(s("text", { x: x + cell / 2, y: bottom + 14, "text-anchor": "middle" }, short(level.sigma)));
    });
    parts.push(s("text", { x: left - 8, y: bottom + 14, "text-anchor": "end", class: "title" }, "σ"), s("text", { x: left, y: bottom + 30 }, "noise"), s("text", { x: left + n * cell, y: bottom + 30, "text-anchor": "end" }, "data"));
    chart.replaceChildren(...parts);
    const words = d.levels.map((level) => `σ ${short(level.sigma)}: ${level.out.length ? level.out.map((i) => d.blocks[i]).join(", ") : "none"}`);
    chart.setAttribute("aria-label", `Blocks left out at each step. ${words.join("; ")}`);
    said.textContent = "Coloured: left out. A block's shortcut stays, so that the step costs less and the picture keeps its size. Top of the list: the first block to act.";
  }
  model.on("data", draw);
  draw();
  new ResizeObserver(draw).observe(pane);
  return pane;
}
