const LOG_STEPS = 240, LOG_FLOOR = 1e-3;

/** Position of a value on its slider, and back; a logarithmic slider keeps 0, where allowed, as its left end. */
function scaleOf(c) {
  if (!c.log) return { min: c.low, max: c.high, step: c.step, to: (v) => v, from: (t) => (c.kind === "integer" ? Math.round(t) : Number(t.toPrecision(6))) };
  const floor = c.low > 0 ? c.low : LOG_FLOOR, span = Math.log(c.high / floor);
  return {
    min: 0, max: LOG_STEPS, step: 1,
    to: (v) => (v <= floor ? 0 : LOG_STEPS * Math.log(v / floor) / span),
    from: (t) => (t <= 0 ? c.low : t >= LOG_STEPS ? c.high : Number((floor * Math.exp(span * t / LOG_STEPS)).toPrecision(2))),
  };
}

/**
 * Choice among many: a button that opens a list one can search, by family, with a hint beside each name and, below, what the marked one
 * is. Closed, the arrow keys step through it and a letter begins a search, as in a select.
 */
function chooser(pane, c, id, set) {
  let now = c, shown = [], marked = 0;
  const name = h("span", { class: "name" }), hint = h("span", { class: "hint" });
  const button = h("button", { id, type: "button", class: "chooser wide", "data-knob": c.name, "aria-haspopup": "listbox", "aria-expanded": "false" }, name, hint);
  const search = h("input", { type: "text", placeholder: "search", "aria-label": `Search ${c.title}`, role: "combobox", "aria-expanded": "true", "aria-controls": `${id}-list`, spellcheck: "false", autocomplete: "off" });
  const list = h("div", { class: "list", role: "listbox", id: `${id}-list`, "aria-label": c.title });
  const about = h("div", { class: "about", "aria-live": "polite" });
  const menu = overlay(pane, { class: "choices" }, search, list, about);

  function close(back) {
    if (!menu.open) return;
    menu.hide();
    button.setAttribute("aria-expanded", "false");
    if (back) button.focus();
  }
  function take(i) { close(true); if (now.choices[i] !== now.value) set(now.choices[i]); }
  function open(text = "") {
    if (button.disabled) return;
    search.value = text;
    fill();
    const at = button.getBoundingClientRect();          // the list takes what room there is above or below, the rest scrolls
    list.style.maxHeight = `${clamp(Math.max(innerHeight - at.bottom, at.top) - 156, 120, 360)}px`;
    menu.placeAt(button, true);
    button.setAttribute("aria-expanded", "true");
    search.focus();
    mark(Math.max(0, shown.indexOf(now.choices.indexOf(now.value))));
  }
  function fill() {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const fits = (i, where) => words.every((word) => where(i).toLowerCase().includes(word));
    const titled = (i) => `${now.names[i]} ${now.options[i].group} ${now.options[i].hint}`;
    const all = [...now.names.keys()];
    let found = all.filter((i) => fits(i, titled));
    if (!found.length) found = all.filter((i) => fits(i, (k) => `${titled(k)} ${now.options[k].doc}`));
    const groups = [...new Set(found.map((i) => now.options[i].group))];
    shown = groups.flatMap((group) => found.filter((i) => now.options[i].group === group));
    list.replaceChildren(...(shown.length ? [] : [h("div", { class: "none" }, "Nothing of that name.")]), ...groups.map((group) =>
      h("div", { role: "group", "aria-label": group }, h("div", { class: "group" }, group),
        shown.filter((i) => now.options[i].group === group).map((i) =>
          h("div", { role: "option", id: `${id}-${i}`, "data-choice": now.names[i], "aria-selected": now.choices[i] === now.value ? "true" : "false",
            onclick: () => take(i), onpointermove: () => { if (shown[marked] !== i) mark(shown.indexOf(i), false); } },
          h("span", { class: "name" }, now.names[i]), h("span", { class: "hint" }, now.options[i].hint))))));
  }
  function mark(k, scroll = true) {
    marked = clamp(k, 0, Math.max(0, shown.length - 1));
    const i = shown[marked];
    for (const node of list.querySelectorAll("[role=option]")) node.classList.toggle("marked", node.id === `${id}-${i}`);
    search.setAttribute("aria-activedescendant", i === undefined ? "" : `${id}-${i}`);
    about.textContent = i === undefined ? "" : now.options[i].doc;
    const node = list.querySelector(".marked");
    if (!node || !scroll) return;
    if (marked === 0) list.scrollTop = 0;
    else if (node.offsetTop + node.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = node.offsetTop + node.offsetHeight - list.clientHeight + 4;
    else if (node.offsetTop < list.scrollTop) list.scrollTop = node.offsetTop - 4;
  }
  button.addEventListener("click", () => (menu.open ? close(true) : open()));
  button.addEventListener("keydown", (event) => {
    const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      const i = clamp(now.choices.indexOf(now.value) + step, 0, now.choices.length - 1);
      if (now.choices[i] !== now.value) set(now.choices[i]);
    } else if (/^[a-z0-9]$/.test(event.key) && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault(); event.stopPropagation();
      open(event.key);
      search.setSelectionRange(1, 1);
    }
  });
  search.addEventListener("input", () => { fill(); mark(0); });
  search.addEventListener("keydown", (event) => {
    event.stopPropagation();
    const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 8, PageUp: -8 }[event.key];
    if (step) { event.preventDefault(); mark(marked + step); }
    else if (event.key === "Enter") { event.preventDefault(); if (shown.length) take(shown[marked]); }
    else if (event.key === "Escape") { event.preventDefault(); close(true); }
    else if (event.key === "Tab") close(true);
  });
  menu.box.addEventListener("pointerdown", (event) => { if (event.target !== search) event.preventDefault(); });  // the search keeps the focus
  menu.box.addEventListener("focusout", (event) => { if (!menu.box.contains(event.relatedTarget) && event.relatedTarget !== button) close(false); });
  const show = (x) => {
    now = x;
    const i = x.choices.findIndex((v) => v === x.value);
    name.textContent = x.names[i] ?? "";
    hint.textContent = x.options[i]?.hint ?? "";
    if (menu.open) { fill(); mark(marked); }
  };
  return { button, show };
}

export function render({ model, el }) {
  const send = (message) => model.send_msg(message);
  const preview = throttle((knob, value) => send({ type: "preview", knob, value }), 60);
  const rows = new Map();
  let structure = "", dragging = null, openGroups = null;

  const body = h("div");
  const importer = h("input", { type: "file", accept: ".json,application/json", hidden: true, "data-part": "import",
    onchange: async () => { const file = importer.files[0]; if (file) send({ type: "import", text: await file.text() }); importer.value = ""; } });

  async function copy(button, text) {
    const words = button.textContent;
    try { await navigator.clipboard.writeText(text); button.textContent = "copied ✓"; } catch { button.textContent = "copying was refused"; }
    setTimeout(() => { button.textContent = words; items.hidden = true; }, 900);
  }
  function download() {
    const url = URL.createObjectURL(new Blob([model.texts.json], { type: "application/json" }));
    h("a", { href: url, download: model.texts.file }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
    items.hidden = true;
  }
  const items = h("div", { hidden: true, role: "menu" },
    h("button", { type: "button", role: "menuitem", "data-act": "python", onclick: (e) => copy(e.target, model.texts.python) }, "Copy as Python"),
    h("button", { type: "button", role: "menuitem", "data-act": "cli", onclick: (e) => copy(e.target, model.texts.cli) }, "Copy as command line"),
    h("button", { type: "button", role: "menuitem", "data-act": "link", onclick: (e) => copy(e.target, location.href) }, "Copy link to this view"),
    h("button", { type: "button", role: "menuitem", "data-act": "export", onclick: download }, "Export state (JSON)"),
    h("button", { type: "button", role: "menuitem", onclick: () => { items.hidden = true; importer.click(); } }, "Import state…"));
  const menu = menuOf("Copy ▾", "copy", items);

  const pane = h("section", { class: "pane card knobs", "aria-label": "Knobs" },
    h("div", { class: "bar" }, h("h2", {}, "Knobs"),
      h("button", { class: "btn", type: "button", "data-act": "reset", title: "All knobs back to their defaults (r)", onclick: () => send({ type: "reset" }) }, "Reset"),
      menu,
      h("button", { class: "btn primary", type: "button", "data-act": "pin", title: "Compare everything after with this setting (p)", onclick: () => send({ type: "pin" }) }, "Pin as A")),
    body, importer);
  const tip = tooltip(pane);

  function explain(target, c) {
    const range = ["choice", "nodes", "text"].includes(c.kind) ? "" : `${short(c.low)} to ${short(c.high)}${c.unit ? " " + c.unit : ""}`;
    const base = c.kind === "nodes" || c.kind === "text" ? "" : c.kind === "choice" || c.kind === "bank" ? c.names[c.choices.indexOf(c.default)] : short(c.default);
    const facts = [range && `Range ${range}`, base && `default ${base}`, "double click resets"].filter(Boolean).join(" · ");
    const chosen = c.options?.[c.choices.indexOf(c.value)]?.doc;
    tip.show(target, h("div", {}, h("b", {}, c.title), ` ${c.doc}`), chosen ? h("div", { class: "chosen" }, h("b", {}, c.value), ` ${chosen}`) : "", h("div", { class: "range" }, facts), c.reason ? h("div", { class: "why" }, c.reason) : "");
  }

  function row(c) {
    const id = `knob-${c.name}`;
    const control = () => model.data.controls.find((x) => x.name === c.name);
    const label = h("label", { for: id }, h("span", { class: "dot", title: "differs from A" }), c.title);
    const set = (value) => { preview.drop(); send({ type: "set", knob: c.name, value }); };  // a preview that came later would stay
    const why = h("span", { class: "reason" });
    let inputs, show;
    if (c.kind === "choice" && c.options) {
      const made = chooser(pane, c, id, set);
      inputs = [made.button];
      show = made.show;
    } else if (c.kind === "choice") {
      const choice = h("select", { id, class: "wide", "data-knob": c.name, onchange: () => set(c.choices[choice.selectedIndex]) }, c.names.map((name) => h("option", {}, name)));
      inputs = [choice];
      show = (x) => { choice.selectedIndex = x.choices.findIndex((v) => v === x.value); };
    } else if (c.kind === "nodes" || c.kind === "text") {
      const words = c.kind === "text";
      let typed = false;
      const done = () => {
        if (!typed) return;
        typed = false;
        if (words) { set(field.value.trim()); return; }
        const levels = field.value.split(/[\s,;]+/).filter(Boolean).map(Number);
        set(levels.length ? levels : null);
      };
      const field = h("input", { id, type: "text", class: "wide", "data-knob": c.name, placeholder: words ? { own: "none; JSON of a sampler", layers: "none; σ: block block; …" }[c.name] ?? "" : "σ, σ, … from high to low", spellcheck: "false", autocomplete: "off", oninput: () => { typed = true; }, onchange: done });
      field.addEventListener("keydown", (event) => { if (event.key === "Enter") { event.preventDefault(); done(); } });
      inputs = [field];
      show = (x) => { if (!typed) field.value = words ? x.value : x.value.map((v) => Number(v.toPrecision(6))).join(", "); };
    } else {
      const scale = scaleOf(c);
      const paint = () => slider.style.setProperty("--at", `${100 * (slider.valueAsNumber - scale.min) / (scale.max - scale.min)}%`);
      const slider = h("input", { id, type: "range", min: scale.min, max: scale.max, step: scale.step, "data-knob": c.name,
        oninput: () => { const v = scale.from(slider.valueAsNumber); dragging = c.name; number.show(v); slider.setAttribute("aria-valuetext", short(v)); paint(); preview(c.name, v); },
        onchange: () => { dragging = null; set(scale.from(slider.valueAsNumber)); } });
      const number = numberField({ "aria-label": `${c.title}, value`, "data-number": c.name }, set);
      inputs = [slider, number];
      show = (x) => {
        if (dragging === c.name) return;
        slider.value = scale.to(x.value); slider.setAttribute("aria-valuetext", short(x.value)); paint();
        number.show(Number(x.value.toPrecision(4)));
      };
    }
    const line = h("div", { class: "knob", "data-row": c.name, ondblclick: (e) => { e.preventDefault(); send({ type: "reset", knob: c.name }); } }, label, inputs, why);
    for (const part of [label, ...inputs]) {
      part.addEventListener("pointerenter", () => { if (part === label || control().reason) explain(line, control()); });
      part.addEventListener("pointerleave", tip.hide);
      part.addEventListener("blur", tip.hide);
    }
    // Disabled inputs swallow pointer events; the row still explains itself.
    line.addEventListener("pointerenter", () => { if (control().reason) explain(line, control()); });
    line.addEventListener("pointerleave", tip.hide);
    for (const input of inputs) input.addEventListener("focus", () => { if (input.matches(":focus-visible") && input.type !== "number") explain(line, control()); });
    rows.set(c.name, (x) => {
      show(x);
      line.classList.toggle("off", Boolean(x.reason));
      why.textContent = x.reason;
      line.classList.toggle("differs", x.differs);
      for (const input of inputs) { input.disabled = Boolean(x.reason); input.setAttribute("aria-description", x.reason || x.doc); }
    });
    return line;
  }

  /** Samplers that a search has kept: one turns all knobs at once. Those of other models are there, with the reason. */
  function keptRow() {
    const pick = h("select", { id: "knob-kept", class: "wide", "data-part": "kept-sampler", onchange: () => { if (pick.value) send({ type: "kept", name: pick.value }); } });
    const line = h("div", { class: "knob", "data-row": "kept" },
      h("label", { for: "knob-kept", title: "A sampler that was kept on the Tuning page: all that it says is taken over" }, h("span", { class: "dot" }), "tuned"), pick);
    let said = "";
    rows.set("kept", (found) => {
      line.hidden = !found.length;
      const key = JSON.stringify(found.map((k) => [k.name, k.title, k.reason]));
      if (key !== said) {
        said = key;
        pick.replaceChildren(h("option", { value: "" }, "choose a kept one"),
          ...found.map((k) => h("option", { value: k.name, disabled: Boolean(k.reason), title: k.reason || k.title }, k.reason ? `${k.title} – ${k.reason}` : k.title)));
      }
      pick.value = found.find((k) => k.chosen)?.name ?? "";
    });
    return line;
  }

  function bank(c) {
    const high = c.high, held = { values: null };
    const cells = c.names.map((name, i) => {
      const fillBar = h("i");
      const cell = h("div", { class: "cell", tabindex: 0, role: "slider", "aria-label": `skip ${name}`, "aria-orientation": "vertical", "aria-valuemin": c.low, "aria-valuemax": high, "data-skip": i }, fillBar);
      const put = (v, done) => {
        if (now().reason) return;
        held.values = held.values || [...now().value];
        held.values[i] = Number(clamp(Math.round(v / c.step) * c.step, c.low, high).toFixed(4));
        paint(held.values);
        if (done) { preview.drop(); send({ type: "set", knob: c.name, value: held.values }); held.values = null; } else preview(c.name, held.values);
      };
      const at = (e) => { const box = cell.getBoundingClientRect(); return high * (1 - (e.clientY - box.top) / box.height); };
      cell.addEventListener("pointerdown", (e) => { if (e.detail < 2) { cell.setPointerCapture(e.pointerId); cell.focus({ focusVisible: false }); put(at(e), false); } });
      cell.addEventListener("pointermove", (e) => { if (cell.hasPointerCapture(e.pointerId)) put(at(e), false); });
      cell.addEventListener("pointerup", (e) => { if (cell.hasPointerCapture(e.pointerId)) { cell.releasePointerCapture(e.pointerId); put(at(e), true); } });
      cell.addEventListener("dblclick", (e) => { e.stopPropagation(); put(1, true); });
      cell.addEventListener("keydown", (e) => {
        const move = { ArrowUp: 1, ArrowRight: 1, ArrowDown: -1, ArrowLeft: -1, PageUp: 4, PageDown: -4 }[e.key];
        if (move) { e.preventDefault(); put(now().value[i] + move * c.step, true); }
        if (e.key === "Home") { e.preventDefault(); put(1, true); }
      });
      cell.addEventListener("pointerenter", () => tip.show(cell, h("div", {}, h("b", {}, name), ` ${short(now().value[i])}`), now().reason ? h("div", { class: "why" }, now().reason) : h("div", { class: "range" }, "drag, arrow keys; double click: 1")));
      cell.addEventListener("pointerleave", tip.hide);
      return { cell, fillBar };
    });
    const now = () => model.data.controls.find((x) => x.name === c.name);
    const paint = (values) => cells.forEach(({ cell, fillBar }, i) => {
      fillBar.style.height = `${100 * values[i] / high}%`;
      cell.setAttribute("aria-valuenow", values[i]);
      cell.setAttribute("aria-valuetext", short(values[i]));
    });
    const clear = h("button", { class: "btn", type: "button", onclick: () => send({ type: "reset", knob: c.name }) }, "back to the line");
    const head = h("div", { class: "bankhead" }, h("span", { class: "dot" }), c.title, clear);
    head.addEventListener("pointerenter", () => explain(head, now()));
    head.addEventListener("pointerleave", tip.hide);
    const strip = h("div", { class: "bank", "data-row": c.name }, cells.map(({ cell }) => cell));
    rows.set(c.name, (x) => {
      if (!held.values) paint(x.value);
      strip.classList.toggle("off", Boolean(x.reason));
      head.classList.toggle("differs", x.differs);
      clear.hidden = !x.set;
      for (const { cell } of cells) cell.setAttribute("aria-disabled", Boolean(x.reason));
    });
    return h("div", {}, head, strip, h("div", { class: "ends" }, h("span", {}, `${c.names[0]} (deepest)`), h("span", {}, c.names.at(-1))));
  }

  function draw() {
    const d = model.data;
    if (!d.controls) return;
    const key = JSON.stringify(d.controls.map((c) => [c.name, c.names, c.low, c.high, c.default, Boolean(c.options)]));
    if (key !== structure) {
      structure = key;
      for (const box of pane.querySelectorAll(".choices")) box.remove();
      rows.clear();
      openGroups = openGroups || new Set(d.open);
      body.replaceChildren(...d.groups.map((group) => {
        const members = d.controls.filter((c) => c.group === group);
        if (members.every((c) => c.kind === "bank" && !c.names.length)) return h("span");
        const details = h("details", { class: "group", "data-group": group, open: openGroups.has(group), ontoggle: () => { openGroups[details.open ? "add" : "delete"](group); } },
          h("summary", {}, group, h("span", { class: "dot" }), h("span", { class: "gist" })),
          h("div", { class: "rows" }, members.flatMap((c) => (c.kind === "bank" ? (c.names.length ? bank(c) : "") : c.name === "own" ? [keptRow(), row(c)] : row(c)))));
        return details;
      }));
    }
    for (const c of d.controls) rows.get(c.name)?.(c);
    rows.get("kept")?.(d.kept || []);
    for (const details of body.querySelectorAll("details")) {
      const members = d.controls.filter((c) => c.group === details.dataset.group);
      details.classList.toggle("differs", members.some((c) => c.differs));
      details.classList.toggle("rest", members.every((c) => c.reason));
      details.querySelector(".gist").textContent = d.gists[details.dataset.group] || "";
    }
  }
  model.on("data", draw);
  draw();
  return pane;
}
