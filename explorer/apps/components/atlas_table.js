/** Papers, to search and sort; a row opens to all that is known of it. */
export function render({ model, el }) {
  const tell = () => model.send_msg({ type: "look", ...view });
  const tellSoon = throttle(tell, 250);
  let view = { q: "", family: "", status: "", sort: "status", down: false, open: "" };
  const COLUMNS = [["title", "Paper"], ["family", "Family"], ["year", "Year", "num"], ["nfe", "NFE", "num"], ["status", "Status"]];
  const HELP = { nfe: "Fewest evaluations for which the paper prints a number" };

  const search = h("input", { type: "search", placeholder: "Search titles, authors, ideas, data sets", "aria-label": "Search", oninput: () => set({ q: search.value }, tellSoon) });
  const family = h("select", { "aria-label": "Family", onchange: () => set({ family: family.value }) });
  const states = h("div", { class: "states", role: "group", "aria-label": "Status" });
  const count = h("span", { class: "count", role: "status", "data-part": "count" });
  const heads = h("div", { class: "heads", role: "row" }, COLUMNS.map(([key, words, kind]) => h("div", { class: kind, role: "columnheader", "data-col": key, title: HELP[key] },
    h("button", { type: "button", "data-sort": key, onclick: () => set({ sort: key, down: view.sort === key ? !view.down : false }) }, words))));
  const body = h("div", { class: "items" });
  const list = h("div", { class: "list", role: "table", "aria-label": "Papers" }, heads, body);
  const pane = h("section", { class: "pane card papers", "aria-label": "Papers" }, h("div", { class: "tools" }, search, family, states, count), list);
  const nodes = new Map();

  const text = (r) => r.words ??= [r.title, r.authors, r.idea, r.family, r.slug, r.arxiv, r.year, r.status, ...r.published.map((p) => `${p.dataset} ${p.method}`)].join(" ").toLowerCase();
  const matches = (r, but) => (but === "family" || !view.family || r.family === view.family) && (but === "status" || !view.status || r.status === view.status)
    && view.q.toLowerCase().split(/\s+/).every((word) => text(r).includes(word));
  const VALUE = { title: (r) => r.title.toLowerCase(), family: (r) => r.family, year: (r) => r.year, nfe: (r) => r.nfe, status: (r) => r.rank };
  function order(a, b) {
    const x = VALUE[view.sort](a), y = VALUE[view.sort](b);
    if (x === y) return a.place - b.place;
    if (x === null) return 1;  // what is not known stays at the end
    if (y === null) return -1;
    return (x < y ? -1 : 1) * (view.down ? -1 : 1);
  }

  /** What is typed reaches the address when there is a pause, everything else at once. */
  function set(change, say = tell) { view = { ...view, ...change }; draw(); tellSoon.drop(); say(); }
  const toggle = (slug) => set({ open: view.open === slug ? "" : slug });

  function make(r) {
    const chip = h("span", { class: "chip", "data-status": r.status }, r.status === "here" || r.claims.length ? `${r.status}${r.claims.length ? ` · ${r.held}/${r.claims.length}` : ""}` : r.status);
    chip.title = r.claims.length ? `${r.held} of ${r.claims.length} claims measured and holding` : "";
    const row = h("button", { class: "row", type: "button", "data-paper": r.slug, "aria-expanded": "false", onclick: () => toggle(r.slug) },
      h("div", { class: "title" }, h("b", {}, r.title), r.authors ? h("span", {}, r.authors) : null), h("div", { class: "family" }, r.family), h("div", { class: "num" }, r.year ?? "–"), h("div", { class: "num" }, r.nfe ?? "–"), chip);
    const item = h("div", { class: "item", role: "rowgroup" }, row);
    let more = null;
    return { item, row, show(open) {
      row.setAttribute("aria-expanded", String(open));
      if (open && !more) item.append((more = details(r)));
      else if (!open && more) { more.remove(); more = null; }
    } };
  }

  function details(r) {
    const parts = [h("p", { class: "idea" }, r.idea || "A part of this toolkit, from no paper.")];
    if (r.arxiv) parts[0].append(" ", h("span", { class: "muted" }, `arXiv ${r.arxiv}`));
    if (r.role === "tool") parts.push(h("p", { class: "fine" }, "No generative method to reproduce: the paper would lend this toolkit one tool."));
    if (r.role === "nothing to reproduce") parts.push(h("p", { class: "fine" }, "Kept so that the list is complete; nothing of it will be built."));
    if (r.status === "planned" && r.parts.length) parts.push(h("p", { class: "fine" }, "Parts of it are in the toolkit already: ", ...r.parts.flatMap((p, i) => [i ? ", " : "", h("code", {}, p)]), ". Its own file, with claims, is not."));
    if (r.models.length || r.presets.length) parts.push(h("div", { "data-part": "models" }, h("h3", {}, "Try it"),
      r.presets.length ? h("div", { class: "presets" }, r.presets.map((p) => h("a", { href: p.link }, p.words))) : null,
      h("div", { class: "try" }, r.models.flatMap((m) => [
        h("span", {}, m.name), h("a", { href: m.lab }, "Sampler Lab"), h("a", { href: m.trajectory }, "Trajectory Lab"), h("span", {})]))));
    if (r.claims.length) parts.push(claims(r));
    if (r.published.length) parts.push(published(r));
    else if (r.role === "method" && r.arxiv) parts.push(h("p", { class: "fine" }, "No published number is bundled: none could be checked against its source."));
    if (r.commands.length) parts.push(h("div", {}, h("h3", {}, "Run it"), r.commands.map((c) => {
      const button = h("button", { class: "btn", type: "button", "aria-label": `copy: ${c.text}`, onclick: async () => { try { await navigator.clipboard.writeText(c.text); button.textContent = "copied ✓"; } catch { button.textContent = "copying was refused"; } setTimeout(() => { button.textContent = "copy"; }, 900); } }, "copy");
      return h("div", { class: "cmd" }, h("span", { class: "what" }, c.what), h("code", {}, c.text), button);
    })));
    return h("div", { class: "more", "data-more": r.slug }, parts);
  }

  function claims(r) {
    const rows = r.claims.map((c) => h("tr", { "data-claim": c.number },
      h("td", {}, h("div", {}, c.text), h("div", { class: "fine" }, [c.where, c.scale].filter(Boolean).join(" · ")), c.error ? h("div", { class: "fine" }, c.error) : null),
      h("td", { class: "where" }, c.quantity || ""),
      h("td", { class: "num", title: c.seen ? `mean of ${c.seeds} seeds, n = ${c.n} each` : null }, c.measured || "–"),
      h("td", { class: "num limit" }, c.threshold ?? ""),
      h("td", { class: "where" }, c.seen ? strip(c) : ""),
      h("td", { class: "said", title: (c.notes || []).join("\n") || null }, h("span", { class: "chip", "data-status": c.verdict }, c.verdict))));
    return h("div", {}, h("h3", {}, "Claims, measured here"), h("div", { class: "scroll" }, h("table", { class: "claims" }, h("thead", {}, h("tr", {},
      h("th", {}, "claim"), h("th", { class: "where" }, "quantity"), h("th", { class: "num" }, "measured"), h("th", { class: "num" }, "threshold"), h("th", { class: "where" }, "seeds, and the threshold"), h("th", {}, "verdict"))), h("tbody", {}, rows))),
      h("p", { class: "fine" }, "Mean over seeds ± its standard error. A claim holds only if it holds at every seed; small runs confirm directions, not published figures."));
  }

  /** Every seed's value with its error on one line, the threshold dashed. */
  function strip(c) {
    const values = c.seen.flatMap((o) => [o.value - o.error, o.value + o.error]).concat(c.limit).filter(Number.isFinite);
    const low = Math.min(...values), span = Math.max(...values) - low || 1, x = (v) => 8 + (v - low) / span * 116;
    const svg = s("svg", { class: "strip", viewBox: "0 0 132 22", role: "img", "aria-label": `values ${c.seen.map((o) => short(o.value)).join(", ")}; threshold ${c.threshold}` }, s("line", { class: "base", x1: 4, x2: 128, y1: 11, y2: 11 }));
    if (Number.isFinite(c.limit)) svg.append(s("line", { class: "limit", x1: x(c.limit), x2: x(c.limit), y1: 2, y2: 20 }));
    for (const o of c.seen) if (Number.isFinite(o.value)) svg.append(s("line", { class: "err", x1: x(o.value - o.error), x2: x(o.value + o.error), y1: 11, y2: 11 }), s("circle", { class: o.holds ? "seed" : "seed fails", cx: x(o.value), cy: 11, r: 3.5 }));
    return svg;
  }

  function published(r) {
    return h("div", {}, h("h3", {}, "Published, on the paper's own data and budget"), h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {},
      h("th", {}, "data"), h("th", {}, "what"), h("th", {}, "metric"), h("th", { class: "num" }, "NFE"), h("th", { class: "num" }, "value"), h("th", {}, "where"))),
      h("tbody", {}, r.published.map((p) => h("tr", {}, h("td", {}, p.dataset), h("td", {}, p.method), h("td", {}, p.metric), h("td", { class: "num" }, p.nfe ?? "–"), h("td", { class: "num" }, String(p.value)), h("td", { class: "muted" }, p.where)))))));
  }

  let shownRows = null;
  function draw() {
    const d = model.data;
    if (!d.rows) return;
    if (shownRows !== d.rows) { shownRows = d.rows; nodes.clear(); body.replaceChildren(); }
    if (document.activeElement !== search && search.value !== view.q && !search.matches(":focus")) search.value = view.q;
    const inFamily = d.rows.filter((r) => matches(r, "family")), inStatus = d.rows.filter((r) => matches(r, "status"));
    family.replaceChildren(h("option", { value: "" }, "all families"), ...d.families.map((f) => h("option", { value: f.name }, `${f.name} (${inFamily.filter((r) => r.family === f.name).length})`)));
    family.value = view.family;
    states.replaceChildren(...d.statuses.map((one) => h("button", { type: "button", "data-status-filter": one.name, "aria-pressed": String(view.status === one.name), title: one.about, onclick: () => set({ status: view.status === one.name ? "" : one.name }) },
      h("span", { class: "chip", "data-status": one.name }, `${one.name} ${inStatus.filter((r) => r.status === one.name).length}`))));
    for (const head of heads.children) {
      const on = head.dataset.col === view.sort, words = COLUMNS.find(([key]) => key === head.dataset.col)[1];
      on ? head.setAttribute("aria-sort", view.down ? "descending" : "ascending") : head.removeAttribute("aria-sort");
      head.firstChild.textContent = words + (on ? (view.down ? " ↓" : " ↑") : "");
    }
    const shown = d.rows.filter((r) => matches(r)).sort(order);
    count.textContent = d.rows.length ? `${shown.length} of ${d.rows.length} papers` : "";
    list.hidden = !shown.length;
    pane.querySelector(".empty")?.remove();
    if (!shown.length) pane.append(d.loading ? h("div", { class: "empty", role: "status" }, "reading papers and evidence …")
      : d.failed ? h("div", { class: "empty" }, h("b", {}, "The papers could not be read."), h("span", {}, "What went wrong is said above; Read again tries once more."))
      : h("div", { class: "empty", "data-part": "empty" }, h("b", {}, "No paper fits."), h("span", {}, "Every word must appear in a row, within the family and status chosen."), h("button", { class: "btn", type: "button", "data-act": "clear", onclick: () => { search.value = ""; set({ q: "", family: "", status: "" }); } }, "show all papers")));
    const focused = body.getRootNode().activeElement;
    shown.forEach((r, i) => {
      const node = nodes.get(r.slug) ?? nodes.set(r.slug, make(r)).get(r.slug);
      node.show(view.open === r.slug);
      if (body.children[i] !== node.item) body.insertBefore(node.item, body.children[i] ?? null);
    });
    while (body.children.length > shown.length) body.lastChild.remove();
    if (focused && focused.isConnected && focused !== body.getRootNode().activeElement && body.contains(focused)) focused.focus();
  }

  const hear = ({ detail }) => {
    if (detail.page !== model.page_id) return;
    const rows = [...body.querySelectorAll(".row")], at = rows.indexOf(body.getRootNode().activeElement);
    if (detail.key === "/") { search.focus(); search.select(); }
    if (detail.key === "ArrowDown") rows[Math.min(at + 1, rows.length - 1)]?.focus();
    if (detail.key === "ArrowUp") at === 0 ? search.focus() : rows[Math.max(at - 1, 0)]?.focus();
    if (detail.key === "Escape") { if (view.open) set({ open: "" }); else if (view.q) { search.value = ""; set({ q: "" }); } }
  };
  document.addEventListener("explorer-atlas-key", hear);
  model.on("remove", () => document.removeEventListener("explorer-atlas-key", hear));
  search.addEventListener("keydown", (event) => { if (event.key === "ArrowDown") { event.preventDefault(); body.querySelector(".row")?.focus(); } });
  model.on("view", () => {
    view = { ...view, ...model.view };
    draw();
    if (view.open) nodes.get(view.open)?.row.scrollIntoView({ block: "nearest" });
  });
  model.on("data", () => { draw(); if (view.open) nodes.get(view.open)?.row.scrollIntoView({ block: "start" }); });
  view = { ...view, ...model.view };
  draw();
  return pane;
}
