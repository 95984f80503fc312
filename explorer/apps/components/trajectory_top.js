export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const picker = h("select", { class: "model", "aria-label": "Model of all samplers", "data-knob": "model", onchange: () => send({ type: "model", slot: null, name: picker.value }) });
  const commit = () => { if (Number.isInteger(seed.valueAsNumber)) send({ type: "seed", value: seed.valueAsNumber }); };
  const seed = h("input", { class: "seed", type: "number", min: 0, step: 1, "aria-label": "First seed", "data-knob": "seed", onchange: commit,
    onkeydown: (e) => { if (e.key === "Enter") seed.blur(); } });
  const seeds = h("span", { class: "muted" });
  const dice = h("button", { class: "btn dice", type: "button", title: "Other noise for all samplers (d)", "aria-label": "Draw other seeds", onclick: () => send({ type: "dice" }) },
    s("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, s("rect", { x: 4, y: 4, width: 16, height: 16, rx: 3.5 }),
      [[9, 9], [15, 15], [15, 9], [9, 15]].map(([cx, cy]) => s("circle", { cx, cy, r: 1.5 }))));
  const count = h("select", { "aria-label": "Number of particles", "data-knob": "n", onchange: () => send({ type: "n", value: Number(count.value) }) });

  const inner = h("div");
  const bar = h("div", { class: "bar", role: "progressbar", "aria-label": "Job progress", "aria-valuemin": 0, "aria-valuemax": 100 }, inner);
  const words = h("span", { "data-part": "job", "aria-live": "polite" });
  const stop = h("button", { class: "stop", type: "button", title: "Stop (Esc)", "aria-label": "Stop the running jobs", "data-act": "cancel", onclick: () => send({ type: "cancel" }) }, "✕");
  const again = h("button", { class: "btn small", type: "button", "data-act": "resume", onclick: () => send({ type: "run" }) }, "run to the end");

  async function copy(button, text) {
    const said = button.textContent;
    try { await navigator.clipboard.writeText(text); button.textContent = "copied ✓"; } catch { button.textContent = "copying was refused"; }
    setTimeout(() => { button.textContent = said; items.hidden = true; }, 900);
  }
  const theme = () => (getComputedStyle(pane).getPropertyValue("color-scheme").trim() === "dark" ? "dark" : "light");
  const save = (what, form) => { items.hidden = true; send({ type: "export", what, form, theme: theme() }); };
  const item = (words, act, run) => h("button", { type: "button", role: "menuitem", "data-act": act, onclick: run }, words);
  const rows = h("div", { class: "figures" });
  const items = h("div", { hidden: true, role: "menu" }, rows,
    h("hr"),
    item("Copy as Python", "python", (e) => copy(e.target, model.texts.python)),
    item("Copy as command line", "cli", (e) => copy(e.target, model.texts.cli)),
    item("Copy link to this view", "link", (e) => copy(e.target, location.href)));
  const menu = menuOf("Export ▾", "export-menu", items);

  const said = strips(send);
  const pane = h("header", { class: "pane card top" },
    h("div", { class: "controls" },
      h("label", {}, "model", picker), h("label", {}, "particles", count), h("label", {}, "seeds", seed, seeds), dice,
      h("div", { class: "job" }, bar, words, stop, again), menu),
    ...said.nodes);

  let drawn = "";
  function draw() {
    const d = model.data;
    if (!d.models) return;
    const key = JSON.stringify([d.models, d.n_choices, d.exports]);
    if (key !== drawn) {
      drawn = key;
      picker.replaceChildren(...d.models.map((g) => h("optgroup", { label: g.title }, g.items.map((m) => h("option", { value: m.name }, m.title)))),
        h("option", { value: "", disabled: true, hidden: true }, "several models"));
      count.replaceChildren(...d.n_choices.map((n) => h("option", { value: n }, group(n))));
      rows.replaceChildren(...d.exports.map((e) => h("div", { class: "row" }, h("span", {}, e.title),
        e.forms.map((form) => h("button", { type: "button", role: "menuitem", "data-export": `${e.name}.${form}`, onclick: () => save(e.name, form) }, form)))));
    }
    picker.value = d.model ?? "";
    count.value = d.n;
    if (pane.getRootNode().activeElement !== seed) seed.value = d.seed;
    seeds.textContent = `– ${d.seed + d.n - 1}`;
    said.draw(d);
  }
  function drawJob() {
    const j = model.job;
    inner.style.width = `${100 * (j.fraction || 0)}%`;
    bar.setAttribute("aria-valuenow", Math.round(100 * (j.fraction || 0)));
    bar.hidden = stop.hidden = !j.running;
    again.hidden = !j.stopped;
    words.textContent = j.text || "";
  }
  model.on("download", () => {
    const d = unpack(model.download);
    if (!d) return;
    const url = URL.createObjectURL(new Blob([d.content], { type: d.mime }));
    h("a", { href: url, download: d.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 2000);
  });
  model.on("data", draw);
  model.on("job", drawJob);
  draw(); drawJob();
  return pane;
}
