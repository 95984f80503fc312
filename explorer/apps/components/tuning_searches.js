/** All searches, those that run first. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const list = h("div", { class: "list", role: "list" }), note = h("span", { class: "note" });
  const pane = h("section", { class: "pane card searches", "aria-label": "Searches" }, h("div", { class: "head" }, h("h2", {}, "Searches"), note), list);
  const rows = new Map();

  function make(name) {
    const title = h("button", { class: "name", type: "button" }), gain = h("span", { class: "gain" }), state = h("span", { class: "state" }), when = h("span", { class: "when" });
    const fill = h("i"), bar = h("div", { class: "bar" }, fill);
    const off = h("button", { class: "off", type: "button", title: "Remove", "aria-label": `Remove the search ${name}`, onclick: (e) => { e.stopPropagation(); send({ type: "remove", name }); } }, "✕");
    const node = h("div", { class: "search", role: "listitem", "data-search": name, onclick: () => send({ type: "show", name }) }, title, gain, state, when, bar, off);
    return { node, show(r) {
      node.classList.toggle("shown", r.shown);
      if (r.shown) node.setAttribute("aria-current", "true"); else node.removeAttribute("aria-current");
      title.replaceChildren(r.title, ...(r.kept ? [h("span", { class: "star", title: "kept" }, " ★")] : []));
      title.title = r.name;
      gain.textContent = r.gain;
      gain.title = r.gain.startsWith("(") ? "best against the baseline, on the search's own noise" : r.gain ? "tuned against the baseline, on held-out noise" : "";
      state.dataset.state = r.state; state.textContent = r.words;
      when.textContent = r.age;
      bar.hidden = !r.busy; fill.style.width = `${100 * r.fraction}%`;
      off.hidden = r.busy;
    } };
  }
  function draw() {
    const d = model.data;
    if (!d.rows) return;
    const names = new Set(d.rows.map((r) => r.name));
    for (const [name, row] of rows) if (!names.has(name)) { row.node.remove(); rows.delete(name); }
    d.rows.forEach((r, i) => {
      const row = rows.get(r.name) ?? rows.set(r.name, make(r.name)).get(r.name);
      row.show(r);
      if (list.children[i] !== row.node) list.insertBefore(row.node, list.children[i] ?? null);
    });
    list.querySelector(".none")?.remove();
    if (!d.rows.length) list.append(h("p", { class: "none" }, `Searches are kept here; they lie in the folder ${d.folder} and go on after a restart.`));
    note.textContent = d.rows.length ? `in ${d.folder}` : "";
    note.title = d.folder;
  }
  model.on("data", draw);
  draw();
  return pane;
}
