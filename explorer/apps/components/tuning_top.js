/** The search that is looked at: what it does, and what can be done with it. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const title = h("b", { "data-part": "title" }), state = h("span", { class: "state", "data-part": "state" });
  const fill = h("i"), bar = h("div", { class: "bar", role: "progressbar", "aria-label": "Share of the budget that is spent", "aria-valuemin": 0, "aria-valuemax": 100 }, fill);
  const words = h("span", { "data-part": "words", "aria-live": "polite" });
  const button = (act, text, title, message = { type: act }) => h("button", { class: "btn", type: "button", "data-act": act, title, onclick: () => send(message) }, text);
  const acts = {
    stop: button("stop", "Stop", "End the search and measure its best on held-out noise; again: end that too (Esc)"),
    resume: button("resume", "Go on", "Go on from the journal, as far as the search was to go"),
    more: button("more", "Search on", "As many trials more as the form says"),
    keep: button("keep", "Keep", "Write the outcome beside the journal, as a tuned sampler (k)"),
  };
  const lab = h("a", { class: "btn", "data-act": "lab", onclick: (e) => { if (lab.getAttribute("aria-disabled")) e.preventDefault(); } }, "Use in Sampler Lab");
  const item = (form, text) => h("button", { type: "button", role: "menuitem", "data-export": form, onclick: () => { items.hidden = true; send({ type: "export", form }); } }, text);
  const items = h("div", { hidden: true, role: "menu" });
  const menu = menuOf("Export ▾", "export", items);
  const said = strips(send);
  const pane = h("header", { class: "pane card top" },
    h("div", { class: "controls" }, h("div", { class: "what" }, title, h("div", { class: "line" }, state, bar, words)),
      h("div", { class: "acts" }, Object.values(acts), lab, menu)), ...said.nodes);

  for (const node of [...Object.values(acts), lab, menu, bar, state]) node.hidden = true;
  let drawn = "";
  function draw() {
    const d = model.data;
    if (!d.exports) return;
    if (!drawn) {
      drawn = "yes";
      items.append(...Object.entries(d.exports).map(([form, words]) => item(form, words)));
    }
    title.textContent = d.title || "No search yet";
    title.title = d.name;
    state.hidden = !d.state; state.dataset.state = d.state;
    state.textContent = { reporting: "held-out noise", broken: "cannot be read" }[d.state] || d.state;
    bar.hidden = !d.running;
    fill.style.width = `${100 * (d.fraction || 0)}%`;
    bar.setAttribute("aria-valuenow", Math.round(100 * (d.fraction || 0)));
    words.textContent = d.words || (d.name ? "" : "Start one on the left, or pick one on the right.");
    for (const [name, node] of Object.entries(acts)) node.hidden = !d.acts.includes(name);
    acts.keep.classList.toggle("primary", d.acts.includes("keep"));
    lab.hidden = menu.hidden = !d.name;
    const which = d.picked === null || d.picked === undefined ? "the best trial" : `trial ${d.picked}`;
    lab.title = d.link ? `Open ${which} in the Sampler Lab, the baseline pinned as A` : d.why;
    if (d.link) { lab.href = d.link; lab.removeAttribute("aria-disabled"); } else { lab.removeAttribute("href"); lab.setAttribute("aria-disabled", "true"); }
    said.draw(d);
  }
  model.on("file", () => {
    const f = model.file;
    if (!f.name) return;
    const url = URL.createObjectURL(new Blob([f.text], { type: "text/plain" }));
    h("a", { href: url, download: f.name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 2000);
  });
  model.on("data", draw);
  draw();
  return pane;
}
