"""Which noise became which sample: lines coloured by cost with their crossings, conflict, maps compared, budgets, angles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from explorer.errors import BadValue, UnknownName
from explorer.trajectory import geometry
from explorer.trajectory.coupling import endpoints
from explorer.viz.canvas import Backend, canvas, joined
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, angle_colors, mix, ramp, theme_of

Runs = xr.Dataset | Mapping[str, xr.Dataset]
MAX_CROSSES = 150
"""Crossings marked in a panel; of more, every so manieth."""


def couplings(
    ds: Runs,
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
        ds: a recording, `endpoints` or `pairs_dataset`, two-dimensional; or several by name, side by side on the same
            axes and colours.
        n: at most this many pairs, the first ones; crossings are counted among them.
        size: of one panel, in pixels.
    """
    runs = dict(ds) if isinstance(ds, Mapping) and not isinstance(ds, xr.Dataset) else {title: ds}
    if not runs:
        raise BadValue("no coupling was given.")
    th = theme_of(theme)
    ends = {name: _planar(run, n) for name, run in runs.items()}
    every = np.concatenate([e.cost.values for e in ends.values()])
    colors, low, high = ramp(
        np.minimum(every, np.quantile(every, 0.95)), th
    )  # a few dear lines do not take the whole scale
    columns = min(len(runs), 3)
    rows = -(-len(runs) // columns)
    c = canvas(backend, th, titles=tuple(runs), columns=columns, size=(size * columns, (size + 40) * rows))
    x_range, y_range = _frame([e[k].values for e in ends.values() for k in ("noise", "data")])
    said = []
    for i, (name, one) in enumerate(ends.items()):
        panel, count = c.panel(i), one.sizes["sample"]
        mine, colors = colors[:count], colors[count:]
        noise, data, cost = one.noise.values, one.data.values, one.cost.values
        for hue in sorted(set(mine)):
            chosen = [k for k, h in enumerate(mine) if h == hue]
            panel.line(*joined([np.stack((noise[k], data[k])) for k in chosen]), hue, width=1.2, opacity=0.75)
        panel.points(noise[:, 0], noise[:, 1], th.muted, size=4, mark="ring")
        panel.points(data[:, 0], data[:, 1], mine, size=5, texts=[f"cost {k:.3g}" for k in cost])
        words = f"mean cost {cost.mean():.3g}"
        if crossings:
            found = geometry.line_crossings(torch.from_numpy(noise), torch.from_numpy(data))
            at = found.points[:: -(-max(len(found.points), 1) // MAX_CROSSES)].numpy()
            panel.points(at[:, 0], at[:, 1], th.text, size=3, mark="cross")
            share = 100 * len(found.pairs) / max(1, count * (count - 1) // 2)
            words += f", {len(found.pairs)} crossings ({share:.2g} % of pairs)"
            words += f", {len(at)} of them marked" if len(at) < len(found.points) else ""
        said.append(f"{name}: {words}" if len(runs) > 1 else words)
        panel.axes("x₁", "x₂", equal=True, x_range=x_range, y_range=y_range)
    counts = sorted({e.sizes["sample"] for e in ends.values()})
    many = f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"
    return c.finish(f"{many}; colour: cost |ε − x₀|², {low:.2g} to {high:.3g} (95 %); {'; '.join(said)}")


def conflict_map(
    data: xr.Dataset,
    *,
    title: str = "",
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (560, 500),
) -> Any:
    """Figure of where in the plane the lines of a coupling disagree, from `trajectory.conflict_map`."""
    c = canvas(backend, theme, titles=(title,), size=size)
    c.panel().heat(data.x.values, data.y.values, data.conflict.values, label="½ |v − v′|², data unit²")
    c.panel().axes("x₁", "x₂", equal=True)
    t = float(data.attrs["t"])
    when = "all times of the linear path" if math.isnan(t) else f"t = {t:.2g}"
    return c.finish(
        f"n = {data.attrs['n']} lines; squared difference of velocities between {data.attrs['n_neighbours']} nearest neighbours, "
        f"{when}; mean {data.attrs['mean']:.3g}"
    )


def microscope(data: xr.Dataset, *, theme: str | Theme = "light", backend: Backend = "plotly", size: int = 400) -> Any:
    """Figure of where each run sends the chosen noise points, from `trajectory.microscope`: one panel per run.

    Rings are the chosen noise, dots their ends, of one colour in every panel: the direction of the noise from the middle of the
    choice. The other ends are faint.
    """
    if data.noise.ndim != 2 or data.noise.shape[1] != 2:
        raise BadValue(f"the microscope draws points of the plane, samples have shape {data.noise.shape[1:]}.")
    th = theme_of(theme)
    noise, ends = data.noise.values, data["data"].values
    middle = noise.mean(axis=0)
    colors = angle_colors(np.arctan2(*(noise - middle).T[::-1]), th)
    names = [str(name) for name in data.run.values]
    titles = [
        name if math.isnan(s) else f"{name}: stretch {s:.3g}"
        for name, s in zip(names, data.stretch.values, strict=True)
    ]
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    c = canvas(backend, th, titles=titles, columns=columns, size=(size * columns, (size + 40) * rows))
    x_range, y_range = _frame([noise, ends.reshape(-1, 2), data.data_other.values.reshape(-1, 2)])
    faint = mix(th.muted, th.background, 0.55)
    for i in range(len(names)):
        panel, there, rest = c.panel(i), ends[i], data.data_other.values[i]
        panel.points(rest[:, 0], rest[:, 1], faint, size=3)
        for hue in sorted(set(colors)):
            chosen = [k for k, h in enumerate(colors) if h == hue]
            panel.line(*joined([np.stack((noise[k], there[k])) for k in chosen]), hue, width=1, opacity=0.45)
        panel.points(noise[:, 0], noise[:, 1], colors, size=5, mark="ring")
        panel.points(there[:, 0], there[:, 1], colors, size=6, texts=[f"seed {s}" for s in data.seed.values])
        panel.axes("x₁", "x₂", equal=True, x_range=x_range, y_range=y_range)
    apart = [f"{name} {float(d):.3g}" for name, d in zip(names[1:], data.mean_distance.values[1:], strict=True)]
    said = f"; mean distance to the end under {names[0]}: {', '.join(apart)}" if apart else ""
    return c.finish(
        f"n = {data.attrs['n']} of {data.attrs['n_total']} noise points (rings); stretch: spread of the ends over spread of the noise{said}"
    )


def end_distances(
    comparisons: Runs,
    *,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (560, 340),
) -> Any:
    """Figure of how far apart two maps send the same noise: the share of samples within a distance, from `compare_maps`.

    Args: comparisons: one, or several by name. Ticks on the curve are samples that change site, where sites were given.
    """
    found = _named(comparisons)
    th = theme_of(theme)
    c = canvas(backend, th, size=size)
    panel, colors = c.panel(), setting_colors(list(found), th)
    floor = min(float(f.relative.where(f.relative > 0).min()) for f in found.values() if float(f.relative.max()) > 0)
    top = 0.0
    for name, one in found.items():
        order = np.argsort(one.relative.values)
        x = np.maximum(one.relative.values[order], floor / 2)
        share = (np.arange(len(x)) + 1) / len(x)
        panel.line(x, share, colors[name], label=name)
        top = max(top, x.max())
        if "swapped" in one:
            moved = one.swapped.values[order]
            panel.points(x[moved], share[moved], colors[name], size=11, mark="tick")
    panel.line([1.0, 1.0], [0.0, 1.0], th.muted, width=1, dash="dash")
    panel.axes(
        "distance between ends / that of unrelated samples, log scale", "share of samples",
        log_x=True, x_range=(floor / 2, max(top, 1.0) * 1.5), y_range=(0.0, 1.02),
    )  # fmt: skip
    said = ", ".join(
        f"{name + ': ' if name else ''}mean {100 * float(f.mean_relative):.3g} ± {100 * float(f.mean_relative_se):.1g} %"
        + (f", {100 * float(f.swap_rate):.3g} % change site (ticks)" if "swap_rate" in f else "")
        for name, f in found.items()
    )
    return c.finish(f"n = {next(iter(found.values())).attrs['n']}; {said}")


def disagreement(
    data: xr.Dataset,
    quantity: str = "relative",
    *,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of how far any two runs are apart, as a table in colour, from `trajectory.disagreement`.

    Args: quantity: "relative", "distance" or, where sites were given, "swap_rate".
    """
    if quantity not in data:
        raise UnknownName("quantity of a disagreement", quantity, [n for n in data.data_vars if not n.endswith("_se")])
    th, names = theme_of(theme), [str(name) for name in data.run.values]
    k, values = len(names), data[quantity].values
    c = canvas(backend, th, size=size or (220 + 95 * k, 150 + 70 * k))
    panel, at = c.panel(), np.arange(k, dtype=float)
    label = {
        "relative": "distance / unrelated",
        "distance": "distance, data unit",
        "swap_rate": "share that change site",
    }
    panel.heat(at, at, np.where(np.eye(k, dtype=bool), np.nan, values), label=label.get(quantity, quantity))
    off = values[~np.eye(k, dtype=bool)]
    middle = (off.min() + off.max()) / 2
    for i in range(k):
        for j in range(k):
            if i != j:
                tone = "#1b1f24" if values[i, j] > middle else "#ffffff"
                panel.text(float(j), float(i), f"{values[i, j]:.2g}", tone, anchor="center")
    ticks = (list(at), names)
    panel.axes("", "", x_range=(-0.5, k - 0.5), y_range=(k - 0.5, -0.5), x_ticks=ticks, y_ticks=ticks)
    return c.finish(f"n = {data.attrs['n']}, same noise; {label.get(quantity, quantity)} between the ends of two runs")


def rounds(
    data: xr.Dataset, *, theme: str | Theme = "light", backend: Backend = "plotly", size: tuple[int, int] = (620, 360)
) -> Any:
    """Figure of where the cost goes in each round of reflow, from `trajectory.reflow` or trained: chord, straightness, conflict stacked.

    The mark over each column is the cost of the coupling; an exact flow's column reaches it.
    """
    th = theme_of(theme)
    c = canvas(backend, th, size=size)
    panel, k = c.panel(), data["round"].values.astype(float)
    base = np.zeros(len(k))
    parts = {"chord": "chord |D|²", "straightness": "straightness S", "conflict": "conflict V"}
    for i, (name, label) in enumerate(parts.items()):
        value = data[name].values
        panel.bars(k, value, th.color(i), width=0.55, base=base)
        panel.points([math.nan], [math.nan], th.color(i), label=label, size=9)
        base = base + value
    cost, error = data.cost.values, data.cost_se.values
    for at, y, e, stack in zip(k, cost, error, base, strict=True):
        panel.line([at - 0.33, at + 0.33], [y, y], th.text, width=2)
        panel.text(at, max(y, stack), f"{y:.3g} ± {e:.1g}", th.text, anchor="center", shift=(0, 9))
    ticks = [f"{i:g} (independent)" if i == 1 else f"{i:g} (reflow {i - 1:g})" for i in k]
    panel.axes(
        "rectified flow",
        "data unit²",
        x_range=(k[0] - 0.6, k[-1] + 0.6),
        y_range=(0.0, 1.16 * max(cost.max(), base.max())),
        x_ticks=(list(k), ticks),
    )
    one = ", ".join(f"{v:.2g}" for v in data.one_step.values)
    gaps = zip(data.residual.values, data.residual_se.values, strict=True)
    residual = ", ".join(f"{v:.2g} ± {e:.1g}" for v, e in gaps)
    blur = f", blur {data.attrs['blur']:g}" if "blur" in data.attrs else ""
    return c.finish(
        f"n = {data.attrs['n']}{blur}; lines: cost of the coupling; one-step error by round: {one}; "
        f"residual: {residual}"
    )


def _named(given: Runs) -> dict[str, xr.Dataset]:
    found = {"": given} if isinstance(given, xr.Dataset) else dict(given)
    if not found:
        raise BadValue("nothing was given to draw.")
    return found


def _planar(run: xr.Dataset, n: int) -> xr.Dataset:
    """End points of the first n samples of a recording or of end points."""
    shown = run.isel(sample=slice(n))
    ends = shown if "noise" in shown and "data" in shown else endpoints(shown)
    if ends.noise.ndim != 2 or ends.noise.shape[1] != 2:
        raise BadValue(f"a coupling is drawn in the plane, samples have shape {ends.noise.shape[1:]}.")
    return ends


def _frame(points: Sequence[np.ndarray]) -> tuple[tuple[float, float], tuple[float, float]]:
    """One square range for all of these points, with a margin."""
    both = np.concatenate([p for p in points if len(p)])
    lo, hi = both.min(axis=0), both.max(axis=0)
    middle, half = (lo + hi) / 2, max(float((hi - lo).max()) / 2, 1e-9) * 1.06
    return (middle[0] - half, middle[0] + half), (middle[1] - half, middle[1] + half)


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
