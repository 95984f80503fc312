export function render({ model, el }) {
  const picker = h("select", { class: "model", "aria-label": "Model", "data-knob": "model", onchange: () => model.send_msg({ type: "model", name: picker.value }) });
  const seed = numberField({ class: "seed", min: 0, step: 1, "aria-label": "First seed", "data-knob": "seed" },
    (value) => model.send_msg({ type: "set", knob: "seed", value }));
  const seeds = h("span", { class: "muted" });
  const dice = h("button", { class: "btn dice", type: "button", title: "Other seeds (d)", "aria-label": "Draw other seeds", onclick: () => model.send_msg({ type: "dice" }) },
    s("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, s("rect", { x: 4, y: 4, width: 16, height: 16, rx: 3.5 }),
      [[9, 9], [15, 15], [15, 9], [9, 15]].map(([cx, cy]) => s("circle", { cx, cy, r: 1.5 }))));
  const count = h("select", { "aria-label": "Number of samples", "data-knob": "n", onchange: () => model.send_msg({ type: "n", value: Number(count.value) }) });

  const fill_bar = h("div");
  const bar = h("div", { class: "bar", role: "progressbar", "aria-label": "Job progress", "aria-valuemin": 0, "aria-valuemax": 100 }, fill_bar);
  const words = h("span", { "data-part": "job", "aria-live": "polite" });
  const stop = h("button", { class: "stop", type: "button", title: "Stop (Esc)", "aria-label": "Stop the running job", "data-act": "cancel", onclick: () => model.send_msg({ type: "cancel" }) }, "✕");
  const again = h("button", { class: "btn", type: "button", "data-act": "resume", onclick: () => model.send_msg({ type: "run" }) }, "Run to the end");
  const meta = h("span", { "data-part": "meta" });

  const number = h("div", { class: "number", "data-part": "number", "aria-live": "polite" });
  const space = h("div", { class: "space", "data-part": "space" });
  const spark = s("svg", { class: "spark", role: "img", "aria-label": "Value against the number of samples" });
  const hero = h("div", { class: "hero", "data-part": "hero" }, spark, h("div", {}, number, space));

  const said = strips((message) => model.send_msg(message));

  const pane = h("header", { class: "pane card top" },
    h("div", {},
      h("div", { class: "controls" },
        h("label", {}, "model", picker), h("label", {}, "seeds", seed, seeds), dice, h("label", {}, "samples", count)),
      h("div", { class: "job" }, meta, bar, words, stop, again)),
    hero, ...said.nodes);

  let models_drawn = "";
  function drawControls() {
    const d = model.data;
    if (!d.models) return;
    const key = JSON.stringify(d.models) + d.n_choices;
    if (key !== models_drawn) {
      models_drawn = key;
      picker.replaceChildren(...d.models.map((group) => h("optgroup", { label: group.title }, group.items.map((m) => h("option", { value: m.name }, m.title)))));
      count.replaceChildren(...d.n_choices.map((n) => h("option", { value: n }, n.toLocaleString("en").replace(",", "\u2009"))));
    }
    picker.value = d.model;
    count.value = d.n;
    seed.show(d.seed);
    seeds.textContent = `– ${d.seed + d.n - 1}`;
    said.draw(d, [], d.error?.fix ? [h("button", { class: "btn", type: "button", onclick: () => model.send_msg({ type: "fix" }) }, d.error.fix)] : []);
  }

  function drawJob() {
    const j = model.job;
    fill_bar.style.width = `${100 * (j.fraction || 0)}%`;
    bar.setAttribute("aria-valuenow", Math.round(100 * (j.fraction || 0)));
    bar.hidden = stop.hidden = !j.running;
    again.hidden = !j.stopped;
    words.textContent = j.text || "";
  }

  function drawHero() {
    const r = model.hero;
    meta.textContent = r.meta || "";
    hero.classList.toggle("unsettled", !r.settled);
    hero.classList.toggle("stale", Boolean(r.stale));
    if (r.value === undefined) {
      number.textContent = "…";
      space.textContent = r.name || "";
      spark.replaceChildren();
      return;
    }
    number.replaceChildren(...(r.value === "–" ? ["…"] : [r.value, h("span", { class: "pm" }, ` ± ${r.error}`)]));
    space.replaceChildren(h("b", {}, r.name), ` · n ${r.n}`, !r.settled ? " · not enough samples yet" : r.raw ? h("span", { class: "faint" }, ` · raw ${r.raw}`) : "", r.caveat ? ` · ${r.caveat}` : "");
    space.title = r.note || "";
    drawSpark(r);
  }

  const WIDTH = 150, HEIGHT = 52;
  function drawSpark(r) {
    spark.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    const points = r.course.filter((p) => Number.isFinite(p[1]) && p[3]);
    if (points.length < 1) return spark.replaceChildren();
    const frame = new Frame();
    for (const [, v, e] of points) frame.add(v - 2 * e, v + 2 * e);
    const span = frame.high - frame.low || 1;
    const x = (n) => 4 + (n / r.n_total) * (WIDTH - 8), y = (v) => 5 + (1 - (v - frame.low) / span) * (HEIGHT - 10);
    const edge = [...points.map(([n, v, e]) => [x(n), y(v + e)]), ...points.toReversed().map(([n, v, e]) => [x(n), y(v - e)])];
    const last = points.at(-1);
    spark.replaceChildren(
      s("line", { x1: 4, x2: WIDTH - 4, y1: HEIGHT - 1, y2: HEIGHT - 1, class: "gridline" }),
      s("polygon", { points: edge.map((p) => p.join()).join(" "), fill: r.color, opacity: 0.2 }),
      points.length === 1 ? s("line", { x1: x(last[0]), x2: x(last[0]), y1: y(last[1] - last[2]), y2: y(last[1] + last[2]), stroke: r.color, "stroke-width": 2, opacity: 0.4 }) : "",
      s("polyline", { points: points.map(([n, v]) => `${x(n)},${y(v)}`).join(" "), fill: "none", stroke: r.color, "stroke-width": 1.5 }),
      s("circle", { cx: x(last[0]), cy: y(last[1]), r: 2.8, fill: r.color }));
  }

  model.on("data", drawControls);
  model.on("job", drawJob);
  model.on("hero", drawHero);
  drawControls(); drawJob(); drawHero();
  return pane;
}
