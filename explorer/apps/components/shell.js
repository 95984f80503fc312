export function render({ model, el }) {
  return frame(model, {
    slots: ["top", "knobs", "samples", "steps", "history"],
    shortcuts: [
      ["space", "flip the pictures between A and B"], ["p", "pin the present setting as A"], ["r", "reset all knobs"],
      ["d", "draw other seeds"], ["← →", "step a focused knob, or walk the samples and steps"], ["Enter", "filmstrip of a focused sample"],
      ["Esc", "stop the running job"], ["t", "dark or light"],
    ],
    onKey(event) {
      const target = event.composedPath()[0];
      if (event.key === " ") {
        if (target.tagName === "BUTTON" && !target.dataset.tile) return false;
        event.preventDefault();
        document.dispatchEvent(new CustomEvent("explorer-flip", { detail: model.page_id }));
        return true;
      }
      const type = { Escape: "cancel", p: "pin", r: "reset", d: "dice" }[event.key];
      if (type) model.send_msg({ type });
      return Boolean(type);
    },
  });
}
