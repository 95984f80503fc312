/** x_t and the denoised prediction of one sample by step, a row of each per sampler. */
export function render({ model, el }) {
  const clock = clockOf(model.page_id);
  const note = h("span", { class: "note" });
  const strips = h("div", { class: "strips" });
  const pane = h("section", { class: "pane card film", "aria-label": "Filmstrips" }, h("div", { class: "head" }, h("h2", {}, "Filmstrip"), note), strips);

  function draw() {
    const d = model.data;
    pane.hidden = !d.strips;
    el.hidden = !d.strips;
    if (!d.strips) return;
    note.textContent = d.caption;
    const room = Math.max(4, Math.floor(((strips.clientWidth || 700) - 88) / 46));
    strips.replaceChildren(...d.strips.map((strip) => {
      const n = strip.count, keep = [...Array(n).keys()].filter((i) => n <= room || i === n - 1 || i % Math.ceil(n / (room - 1)) === 0);
      const cell = (sprite, i) => h("button", { class: "cell", type: "button", "data-sigma": strip.sigmas[i], title: i < n - 1 ? `step ${i + 1}: σ ${short(strip.sigmas[i])}` : "sample",
        style: `background-image: url(${sprite}); background-size: ${100 * n}% 100%; background-position: ${n > 1 ? 100 * i / (n - 1) : 0}% 0`, onclick: () => clock.seek(clock.place(strip.sigmas[i])) });
      return h("div", { class: "strip", style: `--own: ${strip.color}` }, h("b", { class: "letter" }, strip.letter),
        h("div", { class: "words" }, h("span", {}, "x", h("sub", {}, "t")), h("span", {}, "denoised")),
        h("div", { class: "cells" }, keep.map((i) => h("div", {}, cell(strip.noisy, i), cell(strip.clean, i), h("span", {}, i < n - 1 ? short(strip.sigmas[i]) : "0")))),
        keep.length < n ? h("span", { class: "fine" }, `every ${Math.ceil(n / (room - 1))}th step`) : "");
    }));
    light();
  }
  function light() {
    for (const strip of strips.children) {
      const cells = [...strip.querySelectorAll(".cell")], now = clock.sigma;
      const at = cells.map((c) => Number(c.dataset.sigma)), here = at.filter((v) => v >= now * 0.999 - 1e-9).at(-1) ?? at[0];
      for (const c of cells) c.classList.toggle("lit", Math.abs(Number(c.dataset.sigma) - here) < 1e-12);
    }
  }
  const deaf = clock.listen((what) => { if (what === "time") light(); });
  model.on("remove", deaf);
  model.on("data", draw);
  draw();
  new ResizeObserver(draw).observe(strips);
  return pane;
}
