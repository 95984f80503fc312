export function render({ model, el }) {
  const tell = (key) => document.dispatchEvent(new CustomEvent("explorer-trajectory-key", { detail: { page: model.page_id, key } }));
  const lab = frame(model, {
    slots: ["top", "stage", "curves", "side", "film"],
    shortcuts: [
      ["space", "play or pause"], ["← →", "step in time"], ["Home End", "noise, data"], ["l", "coupling lines"], ["f", "velocity field"],
      ["n", "another sampler"], ["1 – 4", "all knobs of a sampler"], ["d", "draw other seeds"], ["Esc", "close the knobs, or stop the running jobs"], ["t", "dark or light"],
    ],
    onKey(event) {
      const target = event.composedPath()[0], held = target.tagName === "BUTTON" || target.tagName === "SELECT" || target.type === "range" || target.tagName === "svg";
      if (event.key === "Escape") { model.send_msg(model.open ? { type: "activate", slot: null } : { type: "cancel" }); return true; }
      if (event.key === "d") { model.send_msg({ type: "dice" }); return true; }
      if (event.key === " " && target.tagName === "BUTTON") return false;
      if (event.key.startsWith("Arrow") && held) return false;
      if (/^( |l|f|n|[1-4]|ArrowLeft|ArrowRight|Home|End)$/.test(event.key)) { event.preventDefault(); tell(event.key); return true; }
      return false;
    },
  });
  const drawer = h("aside", { class: "drawer", "aria-label": "All knobs of one sampler", hidden: true },
    h("header", {}, h("b", {}), h("button", { class: "shut", type: "button", "aria-label": "Close the knobs", onclick: () => model.send_msg({ type: "activate", slot: null }) }, "✕")));
  drawer.append(model.get_child("knobs"));
  lab.append(drawer);
  const film = lab.querySelector(".slot[style*=film]");
  const show = () => { drawer.hidden = !model.open; drawer.querySelector("b").textContent = `Knobs of ${model.open}`; film.hidden = !model.images; lab.classList.toggle("images", model.images); };
  model.on("open", show); model.on("images", show);
  show();
  return lab;
}
