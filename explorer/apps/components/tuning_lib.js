/** Values at which a logarithmic axis is ruled: decades, or 1, 2, 5 where they are few; at most about `most`. */
function logTicks(low, high, most = 7) {
  const out = [], few = Math.log10(high / low) < 2;
  for (let p = Math.floor(Math.log10(low)); p <= Math.ceil(Math.log10(high)); p++) for (const m of few ? [1, 2, 5] : [1]) { const v = m * 10 ** p; if (v >= low * 0.999 && v <= high * 1.001) out.push(Number(v.toPrecision(3))); }
  return out.length > most ? out.filter((_, i) => i % Math.ceil(out.length / most) === 0) : out;
}

/** An axis of values between two ends, logarithmic where they span more than a factor of 8. */
function axisOf(low, high, from, to) {
  const log = low > 0 && high / low > 8, map = log ? Math.log : (v) => v;
  const a = map(low), b = map(high), size = Math.abs(to - from);
  return { log, at: (v) => from + (map(log ? Math.max(v, low) : v) - a) / (b - a || 1) * (to - from), marks: log ? logTicks(low, high, Math.max(3, Math.floor(size / 32))) : ticks(low, high, Math.max(2, Math.floor(size / 44))) };
}

const VIRIDIS = ["#fde725", "#b5de2b", "#6ece58", "#35b779", "#1f9e89", "#26828e", "#31688e", "#3e4a89", "#482878", "#440154"].map((hex) => [1, 3, 5].map((i) => parseInt(hex.slice(i, i + 2), 16)));

/** Colour of a share from 0 (low, light) to 1 (high, dark), perceptually even. */
function shade(u) {
  const f = clamp(u, 0, 1) * (VIRIDIS.length - 1), i = Math.min(Math.floor(f), VIRIDIS.length - 2), g = f - i;
  return `rgb(${VIRIDIS[i].map((v, k) => Math.round(v * (1 - g) + VIRIDIS[i + 1][k] * g)).join(",")})`;
}
