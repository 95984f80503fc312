const SVG = "http://www.w3.org/2000/svg";

/** Element `tag` with attributes (on* are listeners, null is left out) and children. */
function h(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function s(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

/** Number as a person would write it: three significant digits, no trailing noise. */
function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5) return value.toExponential(1).replace(".0e", "e").replace("e+", "e");
  if (size >= 1000 || size < 0.0005) return Number(value.toPrecision(2)).toString();
  return Number(value.toPrecision(3)).toString();
}

const clamp = (x, low, high) => Math.min(Math.max(x, low), high);

/** Interval that has held every value shown so far: frames expand and never shrink until `reset`. */
class Frame {
  constructor() { this.reset(); }
  reset() { this.low = Infinity; this.high = -Infinity; }
  add(...values) {
    for (const v of values.flat()) {
      if (v === null || !Number.isFinite(v)) continue;
      this.low = Math.min(this.low, v);
      this.high = Math.max(this.high, v);
    }
    return this;
  }
  get empty() { return this.low > this.high; }
}

/** About `count` round numbers between low and high. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = power * [1, 2, 5, 10].find((m) => m * power >= raw * 0.999);
  const out = [];
  for (let v = Math.ceil(low / step - 1e-9) * step; v <= high + step * 1e-9; v += step) out.push(Number(v.toPrecision(12)));
  return out;
}

/** Box above everything else on the page, in the browser's top layer; hidden until `placeAt`. */
function overlay(pane, attributes, ...content) {
  const box = h("div", { popover: "manual", ...attributes }, ...content);
  pane.append(box);
  return {
    box,
    get open() { return box.matches(":popover-open"); },
    hide() { if (this.open) box.hidePopover(); },
    /** Shows the box beside a target, or under it, and keeps it on screen. */
    placeAt(target, under = false) {
      if (!this.open) box.showPopover();
      box.style.left = box.style.top = "0px";
      const at = target.getBoundingClientRect(), size = box.getBoundingClientRect();
      let left = at.right + 10, top = at.top - 4;
      if (left + size.width > innerWidth - 8) left = Math.max(8, at.left - size.width - 10);
      if (under || (left < at.right && left + size.width > at.left)) {
        left = clamp(at.left, 8, Math.max(8, innerWidth - size.width - 8));
        top = at.bottom + 4 + size.height > innerHeight && at.top > size.height + 8 ? at.top - size.height - 4 : at.bottom + 4;
      }
      top = clamp(top, 8, Math.max(8, innerHeight - size.height - 8));
      // A transformed ancestor would shift `fixed`; measured from where the box lies at 0, 0.
      box.style.left = `${left - size.left}px`; box.style.top = `${top - size.top}px`;
    },
  };
}

/** One tooltip per pane, placed beside what it explains and kept on screen. */
function tooltip(pane) {
  const tip = overlay(pane, { class: "tip", role: "tooltip" });
  return {
    show(target, ...content) { tip.box.replaceChildren(...content); tip.placeAt(target); },
    hide() { tip.hide(); },
  };
}

/**
 * Field for a number that commits on Enter, Tab and leaving (in a notebook Enter would not arrive); `field.show(value)` leaves what is
 * being typed alone.
 */
function numberField(attributes, commit) {
  let typed = false;
  const done = () => { if (typed && !Number.isNaN(field.valueAsNumber)) { typed = false; commit(field.valueAsNumber); } };
  const field = h("input", { type: "number", step: "any", ...attributes, oninput: () => { typed = true; }, onchange: done });
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter") { event.preventDefault(); event.stopPropagation(); done(); }
    if (event.key === "Escape" && typed) { event.stopPropagation(); typed = false; field.value = field.shown; }
  });
  field.show = (value) => { field.shown = value; if (!typed) field.value = value; };
  return field;
}

/**
 * The noise level that is pointed at, shared by the panes of a page: `tell(sigma)` marks it in the others, `tell(null)` nowhere;
 * `onSigma` hears what the others tell.
 */
function sigmaLink(model, onSigma) {
  const me = {};
  const hear = ({ detail }) => { if (detail.page === model.page_id && detail.from !== me) onSigma(detail.sigma); };
  document.addEventListener("explorer-sigma", hear);
  model.on("remove", () => document.removeEventListener("explorer-sigma", hear));
  return { tell(sigma) { document.dispatchEvent(new CustomEvent("explorer-sigma", { detail: { page: model.page_id, sigma, from: me } })); } };
}

/** A button that opens a menu. It closes on Escape, when the focus leaves it, and when something else is pressed. */
function menuOf(words, act, items) {
  const opener = h("button", { class: "btn", type: "button", "aria-haspopup": "menu", "data-act": act, onclick: () => { items.hidden = !items.hidden; } }, words);
  const menu = h("div", { class: "menu" }, opener, items);
  menu.addEventListener("focusout", (e) => { if (e.relatedTarget && !menu.contains(e.relatedTarget)) items.hidden = true; });
  menu.addEventListener("keydown", (e) => { if (e.key === "Escape") { items.hidden = true; opener.focus(); e.stopPropagation(); } });
  document.addEventListener("pointerdown", (e) => { if (!e.composedPath().includes(menu)) items.hidden = true; });
  return menu;
}

/** Two strips for what a page has to say, a notice and a failure; `draw(d, more, cures)` shows `d.notice` and `d.error`, with further buttons. */
function strips(send) {
  const notice = h("div", { class: "notice", role: "status", "data-part": "notice", hidden: true });
  const failure = h("div", { class: "notice error", role: "alert", "data-part": "error", hidden: true });
  const button = (words, onclick) => h("button", { class: "btn", type: "button", onclick }, words);
  const ok = () => button("OK", () => send({ type: "dismiss" }));
  return { nodes: [notice, failure], draw(d, more = [], cures = [ok()]) {
    notice.hidden = !d.notice;
    notice.replaceChildren(h("span", {}, d.notice || ""), ...more, ok());
    failure.hidden = !d.error;
    if (!d.error) return;
    const details = button("copy details", async () => {
      try { await navigator.clipboard.writeText(d.error.details); details.textContent = "copied"; } catch { details.textContent = "copying was refused"; }
    });
    failure.replaceChildren(h("span", {}, d.error.text), details, ...cures);
  } };
}

/** Calls `fn` with the latest arguments at most once per `ms`, the last call always included unless `drop` comes before it. */
function throttle(fn, ms) {
  let timer = null, latest = null;
  const call = (...values) => {
    latest = values;
    if (timer) return;
    timer = setTimeout(() => { timer = null; fn(...latest); }, ms);
  };
  call.drop = () => { clearTimeout(timer); timer = null; };
  return call;
}

const typing = (event) => {
  const target = event.composedPath()[0];
  return target instanceof HTMLElement && (/^(INPUT|SELECT|TEXTAREA)$/.test(target.tagName) || target.isContentEditable);
};
