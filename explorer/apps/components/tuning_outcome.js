/** The number on held-out noise beside the one the search was led by. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const verdict = h("div", { class: "verdict", "data-part": "verdict", "aria-live": "polite" });
  const heads = h("tr"), body = h("tbody"), note = h("p", { class: "fine", "data-part": "curse" });
  const table = h("div", { class: "scroll" }, h("table", {}, h("thead", {}, heads), body));
  const links = h("div", { class: "links" },
    h("button", { class: "btn small", type: "button", "data-act": "take", title: "The trial that is looked at becomes the baseline of the next search", onclick: () => send({ type: "take" }) }, "Start the next search from it"),
    h("button", { class: "btn small", type: "button", "data-act": "again", title: "Put into the form what this search was asked", onclick: () => send({ type: "again" }) }, "Ask this again"));
  const none = h("p", { class: "none" });
  const pane = h("section", { class: "pane card outcome", "aria-label": "Outcome" }, none, verdict, table, note, links);

  function draw() {
    const d = model.data;
    const empty = !d.rows;
    none.hidden = !empty; none.textContent = d.empty || "";
    for (const node of [verdict, table, note, links]) node.hidden = empty;
    if (empty) return;
    verdict.className = `verdict ${d.verdict.kind || ""}`;
    verdict.replaceChildren(h("div", {}, d.verdict.text), d.verdict.fine ? h("div", { class: "fine" }, d.verdict.fine) : "");
    heads.replaceChildren(h("th", {}, d.name), h("th", {}, "NFE"), h("th", { title: "On noise that no trial saw" }, "held-out noise"), h("th", { title: "On the noise the trials were compared on: optimistic for the winner" }, "search's noise"));
    const value = (text, n) => (text ? [text[0], h("span", { class: "pm" }, ` ± ${text[1]}`), n ? h("span", { class: "pm" }, ` n ${n}`) : ""] : h("span", { class: "faint" }, "–"));
    body.replaceChildren(...d.rows.map((r) => h("tr", { "data-row": r.who },
      h("td", {}, h("div", { class: "who" }, h("span", { class: "chip", style: `background: ${r.color}` }), h("b", {}, r.who), h("span", { class: "what", title: r.what }, r.what))),
      h("td", {}, r.nfe ?? "–"), h("td", { class: "held", "data-part": "held" }, value(r.held, r.n_held)), h("td", { "data-part": "searched" }, value(r.search, r.n_search)))));
    note.textContent = d.note; note.hidden = !d.note;
  }
  model.on("data", draw);
  draw();
  return pane;
}
