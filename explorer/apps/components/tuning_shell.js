export function render({ model, el }) {
  const tell = (type, more = {}) => model.send_msg({ type, ...more });
  const lab = frame(model, {
    slots: ["top", "form", "knobs", "outcome", "course", "steps", "layers", "trials", "searches", "map"],
    shortcuts: [["n", "start the search that the form asks for"], ["Esc", "stop the search that is looked at"], ["k", "keep its outcome"], ["b", "look at its best trial"], ["m", "measure the map of two knobs"], ["← →", "on a tick of the grid: move it"], ["t", "dark or light"]],
    onKey(event) {
      const target = event.composedPath()[0];
      if (event.key === "Escape") { if (!typing(event)) tell("stop"); return true; }
      if (/^(BUTTON|SELECT|SUMMARY|A)$/.test(target.tagName) && event.key === " ") return false;
      const verb = { n: ["start"], k: ["keep"], b: ["pick", { number: null }], m: ["map"] }[event.key];
      if (verb) { event.preventDefault(); tell(...verb); return true; }
      return false;
    },
  });
  const area = (name) => { const slot = lab.querySelector(`.slot[style*="grid-area: ${name}"]`); slot.style.gridArea = ""; slot.dataset.slot = name; return slot; };
  lab.append(h("div", { class: "left" }, area("form"), area("knobs")), h("div", { class: "main" }, area("outcome"), area("course"), area("steps"), area("layers")), h("div", { class: "side" }, area("searches"), area("trials"), area("map")));
  return lab;
}
