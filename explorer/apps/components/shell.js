const ICONS = {
  lab: ["M4 7h10", "M18 7h2", "M4 17h2", "M10 17h10", "M16 5v4", "M8 15v4"],
  trajectory: ["M4 19c6 0 4-13 16-14", "M17 3l3 2-2 3"],
  theme: ["M12 3a9 9 0 1 0 9 9 7 7 0 0 1-9-9z"],
  keys: ["M3 7h18v10H3z", "M7 11h.01", "M11 11h.01", "M15 11h.01", "M8 14h8"],
};
const icon = (name) => s("svg", { viewBox: "0 0 24 24", "aria-hidden": "true" }, (ICONS[name] || ICONS.lab).map((d) => s("path", { d })));

const SHORTCUTS = [
  ["space", "flip the pictures between A and B"], ["p", "pin the present setting as A"], ["r", "reset all knobs"],
  ["d", "draw other seeds"], ["← →", "step a focused knob, or walk the samples"], ["Enter", "filmstrip of a focused sample"],
  ["Esc", "stop the running job"], ["t", "dark or light"],
];

export function render({ model, el }) {
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
    model.send_msg({ type: "theme", theme });
  }
  const stored = () => { try { return localStorage.getItem("explorer-theme"); } catch { return null; } };
  const preferred = stored() || (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  function flipTheme() {
    setTheme(theme === "dark" ? "light" : "dark");
    try { localStorage.setItem("explorer-theme", theme); } catch { /* private window: the choice lasts until reload */ }
  }

  const keys = h("dialog", { "aria-label": "Keyboard" },
    h("h2", {}, "Keyboard"),
    h("table", {}, SHORTCUTS.map(([key, what]) => h("tr", {}, h("td", {}, h("kbd", {}, key)), h("td", {}, what)))),
    h("form", { method: "dialog" }, h("button", { class: "btn" }, "Close")));

  const rail = h("nav", { class: "rail", "aria-label": "Pages" },
    model.pages.map((page) => h("a", { href: page.href, "aria-current": page.current ? "page" : null }, icon(page.icon), page.title)),
    h("div", { class: "space" }),
    h("button", { type: "button", "data-act": "keys", onclick: () => keys.showModal() }, icon("keys"), "Keys"),
    h("button", { type: "button", "data-act": "theme", "aria-label": "Dark or light theme", onclick: flipTheme }, icon("theme"), "Theme"));

  const slot = (name) => {
    const box = h("div", { class: "slot", style: `grid-area: ${name}` });
    box.append(model.get_child(name));
    return box;
  };
  lab.append(rail, ...["top", "knobs", "samples", "steps", "history"].map(slot), keys);
  setTheme(preferred);

  if (!model.embedded) {
    document.body.style.margin = "0";
    const spelled = () => location.hash.replace(/^#/, "");
    let written = null;
    const onHash = () => { if (spelled() !== written) model.send_msg({ type: "open", link: spelled() }); };
    addEventListener("hashchange", onHash);
    model.on("link", () => { written = model.link; history.replaceState(null, "", "#" + written); });
    model.on("remove", () => removeEventListener("hashchange", onHash));
    model.send_msg({ type: "open", link: spelled() });
  } else {
    model.send_msg({ type: "open", link: "" });
  }

  const scope = model.embedded ? lab : document;
  const onKey = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || keys.open) return;
    const target = event.composedPath()[0];
    if (event.key === "Escape") { model.send_msg({ type: "cancel" }); return; }
    if (typing(event) && !(event.key !== " " && target.type === "range" && /^[prdt]$/.test(event.key))) return;
    if (event.key === " " && !(target.tagName === "BUTTON" && !target.dataset.tile)) {
      event.preventDefault();
      document.dispatchEvent(new CustomEvent("explorer-flip", { detail: model.page_id }));
    } else if (event.key === "t") flipTheme();
    else if (event.key === "p") model.send_msg({ type: "pin" });
    else if (event.key === "r") model.send_msg({ type: "reset" });
    else if (event.key === "d") model.send_msg({ type: "dice" });
  };
  scope.addEventListener("keydown", onKey);
  model.on("remove", () => scope.removeEventListener("keydown", onKey));
  return lab;
}
