"""Which noise became which sample: lines coloured by cost with their crossings, the budget, angles between times."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue
from explorer.trajectory.coupling import endpoints
from explorer.trajectory.dataset import crossings as count_crossings
from explorer.viz.canvas import Backend, canvas, joined
from explorer.viz.theme import Theme, ramp, theme_of


def couplings(
    ds: xr.Dataset,
    *,
    n: int = 200,
    crossings: bool = True,
    title: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: int = 520,
) -> Any:
    """Figure of straight lines from each noise to its sample, dark cheap to bright dear, crosses where lines cross.

    Args:
        ds: a recording of two-dimensional samples.
        n: at most this many pairs, the first ones; crossings are counted among them.
    """
    if ds.x.ndim != 3 or ds.x.shape[2] != 2:
        raise BadValue(f"a coupling is drawn in the plane, samples have shape {ds.x.shape[2:]}.")
    th, shown = theme_of(theme), ds.isel(sample=slice(n))
    ends = endpoints(shown)
    noise, data, cost = ends.noise.values, ends.data.values, ends.cost.values
    colors, low, high = ramp(cost, th)
    c = canvas(backend, th, titles=(title,), size=(size, size + 40))
    panel = c.panel()
    for hue in sorted(set(colors)):
        rows = [k for k, h in enumerate(colors) if h == hue]
        panel.line(*joined([np.stack((noise[k], data[k])) for k in rows]), hue, width=1.2, opacity=0.75)
    panel.points(noise[:, 0], noise[:, 1], th.muted, size=4, mark="ring")
    panel.points(data[:, 0], data[:, 1], colors, size=5, texts=[f"cost {k:.3g}" for k in cost])
    said = ""
    if crossings:
        found = count_crossings(shown)
        at = found.point.values
        panel.points(at[:, 0], at[:, 1], th.text, size=4, mark="cross")
        said = f"; {found.attrs['n_crossings']} crossings ({100 * found.attrs['fraction']:.2g} % of pairs)"
    both = np.concatenate((noise, data))
    lo, hi = both.min(axis=0), both.max(axis=0)
    middle, half = (lo + hi) / 2, float((hi - lo).max()) / 2 * 1.06
    panel.axes(
        "x₁", "x₂", equal=True, x_range=(middle[0] - half, middle[0] + half), y_range=(middle[1] - half, middle[1] + half)
    )  # fmt: skip
    return c.finish(f"n = {len(noise)}; colour: cost |ε − x₀|², mean {cost.mean():.3g}, {low:.2g} to {high:.3g}{said}")


def budget(
    data: xr.Dataset, *, theme: str | Theme = "light", backend: Backend = "plotly", size: tuple[int, int] = (420, 360)
) -> Any:
    """Figure of where the cost of the coupling goes: chord, straightness and conflict stacked beside the cost."""
    th = theme_of(theme)
    c = canvas(backend, th, size=size)
    panel, base = c.panel(), 0.0
    panel.bars([0.0], [float(data.cost)], th.muted, width=0.6)
    for i, name in enumerate(("chord", "straightness", "conflict")):
        value, error = float(data[name]), float(data[f"{name}_se"])
        panel.bars([1.0], [value], th.color(i), width=0.6, base=base)
        panel.text(1.36, base + value / 2, f"{name} {value:.3g} ± {error:.1g}", th.text)
        base += value
    panel.text(
        0.0, float(data.cost) * 1.03, f"{float(data.cost):.3g} ± {float(data.cost_se):.1g}", th.text, anchor="center"
    )
    panel.axes(
        "", "data unit²", x_range=(-0.5, 3.0), y_range=(0.0, 1.12 * max(base, float(data.cost))),
        x_ticks=([0.0, 1.0], ["cost E|ε − x₀|²", "D² + S + V"]),
    )  # fmt: skip
    return c.finish(f"n = {data.attrs['n']}; residual {float(data.residual):.2g} ± {float(data.residual_se):.1g}")


def angle_map(
    proxy: xr.Dataset, *, theme: str | Theme = "light", backend: Backend = "plotly", size: tuple[int, int] = (520, 440)
) -> Any:
    """Figure of the angle between the velocity at t and the mean velocity from t to r < t, from `angle_proxy`."""
    c = canvas(backend, theme, size=size)
    t, r = proxy.t_start.values, proxy.t_end.values
    order_t, order_r = np.argsort(t), np.argsort(r)
    c.panel().heat(t[order_t], r[order_r], proxy.angle.values[order_t][:, order_r].T, label="angle, rad")
    c.panel().axes("t (from)", "r (to)")
    return c.finish(f"n = {proxy.attrs['n']}; mean angle between v(x_t, t) and the mean velocity over [r, t]")
