/** What is to be trained next: a paper, one of its recipes, and the numbers that may be turned in it. */
export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const papers = h("select", { id: "paper", "data-part": "paper", onchange: () => send({ type: "paper", name: papers.value }) });
  const recipes = h("select", { id: "recipe", "data-part": "recipe", onchange: () => send({ type: "recipe", name: recipes.value }) });
  const about = h("p", { class: "fine", "data-part": "about" });
  const given = giving(model, send);
  const groups = h("div", { class: "groups", style: "display: flex; flex-direction: column; gap: 8px" });
  const reset = h("button", { class: "btn", type: "button", "data-act": "reset", title: "All numbers back to the recipe's", onclick: () => send({ type: "reset" }) }, "reset");
  const blocked = h("p", { class: "blocked", "data-part": "blocked", hidden: true });
  const start = h("button", { class: "btn primary start", type: "button", "data-act": "start", title: "Train this (n)", onclick: () => send({ type: "start" }) }, "Start");
  const pane = h("section", { class: "pane card form", "aria-label": "New run" },
    h("div", { class: "head" }, h("h2", { style: "flex: 1" }, "New run"), reset),
    h("div", { class: "pick" }, h("label", { for: "paper" }, "method"), papers, h("label", { for: "recipe" }, "recipe"), recipes, ...given.pick, about, ...given.roles),
    given.box, groups, blocked, start);
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
    const key = JSON.stringify([d.papers, d.paper, d.recipe, d.recipes, d.groups.map((g) => g.knobs.map((k) => [k.name, k.options]))]);
    if (key !== structure) {
      structure = key;
      rows.clear(); tip.hide();
      papers.replaceChildren(...d.papers.map((p) => h("option", { value: p.name, title: p.full }, `${p.name} – ${p.title}`)));
      recipes.replaceChildren(...d.recipes.map((r) => h("option", { value: r.name, disabled: Boolean(r.why), title: r.why || null }, r.why ? `${r.name} – ${r.why}` : r.name)));
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
    about.replaceChildren(...[!d.own && d.data, d.cost && `${d.cost} as it stands`, d.about, d.scaled, ...d.needs.map((n) => `first makes ${n}`)].filter(Boolean).flatMap((text, i) => (i ? [h("br"), text] : [text])));
    for (const g of d.groups) for (const k of g.knobs) rows.get(k.name)?.(k);
    reset.hidden = !d.changed;
    given.draw(d);
  }
  model.on("data", draw);
  model.on("arrived", () => given.hear(model.arrived));
  draw();
  return pane;
}

const PART = 384 * 1024;

/** The user's own data: a file that is chosen or dropped and goes to the server in parts, a path there, or what was given before. */
function giving(model, send) {
  const OTHER = "+";
  let file = null, id = "", seen = "", opened = false, drawn = "", kinds = "", rolesDrawn = "";
  const which = h("select", { id: "own-data", "data-part": "own", onchange: () => {
    opened = which.value === OTHER;
    if (!opened) send({ type: "own", name: which.value });
    draw(model.data);
    if (opened) choose.focus();
  } });
  const input = h("input", { type: "file", hidden: true, "data-part": "file", onchange: () => { if (input.files[0]) take(input.files[0]); input.value = ""; } });
  const choose = h("button", { class: "btn", type: "button", "data-act": "choose", onclick: () => input.click() }, "Choose a file");
  const drop = h("div", { class: "drop", "data-part": "drop" }, input, choose, h("span", {}, "or drop it here: points (.csv, .npy, .npz), pictures (.zip, .npz)"));
  const path = h("input", { type: "text", class: "path", "data-part": "path", placeholder: "or its path on this machine, then Enter", spellcheck: "false", autocomplete: "off", "aria-label": "Path of your data on this machine" });
  path.addEventListener("keydown", (e) => { if (e.key === "Enter" && path.value.trim()) { e.preventDefault(); file = null; send({ type: "path", path: path.value, side: size.value }); } });
  const size = h("select", { id: "own-size", "data-part": "size", title: "To which size pictures are brought: the largest square from their middle, scaled", onchange: () => {
    if (file) take(file); else if (path.value.trim()) send({ type: "path", path: path.value, side: size.value });
  } });
  const doing = h("p", { class: "fine", role: "status", "data-part": "doing", hidden: true });
  const refused = h("p", { class: "blocked", role: "alert", "data-part": "refused", hidden: true });
  const picture = h("div", { class: "preview", "data-part": "preview" }), words = h("div", { class: "fine", "data-part": "read" });
  const shown = h("div", { class: "given" }, picture, words);
  const ask = h("div", { class: "ask" }, drop, path, h("label", { class: "fine size", for: "own-size" }, "pictures", size));
  const box = h("div", { class: "giving", "data-part": "giving", hidden: true }, ask, doing, refused, shown);
  for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (e) => { e.preventDefault(); drop.classList.add("over"); });
  for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
  drop.addEventListener("drop", (e) => { e.preventDefault(); const found = e.dataTransfer.files[0]; if (found) take(found); });

  function take(found) {
    file = found;
    id = `${Date.now()}-${Math.random()}`;
    seen = "";
    path.value = "";
    send({ type: "upload", id, name: found.name, size: found.size, side: size.value });
  }

  /** The server awaits bytes from `at` on. */
  async function hear(now) {
    doing.hidden = !now.doing; doing.textContent = now.doing || "";
    refused.hidden = !now.refused; refused.textContent = now.refused || "";
    if (now.refused) { opened = true; draw(model.data); }
    if (!file || now.id !== id || seen === `${id} ${now.at}` || now.at >= file.size) return;
    seen = `${id} ${now.at}`;
    const mine = id, at = now.at;
    let bytes;
    try {
      bytes = new Uint8Array(await file.slice(at, at + PART).arrayBuffer());
    } catch {
      refused.hidden = false; refused.textContent = `${file.name} can no longer be read; choose it again.`;
      return;
    }
    if (mine !== id) return;
    let text = "";
    for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
    send({ type: "part", id, at, part: btoa(text) });
  }

  function preview(p) {
    if (p.kind === "pictures") {
      const times = Math.max(1, Math.floor(244 / p.width));
      return h("img", { src: p.png, width: Math.min(p.width * times, 244), alt: "some of the pictures", style: `aspect-ratio: ${p.width} / ${p.height}` });
    }
    const at = (v) => 60 + v / p.extent * 58;
    return s("svg", { viewBox: "0 0 120 120", width: 120, height: 120, role: "img", "aria-label": "the points" },
      s("rect", { class: "frame", x: .5, y: .5, width: 119, height: 119, rx: 4 }), p.x.map(([x, y]) => s("circle", { cx: at(x), cy: 120 - at(y), r: 1 })));
  }

  function draw(d) {
    if (!d.papers) return;
    const key = JSON.stringify([d.kept, opened]);
    if (key !== kinds) {
      kinds = key;
      which.replaceChildren(h("option", { value: "" }, "none"), ...d.kept.map((name) => h("option", { value: name }, name)), h("option", { value: OTHER }, "give some…"));
      if (!size.options.length) size.replaceChildren(h("option", { value: "" }, "as they are"), ...d.sides.map((n) => h("option", { value: n }, `${n} × ${n}`)));
      input.accept = d.endings;
    }
    const own = JSON.stringify(d.own);
    if (own !== drawn) {
      drawn = own;
      if (d.own) { opened = false; picture.replaceChildren(preview(d.own.preview)); words.replaceChildren(...d.own.words.map((text) => h("div", {}, text))); }
    }
    which.value = opened ? OTHER : d.own ? d.own.name : "";
    shown.hidden = !d.own || opened;
    ask.hidden = !opened;
    box.hidden = !opened && !d.own;
    const asked = JSON.stringify(d.roles);
    if (asked !== rolesDrawn) { rolesDrawn = asked; roleRows(d.roles); }
  }

  const roles = [h("div", { class: "roles", hidden: true })];
  function roleRows(needed) {
    roles[0].hidden = !needed.length;
    roles[0].replaceChildren(...needed.flatMap((r) => {
      const pick = h("select", { id: `role-${r.name}`, "data-role": r.name, onchange: (e) => send({ type: "give", role: r.name, model: e.target.value }) },
        h("option", { value: "" }, "the recipe's own"), r.options.map((o) => h("option", { value: o.value }, o.title)));
      if (r.value && !r.options.some((o) => o.value === r.value)) pick.append(h("option", { value: r.value }, r.value));
      pick.value = r.value;
      return [h("label", { for: `role-${r.name}`, title: `What the recipe needs as its ${r.name}: a model that has learnt these data` }, r.name), pick];
    }));
  }
  return { pick: [h("label", { for: "own-data", title: "Points or pictures of yours in place of the recipe's" }, "own data"), which], roles, box, draw, hear };
}
