const ICONS = {
  lab: ["M4 7h10", "M18 7h2", "M4 17h2", "M10 17h10", "M16 5v4", "M8 15v4"],
  trajectory: ["M4 19c6 0 4-13 16-14", "M17 3l3 2-2 3"],
  tuning: ["M5 4v16", "M12 4v16", "M19 4v16", "M3 9h4", "M10 15h4", "M17 7h4"],
  training: ["M4 4v16h16", "M7 7c2 8 5 9 13 9.5", "M15 9l2-2 2 2"],
  atlas: ["M4 5h16v14H4z", "M4 10h16", "M10 10v9", "M7 7.5h.01"],
  theme: ["M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9z"],
  keys: ["M3 7h18v10H3z", "M7 11h.01", "M11 11h.01", "M15 11h.01", "M8 14h8"],
};
const icon = (name) => s("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, (ICONS[name] || ICONS.lab).map((d) => s("path", { d })));

/**
 * The page around its panes: rail, theme, keyboard, and the address, which holds the whole state after #.
 * `slots` names the children, each in the grid area of its name; `shortcuts` is [[key, what it does]]; `onKey(event)` gets keys that are
 * pressed outside of fields and says whether it took them.
 */
function frame(model, { slots, shortcuts, onKey }) {
  const lab = h("div", { class: "pane lab" });
  lab.classList.toggle("embedded", model.embedded);

  let theme = "light";
  function setTheme(next) {
    theme = next;
    lab.dataset.theme = theme;
    if (!model.embedded) {
      document.documentElement.style.background = theme === "dark" ? "#0f1115" : "#f4f5f7";
      document.documentElement.style.colorScheme = theme;
    }
  }
  const stored = () => { try { return localStorage.getItem("explorer-theme"); } catch { return null; } };
  function flipTheme() {
    setTheme(theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("explorer-theme", theme); } catch { /* private window: the choice lasts until reload */ }
  }

  const keys = h("dialog", { "aria-label": "Keyboard" },
    h("h2", {}, "Keyboard"),
    h("table", {}, shortcuts.map(([key, what]) => h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, what)))),
    h("form", { method: "dialog" }, h("button", { class: "btn" }, "Close")));

  const places = model.pages.map((page) => h("a", { href: page.href, "aria-current": page.current ? "page" : null }, icon(page.icon), h("span", {}, page.title)));
  const rail = h("nav", { class: "rail", "aria-label": "Pages" }, places,
    h("div", { class: "space" }),
    h("button", { type: "button", "data-act": "keys", onclick: () => keys.showModal() }, icon("keys"), h("span", {}, "Keys")),
    h("button", { type: "button", "data-act": "theme", "aria-label": "Dark or light theme", onclick: flipTheme }, icon("theme"), h("span", {}, "Theme")));

  lab.append(rail, ...slots.map((name) => h("div", { class: "slot", style: `grid-area: ${name}` }, model.get_child(name))), keys);
  setTheme(stored() || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light"));

  if (!model.embedded) {
    document.body.style.margin = "0";
    const spelled = () => location.hash.replace(/^#/, "");
    let written = null;
    const onHash = () => { if (spelled() !== written) model.send_msg({ type: "open", link: spelled() }); };
    addEventListener("hashchange", onHash);
    model.on("link", () => {
      written = model.link;
      history.replaceState(null, "", "#" + written);
      // What is chosen here goes along to the other pages.
      const query = written.includes("?") ? written.slice(written.indexOf("?")) : "";
      places.forEach((place, i) => { const { href } = model.pages[i]; place.setAttribute("href", `${href}#${href.replace("./", "")}${query}`); });
    });
    model.on("remove", () => removeEventListener("hashchange", onHash));
    model.send_msg({ type: "open", link: spelled() });
  } else {
    model.send_msg({ type: "open", link: "" });
  }

  const scope = model.embedded ? lab : document;
  const heard = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open || event.defaultPrevented) return;
    const target = event.composedPath()[0];
    const letter = target.type === "range" && /^[a-z]$/.test(event.key);  // a slider takes arrows and digits, letters stay the page's
    if (typing(event) && event.key !== "Escape" && !letter) return;
    if (onKey(event)) return;
    if (event.key === "t") flipTheme();
  };
  scope.addEventListener("keydown", heard);
  model.on("remove", () => scope.removeEventListener("keydown", heard));
  return lab;
}
