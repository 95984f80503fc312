/** Loss by noise level: time to the right, log sigma upwards, colour is the mean loss on one scale for all runs. */
export function render({ model, el }) {
  const spot = spotOf(model.page_id), send = (message) => model.send_msg(message);
  const note = h("span", { class: "note", "data-part": "strip-note" });
  const low = h("span"), high = h("span"), ramp = h("canvas", { width: 90, height: 1 });
  const scale = h("span", { class: "scale", title: "Loss, log scale" }, low, ramp, high);
  const picks = h("span");
  const rows = h("div", { class: "rows" });
  const pane = h("section", { class: "pane card strips", "aria-label": "Loss by noise level" }, h("div", { class: "head" }, h("h2", {}, "Loss by noise level"), note, picks, scale), rows);
  const tip = tooltip(pane);
  const paint = ramp.getContext("2d"), line = paint.createImageData(90, 1);
  for (let i = 0; i < 90; i++) line.data.set([...heat(i / 89), 255], 4 * i);
  paint.putImageData(line, 0, 0);
  let strips = [], range = new Frame(), key = "";

  const made = [0, 1].map(() => {
    const chart = s("svg", { role: "img", tabindex: -1 }), canvas = h("canvas", { "aria-hidden": "true" }), none = h("div", { class: "none" });
    const node = h("div", { class: "strip", "data-part": "strip" }, canvas, chart, none);
    const part = { node, chart, canvas, none, strip: null, place: null };
    chart.addEventListener("pointermove", (e) => point(part, e));
    chart.addEventListener("pointerleave", () => { spot.at = null; spot.tell("point"); tip.hide(); note.textContent = words(); });
    chart.addEventListener("click", (e) => { if (part.place) spot.seek(part.place.value(e.offsetX)); });
    return part;
  });

  function words() { return strips.length && strips.some((strip) => strip.columns) ? "σ upwards, log scale; fainter where few samples fell" : ""; }

  function take() {
    strips = [0, 1].map((slot) => unpack(model[`strip_${slot}`])).filter(Boolean).filter((strip) => (model.data.shown || []).includes(strip.run));
    const now = JSON.stringify(strips.map((strip) => [strip.run, strip.net]));
    if (now !== key) { key = now; range = new Frame(); }
    for (const strip of strips) {                // noise levels seldom drawn scatter: what is beyond the ends of the scale has their colours
      const known = [...strip.loss].filter((v) => v > 0).sort((a, b) => a - b);
      if (known.length) range.add(known[Math.floor(0.02 * known.length)], known[Math.floor(0.98 * (known.length - 1))]);
    }
    draw();
  }
  function draw() {
    const shown = made.slice(0, Math.max(strips.length, 1));
    if (rows.children.length !== shown.length) rows.replaceChildren(...shown.map((part) => part.node));
    shown.forEach((part, i) => drawOne(part, strips[i], i === shown.length - 1));
    const known = !range.empty;
    scale.hidden = !known;
    low.textContent = known ? short(range.low) : ""; high.textContent = known ? short(range.high) : "";
    note.textContent = words();
    const several = strips.filter((strip) => strip.nets.length > 1);
    if (picks.dataset.key !== JSON.stringify(several.map((strip) => [strip.slot, strip.nets, strip.net]))) {
      picks.dataset.key = JSON.stringify(several.map((strip) => [strip.slot, strip.nets, strip.net]));
      picks.replaceChildren(...several.map((strip) => {
        const pick = h("select", { "aria-label": `Network of run ${strip.letter}`, onchange: () => send({ type: "net", slot: strip.slot, name: pick.value }) }, strip.nets.map((net) => h("option", { value: net }, `${strip.letter}: ${net}`)));
        pick.value = strip.net;
        return pick;
      }));
    }
  }
  function drawOne(part, strip, last) {
    part.strip = strip;
    const width = part.node.clientWidth, height = part.node.clientHeight;
    const empty = !strip || !strip.columns || !strip.edges.length;
    part.none.hidden = !empty;
    part.canvas.hidden = empty;
    if (empty) { part.none.textContent = strip?.missing || "A run's losses appear here, noise level by noise level."; part.chart.replaceChildren(); part.place = null; return; }
    if (!width || !height || !spot.end) return;        // the curves say how far the axis reaches, and then it is drawn
    const left = 44, right = width - 10, top = 4, bottom = height - (last ? 32 : 8), n = strip.edges.length - 1;
    const place = part.place = placeOf(spot, left, right);
    part.chart.setAttribute("viewBox", `0 0 ${width} ${height}`);
    part.chart.setAttribute("aria-label", `Loss by noise level of run ${strip.letter}, ${strip.net}`);
    const x = strip[spot.by], end = x.length ? Math.min(place.x(x[x.length - 1]), right) : left, px = Math.max(1, Math.round(end - left));
    part.canvas.width = px; part.canvas.height = n;
    Object.assign(part.canvas.style, { left: `${left}px`, top: `${top}px`, width: `${px}px`, height: `${bottom - top}px` });
    const c = part.canvas.getContext("2d"), image = c.createImageData(px, n), lo = Math.log(range.low), span = Math.log(range.high) - lo || 1;
    for (let col = 0, i = 0; col < px; col++) {
      const at = place.value(left + col + 0.5);
      while (i < x.length - 1 && x[i] < at) i++;
      for (let r = 0; r < n; r++) {
        const v = strip.loss[i * n + r];
        if (v > 0) image.data.set([...heat((Math.log(v) - lo) / span), strip.sure[i * n + r]], 4 * ((n - 1 - r) * px + col));
      }
    }
    c.putImageData(image, 0, 0);
    const first = Math.log(strip.edges[0]), whole = Math.log(strip.edges[n]) - first, y = (v) => bottom - (Math.log(v) - first) / whole * (bottom - top);
    const levels = decadesBetween(strip.edges[0], strip.edges[n]);
    const cursor = s("line", { class: "cursor", y1: top, y2: bottom, visibility: "hidden" }), now = s("line", { class: "now", y1: top, y2: bottom, visibility: "hidden" });
    part.chart.replaceChildren(
      ...levels.flatMap((v) => [s("line", { class: "axis", x1: left - 4, x2: left, y1: y(v), y2: y(v) }), s("text", { x: left - 7, y: y(v) + 4, "text-anchor": "end" }, short(v))]),
      s("text", { x: 2, y: top + 9 }, "σ"), s("rect", { x: left, y: top, width: right - left, height: bottom - top, fill: "none", class: "gridline" }),
      ...(strips.length > 1 ? [s("text", { x: right - 6, y: top + 14, "text-anchor": "end", class: "own", style: `fill: ${strip.color}` }, strip.letter)] : []),
      ...(last ? trainingAxis(spot, place, bottom) : []), now, cursor);
    Object.assign(part, { cursor, now, y, first, whole, top, bottom });
    light();
  }
  function point(part, e) {
    const { strip, place } = part;
    if (!place || !strip) return;
    spot.at = place.value(e.offsetX);
    spot.tell("point");
    const x = strip[spot.by], n = strip.edges.length - 1;
    const i = Math.max(0, x.findIndex((v) => v >= spot.at)), r = clamp(Math.floor((part.bottom - e.offsetY) / (part.bottom - part.top) * n), 0, n - 1);
    const v = spot.at <= x[x.length - 1] ? strip.loss[i * n + r] : NaN;
    note.textContent = `${strip.letter} · ${amount(spot.at, spot.by)}${spot.by === "images" ? " images" : ""} · σ ${short(strip.edges[r])} – ${short(strip.edges[r + 1])} · ${v > 0 ? `loss ${short(v)}` : "nothing drawn here"}`;
  }
  function light() {
    for (const part of made) {
      if (!part.place || !part.cursor) continue;
      const mark = (line, v) => { line.setAttribute("visibility", v === null ? "hidden" : "visible"); if (v !== null) { line.setAttribute("x1", part.place.x(v)); line.setAttribute("x2", part.place.x(v)); } };
      mark(part.cursor, spot.at); mark(part.now, spot.open);
    }
  }
  const deaf = spot.listen((what) => { if (what === "point" || what === "book") light(); if (what === "axis") draw(); });
  model.on("remove", deaf);
  for (const name of ["data", "strip_0", "strip_1"]) model.on(name, take);
  take();
  new ResizeObserver(draw).observe(rows);
  return pane;
}
