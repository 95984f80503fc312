/** All runs, newest first: what each is doing, how good it is, and when it will be done. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const list = h("div", { class: "list", role: "list" });
  const note = h("span", { class: "note" });
  const pane = h("section", { class: "pane card runs", "aria-label": "Runs" }, h("div", { class: "head" }, h("h2", {}, "Runs"), note), list);
  const rows = new Map();

  function make(name) {
    const letter = h("b", { class: "letter" }), title = h("span"), star = h("span", { class: "star", title: "kept as a model" }, "★");
    const open = h("button", { class: "name", type: "button" }, letter, title, star);
    const number = h("div", { class: "number covered" }), state = h("span", { class: "state" }), when = h("span", { class: "when" });
    const fill = h("i"), bar = h("div", { class: "bar" }, fill), more = h("div", { class: "more" });
    const beside = h("button", { class: "btn beside", type: "button", title: "Look at it as B, beside A", onclick: (e) => { e.stopPropagation(); send({ type: "show", name, slot: 1 }); } }, "beside");
    const node = h("div", { class: "run", role: "listitem", "data-run": name, onclick: () => send({ type: "show", name, slot: 0 }) }, open, number, state, when, bar, more, beside);
    return { node, show(r) {
      node.classList.toggle("shown", Boolean(r.letter));
      node.style.setProperty("--own", r.color || "var(--accent)");
      letter.hidden = !r.letter; letter.textContent = r.letter;
      title.textContent = r.title; open.title = r.name;
      star.hidden = !r.kept.length;
      number.replaceChildren(...(r.number ? [h("span", { class: "muted" }, `${r.number.name.replace(/\[.*/, "")} `), r.number.value, h("span", { class: "pm" }, ` ± ${r.number.error}`)] : []));
      number.classList.toggle("covered", !r.letter);
      state.dataset.state = r.state; state.textContent = r.words;
      when.textContent = r.eta || r.age;
      bar.hidden = !["running", "paused", "preparing", "starting", "measuring"].includes(r.state);
      fill.style.width = `${100 * r.fraction}%`;
      more.hidden = !r.changes; more.textContent = r.changes; more.title = r.changes;
      beside.hidden = Boolean(r.letter) || model.data.runs.length < 2;
    } };
  }
  function draw() {
    const d = model.data;
    if (!d.runs) return;
    const names = new Set(d.runs.map((r) => r.name));
    for (const [name, row] of rows) if (!names.has(name)) { row.node.remove(); rows.delete(name); }
    d.runs.forEach((r, i) => {
      const row = rows.get(r.name) ?? rows.set(r.name, make(r.name)).get(r.name);
      row.show(r);
      if (list.children[i] !== row.node) list.insertBefore(row.node, list.children[i] ?? null);
    });
    list.querySelector(".empty")?.remove();
    if (!d.runs.length) list.append(h("div", { class: "empty" }, `Runs appear here as cards; they live in the folder ${d.folder}.`));
    note.textContent = d.runs.length ? `in ${d.folder}` : "";
  }
  model.on("data", draw);
  draw();
  return pane;
}
