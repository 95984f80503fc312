export function render({ model, el }) {
  const tell = (key) => document.dispatchEvent(new CustomEvent("explorer-atlas-key", { detail: { page: model.page_id, key } }));
  return frame(model, {
    slots: ["top", "table", "picture"],
    shortcuts: [
      ["/", "search"], ["↓ ↑", "next row, row before"], ["Enter", "open or close a row"], ["Esc", "close the open row, then clear the search"], ["t", "dark or light"],
    ],
    onKey(event) {
      const target = event.composedPath()[0];
      if (/^Arrow(Up|Down)$/.test(event.key) && (target.tagName === "SELECT" || target.type === "search")) return false;
      if (/^(\/|ArrowUp|ArrowDown|Escape)$/.test(event.key)) { event.preventDefault(); tell(event.key); return true; }
      return false;
    },
  });
}
