/** What the panes of one page share in the browser: where time stands, what is pointed at, which particles are chosen.
 *  u runs from noise (0) to data (1); t = top (1 - u) on the path that is drawn, sigma = t s / (1 - t). */
function clockOf(page) {
  const all = (globalThis.explorerClocks ??= new Map());
  if (all.has(page)) return all.get(page);
  const listeners = new Set();
  const clock = {
    u: 1, playing: false, speed: 1, hover: null, focus: null, chosen: null, scale: 1, sigmaMax: 80,
    get top() { return clock.sigmaMax / (clock.sigmaMax + clock.scale); },
    get t() { return clock.top * (1 - clock.u); },
    get sigma() { return clock.scale * clock.t / (1 - clock.t); },
    place(sigma) { return clamp(1 - sigma / (sigma + clock.scale) / clock.top, 0, 1); },
    /** Tells all panes what changed: "time", "hover", "focus", "chosen". */
    tell(what) { for (const listener of [...listeners]) listener(what); },
    listen(listener) { listeners.add(listener); return () => { listeners.delete(listener); if (!listeners.size) all.delete(page); }; },
    seek(u) { clock.playing = false; clock.u = clamp(u, 0, 1); clock.tell("time"); },
    toggle() {
      clock.playing = !clock.playing;
      if (clock.playing && clock.u >= 1) clock.u = 0;
      clock.tell("time");
    },
  };
  all.set(page, clock);
  return clock;
}

/** Header and arrays of a block made by `pack`, or null. */
function unpack(block) {
  if (!block || !block.byteLength) return null;
  const buffer = block instanceof ArrayBuffer ? block : block.buffer.slice(block.byteOffset, block.byteOffset + block.byteLength);
  const length = new DataView(buffer).getUint32(0, true);
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  const kinds = { u1: Uint8Array, u2: Uint16Array, f4: Float32Array };
  for (const part of header.parts) header[part.name] = new kinds[part.kind](buffer, part.at, part.count);
  return header;
}

const SIGMA_FLOOR = 1e-4;

/** Horizontal place of a noise level: logarithmic from noise on the left, sigma = 0 behind a break at the right end. */
function spine(low, high, left, right, zero = 26) {
  const end = right - zero, span = Math.log(high / low) || 1;
  return {
    left, right, end, low, high,
    x: (sigma) => (sigma > low * 0.999 ? left + Math.log(high / Math.min(sigma, high)) / span * (end - left) : sigma > 0 ? end + 4 : right - 7),
    sigma: (x) => (x > end + 4 ? 0 : high * Math.exp(-clamp((x - left) / (end - left), 0, 1) * span)),
  };
}

/** Ticks and break of such an axis; `words` also names it. */
function spineAxis(axis, y, words = true) {
  const parts = [
    s("line", { class: "axis", x1: axis.left, x2: axis.end + 4, y1: y, y2: y }),
    s("path", { class: "axis", d: `M${axis.end + 4},${y + 4}l4,-8 M${axis.end + 9},${y + 4}l4,-8 M${axis.end + 11},${y}H${axis.right}` }),
    s("text", { x: axis.right - 7, y: y + 15, "text-anchor": "middle" }, "0"),
  ];
  let last = -Infinity;
  for (let p = Math.ceil(Math.log10(axis.high) + 1e-9); p >= Math.floor(Math.log10(axis.low)); p--) {
    const v = 10 ** p;
    if (v > axis.high * 1.001 || v < axis.low * 0.999) continue;
    parts.push(s("line", { class: "axis", x1: axis.x(v), x2: axis.x(v), y1: y, y2: y + 4 }));
    if (axis.x(v) - last < 34 || axis.end - axis.x(v) < 6) continue;
    last = axis.x(v);
    parts.push(s("text", { x: axis.x(v), y: y + 15, "text-anchor": "middle" }, short(v)));
  }
  if (words) parts.push(s("text", { x: (axis.left + axis.end) / 2, y: y + 29, "text-anchor": "middle" }, "σ, log scale"));
  return parts;
}

const plusMinus = (pair) => (pair ? `${pair[0]} ± ${pair[1]}` : "–");
const group = (n) => String(n).replace(/\B(?=(\d{3})+(?!\d))/g, "\u2009");
