const TURN = 260;                     // milliseconds in which particles move from one picture to the next
const PAGES = 9;                      // pictures a second when the book is leafed through

/** One run's square: samples of the averaged weights at fixed noise, one picture after another. */
function makeBook(spot, settings) {
  const canvas = h("canvas", { role: "img", "aria-label": "Samples from the averaged weights" });
  const stamp = h("span", { class: "stamp", hidden: true, "data-part": "stamp" }), key = h("span", { class: "key", hidden: true });
  const veil = h("div", { class: "veil" });
  const node = h("div", { class: "plate", "data-part": "book" }, canvas, veil), whole = h("div", {}, node, h("div", { class: "legend" }, stamp, key));
  const reduced = matchMedia("(prefers-reduced-motion: reduce)");
  let book = null, at = -1, from = null, now = null, since = 0, frame = 0, sheet = null;

  function take(block) {
    if (block.anew || !book || book.run !== block.run) {
      book = { run: block.run, kind: block.kind, n: block.n, extent: block.extent, shape: block.shape, hue: block.hue, data: block.data, pages: [] };
      at = -1; now = null;
    }
    const size = block.pictures.length ? block.x.length / block.pictures.length : 0;
    block.pictures.forEach((page, i) => book.pages.push({ ...page, x: block.x.slice(i * size, (i + 1) * size) }));
    node.dataset.pages = book.pages.length;
    open();
  }
  const clear = () => { book = null; at = -1; now = null; node.dataset.pages = 0; draw(); };

  /** The page that belongs to where the book is open: the last one up to there. */
  function page() {
    if (!book?.pages.length) return -1;
    if (spot.open === null) return book.pages.length - 1;
    let i = 0;
    while (i < book.pages.length - 1 && book.pages[i + 1][spot.by] <= spot.open * 1.0000001) i++;
    return i;
  }

  function open() {
    const next = page();
    if (next !== at && next >= 0) {
      at = next;
      node.dataset.page = at;
      if (book.kind === "points") {
        const x = book.pages[at].x, target = new Float32Array(x.length), scale = 2 / 32767.5;
        for (let i = 0; i < x.length; i++) target[i] = x[i] * scale - 2;
        from = now && now.length === target.length && !reduced.matches ? now.slice() : target;
        now = target.slice(); now.target = target;
        since = performance.now();
        step();
      }
    }
    draw();
  }

  function step() {
    cancelAnimationFrame(frame);
    const turn = spot.playing ? 1000 / PAGES : TURN, u = clamp((performance.now() - since) / turn, 0, 1), f = u * u * (3 - 2 * u);
    for (let i = 0; i < now.length; i++) now[i] = from[i] * (1 - f) + now.target[i] * f;
    draw();
    if (u < 1 && from !== now.target) frame = requestAnimationFrame(step);
  }

  function draw() {
    const size = Math.round(node.clientWidth * devicePixelRatio);
    const here = book?.pages[at];
    veil.hidden = Boolean(here);
    stamp.hidden = key.hidden = !here;
    if (!size) return;
    if (canvas.width !== size) canvas.width = canvas.height = size;
    const c = canvas.getContext("2d");
    c.clearRect(0, 0, size, size);
    if (!here) return;
    stamp.textContent = spot.by === "images" ? `${amount(here.images, "images")} images` : `after ${amount(here.seconds, "seconds")}`;
    key.textContent = book.kind === "points" ? `${group(book.n)} particles, grey: data` : `${book.n} samples, fixed noise`;
    canvas.setAttribute("aria-label", `${book.n} samples from the averaged weights after ${group(here.images)} images`);
    if (book.kind === "points") drawPoints(c, size); else drawImages(c, size, here);
  }

  function drawPoints(c, size) {
    const ratio = devicePixelRatio, at = (v) => (v + 1) / 2 * size, dark = settings.dark(), inks = settings.palette[dark ? "dark" : "light"];
    c.fillStyle = dark ? "#6a717c" : "#9aa1ab"; c.globalAlpha = 0.42;
    const data = book.data || [], small = 1.1 * ratio;
    for (let i = 0; i < data.length; i += 2) {
      const x = at(data[i] * 2 / 32767.5 - 2), y = size - at(data[i + 1] * 2 / 32767.5 - 2);
      c.fillRect(x - small / 2, y - small / 2, small * 1.4, small * 1.4);
    }
    c.globalAlpha = 0.85;
    const r = 1.7 * ratio * clamp(size / ratio / 340, 0.75, 1.3);
    const edge = (v) => clamp(v, r, size - r);
    settings.order(book.hue).forEach(([hue, ids]) => {
      c.fillStyle = inks[hue]; c.beginPath();
      for (const k of ids) { const x = edge(at(now[2 * k])), y = edge(size - at(now[2 * k + 1])); c.moveTo(x + r, y); c.arc(x, y, r, 0, 2 * Math.PI); }
      c.fill();
    });
    c.globalAlpha = 1;
  }

  function drawImages(c, size, here) {
    const [n, channels, height, width] = book.shape, columns = Math.ceil(Math.sqrt(n)), gap = 1;
    const W = columns * (width + gap) - gap, H = Math.ceil(n / columns) * (height + gap) - gap, area = width * height;
    sheet ??= document.createElement("canvas");
    sheet.width = W; sheet.height = H;
    const image = new ImageData(W, H), px = image.data;
    for (let k = 0; k < n; k++) {
      const left = (k % columns) * (width + gap), top = Math.floor(k / columns) * (height + gap);
      for (let i = 0; i < area; i++) {
        const to = 4 * ((top + Math.floor(i / width)) * W + left + i % width), base = k * channels * area + i;
        px[to] = here.x[base]; px[to + 1] = here.x[base + (channels > 1 ? area : 0)]; px[to + 2] = here.x[base + (channels > 2 ? 2 * area : 0)]; px[to + 3] = 255;
      }
    }
    sheet.getContext("2d").putImageData(image, 0, 0);
    const pad = Math.round(0.016 * size), scale = (size - 2 * pad) / Math.max(W, H);
    c.imageSmoothingEnabled = false;
    c.drawImage(sheet, pad, pad, W * scale, H * scale);
  }

  new ResizeObserver(draw).observe(node);
  return { node: whole, veil, take, clear, open, draw, get pages() { return book?.pages ?? []; }, get run() { return book?.run ?? ""; } };
}

const WORDS = { pause: "Pause", resume: "Resume", stop: "Stop", again: "Again", remove: "Remove", slower: "Halve lr" };
const TITLES = {
  pause: "Wait; the process keeps everything in memory (p)", resume: "Go on (p)", stop: "End the process, with a checkpoint to resume from",
  again: "Put this run's numbers into the form", remove: "Move this run out of sight; it can be put back", slower: "Start it anew with half the learning rate",
};

/** One run: what it does, its pictures, its number, and what can be done with it. */
function makePanel(spot, settings, send, slot) {
  const book = makeBook(spot, settings);
  const letter = h("b", { class: "letter" }), title = h("span", { class: "title" }), state = h("span", { class: "state", "data-part": "state" });
  const acts = h("div", { class: "acts" }), fill = h("i");
  const bar = h("div", { class: "bar", role: "progressbar", "aria-label": "Training progress", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const hero = h("div", { class: "hero", "data-part": "hero" }), facts = h("dl", { "data-part": "facts" });
  const trouble = h("div", { class: "trouble", role: "alert", "data-part": "trouble", hidden: true }), hints = h("div");
  const kept = h("div", { class: "kept", "data-part": "kept", hidden: true });
  const node = h("article", { class: "card panel", "data-slot": slot },
    h("header", {}, letter, title, state, acts), bar,
    h("div", { class: "body" }, book.node, h("div", { class: "info" }, trouble, hero, facts, hints, kept)));
  let p = null, buttons = "";

  function show(next) {
    if (p && p.name !== next.name && book.run !== next.name) book.clear();
    p = next;
    node.style.setProperty("--own", p.color);
    node.dataset.run = p.name; node.dataset.state = p.state;
    letter.textContent = p.letter; title.textContent = p.title; title.title = p.name;
    state.dataset.state = p.state; state.textContent = [p.words, p.eta].filter(Boolean).join(" · "); state.title = p.words;
    fill.style.width = `${100 * (p.fraction || 0)}%`;
    bar.setAttribute("aria-valuenow", Math.round(100 * (p.fraction || 0)));
    const has = (p.acts || []).filter((act) => act !== "slower" && act !== "resume" || !p.error);
    const key = JSON.stringify([has, p.name, p.unkeepable, slot]);
    if (key !== buttons) {                       // a button that is being pressed is not replaced
      buttons = key;
      const act = (name) => h("button", { class: "btn", type: "button", "data-act": name, title: TITLES[name], onclick: () => send({ type: name, name: p.name }) }, WORDS[name]);
      const keep = h("button", { class: "btn", type: "button", "data-act": "keep", disabled: Boolean(p.unkeepable ?? true), title: p.unkeepable || "Make its averaged weights a model that every page offers (k)", onclick: () => send({ type: "keep", name: p.name }) }, "Keep");
      acts.replaceChildren(...has.map(act), keep, ...(slot ? [h("button", { class: "shut", type: "button", title: "Not beside", "aria-label": "Close B", onclick: () => send({ type: "show", name: "", slot }) }, "✕")] : []));
    }
    hero.hidden = !p.hero && !["running", "starting", "preparing"].includes(p.state);
    if (p.hero) {
      hero.classList.toggle("early", !p.hero.settled);
      hero.replaceChildren(h("div", { class: "name", title: p.hero.title }, p.hero.name), h("div", { class: "value" }, p.hero.value, h("small", {}, ` ± ${p.hero.error}`)),
        h("p", { class: "fine" }, [`n ${p.hero.n}`, p.hero.nfe ? `NFE ${p.hero.nfe}` : "", `step ${p.hero.step}`, p.hero.against && `to ${p.hero.against}`, p.hero.note, p.hero.settled ? "" : "not enough samples yet"].filter(Boolean).join(" · ")));
    } else {
      hero.classList.add("early");
      hero.replaceChildren(h("div", { class: "name" }, "quality"), h("div", { class: "value" }, "…"), h("p", { class: "fine" }, "measured beside the training, from the first weights on"));
    }
    facts.replaceChildren(...(p.facts || []).flatMap((f) => [h("dt", {}, f.name), h("dd", {}, f.value)]));
    trouble.hidden = !p.error;
    if (p.error) {
      const copy = h("button", { class: "btn", type: "button", onclick: async () => { await navigator.clipboard.writeText(p.error.details); copy.textContent = "copied"; } }, "copy details");
      trouble.replaceChildren(h("span", {}, p.error.text), h("div", {}, ...["resume", "slower"].filter((act) => p.acts.includes(act)).map((name) =>
        h("button", { class: "btn", type: "button", "data-act": name, title: TITLES[name], onclick: () => send({ type: name, name: p.name }) }, name === "resume" ? "Resume from the checkpoint" : "Start anew with half the rate")), copy));
    }
    hints.replaceChildren(...(p.notices || []).map((text) => h("div", { class: "hint" }, text)));
    kept.hidden = !p.kept?.length;
    kept.replaceChildren(...(p.kept || []).slice(-1).flatMap((name) => [h("span", {}, "★ kept as ", h("b", {}, name)), h("a", { href: `./lab#lab?model=${name}`, "data-act": "lab" }, "open in the Sampler Lab"), h("a", { href: `./trajectory#trajectory?a.model=${name}` }, "in the Trajectory Lab")]));
    const waits = ["starting", "preparing", "running", "measuring"].includes(p.state) && !p.pictures;
    book.veil.replaceChildren(...(waits ? [h("div", { class: "ring" })] : []), h("p", {}, p.pictures || (waits ? (p.state === "running" ? "The first picture is being drawn…" : p.words) : "No pictures were drawn before it ended.")));
    book.draw();
  }
  return { node, book, show, get p() { return p; } };
}

export function render({ model, el }) {
  const spot = spotOf(model.page_id), send = (message) => model.send_msg(message);
  const orders = new WeakMap();
  const settings = {
    palette: { light: [], dark: [] },
    dark: () => getComputedStyle(pane).getPropertyValue("color-scheme").trim() === "dark",
    order(hue) {
      if (!orders.has(hue)) { const bins = new Map(); hue.forEach((v, k) => bins.set(v, [...(bins.get(v) ?? []), k])); orders.set(hue, [...bins]); }
      return orders.get(hue);
    },
  };
  const panels = [0, 1].map((slot) => makePanel(spot, settings, send, slot));
  const grid = h("div", { class: "panels" });
  const play = h("button", { class: "btn play", type: "button", "data-act": "play", "aria-label": "Leaf through the pictures", onclick: toggle }, "▶");
  const slider = h("input", { type: "range", min: 0, max: 1000, step: 1, "aria-label": "Picture", "data-part": "leaf", oninput: () => { const all = times(); if (all.length) spot.seek(all[Math.round(slider.valueAsNumber / 1000 * (all.length - 1))]); } });
  const when = h("span", { class: "when", "data-part": "when" });
  const live = h("button", { class: "btn small live", type: "button", "data-act": "live", title: "Follow the newest picture (End)", onclick: () => spot.seek(null) }, "newest");
  const transport = h("div", { class: "card transport" }, play, slider, when, live);
  const nothing = h("div", { class: "card nothing" });
  const pane = h("section", { class: "pane stage", "aria-label": "Runs that are looked at" }, grid, transport, nothing);
  let timer = null;

  const shown = () => panels.filter((panel) => panel.node.isConnected);
  /** Moments at which any book that is open has a picture. */
  const times = () => [...new Set(shown().flatMap((panel) => panel.book.pages.map((page) => page[spot.by])))].sort((a, b) => a - b);
  const place = (all) => (spot.open === null ? all.length - 1 : Math.max(0, all.findLastIndex((v) => v <= spot.open * 1.0000001)));

  function toggle() {
    spot.playing = !spot.playing;
    if (spot.playing && (spot.open === null || place(times()) >= times().length - 1)) spot.open = times()[0] ?? null;
    tick();
    spot.tell("book");
  }
  function tick() {
    clearTimeout(timer);
    if (!spot.playing) return;
    timer = setTimeout(() => {
      const all = times(), i = place(all);
      if (i >= all.length - 1) { spot.playing = false; spot.open = null; } else spot.open = all[i + 1];
      spot.tell("book");
      tick();
    }, 1000 / PAGES);
  }
  function leaf(by) {
    const all = times();
    if (all.length) spot.seek(all[clamp(place(all) + by, 0, all.length - 1)]);
  }
  function drawTransport() {
    const all = times(), i = place(all);
    transport.hidden = !all.length;
    slider.value = all.length > 1 ? 1000 * i / (all.length - 1) : 1000;
    slider.style.setProperty("--at", `${slider.value / 10}%`);
    slider.setAttribute("aria-valuetext", all.length ? amount(all[i], spot.by) : "");
    when.textContent = all.length ? `picture ${i + 1} of ${all.length}` : "";
    play.textContent = spot.playing ? "❚❚" : "▶";
    live.setAttribute("aria-pressed", spot.open === null && !spot.playing);
  }
  function draw() {
    const d = model.data;
    if (!d.panels) return;
    settings.palette = d.palette;
    grid.style.setProperty("--count", d.panels.length || 1);
    grid.dataset.count = d.panels.length;
    for (const panel of panels) {
      const p = d.panels.find((q) => q.slot === Number(panel.node.dataset.slot));
      if (p) { if (!panel.node.isConnected) grid.append(panel.node); panel.show(p); } else if (panel.node.isConnected) { panel.node.remove(); panel.book.clear(); }
    }
    grid.hidden = !d.panels.length;
    nothing.hidden = Boolean(d.panels.length);
    if (!d.panels.length) {
      nothing.replaceChildren(
        s("svg", { viewBox: "0 0 132 72", "aria-hidden": "true" }, s("path", { d: "M6 62C30 58 40 22 62 18s40 2 64-8", "stroke-dasharray": "3 4" }), [[6, 62], [36, 46], [62, 18], [96, 17], [126, 10]].map(([cx, cy]) => s("circle", { cx, cy, r: 3 }))),
        h("h3", {}, d.none ? "Nothing has been trained here yet" : "No run is being looked at"),
        h("p", {}, d.none ? "Pick a method and a recipe, press Start, and watch the particles find their places. A run goes on when this page closes, and is found again." : d.empty),
        ...(d.none ? [h("button", { class: "btn primary", type: "button", "data-act": "first", onclick: () => send({ type: "start" }) }, `Train ${d.first}`)] : []));
    }
    drawTransport();
  }
  [0, 1].forEach((slot) => model.on(`book_${slot}`, () => {
    const block = unpack(model[`book_${slot}`]);
    if (!block) return;
    const taken = panels[slot].node.isConnected && panels[slot].p?.name === block.run;
    if (taken) panels[slot].book.take(block);
    send({ type: "have", slot, taken });
    drawTransport();
  }));
  const deaf = spot.listen((what) => { if (what === "book" || what === "axis") { for (const panel of shown()) panel.book.open(); drawTransport(); } });
  const keys = ({ detail }) => {
    if (detail.page !== model.page_id) return;
    const p = panels[0].p;
    if (detail.key === " ") toggle();
    else if (detail.key === "ArrowLeft") leaf(-1);
    else if (detail.key === "ArrowRight") leaf(1);
    else if (detail.key === "Home") spot.seek(times()[0] ?? null);
    else if (detail.key === "End") spot.seek(null);
    else if (detail.key === "a") send({ type: "look", by: spot.by === "images" ? "seconds" : "images" });
    else if (detail.key === "p" && p) { const act = ["pause", "resume"].find((name) => p.acts.includes(name)); if (act) send({ type: act, name: p.name }); }
    else if (detail.key === "k" && p && !p.unkeepable) send({ type: "keep", name: p.name });
  };
  document.addEventListener("explorer-training-key", keys);
  const themed = new MutationObserver(() => { for (const panel of shown()) panel.book.draw(); });  // the paper changes: so do the inks
  themed.observe(document.documentElement, { attributes: true, attributeFilter: ["style"] });
  model.on("remove", () => { deaf(); themed.disconnect(); clearTimeout(timer); document.removeEventListener("explorer-training-key", keys); });
  model.on("data", draw);
  draw();
  return pane;
}
