/** What is to be searched next: a model, what may change, what is lowered, how, and for how long. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const choose = (name, value) => send({ type: "choose", name, value });
  const picker = h("select", { id: "model", "data-part": "model", onchange: () => send({ type: "model", name: picker.value }) });
  const pick = (name) => { const node = h("select", { id: name, "data-part": name, onchange: () => choose(name, node.value) }); return node; };
  const picks = { what: pick("what"), objective: pick("objective"), method: pick("method") };
  const nfe = numberField({ id: "nfe", min: 1, max: 256, step: 1, "data-part": "nfe", title: "Network evaluations per sample: sets the number of steps of the baseline" }, (value) => send({ type: "nfe", value }));
  const trials = numberField({ min: 1, step: 1, "data-part": "trials", title: "Settings to try" }, (value) => choose("trials", value));
  const minutes = h("input", { type: "text", inputmode: "decimal", placeholder: "none", "data-part": "minutes", title: "Most minutes of measuring; empty is no limit", onchange: () => choose("minutes", minutes.value) });
  const count = h("select", { "data-part": "n", title: "Samples of each trial, the same noise for all", onchange: () => choose("n", Number(count.value)) });
  const seed = numberField({ min: 0, max: 999, step: 1, "data-part": "seed", title: "Of the search's draws and of its noise" }, (value) => choose("seed", value));
  const about = h("p", { class: "fine" }), doc = h("p", { class: "fine", "data-part": "doc" }), how = h("p", { class: "fine", "data-part": "how" }), blocked = h("p", { class: "blocked", "data-part": "blocked", hidden: true });
  const start = h("button", { class: "btn primary start", type: "button", "data-act": "start", title: "Start this search (n)", onclick: () => send({ type: "start" }) }, "Start");
  const pane = h("section", { class: "pane card form", "aria-label": "New search" },
    h("div", { class: "head" }, h("h2", { style: "flex: 1" }, "New search")),
    h("div", { class: "grid" }, h("label", { for: "model" }, "model"), picker, h("label", { for: "what" }, "tune"), picks.what, doc, h("label", { for: "objective" }, "lower"), picks.objective,
      h("label", { for: "method" }, "by"), picks.method, how),
    h("div", { class: "few" }, h("label", {}, "NFE", nfe), h("label", {}, "samples", count), h("label", {}, "trials", trials), h("label", {}, "minutes", minutes), h("label", {}, "seed", seed)),
    about, blocked, start);

  let drawn = "";
  function draw() {
    const d = model.data;
    if (!d.models) return;
    const key = JSON.stringify([d.models, d.n_choices]);
    if (key !== drawn) {
      drawn = key;
      picker.replaceChildren(...d.models.map((g) => h("optgroup", { label: g.title }, g.items.map((m) => h("option", { value: m.name }, m.title)))));
      count.replaceChildren(...d.n_choices.map((n) => h("option", { value: n }, n)));
    }
    picker.value = d.model;
    for (const [name, node] of Object.entries(picks)) {
      const offers = d[`${name}s`];
      node.replaceChildren(...offers.map((o) => h("option", { value: o.name, disabled: Boolean(o.reason), title: o.reason || o.doc }, o.title)));
      node.value = d[name];
      const now = offers.find((o) => o.name === d[name]);
      node.title = [now?.doc, ...offers.filter((o) => o.reason).map((o) => `${o.title}: ${o.reason}`)].filter(Boolean).join("\n");
    }
    doc.textContent = d.whats.find((o) => o.name === d.what)?.doc || "";
    how.textContent = d.methods.find((o) => o.name === d.method)?.doc || "";
    nfe.show(d.nfe ?? ""); trials.show(d.trials); seed.show(d.seed);
    minutes.value = d.minutes ?? ""; count.value = d.n;
    about.textContent = [d.about, d.cost].filter(Boolean).join(" ");
    blocked.hidden = !d.blocked; blocked.textContent = d.blocked;
    start.disabled = Boolean(d.blocked);
  }
  model.on("data", draw);
  draw();
  return pane;
}
