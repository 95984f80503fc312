/** The best trials; a click looks at one: its grid lies under the editor's, and the buttons above mean it. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const body = h("tbody"), note = h("span", { class: "note" });
  const best = h("button", { class: "btn small", type: "button", "data-act": "best", title: "Back to the best one", onclick: () => send({ type: "pick", number: null }) }, "best");
  const table = h("div", { class: "scroll" }, h("table", {}, h("colgroup", {}, h("col", { class: "no" }), h("col"), h("col", { class: "cost" }), h("col", { class: "value" })),
    h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "#"), h("th", { scope: "col", style: "text-align: left" }, "setting"), h("th", { scope: "col" }, "NFE"), h("th", { scope: "col", title: "on the search's noise; below it the paired difference from the baseline" }, "value ± se"))), body));
  const none = h("p", { class: "none", style: "padding: 4px 6px" }, "The best trials of a search are listed here.");
  const pane = h("section", { class: "pane card trials", "aria-label": "Best trials" }, h("div", { class: "head" }, h("h2", {}, "Best trials"), note, best), none, table);

  function draw() {
    const d = model.data;
    if (!d.rows) return;
    none.hidden = d.rows.length > 0; table.hidden = best.hidden = !d.rows.length;
    note.textContent = d.count ? [`${d.count} tried`, d.fewer ? `${d.fewer} on fewer samples` : "", d.failed ? `${d.failed} failed` : ""].filter(Boolean).join(", ") : "";
    const focused = pane.getRootNode().activeElement?.closest?.("[data-trial]")?.dataset.trial;
    body.replaceChildren(...d.rows.map((r) => {
      const pick = () => send({ type: "pick", number: r.number });
      return h("tr", { class: `row${r.shown ? " shown" : ""}`, "data-trial": r.number, "aria-selected": r.shown ? "true" : "false", onclick: pick },
        h("td", {}, r.number), h("td", {}, h("button", { class: "text", type: "button", title: `${r.what}\n${r.note}` }, r.baseline ? h("b", {}, "baseline ") : "", r.what)), h("td", {}, r.nfe ?? "–"),
        r.failed ? h("td", { class: "bad", title: r.failed }, "failed") : h("td", {}, r.value[0], h("span", { class: "pm" }, ` ± ${r.value[1]}`), r.change ? h("span", { class: `change${r.sure ? " sure" : ""}` }, r.change) : ""));
    }));
    if (focused) body.querySelector(`[data-trial="${focused}"] button`)?.focus();
  }
  model.on("data", draw);
  draw();
  return pane;
}
