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
  const opener = h("button", { class: "btn", type: "button", "aria-haspopup": "menu", "data-act": "copy", onclick: () => { items.hidden = !items.hidden; } }, "Copy ▾");
  const menu = h("div", { class: "menu" }, opener, items);
  menu.addEventListener("focusout", (e) => { if (e.relatedTarget && !menu.contains(e.relatedTarget)) items.hidden = true; });
  menu.addEventListener("keydown", (e) => { if (e.key === "Escape") { items.hidden = true; opener.focus(); e.stopPropagation(); } });
  document.addEventListener("pointerdown", (e) => { if (!e.composedPath().includes(menu)) items.hidden = true; });

  const notice = h("div", { class: "notice", role: "status", "data-part": "notice", hidden: true });
  const failure = h("div", { class: "notice error", role: "alert", "data-part": "error", hidden: true });
  const beside = h("label", {}, mark("B", "var(--c1)"), second);
  const pane = h("header", { class: "pane card top" },
    h("div", { class: "controls" }, h("label", {}, mark("A", "var(--c0)"), first), beside, h("div", { class: "grow" }),
      h("label", {}, "along", h("div", { class: "switch", role: "group", "aria-label": "Axis of the curves" }, axes)), menu), notice, failure);

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
    notice.hidden = !d.notice;
    notice.replaceChildren(h("span", {}, d.notice || ""),
      ...(d.undo ? [h("button", { class: "btn", type: "button", "data-act": "put-back", onclick: () => send({ type: "put-back" }) }, "Put it back")] : []), h("button", { class: "btn", type: "button", onclick: () => send({ type: "dismiss" }) }, "OK"));
    failure.hidden = !d.error;
    if (d.error) {
      const details = h("button", { class: "btn", type: "button", onclick: async () => { await navigator.clipboard.writeText(d.error.details); details.textContent = "copied"; } }, "copy details");
      failure.replaceChildren(h("span", {}, d.error.text), details, h("button", { class: "btn", type: "button", onclick: () => send({ type: "dismiss" }) }, "OK"));
    }
  }
  model.on("data", draw);
  draw();
  return pane;
}
