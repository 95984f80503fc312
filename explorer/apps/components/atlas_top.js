/** How many papers are in which state, and what the page has to say. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const counts = h("div", { class: "counts", "data-part": "counts" });
  const failure = h("div", { class: "notice", role: "alert", "data-part": "error", hidden: true });
  const again = h("button", { class: "btn", type: "button", "data-act": "reload", title: "Read papers and evidence anew", onclick: () => send({ type: "reload" }) }, "Read again");
  const pane = h("header", { class: "pane card top" }, h("div", { class: "line" }, h("h1", {}, "Atlas"), counts, h("div", { class: "grow" }), again), failure);
  function draw() {
    const d = model.data;
    if (!d.counts) return;
    counts.replaceChildren(...d.counts.filter((c) => c.n).map((c) => h("span", { class: "chip", "data-status": c.status }, `${c.n} ${c.status}`)));
    if (d.running) counts.replaceChildren(h("span", { class: "muted", role: "status" }, `${d.running} …`));
    again.disabled = Boolean(d.running);
    failure.hidden = !d.error;
    if (d.error) {
      const details = h("button", { class: "btn", type: "button", onclick: async () => { try { await navigator.clipboard.writeText(d.error.details); details.textContent = "copied"; } catch { details.textContent = "copying was refused"; } } }, "copy details");
      failure.replaceChildren(h("span", {}, d.error.text), details, h("button", { class: "btn", type: "button", onclick: () => send({ type: "reload" }) }, "try again"));
    }
  }
  model.on("data", draw);
  draw();
  return pane;
}
