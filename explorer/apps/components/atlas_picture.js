/** Evaluations against Fréchet distance for every bundled model of the digits: same data, same measure, errors shown. */
export function render({ model, el }) {
  const body = h("div", {});
  const note = h("p", { class: "fine", "data-part": "caption" });
  const pane = h("section", { class: "pane card picture", "aria-label": "Cost and quality" }, h("div", { class: "head" }, h("h2", {}, "What an evaluation buys, digits")), body, note);
  const tip = tooltip(pane);
  const [wide, high, left, right, top, bottom] = [368, 300, 54, 12, 10, 40];

  function draw() {
    const d = model.data;
    if (!d.series) return;
    tip.hide();
    if (!d.series.length) {
      body.replaceChildren(h("div", { class: "empty" }, d.loading ? h("span", {}, "reading the models' cards …") : [h("b", {}, "No bundled model of the digits has a measured distance yet."), h("span", {}, "A trained model is measured when its recipe ends:"), h("code", {}, "explorer train edm --data digits")]));
      note.textContent = "";
      return;
    }
    const points = d.series.flatMap((one) => one.points);
    const lows = points.map((p) => Math.max(p.value - p.error, p.value / 3)).filter((v) => v > 0), highs = points.map((p) => p.value + p.error);
    const y0 = Math.log10(Math.min(...lows) / 1.3), y1 = Math.log10(Math.max(...highs) * 1.3), x1 = Math.log10(Math.max(40, ...points.map((p) => p.nfe)) * 1.25), x0 = Math.log10(0.8);
    const X = (nfe) => left + (Math.log10(nfe) - x0) / (x1 - x0) * (wide - left - right);
    const Y = (v) => high - bottom - (Math.log10(Math.max(v, 10 ** y0)) - y0) / (y1 - y0) * (high - top - bottom);
    const svg = s("svg", { viewBox: `0 0 ${wide} ${high}`, role: "img", "aria-label": `${d.metric} against evaluations for ${d.series.length} models` });
    for (const nfe of [1, 2, 4, 8, 16, 32, 64, 128]) {
      if (Math.log10(nfe) > x1) break;
      svg.append(s("line", { class: "gridline", x1: X(nfe), x2: X(nfe), y1: top, y2: high - bottom }), s("text", { x: X(nfe), y: high - bottom + 15, "text-anchor": "middle" }, nfe));
    }
    for (let p = Math.floor(y0); p <= Math.ceil(y1); p++) for (const m of [1, 2, 5]) {
      const v = m * 10 ** p;
      if (Math.log10(v) < y0 || Math.log10(v) > y1) continue;
      svg.append(s("line", { class: "gridline", x1: left, x2: wide - right, y1: Y(v), y2: Y(v) }), s("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, short(v)));
    }
    svg.append(s("line", { class: "axis", x1: left, x2: wide - right, y1: high - bottom, y2: high - bottom }), s("line", { class: "axis", x1: left, x2: left, y1: top, y2: high - bottom }));
    svg.append(s("text", { x: (left + wide - right) / 2, y: high - 6, "text-anchor": "middle" }, "network evaluations per sample (NFE), log scale"));
    svg.append(s("text", { x: 11, y: (top + high - bottom) / 2, "text-anchor": "middle", transform: `rotate(-90 11 ${(top + high - bottom) / 2})` }, `${d.metric}, log scale`));
    const taken = [];
    d.series.forEach((one, i) => {
      const color = `var(--c${i % 6})`;
      if (one.points.length > 1) svg.append(s("path", { class: "run", stroke: color, d: one.points.map((p, k) => `${k ? "L" : "M"}${X(p.nfe)} ${Y(p.value)}`).join("") }));
      for (const p of one.points) {
        const words = [h("b", {}, one.model), h("div", {}, `${d.metric} ${p.text}`), h("div", { class: "range" }, `${p.nfe} NFE, n = ${p.n.toLocaleString("en").replace(/,/g, " ")}`)];
        const link = s("a", { href: `./lab#lab?model=${one.model}`, "aria-label": `${one.model}: ${p.text} at ${p.nfe} NFE; open in the Sampler Lab` },
          s("line", { class: "bar", stroke: color, x1: X(p.nfe), x2: X(p.nfe), y1: Y(p.value - p.error), y2: Y(p.value + p.error) }),
          s("circle", { class: "dot", fill: color, cx: X(p.nfe), cy: Y(p.value), r: 5 }));
        for (const on of ["pointerenter", "focus"]) link.addEventListener(on, () => tip.show(link, ...words));
        for (const off of ["pointerleave", "blur"]) link.addEventListener(off, () => tip.hide());
        svg.append(link);
      }
      const last = one.points.at(-1), far = X(last.nfe) > wide * 0.6;
      const x = X(last.nfe) + (far ? -10 : 10), length = 6 * one.model.length, from = far ? x - length : x;
      const free = (y) => y > top + 8 && y < high - bottom - 3 && !taken.some((t) => Math.abs(t.y - y) < 13 && t.from < from + length && from < t.from + t.length);
      const near = [0, ...Array.from({ length: 20 }, (_, k) => [13 * (k + 1), -13 * (k + 1)]).flat()].map((shift) => Y(last.value) + 4 + shift);
      const y = near.find(free) ?? near[0];                     // the nearest place where it covers no other name
      taken.push({ y, from, length });
      svg.append(s("text", { class: "who", x, y, "text-anchor": far ? "end" : "start" }, one.model));
    });
    body.replaceChildren(svg);
    const n = d.n.map((v) => v.toLocaleString("en").replace(/,/g, " ")).join(" or ");
    note.textContent = `${d.metric} from ${d.reference}, corrected for bias; n = ${n} samples, bars are one standard error. Read from the models' cards; a dot opens its model in the Sampler Lab.`;
  }
  model.on("data", draw);
  draw();
  return pane;
}
