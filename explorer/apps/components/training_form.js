/** What is to be trained next: a paper, one of its recipes, and the numbers that may be turned in it. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const papers = h("select", { id: "paper", "data-part": "paper", onchange: () => send({ type: "paper", name: papers.value }) });
  const recipes = h("select", { id: "recipe", "data-part": "recipe", onchange: () => send({ type: "recipe", name: recipes.value }) });
  const about = h("p", { class: "fine", "data-part": "about" });
  const groups = h("div", { class: "groups", style: "display: flex; flex-direction: column; gap: 8px" });
  const reset = h("button", { class: "btn", type: "button", "data-act": "reset", title: "All numbers back to the recipe's", onclick: () => send({ type: "reset" }) }, "reset");
  const blocked = h("p", { class: "blocked", "data-part": "blocked", hidden: true });
  const start = h("button", { class: "btn primary start", type: "button", "data-act": "start", title: "Train this (n)", onclick: () => send({ type: "start" }) }, "Start");
  const pane = h("section", { class: "pane card form", "aria-label": "New run" },
    h("div", { class: "head" }, h("h2", { style: "flex: 1" }, "New run"), reset),
    h("div", { class: "pick" }, h("label", { for: "paper" }, "method"), papers, h("label", { for: "recipe" }, "recipe"), recipes, about),
    groups, blocked, start);
  const tip = tooltip(pane);
  const rows = new Map();
  let structure = "", opened = new Set();

  function row(k) {
    const id = `knob-${k.name}`;
    const now = () => model.data.groups.flatMap((g) => g.knobs).find((x) => x.name === k.name);
    let typed = false;
    if (k.kind === "choice") {
      const pick = h("select", { id, "data-knob": k.name, onchange: () => send({ type: "set", knob: k.name, value: pick.value }) }, k.options.map((name) => h("option", { value: name }, name)));
      const line = h("div", { class: "knob choice", ondblclick: (e) => { e.preventDefault(); send({ type: "reset", knob: k.name }); } }, h("label", { for: id, title: k.doc }, h("span", {}, k.title)), pick);
      rows.set(k.name, (x) => { pick.value = x.value; line.classList.toggle("differs", x.differs); });
      return line;
    }
    const flag = k.kind === "flag";
    const commit = (value) => { typed = false; send({ type: "set", knob: k.name, value }); };
    const input = h("input", { id, type: flag ? "checkbox" : "text", inputmode: flag ? null : "decimal", autocomplete: "off", spellcheck: "false", "data-knob": k.name, placeholder: k.optional ? "none" : null,
      oninput: () => { typed = !flag; }, onchange: () => commit(flag ? input.checked : input.value) });
    input.addEventListener("keydown", (e) => {
      if (e.key === "Enter" && !flag) { e.preventDefault(); if (typed) commit(input.value); }
      if (e.key === "Escape" && typed) { e.stopPropagation(); typed = false; show(now()); }
    });
    const label = h("label", { for: id }, h("span", {}, k.title));
    const line = h("div", { class: "knob", ondblclick: (e) => { e.preventDefault(); send({ type: "reset", knob: k.name }); } }, label, input);
    const explain = () => { const x = now(); if (x) tip.show(line, h("div", {}, h("b", {}, x.title), ` ${x.doc}`),
      h("div", { class: "range" }, [`recipe ${x.default ?? "none"}`, x.unit, "double click resets"].filter(Boolean).join(" · ")), x.reason ? h("div", { class: "why" }, x.reason) : ""); };
    label.addEventListener("pointerenter", explain);
    label.addEventListener("pointerleave", tip.hide);
    line.addEventListener("pointerleave", tip.hide);
    function show(x) {
      if (flag) input.checked = x.value; else if (!typed) input.value = x.value ?? "";
      input.disabled = Boolean(x.reason);
      line.classList.toggle("differs", x.differs);
      line.classList.toggle("off", Boolean(x.reason));
      input.setAttribute("aria-description", x.reason || x.doc);
    }
    rows.set(k.name, show);
    return line;
  }

  function draw() {
    const d = model.data;
    if (!d.papers) return;
    const key = JSON.stringify([d.papers, d.paper, d.recipe, d.groups.map((g) => g.knobs.map((k) => [k.name, k.options]))]);
    if (key !== structure) {
      structure = key;
      rows.clear(); tip.hide();
      papers.replaceChildren(...d.papers.map((p) => h("option", { value: p.name, title: p.full }, `${p.name} – ${p.title}`)));
      recipes.replaceChildren(...d.recipes.map((name) => h("option", { value: name }, name)));
      groups.replaceChildren(...d.groups.map((g) => {
        const body = h("div", { class: `rows${g.title === "Plan" ? "" : " wide"}` }, g.knobs.map(row));
        if (g.title === "Plan") return body;
        const box = h("details", { open: g.title === "Optimizer" || opened.has(g.title), ontoggle: () => (box.open ? opened.add(g.title) : opened.delete(g.title)) },
          h("summary", {}, g.title === "Method" ? "Of the method" : g.title, h("span", { class: "fine" }, `${g.knobs.length}`)), body);
        return box;
      }));
    }
    papers.value = d.paper; recipes.value = d.recipe;
    start.disabled = Boolean(d.blocked);
    blocked.hidden = !d.blocked; blocked.textContent = d.blocked;
    about.replaceChildren(...[d.data, d.cost && `${d.cost} as it stands`, d.about, ...d.needs.map((n) => `first makes ${n}`)].filter(Boolean).flatMap((text, i) => (i ? [h("br"), text] : [text])));
    for (const g of d.groups) for (const k of g.knobs) rows.get(k.name)?.(k);
    reset.hidden = !d.changed;
  }
  model.on("data", draw);
  draw();
  return pane;
}
