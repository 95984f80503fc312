const ROW = 92, LEAST = 56;                              // height of one curve, and below which it is not squeezed

export function render({ model, el }) {
  const frames = new Map();                              // one vertical frame per curve, kept until another model is chosen
  let wide = new Frame(), modelKey = null, hover = null, pointed = null, geometry = null, past = null;
  let wanted = remembered() || ["step_error", "velocity_gap"];

  const note = h("span", { class: "note", "data-part": "step-note", "aria-live": "off" });
  const picks = h("div", { class: "picks", role: "group", "aria-label": "Quantities shown by step" });
  const chart = s("svg", { role: "img", tabindex: 0, "aria-label": "Quantities by step against the noise level; arrow keys walk the steps" });
  const pane = h("section", { class: "pane card steps", "aria-label": "Steps" }, h("div", { class: "head" }, h("h2", {}, "Steps"), picks), note, chart);
  const tip = tooltip(pane);
  const link = sigmaLink(model, (sigma) => { pointed = sigma; light(); });

  function remembered() {
    try { return JSON.parse(localStorage.getItem("explorer-curves")); } catch { return null; }
  }
  function toggle(name) {
    wanted = wanted.includes(name) ? wanted.filter((other) => other !== name) : [...wanted, name];
    try { localStorage.setItem("explorer-curves", JSON.stringify(wanted)); } catch { /* private window: lasts until reload */ }
    draw();
  }

  const frameOf = (name) => frames.get(name) || frames.set(name, new Frame()).get(name);

  function drawPicks(known) {
    const key = known.map((c) => [c.name, c.reason]).join("|");
    if (picks.dataset.key !== key) {
      picks.dataset.key = key;
      picks.replaceChildren(...known.map((c) => {
        const pick = h("button", { type: "button", "data-curve": c.name, "aria-disabled": c.reason ? "true" : null, onclick: () => { if (!c.reason) toggle(c.name); } }, c.short);
        const tell = () => tip.show(pick, h("div", {}, h("b", {}, c.title), ` ${c.doc}`), c.reason ? h("div", { class: "why" }, c.reason) : "");
        pick.addEventListener("pointerenter", tell);
        pick.addEventListener("focus", () => { if (pick.matches(":focus-visible")) tell(); });
        pick.addEventListener("pointerleave", tip.hide);
        pick.addEventListener("blur", tip.hide);
        return pick;
      }));
    }
    for (const pick of picks.children) pick.setAttribute("aria-pressed", wanted.includes(pick.dataset.curve));
  }

  function draw() {
    const d = model.data, ghost = model.ghost, film = model.film;
    if (!d.b) { chart.replaceChildren(s("text", { x: 16, y: 40 }, "No steps yet.")); note.textContent = ""; return; }
    if (d.model !== modelKey) { modelKey = d.model; frames.clear(); wide = new Frame(); past = null; }
    if (d.b.curves.length) past = d.b.curves;
    const waiting = !d.b.curves.length;                 // the last curves stay, faint, until the first new ones are there
    const known = waiting ? past || [] : d.b.curves;
    drawPicks(known);
    const curves = known.filter((c) => wanted.includes(c.name) && !c.reason);

    const filmRows = film?.strips?.length || 0, axisSpace = (filmRows ? 20 : 34) + (d.a ? 34 : 20) + 12;
    const least = axisSpace + Math.max(1, curves.length) * LEAST + (filmRows ? filmRows * 38 + 12 : 0);
    chart.style.minHeight = `${Math.max(230, least)}px`;
    const width = chart.clientWidth || 600, height = Math.max(chart.clientHeight, least, 230);
    chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    const left = 46, right = 14, zeroWidth = 30;
    for (const set of [d.b, d.a, ghost]) if (set) wide.add(set.sigmas.filter((v) => v > 0).map(Math.log));
    const lo = wide.low, hi = wide.high, span = hi - lo || 1;
    const end = width - right - zeroWidth;
    // Noise on the left, data on the right, as sampling runs; sigma = 0 sits behind the break at the right end.
    const x = (sigma) => (sigma > 0 ? left + (hi - Math.log(sigma)) / span * (end - left) : width - right - 8);

    const filmSide = filmRows ? clamp((height - axisSpace - Math.max(1, curves.length) * ROW) / filmRows - 4, 30, 48) : 0;
    const filmHeight = filmRows ? filmRows * (filmSide + 4) + 12 : 0;
    const bottom = height - filmHeight - (filmHeight ? 20 : 34);
    const tickTop = bottom - (d.a ? 34 : 20);
    const each = (tickTop - 10) / Math.max(1, curves.length);
    const parts = [];

    curves.forEach((curve, k) => {
      const other = d.a?.curves.find((c) => c.name === curve.name && !c.reason);
      drawCurve(parts, curve, other, d, waiting, { x, left, right: width - right, top: k * each + 16, bottom: (k + 1) * each - 2 });
    });
    const none = known.every((c) => c.reason) ? known[0]?.reason : "Choose above what to show by step.";
    if (!curves.length && known.length) parts.push(s("text", { x: left, y: 24 }, none));

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

    const cursor = s("line", { class: "cursor", y1: 4, y2: bottom, visibility: "hidden" });
    parts.push(cursor);
    chart.replaceChildren(...parts);
    geometry = { x, sigmas: d.b.sigmas, cursor, sigmaAt: (px) => (px > end + 4 ? 0 : Math.exp(hi - clamp((px - left) / (end - left), 0, 1) * span)) };
    light();
  }

  /** One quantity: bands of one standard error, the pinned setting thin behind the present one, its name in its corner. */
  function drawCurve(parts, curve, other, d, waiting, { x, left, right, top, bottom }) {
    const frame = frameOf(curve.name);
    for (const c of [curve, other]) if (c) frame.add(c.mean.map((v, i) => (v === null ? null : v + (c.se[i] || 0))), c.log ? c.mean.filter((v) => v > 0) : 0);
    if (frame.empty) return;
    const logs = curve.log && frame.low > 0;
    const map = logs ? Math.log : (v) => v;
    const low = map(frame.low), high = map(frame.high || 1) + 0.05 * (map(frame.high || 1) - low || 1);
    const y = (v) => bottom - (map(Math.max(v, logs ? frame.low : -Infinity)) - low) / (high - low || 1) * (bottom - top);
    let marks = logs ? decades(frame.low, frame.high) : ticks(low, high, Math.max(2, Math.floor((bottom - top) / 34)));
    const most = Math.max(2, Math.floor((bottom - top) / 17)), tens = marks.filter((v) => Math.abs(Math.log10(v) % 1) < 1e-9);
    if (logs && marks.length > most && tens.length > 1) marks = tens;
    marks = marks.filter((_, i) => i % Math.ceil(marks.length / most) === 0);
    for (const v of marks) {
      parts.push(s("line", { class: "gridline", x1: left, x2: right, y1: y(v), y2: y(v) }), s("text", { x: left - 6, y: y(v) + 4, "text-anchor": "end" }, short(v)));
    }
    for (const [c, color, thin] of [[other, d.a?.color, true], [curve, d.b.color, false]]) {
      if (!c) continue;
      const points = c.sigma.map((sg, i) => [x(sg), c.mean[i] === null ? NaN : y(c.mean[i]), c.mean[i], c.se[i]]).filter((p) => Number.isFinite(p[2]));
      const up = points.map((p) => `${p[0]},${y(p[2] + (p[3] || 0))}`), down = points.toReversed().map((p) => `${p[0]},${y(p[2] - (p[3] || 0))}`);
      parts.push(s("polygon", { points: [...up, ...down].join(" "), fill: color, opacity: 0.2 }),
        s("polyline", { points: points.map((p) => `${p[0]},${p[1]}`).join(" "), fill: "none", stroke: color, "stroke-width": thin ? 1.2 : 2, opacity: thin ? 0.75 : waiting ? 0.3 : 1 }),
        ...points.map((p) => s("circle", { cx: p[0], cy: p[1], r: thin ? 2 : 3, fill: color })));
    }
    parts.push(s("text", { x: left + 2, y: top - 5, class: "title" }, curve.title, curve.unit ? s("tspan", { class: "unit" }, `  ${curve.unit}`) : ""));
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
        const mark = { "data-film": i, "data-sigma": strip.sigmas[i] };
        if (r === 0) parts.push(s("path", { d: `M${x(strip.sigmas[i])},${top - 26}V${top - 10}L${at[k] + side / 2},${top - 2}`, class: "gridline", ...mark }));
        parts.push(s("svg", { x: at[k], y, width: side, height: side, viewBox: `${i} 0 1 1`, preserveAspectRatio: "none" },
          s("image", { href: strip.sprite, width: n, height: 1, preserveAspectRatio: "none" })),
        s("rect", { x: at[k], y, width: side, height: side, class: "frame", rx: 2, style: film.strips.length > 1 ? `stroke: ${strip.color}` : "", ...mark }));
      });
      parts.push(s("text", { x: 4, y: y + side / 2 + 4, class: "strong" }, strip.letter));
    });
    return parts;
  }

  /** Number of the step of B that holds this noise level; the last is the data. */
  function stepAt(sigma) {
    const { sigmas } = geometry;
    if (sigma <= 0) return sigmas.length - 1;
    let best = 0;
    sigmas.forEach((v, i) => { if (v > 0 && Math.abs(Math.log(v / sigma)) < Math.abs(Math.log(sigmas[best] / sigma))) best = i; });
    return best;
  }

  function light() {
    if (!geometry) return;
    const { x, sigmas, cursor } = geometry;
    const sigma = hover ?? pointed;
    const near = (a, b) => Math.abs(a - b) <= 1e-6 * Math.max(a, b);
    const level = sigma === null ? null : sigmas[stepAt(sigma)];
    for (const node of chart.querySelectorAll("[data-film]")) node.classList.toggle("lit", sigma !== null && near(Number(node.dataset.sigma), level));
    if (sigma === null) {
      cursor.setAttribute("visibility", "hidden");
      note.textContent = model.film?.caption || model.data.summary || "";
      note.title = note.textContent;
      return;
    }
    const at = x(clamp(sigma, 0, Math.exp(wide.high)));
    cursor.setAttribute("x1", at); cursor.setAttribute("x2", at); cursor.setAttribute("visibility", "visible");
    const i = stepAt(sigma);
    const facts = (model.data.b.curves || []).filter((c) => !c.reason && wanted.includes(c.name)).map((c) => {
      const k = c.sigma.findIndex((v) => near(v, sigmas[i]));
      return k >= 0 && Number.isFinite(c.mean[k]) ? `${c.short} ${short(c.mean[k])}` : null;
    }).filter(Boolean);
    const step = i < sigmas.length - 1 ? `step ${i + 1} of ${sigmas.length - 1}: σ ${short(sigmas[i])} → ${short(sigmas[i + 1])}` : "data: σ 0";
    note.textContent = [step, ...facts].join(" · ");
    note.title = note.textContent;
  }

  function point(sigma) {
    if (sigma === hover) return;
    hover = sigma;
    link.tell(sigma);
    light();
  }
  chart.addEventListener("pointermove", (event) => {
    if (!geometry) return;
    const marked = event.target.dataset?.sigma;         // a frame of the film stands beside its noise level, not on it
    const at = event.clientX - chart.getBoundingClientRect().left;
    point(marked === undefined ? geometry.sigmas[stepAt(geometry.sigmaAt(at))] : Number(marked));
  });
  chart.addEventListener("pointerleave", () => point(null));
  chart.addEventListener("blur", () => point(null));
  chart.addEventListener("keydown", (event) => {
    const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!move || !geometry) return;
    event.preventDefault();
    const { sigmas } = geometry;
    const from = hover === null ? (move > 0 ? -1 : sigmas.length) : stepAt(hover);
    point(sigmas[clamp(from + move, 0, sigmas.length - 1)]);
  });

  for (const name of ["data", "ghost", "film"]) model.on(name, draw);
  draw();
  new ResizeObserver(draw).observe(chart);
  return pane;
}
