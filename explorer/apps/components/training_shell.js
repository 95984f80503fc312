export function render({ model, el }) {
  const tell = (key) => document.dispatchEvent(new CustomEvent("explorer-training-key", { detail: { page: model.page_id, key } }));
  const lab = frame(model, {
    slots: ["top", "form", "runs", "stage", "strips", "curves"],
    shortcuts: [
      ["n", "start what the form says"], ["p", "pause run A, or go on with it"], ["k", "keep run A as a model"], ["space", "leaf through the book"],
      ["← →", "one picture back or on"], ["Home End", "first picture, newest picture"], ["a", "images seen or time"], ["t", "dark or light"],
    ],
    onKey(event) {
      const target = event.composedPath()[0], held = /^(BUTTON|SELECT|SUMMARY|A)$/.test(target.tagName);
      if (event.key === " " && held) return false;
      if (event.key.startsWith("Arrow") && (held || target.type === "range" || target.tagName === "svg")) return false;
      if (event.key === "n") { model.send_msg({ type: "start" }); return true; }
      if (/^( |p|k|a|ArrowLeft|ArrowRight|Home|End)$/.test(event.key)) { event.preventDefault(); tell(event.key); return true; }
      return false;
    },
  });
  const area = (name) => lab.querySelector(`.slot[style*="grid-area: ${name}"]`);
  const side = area("curves");
  side.style.gridArea = "side";
  const left = h("div", { class: "left" }, area("form"), area("runs")), main = h("div", { class: "main" }, area("stage"), area("strips"));
  for (const slot of [...left.children, ...main.children]) slot.style.gridArea = "";
  lab.append(left, main);
  return lab;
}
