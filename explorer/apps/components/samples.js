export function render({ model, el }) {
  let side = "b", selected = null;

  const chip = (color) => h("span", { class: "chip", style: `background: ${color}` });
  const buttonA = h("button", { type: "button", "data-side": "a", onclick: () => choose("a") });
  const buttonB = h("button", { type: "button", "data-side": "b", onclick: () => choose("b") });
  const note = h("span", { class: "note", "data-part": "caption" });
  const head = h("div", { class: "head" }, h("h2", {}, "Samples"), note, h("div", { class: "flip", role: "group", "aria-label": "Show the pictures of" }, buttonA, buttonB));
  const sheet = h("div", { class: "sheet", role: "group", "aria-label": "Samples; arrow keys walk, Enter opens the filmstrip" });
  const detail = h("div", { class: "side", "data-part": "detail" });
  const empty = h("div", { class: "empty" });
  const link = sigmaLink(model, (sigma) => cloud.point(sigma));
  const cloud = makeCloud({ onPick: (k) => pick(k), tell: link.tell });
  const pane = h("section", { class: "pane card samples", "aria-label": "Samples" }, head, empty, sheet, detail, cloud.stage);

  function choose(next) {
    if (next === "a" && !model.data.a) return;
    side = next;
    draw();
  }
  const onFlip = (event) => { if (event.detail === model.page_id) choose(side === "b" ? "a" : "b"); };
  document.addEventListener("explorer-flip", onFlip);
  model.on("remove", () => { document.removeEventListener("explorer-flip", onFlip); cloud.stop(); });

  function pick(k) {
    selected = k;
    model.send_msg({ type: "film", index: k });
    draw();
  }

  function tiles(count, columns) {
    if (sheet.children.length === count) return;
    sheet.style.setProperty("--columns", columns);
    sheet.replaceChildren(...Array.from({ length: count }, (_, k) => {
      const tile = h("button", { type: "button", "data-tile": k, tabindex: k ? -1 : 0, onclick: () => pick(k), onfocus: () => { for (const t of sheet.children) t.tabIndex = t === tile ? 0 : -1; } });
      tile.addEventListener("keydown", (e) => {
        const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns, Home: -k, End: count - 1 - k }[e.key];
        if (step === undefined) return;
        e.preventDefault();
        sheet.children[clamp(k + step, 0, count - 1)].focus();
      });
      return tile;
    }));
  }

  /** Style that shows cell k of a sprite with `columns` per row, scaled to fill its box. */
  function crop(node, sprite, k, columns, count) {
    const rows = Math.ceil(count / columns);
    node.style.backgroundImage = `url(${sprite})`;
    node.style.backgroundSize = `${100 * columns}% ${100 * rows}%`;
    node.style.backgroundPosition = `${columns > 1 ? 100 * (k % columns) / (columns - 1) : 0}% ${rows > 1 ? 100 * Math.floor(k / columns) / (rows - 1) : 0}%`;
  }

  function draw() {
    const d = model.data;
    if (side === "a" && !d.a) side = "b";
    const shown = side === "a" ? d.a : d.b;
    for (const [button, data, letter] of [[buttonA, d.a, "A"], [buttonB, d.b, d.a ? "B" : "now"]]) {
      button.replaceChildren(...(data ? [chip(data.color)] : []), letter);
      button.disabled = !data;
      button.setAttribute("aria-pressed", data === shown && Boolean(data));
      button.title = data ? data.title : "Nothing is pinned yet: press p";
    }
    note.textContent = shown ? `${shown.title}${d.a ? " · same noise, space flips" : ""}` : "";
    const points = d.kind === "points";
    empty.hidden = Boolean(shown);
    sheet.hidden = detail.hidden = points || !shown;
    cloud.stage.hidden = !points || !shown;
    if (!shown) { empty.replaceChildren(h("div", {}, d.missing || "Drawing the first samples…")); return; }
    if (points) { cloud.show(shown, d, side); return; }
    const count = d.count, columns = d.columns;
    tiles(count, columns);
    [...sheet.children].forEach((tile, k) => {
      crop(tile, shown.sprite, k, columns, count);
      tile.classList.toggle("old", k >= shown.fresh);
      tile.setAttribute("aria-pressed", k === selected);
      tile.setAttribute("aria-label", `sample of seed ${d.seed + k}${shown.labels ? `, class ${shown.labels[k]}` : ""}`);
    });
    drawDetail(d, columns, count);
  }

  function drawDetail(d, columns, count) {
    if (selected === null) {
      detail.replaceChildren(h("p", {}, "Every picture keeps its seed: turn a knob and see what the same noise becomes."),
        h("p", {}, "Click one for its filmstrip: what the model believes at each step."));
      return;
    }
    const k = selected;
    const figure = (data, letter) => {
      const picture = h("div", { role: "img", "aria-label": `sample ${letter}` });
      crop(picture, data.sprite, k, columns, count);
      return h("figure", {}, picture, h("figcaption", {}, chip(data.color), letter));
    };
    const label = d.b?.labels ? ` · class ${d.b.labels[k]}` : "";
    detail.replaceChildren(h("p", { style: "color: var(--ink)" }, h("b", {}, `seed ${d.seed + k}`), label),
      h("div", { class: "pair" }, d.a ? figure(d.a, "A") : "", d.b ? figure(d.b, d.a ? "B" : "now") : ""),
      d.change ? h("p", {}, d.change[k]) : "",
      h("p", {}, "Its denoised predictions are below, along σ."));
  }

  model.on("data", draw);
  model.on("selected", () => { selected = model.selected; draw(); });
  selected = model.selected;
  draw();
  return pane;
}

/** Particles of a 2-D model over its density, with the velocity field at the scrubbed noise level. */
function makeCloud({ onPick, tell }) {
  const canvas = h("canvas", { tabindex: 0, role: "img", "aria-label": "Particles in the plane" });
  const play = h("button", { class: "btn", type: "button", "aria-label": "Play the path from noise to data", "data-act": "play" }, "▶");
  const slider = h("input", { type: "range", min: 0, max: 1, step: "any", value: 1, "aria-label": "Time, from noise to data" });
  const when = h("span", { class: "when" });
  const field = h("input", { type: "checkbox", checked: true });
  const trails = h("input", { type: "checkbox", checked: true });
  const stage = h("div", { class: "stage" }, canvas,
    h("div", { class: "scrub" }, play, slider, when, h("label", {}, field, "velocity"), h("label", {}, trails, "trails")));
  let shown = null, frames = null, velocity = null, picture = null, context_data = null, at = 1, timer = null, key = "", picked = null, pointed = null;

  const floats = (text) => new Float32Array(Uint8Array.from(atob(text), (c) => c.charCodeAt(0)).buffer);
  const css = (name) => getComputedStyle(canvas).getPropertyValue(name).trim();
  const hue = (k) => { const c = shown.angle[k]; return `hsl(${c} 62% 52%)`; };

  function show(data, d, side) {
    shown = data; context_data = d;
    const next = `${side}${data.key}${data.path.length}`;
    if (next !== key) {
      key = next;
      frames = floats(data.path);                    // (T, n, 2)
      velocity = floats(data.field);                 // (T, G * G, 2)
      if (d.density && (!picture || picture.src !== d.density)) { picture = new Image(); picture.onload = draw; picture.src = d.density; }
    }
    draw();
  }

  function draw() {
    if (!shown || stage.hidden) return;
    const size = Math.round(canvas.clientWidth * devicePixelRatio) || 408;
    if (canvas.width !== size) canvas.width = canvas.height = size;
    const c = canvas.getContext("2d"), n = shown.n, steps = shown.sigmas.length - 1, r = context_data.extent;
    const x = (v) => (v + r) / (2 * r) * size, y = (v) => (r - v) / (2 * r) * size;
    const place = now() * steps, i = Math.min(Math.floor(place), steps - 1), f = place - i;
    const get = (t, k, axis) => frames[(t * n + k) * 2 + axis];
    c.clearRect(0, 0, size, size);
    if (picture?.complete) { c.globalAlpha = css("color-scheme") === "dark" ? 0.5 : 0.42; c.imageSmoothingEnabled = true; c.drawImage(picture, 0, 0, size, size); c.globalAlpha = 1; }
    if (field.checked) {
      const g = shown.grid, cell = size / g, t = Math.round(place) >= steps ? steps - 1 : Math.round(place);
      c.strokeStyle = css("--muted"); c.globalAlpha = 0.5; c.lineWidth = devicePixelRatio; c.beginPath();
      for (let k = 0; k < g * g; k++) {
        const vx = velocity[(t * g * g + k) * 2], vy = velocity[(t * g * g + k) * 2 + 1], norm = Math.hypot(vx, vy);
        if (!(norm > 1e-6)) continue;
        const length = cell * 0.62 * Math.min(1, Math.sqrt(norm / shown.top[t])), ux = vx / norm, uy = vy / norm;
        const px = ((k % g) + 0.5) * cell, py = size - (Math.floor(k / g) + 0.5) * cell;
        const ex = px + ux * length, ey = py - uy * length, head = length * 0.28;
        c.moveTo(px, py); c.lineTo(ex, ey);
        c.moveTo(ex - (ux * 0.87 - uy * 0.5) * head, ey + (uy * 0.87 + ux * 0.5) * head); c.lineTo(ex, ey);
        c.lineTo(ex - (ux * 0.87 + uy * 0.5) * head, ey + (uy * 0.87 - ux * 0.5) * head);
      }
      c.stroke(); c.globalAlpha = 1;
    }
    for (let k = 0; k < n; k++) {
      const px = get(i, k, 0) * (1 - f) + get(i + 1, k, 0) * f, py = get(i, k, 1) * (1 - f) + get(i + 1, k, 1) * f;
      const mark = k === picked;
      c.fillStyle = c.strokeStyle = hue(k);
      if (trails.checked && (k < 40 || mark)) {
        c.globalAlpha = mark ? 1 : 0.35; c.lineWidth = (mark ? 2 : 1) * devicePixelRatio; c.beginPath(); c.moveTo(x(get(0, k, 0)), y(get(0, k, 1)));
        for (let t = 1; t <= i; t++) c.lineTo(x(get(t, k, 0)), y(get(t, k, 1)));
        c.lineTo(x(px), y(py)); c.stroke(); c.globalAlpha = 1;
      }
      c.beginPath(); c.arc(x(px), y(py), (mark ? 5 : 2.1) * devicePixelRatio, 0, 7); c.globalAlpha = mark ? 1 : 0.8; c.fill(); c.globalAlpha = 1;
    }
    when.textContent = `σ ${short(shown.sigmas[i] * (1 - f) + shown.sigmas[i + 1] * f)}`;
    slider.value = now();
  }

  /** Where on the path the picture stands: where another pane points, else where the slider was left. */
  const now = () => pointed ?? at;
  function place(sigma) {
    const levels = shown.sigmas, steps = levels.length - 1;
    const i = levels.findIndex((v, k) => k === steps || (sigma <= v && sigma > levels[k + 1]));
    return i < 0 ? 0 : i === steps ? 1 : (i + (levels[i] - sigma) / (levels[i] - levels[i + 1])) / steps;
  }
  function sigmaNow() {
    const levels = shown.sigmas, steps = levels.length - 1, i = Math.min(Math.floor(at * steps), steps - 1), f = at * steps - i;
    return levels[i] * (1 - f) + levels[i + 1] * f;
  }
  function point(sigma) {
    pointed = sigma === null || !shown || timer ? null : place(sigma);
    draw();
  }

  function stop() { if (timer) { cancelAnimationFrame(timer); tell(null); } timer = null; play.textContent = "▶"; }
  play.addEventListener("click", () => {
    if (timer) return stop();
    play.textContent = "❚❚";
    const start = performance.now() - (at >= 1 ? 0 : at * 3200);
    const tick = (time) => { at = Math.min(1, (time - start) / 3200); draw(); tell(at < 1 ? sigmaNow() : null); timer = at < 1 ? requestAnimationFrame(tick) : null; if (!timer) stop(); };
    timer = requestAnimationFrame(tick);
  });
  slider.addEventListener("input", () => { stop(); at = slider.valueAsNumber; draw(); tell(sigmaNow()); });
  for (const done of ["blur", "pointerleave"]) slider.addEventListener(done, () => { if (!timer) tell(null); });
  field.addEventListener("change", draw);
  trails.addEventListener("change", draw);
  canvas.addEventListener("click", (e) => {
    if (!shown) return;
    const box = canvas.getBoundingClientRect(), r = context_data.extent, T = shown.sigmas.length - 1;
    const px = (e.clientX - box.left) / box.width * 2 * r - r, py = r - (e.clientY - box.top) / box.height * 2 * r;
    let best = 1e9;
    const spot = now() * T, i = Math.min(Math.floor(spot), T - 1), f = spot - i;
    for (let k = 0; k < shown.n; k++) {
      const q = (axis) => frames[(i * shown.n + k) * 2 + axis] * (1 - f) + frames[((i + 1) * shown.n + k) * 2 + axis] * f;
      const gap = Math.hypot(q(0) - px, q(1) - py);
      if (gap < best) { best = gap; picked = k; }
    }
    draw();
    onPick(picked);
  });
  new ResizeObserver(draw).observe(canvas);
  return { stage, show, stop, point };
}
