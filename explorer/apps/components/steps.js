export function render({ model, el }) {
  const frames = new Map();                              // one vertical frame per curve, kept until another model is chosen
  let wide = new Frame(), chosen = null, modelKey = null, hover = null, geometry = null, past = null;

  const note = h("span", { class: "note", "data-part": "step-note", "aria-live": "off" });
  const pick = h("select", { "aria-label": "Quantity shown by step", onchange: () => { chosen = pick.value; draw(); } });
  const chart = s("svg", { role: "img", tabindex: 0, "aria-label": "Quantities by step against the noise level; arrow keys walk the steps" });
  const pane = h("section", { class: "pane card steps", "aria-label": "Steps" }, h("div", { class: "head" }, h("h2", {}, "Steps"), note, pick), chart);

  const frameOf = (name) => frames.get(name) || frames.set(name, new Frame()).get(name);

  function draw() {
    const d = model.data, ghost = model.ghost, film = model.film;
    if (!d.b) { chart.replaceChildren(s("text", { x: 16, y: 40 }, "No steps yet.")); note.textContent = ""; return; }
    if (d.model !== modelKey) { modelKey = d.model; frames.clear(); wide = new Frame(); past = null; }
    if (d.b.curves.length) past = d.b.curves;
    const waiting = !d.b.curves.length;                 // the last curves stay, faint, until the first new ones are there
    const curves = waiting ? past || [] : d.b.curves;
    const options = curves.map((c) => c.name).join();
    if (pick.dataset.options !== options) {
      pick.dataset.options = options;
      pick.replaceChildren(...curves.map((c) => h("option", { value: c.name }, c.title)));
    }
    pick.hidden = !curves.length;
    if (!curves.some((c) => c.name === chosen)) chosen = curves[0]?.name;
    pick.value = chosen;

    const width = chart.clientWidth || 600, height = Math.max(chart.clientHeight, 262);
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const left = 46, right = 14, zeroWidth = 30;
    for (const set of [d.b, d.a, ghost]) if (set) wide.add(set.sigmas.filter((v) => v > 0).map(Math.log));
    const lo = wide.low, hi = wide.high, span = hi - lo || 1;
    const end = width - right - zeroWidth;
    // Noise on the left, data on the right, as sampling runs; sigma = 0 sits behind the break at the right end.
    const x = (sigma) => (sigma > 0 ? left + (hi - Math.log(sigma)) / span * (end - left) : width - right - 8);

    const filmSide = film?.strips?.length ? Math.max(26, Math.min(48, (height - 176) / film.strips.length - 4)) : 0;
    const filmHeight = film?.strips?.length ? film.strips.length * (filmSide + 4) + 12 : 0;
    const bottom = height - filmHeight - (filmHeight ? 20 : 34);
    const tickTop = bottom - (d.a ? 34 : 20);
    const curveTop = 12, curveBottom = tickTop - 12;
    const parts = [];

    const curve = curves.find((c) => c.name === chosen);
    if (curve) {
      const frame = frameOf(chosen);
      const other = d.a?.curves.find((c) => c.name === chosen);
      for (const c of [curve, other]) if (c) frame.add(c.mean.map((v, i) => v + (c.se[i] || 0)), c.log ? c.mean.filter((v) => v > 0) : 0);
      const logs = curve.log && frame.low > 0;
      const map = logs ? Math.log : (v) => v;
      const low = map(frame.low), high = map(frame.high || 1) + 0.05 * (map(frame.high || 1) - low || 1);
      const y = (v) => curveBottom - (map(Math.max(v, logs ? frame.low : -Infinity)) - low) / (high - low || 1) * (curveBottom - curveTop);
      const marks = logs ? decades(frame.low, frame.high) : ticks(low, high, Math.max(2, Math.floor((curveBottom - curveTop) / 34)));
      for (const v of marks) {
        parts.push(s("line", { class: "gridline", x1: left, x2: width - right, y1: y(v), y2: y(v) }), s("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v)));
      }
      for (const [c, color, thin] of [[other, d.a?.color, true], [curve, d.b.color, false]]) {
        if (!c) continue;
        const points = c.sigma.map((sg, i) => [x(sg), y(c.mean[i]), c.mean[i], c.se[i]]).filter((p) => Number.isFinite(p[2]));
        const up = points.map((p) => `${p[0]},${y(p[2] + (p[3] || 0))}`), down = points.toReversed().map((p) => `${p[0]},${y(p[2] - (p[3] || 0))}`);
        parts.push(s("polygon", { points: [...up, ...down].join(" "), fill: color, opacity: 0.2 }),
          s("polyline", { points: points.map((p) => `${p[0]},${p[1]}`).join(" "), fill: "none", stroke: color, "stroke-width": thin ? 1.2 : 2, opacity: thin ? 0.75 : waiting ? 0.3 : 1 }),
          ...points.map((p) => s("circle", { cx: p[0], cy: p[1], r: thin ? 2 : 3, fill: color })));
      }
    }

    // Grid ticks: one row per setting, a ghost row while a knob is being dragged.
    const row = (set, y0, color, letter, faint) => set && [
      s("text", { x: left - 6, y: y0 + 10, "text-anchor": "end", class: faint ? "" : "strong" }, letter),
      ...set.sigmas.map((v) => s("line", { x1: x(v), x2: x(v), y1: y0, y2: y0 + 13, stroke: color, "stroke-width": 2, opacity: faint ? 0.45 : 1 }))];
    parts.push(...(row(ghost || d.b, tickTop, ghost ? "var(--accent)" : d.b.color, d.a ? "B" : "grid", Boolean(ghost)) || []));
    if (d.a) parts.push(...row(d.a, tickTop + 16, d.a.color, "A", false));

    // The shared axis.
    parts.push(s("line", { class: "axis", x1: left, x2: end + 4, y1: bottom, y2: bottom }),
      s("path", { class: "axis", d: `M${end + 4},${bottom + 4}l4,-8 M${end + 9},${bottom + 4}l4,-8 M${end + 11},${bottom}H${width - right}` }),
      s("text", { x: x(0), y: bottom + 15, "text-anchor": "middle" }, "0"),
      s("text", { x: left - 8, y: bottom + 15, "text-anchor": "end", class: "strong" }, "σ"));
    let lastLabel = -Infinity;
    for (const v of decades(Math.exp(lo), Math.exp(hi))) {
      if (x(v) - lastLabel < 34) continue;
      lastLabel = x(v);
      parts.push(s("line", { class: "axis", x1: x(v), x2: x(v), y1: bottom, y2: bottom + 4 }), s("text", { x: x(v), y: bottom + 15, "text-anchor": "middle" }, short(v)));
    }
    if (!filmHeight) {
      parts.push(s("text", { x: left, y: bottom + 31 }, "noise"), s("text", { x: width - right, y: bottom + 31, "text-anchor": "end" }, "data"),
        s("text", { x: (left + end) / 2, y: bottom + 31, "text-anchor": "middle" }, "σ = noise / signal, log scale"));
    }

    if (filmHeight) parts.push(...drawFilm(film, x, left, width - right, bottom + 26, filmSide));

    const cursor = s("line", { class: "cursor", y1: curveTop, y2: height - 4, visibility: "hidden" });
    parts.push(cursor);
    chart.replaceChildren(...parts);
    geometry = { x, sigmas: d.b.sigmas, cursor };
    light();
  }

  function decades(low, high) {
    const out = [];
    const wideSpan = Math.log10(high / low);
    for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) {
      for (const m of wideSpan > 2.2 ? [1] : [1, 2, 5]) { const v = m * 10 ** p; if (v >= low * 0.999 && v <= high * 1.001) out.push(v); }
    }
    return out.reverse();
  }

  /** Denoised predictions of one sample: each as near its noise level as its neighbours allow, the first row tied to the axis. */
  function drawFilm(film, x, left, end, top, side) {
    const parts = [], gap = side + 4, room = Math.max(2, Math.floor((end - left + 4) / gap));
    film.strips.forEach((strip, r) => {
      const n = strip.count, y = top + r * gap;
      const keep = [...Array(n).keys()].filter((i) => n <= room || i === n - 1 || i % Math.ceil(n / (room - 1)) === 0);
      const at = keep.map((i) => x(strip.sigmas[i]) - side / 2);
      at[0] = Math.max(at[0], left - side / 2);
      for (let k = 1; k < at.length; k++) at[k] = Math.max(at[k], at[k - 1] + gap);
      at[at.length - 1] = Math.min(at.at(-1), end - side);
      for (let k = at.length - 2; k >= 0; k--) at[k] = Math.min(at[k], at[k + 1] - gap);
      keep.forEach((i, k) => {
        const mark = r === 0 ? { "data-film": i } : {};
        if (r === 0) parts.push(s("path", { d: `M${x(strip.sigmas[i])},${top - 26}V${top - 10}L${at[k] + side / 2},${top - 2}`, class: "gridline", ...mark }));
        parts.push(s("svg", { x: at[k], y, width: side, height: side, viewBox: `${i} 0 1 1`, preserveAspectRatio: "none" },
          s("image", { href: strip.sprite, width: n, height: 1, preserveAspectRatio: "none" })),
        s("rect", { x: at[k], y, width: side, height: side, class: "frame", rx: 2, style: film.strips.length > 1 ? `stroke: ${strip.color}` : "", ...mark }));
      });
      parts.push(s("text", { x: 4, y: y + side / 2 + 4, class: "strong" }, strip.letter));
    });
    return parts;
  }

  function light() {
    if (!geometry) return;
    const { x, sigmas, cursor } = geometry;
    for (const node of chart.querySelectorAll("[data-film]")) node.classList.toggle("lit", hover !== null && Number(node.dataset.film) === Math.min(hover, sigmas.length - 1));
    if (hover === null) {
      cursor.setAttribute("visibility", "hidden");
      note.textContent = model.film?.caption || model.data.summary || "";
      note.title = note.textContent;
      return;
    }
    const i = clamp(hover, 0, sigmas.length - 1);
    cursor.setAttribute("x1", x(sigmas[i])); cursor.setAttribute("x2", x(sigmas[i])); cursor.setAttribute("visibility", "visible");
    const facts = model.data.b.curves.map((c) => { const k = c.sigma.findIndex((v) => Math.abs(v - sigmas[i]) < 1e-9 * Math.max(v, 1e-12) + 1e-15); return k >= 0 && Number.isFinite(c.mean[k]) ? `${c.title.split(",")[0]} ${short(c.mean[k])}` : null; }).filter(Boolean);
    const step = i < sigmas.length - 1 ? `step ${i + 1} of ${sigmas.length - 1}: σ ${short(sigmas[i])} → ${short(sigmas[i + 1])}` : "data: σ 0";
    note.textContent = [step, ...facts].join(" · ");
    note.title = note.textContent;
  }

  chart.addEventListener("pointermove", (e) => {
    if (!geometry) return;
    const at = (e.clientX - chart.getBoundingClientRect().left);
    let best = Infinity, which = null;
    geometry.sigmas.forEach((v, i) => { const gap = Math.abs(geometry.x(v) - at); if (gap < best) { best = gap; which = i; } });
    if (which !== hover) { hover = which; light(); }
  });
  chart.addEventListener("pointerleave", () => { hover = null; light(); });
  chart.addEventListener("blur", () => { hover = null; light(); });
  chart.addEventListener("keydown", (e) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[e.key];
    if (!move || !geometry) return;
    e.preventDefault();
    hover = clamp((hover ?? (move > 0 ? -1 : geometry.sigmas.length)) + move, 0, geometry.sigmas.length - 1);
    light();
  });

  for (const name of ["data", "ghost", "film"]) model.on(name, draw);
  draw();
  new ResizeObserver(draw).observe(chart);
  return pane;
}
