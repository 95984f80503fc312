/**
 * What the panes of one page share in the browser: what is pointed at on the axis of training, where the book is open (null: at its
 * newest page), and how far the axis reaches.
 */
function spotOf(page) {
  const all = (globalThis.explorerSpots ??= new Map());
  if (all.has(page)) return all.get(page);
  const listeners = new Set();
  const spot = {
    by: "images", at: null, open: null, playing: false, key: "", end: 0,
    tell(what) { for (const listener of [...listeners]) listener(what); },
    listen(listener) { listeners.add(listener); return () => { listeners.delete(listener); if (!listeners.size) all.delete(page); }; },
    seek(x) { spot.playing = false; spot.open = x; spot.tell("book"); },
    /** The axis begins at 0 and reaches what has been seen or is to come; it grows, and shrinks only for other runs or another axis. */
    reach(key, by, end) {
      if (by !== spot.by) { spot.by = by; spot.open = null; spot.at = null; }
      if (key !== spot.key) { spot.key = key; spot.end = 0; spot.open = null; }
      spot.end = Math.max(spot.end, end || 0);
    },
  };
  all.set(page, spot);
  return spot;
}

const HEAT = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"]
  .map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));

/** Colour of a share from 0 to 1, perceptually even. */
function heat(u) {
  const f = clamp(u, 0, 1) * (HEAT.length - 1), i = Math.min(Math.floor(f), HEAT.length - 2), g = f - i;
  return HEAT[i].map((v, k) => Math.round(v * (1 - g) + HEAT[i + 1][k] * g));
}

/** Images or seconds as they stand on an axis. */
function amount(value, by) {
  if (by === "images") return value >= 1e6 ? `${short(value / 1e6)} M` : value >= 1e3 ? `${short(value / 1e3)} k` : `${Math.round(value)}`;
  if (value >= 7200) return `${short(value / 3600)} h`;
  return value >= 120 ? `${short(value / 60)} min` : `${short(value)} s`;
}

/** Values between which an axis is ruled: decades, or decades and threes where they are few. */
function decadesBetween(low, high) {
  const out = [], few = Math.log10(high / low) < 1.6;
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) for (const m of few ? [1, 2, 5] : [1]) { const v = m * 10 ** p; if (v >= low * 0.999 && v <= high * 1.001) out.push(v); }
  return out.length > 6 ? out.filter((_, i) => i % 2 === 0) : out;
}

const placeOf = (spot, left, right) => ({ left, right, x: (v) => left + v / (spot.end || 1) * (right - left), value: (px) => clamp((px - left) / (right - left), 0, 1) * (spot.end || 1) });

/** Rule and words under a chart that runs along training. */
function trainingAxis(spot, place, y, words = true) {
  const parts = [s("line", { class: "axis", x1: place.left, x2: place.right, y1: y, y2: y })];
  if (!spot.end) return parts;
  for (const v of ticks(0, spot.end, place.right - place.left < 200 ? 3 : place.right - place.left < 360 ? 4 : 6)) {
    const x = place.x(v);
    if (x > place.right + 1) continue;
    parts.push(s("line", { class: "axis", x1: x, x2: x, y1: y, y2: y + 4 }));
    parts.push(s("text", { x: Math.min(x, place.right - 6), y: y + 15, "text-anchor": "middle" }, v === 0 ? "0" : amount(v, spot.by)));
  }
  if (words) parts.push(s("text", { x: (place.left + place.right) / 2, y: y + 28, "text-anchor": "middle" }, spot.by === "images" ? "images seen" : "training time"));
  return parts;
}
