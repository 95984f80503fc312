"""Likelihood against cost, codes against the normal law, and what a round trip loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue, UnknownName
from explorer.viz.canvas import Backend, canvas
from explorer.viz.steps import setting_colors
from explorer.viz.theme import Theme, theme_of

Settings = xr.Dataset | Mapping[str, xr.Dataset]


def likelihood(
    data: Settings,
    quantity: str | None = None,
    *,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (560, 340),
) -> Any:
    """Figure of the mean log-likelihood against network evaluations, from `likelihood_by_steps`, one or several by setting.

    The band is one standard error over samples; all points of a curve share samples and probes, so its shape is surer than the
    band. Whiskers are the probes' part of the error.

    Args: quantity: "mean_bits_per_dim" (where a width was given) or "mean_log_prob".
    """
    found = _named(data)
    if quantity is None:
        quantity = "mean_bits_per_dim" if all("mean_bits_per_dim" in f for f in found.values()) else "mean_log_prob"
    for one in found.values():
        if quantity not in one:
            raise UnknownName(
                "quantity of a likelihood", quantity, [n for n in ("mean_bits_per_dim", "mean_log_prob") if n in one]
            )
    th = theme_of(theme)
    c, colors = canvas(backend, th, size=size), setting_colors(list(found), th)
    panel = c.panel()
    for name, one in found.items():
        x, y, e = one.nfe.values.astype(float), one[quantity].values, one[f"{quantity}_se"].values
        panel.band(x, y - e, y + e, colors[name])
        panel.line(x, y, colors[name], label=name)
        panel.points(x, y, colors[name], size=6)
        for at, middle, half in zip(x, y, one[f"{quantity}_probe_se"].values, strict=True):
            if half > 0:
                panel.line([at, at], [middle - half, middle + half], colors[name], width=1.5)
    costs = sorted({int(v) for one in found.values() for v in one.nfe.values})
    unit = "bits / dimension" if quantity == "mean_bits_per_dim" else "E ln p(x), nats"
    panel.axes(
        "network evaluations per sample (NFE), log scale", unit, log_x=True, x_range=(costs[0] / 1.25, costs[-1] * 1.25),
        x_ticks=_spaced(costs),
    )  # fmt: skip
    first = next(iter(found.values())).attrs
    words = {name: _probes(one) for name, one in found.items()}
    same = len(set(words.values())) == 1
    said = next(iter(words.values())) if same else ", ".join(f"{name}: {w}" for name, w in words.items())
    return c.finish(
        f"n = {first['n']}, D = {first['dim']}, σ_min = {first['sigma_min']:.3g}; {said}; band: ± 1 standard error, "
        "whiskers: the probes' part"
    )


def _probes(one: xr.Dataset) -> str:
    kind, count = one.attrs["divergence"], one.attrs["n_probes"]
    return "exact divergence" if kind == "exact" else f"{count} {kind} probe{'s' if count > 1 else ''}"


def code_normality(
    data: Settings, *, theme: str | Theme = "light", backend: Backend = "plotly", size: tuple[int, int] = (760, 400)
) -> Any:
    """Figure of codes against N(0, I), from `normality`: quantiles of all entries, and of the lengths |z| against chi's."""
    found = _named(data)
    th = theme_of(theme)
    c = canvas(backend, th, titles=("entries z", "lengths |z|"), columns=2, size=size)
    colors = setting_colors(list(found), th)
    for i, (x_name, y_name, law) in enumerate(
        (("expected", "observed", "N(0, 1)"), ("norm_expected", "norm_observed", "chi of D degrees"))
    ):
        panel = c.panel(i)
        every = np.concatenate([np.concatenate((one[x_name].values, one[y_name].values)) for one in found.values()])
        low, high = float(every.min()), float(every.max())
        margin = 0.04 * (high - low)
        ends = [low - margin, high + margin]
        panel.line(ends, ends, th.muted, width=1, dash="dash")
        for name, one in found.items():
            panel.points(one[x_name].values, one[y_name].values, colors[name], size=5, label=name if i == 0 else "")
        panel.axes(
            f"quantiles of {law}", "quantiles of the codes", equal=True, x_range=tuple(ends), y_range=tuple(ends)
        )
    said = "; ".join(
        f"{name + ': ' if name else ''}E|z|²/D = {float(f.norm2):.3f} ± {float(f.norm2_se):.3f}, energy distance "
        f"{float(f.energy):.2g} ± {float(f.energy_se):.1g}"
        for name, f in found.items()
    )
    first = next(iter(found.values())).attrs
    return c.finish(f"n = {first['n']}, D = {first['dim']}; {said}; dashed: the normal law")


def round_trip(
    data: Settings, *, theme: str | Theme = "light", backend: Backend = "plotly", size: tuple[int, int] = (560, 340)
) -> Any:
    """Figure of the round-trip error against its cost, from `round_trip_by_steps`, one or several by setting; both axes logarithmic."""
    found = _named(data)
    th = theme_of(theme)
    c, colors = canvas(backend, th, size=size), setting_colors(list(found), th)
    panel = c.panel()
    for name, one in found.items():
        x, y, e = one.nfe.values.astype(float), one.rmse.values, one.rmse_se.values
        panel.band(x, np.maximum(y - e, 0.02 * y), y + e, colors[name])
        panel.line(x, y, colors[name], label=name)
        panel.points(x, y, colors[name], size=6)
    costs = sorted({int(v) for one in found.values() for v in one.nfe.values})
    first = next(iter(found.values())).attrs
    panel.axes(
        "network evaluations out and back (NFE), log scale",
        "RMSE per dimension, " + ("data unit" if first["start"] == "data" else "unit of noise"),
        log_x=True, log_y=True, x_range=(costs[0] / 1.25, costs[-1] * 1.25), x_ticks=_spaced(costs),
    )  # fmt: skip
    way = "data to code to data" if first["start"] == "data" else "noise to sample to noise"
    return c.finish(f"n = {first['n']}; {way} on the same grid; band: ± 1 standard error")


def _named(data: Settings) -> dict[str, xr.Dataset]:
    found = {"": data} if isinstance(data, xr.Dataset) else dict(data)
    if not found:
        raise BadValue("nothing was given to draw.")
    return found


def _spaced(costs: list[int]) -> tuple[list[float], list[str]]:
    """Ticks at the costs, none nearer to the one before than a fifth of an octave and a half."""
    kept: list[int] = []
    for cost in costs:
        if not kept or cost > 1.35 * kept[-1]:
            kept.append(cost)
    return [float(k) for k in kept], [str(k) for k in kept]
