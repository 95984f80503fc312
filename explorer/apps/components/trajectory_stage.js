const LAP = 6;                        // seconds of a pass at speed 1
const LEAD = 0.9;                     // share of the pass spent moving; the rest rests on the samples
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#d8e219"];

const rgb = (hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16));

/** Even-odd rule on one point. */
function within(x, y, loop) {
  let odd = false;
  for (let i = 0, j = loop.length - 1; i < loop.length; j = i++) {
    const [ax, ay] = loop[i], [bx, by] = loop[j];
    if (ay > y !== by > y && x < ax + (y - ay) / (by - ay) * (bx - ax)) odd = !odd;
  }
  return odd;
}

/** Level sets of a grid by marching squares, as line pieces moved to and drawn on a 2-D context. */
function contour(c, grid, side, level, at) {
  const cross = (a, b) => (level - a) / (b - a);
  for (let r = 0; r < side - 1; r++) {
    for (let k = 0; k < side - 1; k++) {
      const i = r * side + k, a = grid[i], b = grid[i + 1], d = grid[i + side], e = grid[i + side + 1];
      const code = (a > level) | ((b > level) << 1) | ((e > level) << 2) | ((d > level) << 3);
      if (code === 0 || code === 15) continue;
      const south = () => at(k + cross(a, b), r), north = () => at(k + cross(d, e), r + 1);
      const west = () => at(k, r + cross(a, d)), east = () => at(k + 1, r + cross(b, e));
      const line = (p, q) => { c.moveTo(p[0], p[1]); c.lineTo(q[0], q[1]); };
      if (code === 1 || code === 14) line(west(), south());
      else if (code === 2 || code === 13) line(south(), east());
      else if (code === 4 || code === 11) line(east(), north());
      else if (code === 8 || code === 7) line(north(), west());
      else if (code === 3 || code === 12) line(west(), east());
      else if (code === 6 || code === 9) line(south(), north());
      else { line(west(), code === 5 ? north() : south()); line(east(), code === 5 ? south() : north()); }
    }
  }
}

/** One sampler's square: three layers, the surroundings, the particles, and what the hand draws. */
function makePlate(clock, settings, send) {
  const layer = (name) => h("canvas", { class: name, "aria-hidden": true });
  const back = layer("back"), front = layer("front"), over = layer("over");
  const node = h("div", { class: "square", tabindex: 0, role: "img", "data-part": "square" }, back, front, over);
  let track = null, frames = null, scene = null, pixels = null, size = 0, loop = null, moved = false, level = null;
  let zs = null, ts = null, zsFor = null, order = null;

  const ready = () => frames && zs;

  function prepare() {
    if (!frames) { zs = null; return; }
    const s = settings.scale, key = `${s}/${settings.extent}`;
    if (zsFor === frames && prepare.key === key) return;
    const { x, n, sigma, range } = frames;
    zs = new Float32Array(x.length);
    ts = sigma.map((v) => v / (v + s));
    sigma.forEach((v, i) => {
      const k = s * (1 + v) / (s + v) / settings.extent, step = 2 * range[i] / 65535 * k, low = -range[i] * k;
      for (let j = i * n * 2, end = j + n * 2; j < end; j++) zs[j] = x[j] * step + low;
    });
    zsFor = frames; prepare.key = key;
    order = [...Array(n).keys()].sort((a, b) => frames.hue[a] - frames.hue[b]);
  }

  /** Between which recorded states time t lies, and where. */
  function locate(t) {
    const last = ts.length - 2;
    let i = 0;
    while (i < last && ts[i + 1] > t) i++;
    return [i, clamp((ts[i] - t) / (ts[i] - ts[i + 1]), 0, 1)];
  }

  function fit() {
    const want = Math.round(node.clientWidth * devicePixelRatio);
    if (!want || want === size) return Boolean(size);
    size = want;
    for (const canvas of [back, front, over]) canvas.width = canvas.height = size;
    pixels = new ImageData(size, size);
    return true;
  }

  function draw() {
    if (!fit()) return;
    prepare();
    drawBack();
    drawFront();
    drawOver();
  }

  function drawBack() {
    const c = back.getContext("2d"), { dark, contour: faint, muted } = settings.colors, ratio = devicePixelRatio, view = settings.view;
    c.clearRect(0, 0, size, size);
    const t = clock.t;
    if (scene) {
      const s = settings.scale, K = scene.sigma.length, at = scene.sigma.map((v) => v / (v + s));
      let i = 0;
      while (i < K - 2 && at[i + 1] > t) i++;
      const f = clamp((at[i] - t) / (at[i] - at[i + 1]), 0, 1);
      if (view.density) {
        const m = scene.side, count = m * m, grid = new Float32Array(count);
        for (let j = 0; j < count; j++) grid[j] = scene.density[i * count + j] * scene.peak[i] * (1 - f) + scene.density[(i + 1) * count + j] * scene.peak[i + 1] * f;
        const L = scene.shares.length, cell = size / m;
        const place = (k, r) => [(k + 0.5) * cell, size - (r + 0.5) * cell];
        c.strokeStyle = faint; c.lineWidth = ratio;
        for (let l = 0; l < L; l++) {
          const cut = scene.levels[i * L + l] * (1 - f) + scene.levels[(i + 1) * L + l] * f;
          c.globalAlpha = (dark ? 0.5 : 0.45) * (1 - 0.6 * l / (L - 1));
          c.beginPath(); contour(c, grid, m, cut, place); c.stroke();
        }
        c.globalAlpha = 1;
      }
      if (view.field && scene.field) {
        const g = scene.cells, cell = size / g, j = f < 0.5 ? i : i + 1, base = j * g * g * 2;
        c.strokeStyle = muted; c.globalAlpha = 0.38; c.lineWidth = 0.9 * ratio; c.beginPath();
        for (let k = 0; k < g * g; k++) {
          const vx = (scene.field[base + 2 * k] - 128) / 127, vy = (scene.field[base + 2 * k + 1] - 128) / 127, norm = Math.hypot(vx, vy);
          if (norm < 0.015) continue;
          const reach = cell * 0.72 * Math.sqrt(Math.min(norm, 1)), ux = vx / norm, uy = vy / norm;
          const px = ((k % g) + 0.5) * cell, py = size - (Math.floor(k / g) + 0.5) * cell;
          const ex = px + ux * reach / 2, ey = py - uy * reach / 2, head = reach * 0.3;
          c.moveTo(px - ux * reach / 2, py + uy * reach / 2); c.lineTo(ex, ey);
          c.moveTo(ex - (ux * 0.87 - uy * 0.5) * head, ey + (uy * 0.87 + ux * 0.5) * head); c.lineTo(ex, ey);
          c.lineTo(ex - (ux * 0.87 + uy * 0.5) * head, ey + (uy * 0.87 - ux * 0.5) * head);
        }
        c.stroke(); c.globalAlpha = 1;
      }
    }
    if (!ready()) return;
    const n = frames.n, inks = settings.palette[dark ? "dark" : "light"];
    const X = (v) => (v + 1) / 2 * size, Y = (v) => (1 - v) / 2 * size;
    const chosen = clock.chosen?.ids;
    if (view.lines) {
      const end = (ts.length - 1) * n, { ids, cost } = costs(), [low, high] = settings.dear, span = high - low || 1;
      c.lineWidth = ratio; c.globalAlpha = 0.75;
      const bins = Array.from({ length: 9 }, () => []);
      ids.forEach((k, j) => bins[Math.min(8, Math.floor((cost[j] - low) / span * 9))].push(k));
      bins.forEach((bin, b) => {
        c.strokeStyle = VIRIDIS[dark ? Math.max(b, 2) : Math.min(b, 7)]; c.beginPath();
        for (const k of bin) { c.moveTo(X(zs[2 * k]), Y(zs[2 * k + 1])); c.lineTo(X(zs[2 * (end + k)]), Y(zs[2 * (end + k) + 1])); }
        c.stroke();
      });
      c.globalAlpha = 1;
    }
    if (view.trail > 0 && !view.lines) {
      const most = frames.n > 600 ? Math.round(420 / Math.max(settings.count, 2)) : 150;
      const ids = (chosen?.length ? chosen.filter((k) => k < n) : order.filter((k) => k < most)).slice(0, most);
      const [i, f] = locate(t), until = Math.min(t + view.trail * clock.top, ts[0]);
      c.lineWidth = ratio; c.globalAlpha = chosen?.length ? 0.6 : 0.42;
      let hue = -1;
      const sorted = chosen?.length ? [...ids].sort((a, b) => frames.hue[a] - frames.hue[b]) : ids;
      for (const k of sorted) {
        if (frames.hue[k] !== hue) { if (hue >= 0) c.stroke(); hue = frames.hue[k]; c.strokeStyle = inks[hue]; c.beginPath(); }
        path(c, k, i, f, until, X, Y);
      }
      if (hue >= 0) c.stroke();
      c.globalAlpha = 1;
    }
  }

  /** The pairs that are joined by lines, and what each costs in the picture. */
  function costs() {
    if (!ready()) return { ids: [], cost: [] };
    const n = frames.n, end = (ts.length - 1) * n, chosen = clock.chosen?.ids;
    const ids = chosen?.length ? chosen.filter((k) => k < n).slice(0, 400) : [...Array(Math.min(n, 200)).keys()];
    return { ids, cost: ids.map((k) => (zs[2 * k] - zs[2 * (end + k)]) ** 2 + (zs[2 * k + 1] - zs[2 * (end + k) + 1]) ** 2) };
  }

  /** From where particle k is back to where it was at time `until`. */
  function path(c, k, i, f, until, X, Y) {
    const n = frames.n, get = (j, axis) => zs[2 * (j * n + k) + axis];
    c.moveTo(X(get(i, 0) * (1 - f) + get(i + 1, 0) * f), Y(get(i, 1) * (1 - f) + get(i + 1, 1) * f));
    let j = i;
    while (j >= 0 && ts[j] < until) { c.lineTo(X(get(j, 0)), Y(get(j, 1))); j--; }
    if (j >= 0) {
      const g = (ts[j] - until) / (ts[j] - ts[j + 1]);
      if (j < i || g < f) c.lineTo(X(get(j, 0) * (1 - g) + get(j + 1, 0) * g), Y(get(j, 1) * (1 - g) + get(j + 1, 1) * g));
    }
  }

  /** All particles as discs with soft edges, straight into the pixels: 10 000 of them cost a millisecond or two. */
  function drawFront() {
    const c = front.getContext("2d", { willReadFrequently: true });  // pixels are put, never drawn
    if (!ready()) { c.clearRect(0, 0, size, size); return; }
    const inks = settings.colors.inks;
    const n = frames.n, [i, f] = locate(clock.t), data = pixels.data, ratio = devicePixelRatio;
    data.fill(0);
    const chosen = clock.chosen?.ids.length ? clock.chosen.mask : null, base = (n > 600 ? 1.55 : 2.4) * ratio * clamp(size / ratio / 400, 0.72, 1.25);
    const one = 2 * i * n, two = 2 * (i + 1) * n;
    const passes = chosen ? [false, true] : [null];
    for (const pass of passes) {
      for (let k = 0; k < n; k++) {
        if (pass !== null && Boolean(chosen[k]) !== pass) continue;
        const x = ((zs[one + 2 * k] * (1 - f) + zs[two + 2 * k] * f) + 1) / 2 * size - 0.5;
        const y = (1 - (zs[one + 2 * k + 1] * (1 - f) + zs[two + 2 * k + 1] * f)) / 2 * size - 0.5;
        const radius = pass ? base * 1.35 : base, cover = pass === false ? 0.13 : 0.82, ink = inks[frames.hue[k]];
        const x0 = Math.max(0, Math.ceil(x - radius - 0.5)), x1 = Math.min(size - 1, Math.floor(x + radius + 0.5));
        const y0 = Math.max(0, Math.ceil(y - radius - 0.5)), y1 = Math.min(size - 1, Math.floor(y + radius + 0.5));
        for (let b = y0; b <= y1; b++) {
          for (let a = x0; a <= x1; a++) {
            const alpha = Math.min(radius + 0.5 - Math.sqrt((a - x) * (a - x) + (b - y) * (b - y)), 1) * cover;
            if (alpha <= 0) continue;
            const at = 4 * (b * size + a), under = data[at + 3] / 255;
            if (under === 0) { data[at] = ink[0]; data[at + 1] = ink[1]; data[at + 2] = ink[2]; data[at + 3] = 255 * alpha; continue; }
            const keep = under * (1 - alpha), sum = alpha + keep;
            data[at] = (ink[0] * alpha + data[at] * keep) / sum;
            data[at + 1] = (ink[1] * alpha + data[at + 1] * keep) / sum;
            data[at + 2] = (ink[2] * alpha + data[at + 2] * keep) / sum;
            data[at + 3] = 255 * sum;
          }
        }
      }
    }
    c.putImageData(pixels, 0, 0);
  }

  function drawOver() {
    const c = over.getContext("2d"), ratio = devicePixelRatio;
    c.clearRect(0, 0, size, size);
    const X = (v) => (v + 1) / 2 * size, Y = (v) => (1 - v) / 2 * size, { ink, accent } = settings.colors;
    const shown = loop || (clock.chosen && clock.chosen.slot === track?.slot && clock.chosen.loop && Math.abs(clock.u - clock.chosen.u) < 0.02 ? clock.chosen.loop : null);
    if (shown?.length > 1) {
      c.beginPath(); shown.forEach(([x, y], i) => (i ? c.lineTo(X(x), Y(y)) : c.moveTo(X(x), Y(y)))); c.closePath();
      c.fillStyle = accent; c.globalAlpha = 0.07; c.fill(); c.globalAlpha = 0.9;
      c.strokeStyle = accent; c.lineWidth = 1.2 * ratio; c.setLineDash([4 * ratio, 3 * ratio]); c.stroke(); c.setLineDash([]); c.globalAlpha = 1;
    }
    const k = clock.focus ?? settings.view.pick;
    if (ready() && k !== null && k !== undefined && k < frames.n) {
      const [i, f] = locate(clock.t), n = frames.n, get = (j, axis) => zs[2 * (j * n + k) + axis];
      c.strokeStyle = ink; c.lineWidth = 1.6 * ratio; c.beginPath();
      for (let j = 0; j < ts.length; j++) c[j ? "lineTo" : "moveTo"](X(get(j, 0)), Y(get(j, 1)));
      c.globalAlpha = 0.85; c.stroke(); c.fillStyle = ink;
      if (ts.length < 40) for (let j = 0; j < ts.length; j++) { c.beginPath(); c.arc(X(get(j, 0)), Y(get(j, 1)), 1.9 * ratio, 0, 7); c.fill(); }
      c.globalAlpha = 1; c.beginPath();
      c.arc(X(get(i, 0) * (1 - f) + get(i + 1, 0) * f), Y(get(i, 1) * (1 - f) + get(i + 1, 1) * f), 5 * ratio, 0, 7); c.lineWidth = 2 * ratio; c.stroke();
    }
  }

  const where = (e) => { const box = node.getBoundingClientRect(); return [(e.clientX - box.left) / box.width * 2 - 1, 1 - (e.clientY - box.top) / box.height * 2]; };
  function nearest([x, y], reach) {
    if (!ready()) return null;
    const [i, f] = locate(clock.t), n = frames.n;
    let best = reach * reach, found = null;
    for (let k = 0; k < n; k++) {
      const dx = zs[2 * (i * n + k)] * (1 - f) + zs[2 * ((i + 1) * n + k)] * f - x, dy = zs[2 * (i * n + k) + 1] * (1 - f) + zs[2 * ((i + 1) * n + k) + 1] * f - y;
      const gap = dx * dx + dy * dy;
      if (gap < best) { best = gap; found = k; }
    }
    return found;
  }
  /** Particles inside a loop drawn where they are now. */
  function caught(drawn) {
    const [i, f] = locate(clock.t), n = frames.n, ids = [];
    for (let k = 0; k < n; k++) {
      const x = zs[2 * (i * n + k)] * (1 - f) + zs[2 * ((i + 1) * n + k)] * f, y = zs[2 * (i * n + k) + 1] * (1 - f) + zs[2 * ((i + 1) * n + k) + 1] * f;
      if (within(x, y, drawn)) ids.push(k);
    }
    return ids;
  }
  node.addEventListener("pointerdown", (e) => {
    if (e.button || !ready()) return;
    node.setPointerCapture(e.pointerId);
    clock.playing = false;
    loop = [where(e)]; moved = false;
  });
  node.addEventListener("pointermove", (e) => {
    const at = where(e);
    if (!loop) {
      const k = nearest(at, 16 / Math.max(node.clientWidth, 1));
      if (k !== clock.focus) { clock.focus = k; clock.tell("focus"); }
      return;
    }
    const last = loop.at(-1);
    if (Math.hypot(at[0] - last[0], at[1] - last[1]) < 0.012) return;
    loop.push(at); moved = true;
    clock.chosen = choose(caught(loop), loop);
    clock.tell("chosen");
  });
  function choose(ids, drawn) {
    const mask = new Uint8Array(frames.n);
    for (const k of ids) mask[k] = 1;
    return { ids, mask, loop: drawn, slot: track.slot, u: clock.u };
  }
  const finish = (e) => {
    if (!loop) return;
    const drawn = loop;
    loop = null;
    if (!moved || drawn.length < 3) {
      const k = nearest(drawn[0], 24 / Math.max(node.clientWidth, 1));
      send({ type: "pick", index: k === settings.view.pick ? null : k });
      draw();
      return;
    }
    const step = Math.max(1, Math.floor(drawn.length / 36)), thin = drawn.filter((_, i) => i % step === 0).map(([x, y]) => [Number(x.toFixed(3)), Number(y.toFixed(3))]);
    clock.chosen = choose(caught(thin), thin);
    clock.tell("chosen");
    send({ type: "select", slot: track.slot, sigma: clock.sigma, loop: thin });
  };
  node.addEventListener("pointerup", finish);
  node.addEventListener("pointercancel", () => { loop = null; draw(); });
  node.addEventListener("pointerleave", () => { if (clock.focus !== null) { clock.focus = null; clock.tell("focus"); } });
  const watcher = new ResizeObserver(() => { if (settings.colors) draw(); });
  watcher.observe(node);

  return {
    node, draw, drawOver, choose, caught,
    set(next) { track = next; node.setAttribute("aria-label", `${next.letter}: ${next.title}; drag to select particles, click to follow one`); },
    frames(block) { frames = block; prepare(); },
    costs,
    scene(block) { scene = block; },
    get count() { return frames?.n ?? 0; },
    get key() { return frames?.key; },
    stop() { watcher.disconnect(); },
  };
}

export function render({ model, el }) {
  const clock = clockOf(model.page_id), plates = new Map(), cards = new Map();
  const settings = { extent: 1, scale: 1, palette: { light: [], dark: [] }, count: 1, view: { field: true, density: true, lines: false, trail: 0.3, pick: null } };
  const send = (message) => model.send_msg(message);
  const drag = throttle((message) => send(message), 60);
  const tellView = throttle(() => send({ type: "view", u: Number(clock.u.toFixed(4)), trail: settings.view.trail, speed: clock.speed, field: settings.view.field, density: settings.view.density, lines: settings.view.lines }), 200);

  const grid = h("div", { class: "tracks" });
  const add = h("button", { class: "add", type: "button", "data-act": "add", title: "Another sampler on the same noise (n)", onclick: () => send({ type: "add" }) }, h("b", {}, "+"), h("span", {}, "add a sampler"));
  const addWords = add.lastChild;

  const play = h("button", { class: "btn play", type: "button", "data-act": "play", title: "Play or pause (space)", onclick: () => clock.toggle() });
  const slider = h("input", { type: "range", min: 0, max: 1, step: 0.0005, "aria-label": "Time, from noise to data", "data-part": "time",
    oninput: () => { clock.seek(slider.valueAsNumber); tellView(); } });
  const marks = s("svg", { class: "marks", "aria-hidden": true });
  const when = h("output", { class: "when", "data-part": "sigma" });
  const speed = h("select", { "aria-label": "Speed", "data-part": "speed", onchange: () => { clock.speed = Number(speed.value); tellView(); } },
    [0.25, 0.5, 1, 2, 4].map((v) => h("option", { value: v }, `${v} ×`)));
  const trail = h("input", { type: "range", min: 0, max: 1, step: 0.05, "aria-label": "Length of the trails", "data-part": "trail",
    oninput: () => { settings.view.trail = trail.valueAsNumber; drawAll(); tellView(); } });
  const box = (name, words, title) => {
    const input = h("input", { type: "checkbox", "data-toggle": name, onchange: () => { settings.view[name] = input.checked; drawAll(); send({ type: "view", [name]: input.checked }); } });
    return [input, h("label", { class: "toggle", title }, input, words)];
  };
  const [fieldBox, fieldLabel] = box("field", "velocity", "Velocity field of each model at this σ (f)");
  const [densityBox, densityLabel] = box("density", "density", "Contours of the data at this σ, holding 30, 60 and 90 % of it");
  const [linesBox, linesLabel] = box("lines", "couplings", "Straight lines from noise to sample, dark cheap to bright dear (l)");
  const caption = h("span", { class: "fine", "data-part": "plane" });
  const transport = h("div", { class: "card transport" }, play,
    h("div", { class: "scrub" }, slider, marks), when, speed,
    h("div", { class: "looks" }, h("label", { class: "toggle", title: "Length of the trails, as a share of the whole path" }, "trails", trail), fieldLabel, densityLabel, linesLabel, caption));
  const pane = h("section", { class: "pane stage", "aria-label": "Particles" }, grid, transport);

  function card(track) {
    const chip = h("span", { class: "letter" });
    const title = h("span", { class: "title" }), meta = h("span", { class: "meta" });
    const plate = makePlate(clock, settings, send);
    const veil = h("div", { class: "veil", hidden: true });
    const progress = h("i"), bar = h("div", { class: "line", role: "progressbar", "aria-label": "Job progress", hidden: true }, progress);
    const modelPick = h("select", { "aria-label": "Model", "data-knob": "model", onchange: () => send({ type: "model", slot: track.slot, name: modelPick.value }) });
    const solver = h("select", { "aria-label": "Solver", "data-knob": "solver", onchange: () => send({ type: "set", slot: track.slot, knob: "solver", value: solver.value }) });
    const steps = h("input", { type: "range", min: 1, max: 64, step: 1, "aria-label": "Steps", "data-knob": "n_steps",
      oninput: () => { held = true; count.textContent = steps.value; paint(); drag({ type: "drag", slot: track.slot, knob: "n_steps", value: steps.valueAsNumber }); },
      onchange: () => { held = false; send({ type: "set", slot: track.slot, knob: "n_steps", value: steps.valueAsNumber }); } });
    const count = h("output", { class: "count", "data-part": "steps" });
    const knobs = h("button", { class: "btn small", type: "button", "data-act": "knobs", title: "All knobs of this sampler", onclick: () => send({ type: "activate", slot: track.slot }) }, "knobs");
    const copy = h("button", { class: "icon", type: "button", "data-act": "duplicate", title: "Duplicate", "aria-label": "Duplicate this sampler", onclick: () => send({ type: "duplicate", slot: track.slot }) },
      s("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, s("rect", { x: 2.5, y: 2.5, width: 8, height: 8, rx: 1.5 }), s("path", { d: "M13.5 6v6a1.5 1.5 0 0 1-1.5 1.5H6" })));
    const off = h("button", { class: "icon", type: "button", "data-act": "remove", title: "Remove", "aria-label": "Remove this sampler", onclick: () => send({ type: "remove", slot: track.slot }) }, "✕");
    let held = false, models = "";
    const paint = () => steps.style.setProperty("--at", `${100 * (steps.valueAsNumber - 1) / 63}%`);
    const node = h("article", { class: "card track" },
      h("header", {}, chip, title, meta, copy, off),
      h("div", { class: "plate" }, plate.node, veil, bar),
      h("div", { class: "quick" }, modelPick, solver, h("label", { class: "stepper" }, "steps", steps, count), knobs));
    node.addEventListener("pointerdown", () => { node.focus({ preventScroll: true }); });
    return {
      node, plate,
      show(next, d) {
        track = next;
        node.dataset.track = next.letter;
        node.style.setProperty("--own", next.color);
        node.classList.toggle("active", next.active);
        chip.textContent = next.letter;
        title.textContent = next.title; title.title = next.title;
        meta.textContent = next.meta;
        const key = JSON.stringify(d.models);
        if (key !== models) { models = key; modelPick.replaceChildren(...d.models.map((g) => h("optgroup", { label: g.title }, g.items.map((m) => h("option", { value: m.name }, m.title))))); }
        modelPick.value = next.model;
        if (solver.children.length !== d.solvers.length) solver.replaceChildren(...d.solvers.map((name) => h("option", {}, name)));
        solver.value = next.solver;
        if (!held) { steps.value = next.steps; count.textContent = next.steps; paint(); }
        knobs.setAttribute("aria-pressed", next.active);
        copy.hidden = d.tracks.length >= d.most;
        off.hidden = d.tracks.length < 2;
        plate.set(next);
        node.classList.toggle("stale", Boolean(next.error) || next.waiting);
        bar.hidden = !next.running;
        progress.style.width = `${100 * next.fraction}%`;
        bar.title = next.running;
        veil.hidden = !next.error && next.drawn;
        veil.className = next.error ? "veil failed" : "veil";
        if (next.error) {
          const details = h("button", { class: "btn small", type: "button", onclick: async () => { await navigator.clipboard.writeText(next.error.details); details.textContent = "copied"; } }, "copy details");
          veil.replaceChildren(h("p", { role: "alert", "data-part": "track-error" }, next.error.text),
            h("div", {}, h("button", { class: "btn small", type: "button", "data-act": "undo", onclick: () => send({ type: "undo", slot: next.slot }) }, "undo"), details));
        } else if (!next.drawn) {
          veil.replaceChildren(h("p", {}, next.running ? "Drawing the first particles…" : "Stopped before the first particles."),
            next.running ? "" : h("button", { class: "btn small", type: "button", onclick: () => send({ type: "run" }) }, "draw them"));
        }
      },
    };
  }

  function draw() {
    const d = model.data;
    if (!d.opened) return;
    settings.extent = d.extent; settings.scale = d.scale; settings.palette = d.palette; settings.colors = null; settings.count = d.tracks.length;
    Object.assign(settings.view, d.view);
    clock.scale = d.scale; clock.sigmaMax = d.sigma_max;
    for (const [slot, made] of cards) if (!d.tracks.some((t) => t.slot === slot)) { made.plate.stop(); cards.delete(slot); }
    for (const track of d.tracks) {
      if (!cards.has(track.slot)) {
        const made = card(track);
        cards.set(track.slot, made);
        plates.set(track.slot, made.plate);
        made.plate.frames(unpack(model[`frames_${track.slot}`])); made.plate.scene(unpack(model[`scene_${track.slot}`]));
      }
      cards.get(track.slot).show(track, d);
    }
    grid.style.setProperty("--count", d.tracks.length);
    grid.dataset.count = d.tracks.length;
    addWords.textContent = d.tracks.length > 1 ? "add a sampler" : "add a sampler: another way to move the same noise";
    const wanted = [...d.tracks.map((t) => cards.get(t.slot).node), ...(d.tracks.length < d.most ? [add] : [])];
    if (wanted.some((node, i) => grid.children[i] !== node) || grid.children.length !== wanted.length) grid.replaceChildren(...wanted);
    fieldBox.checked = settings.view.field; densityBox.checked = settings.view.density; linesBox.checked = settings.view.lines;
    fieldLabel.hidden = d.kind !== "points";
    caption.textContent = d.caption; caption.title = d.caption;
    trail.value = settings.view.trail; speed.value = clock.speed;
    if (d.opened !== draw.opened) {                      // an address was opened: time stands where it says
      draw.opened = d.opened;
      clock.speed = d.view.speed; speed.value = clock.speed;
      clock.playing = false;
      clock.u = d.view.u ?? 1;
      draw.wish = d.view.u === null && !matchMedia("(prefers-reduced-motion: reduce)").matches;
    }
    selection(d);
    ticks_();
    drawAll();
  }

  function selection(d) {
    const chosen = d.selection;
    if (!chosen) { if (clock.chosen) { clock.chosen = null; clock.tell("chosen"); } return; }
    const n = Math.max(...[...cards.values()].map((c) => c.plate.count), 0), mask = new Uint8Array(n);
    for (const k of chosen.ids) mask[k] = 1;
    clock.chosen = { ids: chosen.ids, mask, loop: chosen.loop, slot: chosen.slot, u: clock.place(chosen.sigma) };
    clock.tell("chosen");
  }

  /** Noise levels under the scrubber, and where each sampler takes its steps. */
  function ticks_() {
    const d = model.data, width = slider.clientWidth || 400, inset = 7, rows = d.tracks.length;
    const x = (sigma) => inset + clock.place(sigma) * (width - 2 * inset), top = 2, height = top + 5 * rows + 15;
    marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
    marks.style.height = `${height}px`;
    const parts = [];
    d.tracks.forEach((track, r) => {
      for (const v of track.sigmas) parts.push(s("line", { x1: x(v), x2: x(v), y1: top + 5 * r, y2: top + 5 * r + 4, stroke: track.color, "stroke-width": 1.5 }));
    });
    let last = -Infinity;
    for (const v of [80, 20, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0]) {
      if (v > clock.sigmaMax) continue;
      if (x(v) - last < 30 && v !== 0) continue;
      if (v !== 0 && width - inset - x(v) < 26) continue;
      last = x(v);
      parts.push(s("text", { x: clamp(x(v), 12, width - 10), y: height - 2, "text-anchor": "middle" }, v === 80 || last === -Infinity ? `σ ${v}` : short(v)));
    }
    marks.replaceChildren(...parts);
  }

  /** Colours of the theme, read once: asking for them in every frame would have the page laid out anew each time. */
  function colors() {
    const style = getComputedStyle(grid), get = (name) => style.getPropertyValue(name).trim(), dark = get("color-scheme") === "dark";
    return { dark, ink: get("--ink"), muted: get("--muted"), accent: get("--accent"), contour: get("--muted"), inks: settings.palette[dark ? "dark" : "light"].map(rgb) };
  }

  const meter = { frames: 0, spent: 0, since: performance.now() };
  function drawAll() {
    const start = performance.now();
    if (settings.view.lines) {
      const all = [...cards.values()].flatMap(({ plate }) => plate.costs().cost);
      settings.dear = all.reduce(([low, high], v) => [Math.min(low, v), Math.max(high, v)], [Infinity, -Infinity]);
    }
    settings.colors ??= colors();
    for (const { plate } of cards.values()) plate.draw();
    const u = clock.u;
    slider.value = u; slider.style.setProperty("--at", `${100 * u}%`);
    slider.setAttribute("aria-valuetext", `σ ${short(clock.sigma)}`);
    when.replaceChildren(h("span", { class: "muted" }, "σ "), short(clock.sigma < SIGMA_FLOOR ? 0 : clock.sigma));
    play.textContent = clock.playing ? "❚❚" : "▶";
    play.setAttribute("aria-label", clock.playing ? "Pause" : "Play from noise to data");
    meter.frames += 1; meter.spent += performance.now() - start;
  }

  let before = null;
  function tick(now) {
    if (!clock.playing) { before = null; return; }
    if (before !== null) clock.u = Math.min(1, clock.u + (now - before) / 1000 * clock.speed / (LAP * LEAD));
    before = now;
    if (clock.u >= 1) { clock.playing = false; before = null; tellView(); }
    clock.tell("time");
    if (now - meter.since > 500) {
      pane.dataset.fps = (1000 * meter.frames / (now - meter.since)).toFixed(1);
      pane.dataset.draw = (meter.spent / Math.max(meter.frames, 1)).toFixed(2);
      Object.assign(meter, { frames: 0, spent: 0, since: now });
    }
    if (clock.playing) requestAnimationFrame(tick);
  }
  let was = false;
  const deaf = clock.listen((what) => {
    if (what === "focus") { for (const { plate } of cards.values()) plate.drawOver(); return; }
    if (what === "hover") return;
    if (what === "time" && clock.playing && !was) { Object.assign(meter, { frames: 0, spent: 0, since: performance.now() }); requestAnimationFrame(tick); }
    if (what === "time" && !clock.playing && was) tellView();
    was = clock.playing;
    drawAll();
  });

  pane.addEventListener("keydown", (e) => {             // a slider takes its own keys, but time is everybody's
    if (e.key === " " && e.target.type === "range") { e.preventDefault(); clock.toggle(); }
  });
  const onKey = (event) => {
    if (event.detail.page !== model.page_id) return;
    const key = event.detail.key;
    if (key === " ") clock.toggle();
    else if (key === "f") fieldBox.click();
    else if (key === "l") linesBox.click();
    else if (key === "n" && !add.hidden && add.isConnected) add.click();
    else if (key === "ArrowLeft" || key === "ArrowRight") { clock.seek(clock.u + (key === "ArrowRight" ? 0.01 : -0.01)); tellView(); }
    else if (key === "Home" || key === "End") { clock.seek(key === "End" ? 1 : 0); tellView(); }
    else if (/^[1-4]$/.test(key)) { const track = model.data.tracks[Number(key) - 1]; if (track) send({ type: "activate", slot: track.slot }); }
  };
  document.addEventListener("explorer-trajectory-key", onKey);
  const themed = new MutationObserver(() => { settings.colors = null; drawAll(); });
  themed.observe(document.documentElement, { attributes: true, attributeFilter: ["style"] });

  model.on("data", draw);
  for (let slot = 0; slot < 4; slot++) {
    model.on(`frames_${slot}`, () => {
      cards.get(slot)?.plate.frames(unpack(model[`frames_${slot}`]));
      drawAll();
      if (draw.wish && cards.size) { draw.wish = false; clock.u = 0; clock.playing = true; clock.tell("time"); }
    });
    model.on(`scene_${slot}`, () => { cards.get(slot)?.plate.scene(unpack(model[`scene_${slot}`])); drawAll(); });
  }
  model.on("remove", () => { deaf(); themed.disconnect(); document.removeEventListener("explorer-trajectory-key", onKey); for (const { plate } of cards.values()) plate.stop(); });
  draw();
  new ResizeObserver(ticks_).observe(slider);
  return pane;
}
