/** Which runs are looked at, along which axis, what can be copied, and what the page has to say. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const pick = (slot, name) => h("select", { class: slot ? "" : "first", "aria-label": name, "data-part": slot ? "beside" : "run", onchange: (e) => send({ type: "show", name: e.target.value, slot }) });
  const first = pick(0, "Run A"), second = pick(1, "Run B, beside it");
  const axes = [["images", "images seen"], ["seconds", "time"]].map(([by, words]) =>
    h("button", { type: "button", "data-by": by, onclick: () => send({ type: "look", by }) }, words));
  const mark = (letter, color) => h("b", { class: "letter", style: `--own: ${color}` }, letter);

  async function copy(button, text) {
    const said = button.textContent;
    try { await navigator.clipboard.writeText(text); button.textContent = "copied ✓"; } catch { button.textContent = "copying was refused"; }
    setTimeout(() => { button.textContent = said; items.hidden = true; }, 900);
  }
  const item = (words, act, text) => h("button", { type: "button", role: "menuitem", "data-act": act, onclick: (e) => copy(e.target, text()) }, words);
  const items = h("div", { hidden: true, role: "menu" },
    item("Copy this recipe as command line", "cli", () => model.data.texts.cli),
    item("Copy this recipe as Python", "python", () => model.data.texts.python),
    item("Copy link to this view", "link", () => location.href));
  const menu = menuOf("Copy ▾", "copy", items);

  const said = strips(send);
  const beside = h("label", {}, mark("B", "var(--c1)"), second);
  const pane = h("header", { class: "pane card top" },
    h("div", { class: "controls" }, h("label", {}, mark("A", "var(--c0)"), first), beside, h("div", { class: "grow" }),
      h("label", {}, "along", h("div", { class: "switch", role: "group", "aria-label": "Axis of the curves" }, axes)), menu), ...said.nodes);

  let drawn = "";
  function draw() {
    const d = model.data;
    if (!d.runs) return;
    const key = JSON.stringify(d.runs);
    if (key !== drawn) {
      drawn = key;
      const options = () => d.runs.map((r) => h("option", { value: r.name }, `${r.title} · ${r.state}`));
      first.replaceChildren(h("option", { value: "" }, d.runs.length ? "choose a run" : "no runs yet"), ...options());
      second.replaceChildren(h("option", { value: "" }, "compare with…"), ...options());
    }
    first.value = d.shown[0]; second.value = d.shown[1];
    first.disabled = !d.runs.length;
    beside.hidden = d.runs.length < 2;
    for (const button of axes) button.setAttribute("aria-pressed", button.dataset.by === d.by);
    said.draw(d, d.undo ? [h("button", { class: "btn", type: "button", "data-act": "put-back", onclick: () => send({ type: "put-back" }) }, "Put it back")] : []);
  }
  model.on("data", draw);
  draw();
  return pane;
}
