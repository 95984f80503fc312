"""Where the error of a run comes from and where its paths part: bars by step, exponents, dimensions, decisions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from explorer.errors import BadValue
from explorer.viz.canvas import SIGMA, Backend, canvas, joined
from explorer.viz.steps import Settings, setting_colors, sigma_spread
from explorer.viz.theme import Theme, angle_colors, theme_of

DASHES = ("solid", "dash", "dot")
FLOOR = 1e-6
"""Share of the variance below which a scree plot says nothing."""


def attribution(
    data: Settings,
    *,
    pinned: str | None = None,
    norms: bool = True,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of what each step adds to the final error: a bar per step, below zero where it takes back what others did.

    Whiskers are one standard error over samples; the rings, where known, are the sizes of the carried errors, whatever
    their direction; the small ticks the local errors, where the step makes them.

    Args:
        data: `attribution(ds, model, by="step")`, or several by their setting, one row each on one scale.
        norms: draw the rings and ticks.
    """
    settings = _named(data, "step_cost", "attribution(ds, model, by='step')")
    th = theme_of(theme)
    colors = setting_colors(list(settings), th, pinned)
    titles = [_bill(label, ds) for label, ds in settings.items()]
    c = canvas(backend, th, titles=titles, size=size or (720, 90 + 190 * len(settings)))
    tops, bottoms = [], []
    for ds in settings.values():
        cost, error = ds.step_cost.values, np.nan_to_num(ds.step_cost_se.values)
        tops += [np.max(cost + error)] + ([np.max(ds.step_norm.values)] if norms and "step_norm" in ds else [])
        bottoms.append(min(0.0, float(np.min(cost - error))))
    high, low = float(max(tops)), float(min(bottoms))
    margin = 0.06 * ((high - low) or 1.0)
    for i, (label, ds) in enumerate(settings.items()):
        panel, at = c.panel(i), np.arange(ds.sizes["step"])
        cost, error = ds.step_cost.values, ds.step_cost_se.values
        panel.bars(at, cost, colors[label], width=0.72)
        panel.line(*joined(_whiskers(at, cost - error, cost + error)), th.text, width=1.2)
        if norms:
            if "step_norm" in ds:
                words = "size of the carried error" if i == 0 else ""
                panel.points(at, ds.step_norm.values, th.muted, size=6, mark="ring", label=words)
            if "local_error" in ds:
                inside = np.where(ds.local_error.values <= high, ds.local_error.values, np.nan)
                panel.points(at, inside, th.muted, size=6, mark="cross", label="local error" if i == 0 else "")
        shown = np.arange(0, len(at), -(-len(at) // 10))
        names = [f"{ds.sigma.values[k]:.3g}" for k in shown]
        panel.axes(
            "step, by the σ where it starts" if i == len(settings) - 1 else "", "data unit",
            x_range=(-0.7, len(at) - 0.3), y_range=(low - (margin if low < 0 else 0.0), high + margin),
            x_ticks=(shown.tolist(), names),
        )  # fmt: skip
    counts = _counts(settings)
    hidden = norms and any((ds.local_error.values > high).any() for ds in settings.values() if "local_error" in ds)
    beyond = "; local errors beyond the axis are left out" if hidden else ""
    known = ", ".join(
        sorted({f"{ds.attrs['reference_error']:.1g}" for ds in settings.values() if "reference_error" in ds.attrs})
    )
    said = f"; the reference itself errs by about {known}" if known else ""
    return c.finish(f"{counts}; bars sum to the final error, whiskers: ± 1 standard error over samples{said}{beyond}")


def exponents(
    data: Settings,
    *,
    pinned: str | None = None,
    sigma_range: tuple[float, float] | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (720, 360),
) -> Any:
    """Figure of finite-time Lyapunov exponents against sigma, noise left: above zero neighbours have parted.

    Solid the first direction, dashed the second, dotted the others; a ring at the right end is sigma = 0.

    Args: data: `lyapunov(ds, model, by="step")`, or several by their setting.
    """
    settings = _named(data, "exponent", "lyapunov(ds, model, by='step')")
    if any("exponent_se" not in ds for ds in settings.values()):
        raise BadValue("these exponents are per sample; make them with by='step'.")
    th = theme_of(theme)
    colors = setting_colors(list(settings), th, pinned)
    low, high = sigma_range or sigma_spread([ds.sigma.values for ds in settings.values()])
    c = canvas(backend, th, size=size)
    panel = c.panel()
    panel.line([high, low], [0, 0], th.muted, width=0.8, dash="dot")
    for label, ds in settings.items():
        zero = ds.sigma.values == 0
        at = np.where(zero, low * (high / low) ** 0.02, ds.sigma.values)
        for k in range(ds.sizes["direction"]):
            mean, error = ds.exponent.values[:, k], np.nan_to_num(ds.exponent_se.values[:, k])
            panel.band(at, mean - error, mean + error, colors[label])
            panel.line(at, mean, colors[label], dash=DASHES[min(k, 2)], label=label if k == 0 else "")
            panel.points(at[zero], mean[zero], colors[label], size=6, mark="ring")
    panel.axes(SIGMA, "exponent, nat", log_x=True, reverse_x=True, x_range=(low, high))
    return c.finish(f"{_counts(settings)}; ln of the stretch since the start; bands: ± 1 standard error over samples")


def scree(
    data: Settings,
    *,
    pinned: str | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] = (560, 380),
) -> Any:
    """Figure of the share of the variance that is left after so many components: of each path by itself (solid, mean over
    paths), of the points of all paths together (dashed).

    Where a curve falls below the dotted lines 90 and 99 % are explained.

    Args: data: `effective_dimension(ds, by="all")`, or several by their setting.
    """
    settings = _named(data, "pooled_variance", "effective_dimension(ds, by='all')")
    th = theme_of(theme)
    colors = setting_colors(list(settings), th, pinned)
    c = canvas(backend, th, size=size)
    panel, reach = c.panel(), 1
    for label, ds in settings.items():
        for name, dash, words in (
            ("variance", "solid", "each path"),
            ("pooled_variance", "dash", "all points together"),
        ):
            left = 1 - np.cumsum(ds[name].values)
            left = np.concatenate(([1.0], left))
            shown = int(np.argmax(left < FLOOR)) + 1 if (left < FLOOR).any() else len(left)
            rank, left = np.arange(shown), np.maximum(left[:shown], FLOOR)
            reach = max(reach, shown - 1)
            named = words if not label else label if dash == "solid" else ""
            panel.line(rank, left, colors[label], dash=dash, label=named)
            panel.points(rank, left, colors[label], size=4)
    for share in (0.1, 0.01):
        panel.line([0, reach], [share, share], th.muted, width=0.8, dash="dot")
    ticks = list(range(0, reach + 1, -(-reach // 8)))
    panel.axes("components", "share of the variance left", log_y=True, x_ticks=(ticks, [str(k) for k in ticks]))
    sizes = "; ".join(
        (f"{label}: " if label else "")
        + f"participation {float(ds.participation):.2f} ± {float(ds.participation_se):.1g} each, "
        + f"{float(ds.pooled_participation):.2f} together"
        for label, ds in settings.items()
    )
    return c.finish(f"{_counts(settings)}; {sizes}; solid: each path by itself, dashed: the points of all paths")


def decisions(
    data: xr.Dataset,
    *,
    n: int = 60,
    names: Mapping[int, str] | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of when samples decide: above the share that has, below a row per sample, earliest at the bottom.

    A dot is coloured by the mode or class that the denoised prediction belongs to at that step; the ring is the step from
    which it stays.

    Args:
        data: `decisions(ds, assign)`, per sample.
        n: rows, evenly from all samples in the order of their decisions.
        names: of the modes or classes, for hovering.
    """
    if "assigned" not in data:
        raise BadValue("decisions are drawn from decisions(ds, assign), per sample.")
    th = theme_of(theme)
    total, n_steps = data.assigned.shape
    order = np.argsort(data.decided.values, kind="stable")
    order = order[np.unique(np.linspace(0, total - 1, min(n, total)).round().astype(int))]
    sigma = data.sigma.values
    low, high = sigma_spread([sigma])
    c = canvas(
        backend, th, titles=("share that has decided", "nearest mode or class of the denoised prediction"),
        share_x=True, heights=(0.35, 1.0), size=size or (720, 190 + max(160, 6 * len(order))),
    )  # fmt: skip
    decided = data.decided.values[:, None] <= np.arange(n_steps)
    share = decided.mean(axis=0)
    error = np.sqrt(share * (1 - share) / max(total - 1, 1))
    top = c.panel(0)
    top.band(sigma, share - error, share + error, th.accent)
    top.line(sigma, share, th.accent)
    top.axes("", "", log_x=True, reverse_x=True, x_range=(low, high), y_range=(-0.03, 1.05))
    kinds = np.unique(np.concatenate((data.assigned.values.ravel(), data.final.values)))
    hues = _class_colors(kinds, th)
    raster = c.panel(1)
    rows = np.repeat(np.arange(len(order)), n_steps)
    at, kind = np.tile(sigma, len(order)), data.assigned.values[order].ravel()
    called = {int(k): (names or {}).get(int(k), str(int(k))) for k in kinds}
    for k in kinds:
        here = kind == k
        raster.points(
            at[here], rows[here], hues[int(k)], size=4, texts=[f"σ = {s:.3g}: {called[int(k)]}" for s in at[here]]
        )
    late = data.decided.values[order]
    late, row = late[late < n_steps], np.arange(len(order))[late < n_steps]
    raster.points(sigma[late], row, th.text, size=8, mark="ring")
    raster.axes(SIGMA, "", log_x=True, reverse_x=True, x_range=(low, high), y_range=(-1, len(order)), y_ticks=([], []))
    changes = data.n_changes.values
    return c.finish(
        f"n = {total}, {len(order)} shown; {100 * (changes == 0).mean():.0f} % never change, mean {changes.mean():.2g} changes; "
        "ring: decided; band: ± 1 standard error"
    )


def event_maps(
    data: xr.Dataset,
    samples: Sequence[int] = (0, 1, 2),
    *,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of where and when the denoised picture moved: per sample how many events each pixel had, and below the noise
    level of its last one.

    Args: data: `pixel_events(ds)` of images; samples: positions.
    """
    if "count" not in data or data["count"].ndim != 3:
        raise BadValue("event maps are drawn from pixel_events(ds) of images.")
    th, samples = theme_of(theme), list(samples)
    titles = [f"events, seed {int(data.seed[k])}" for k in samples] + ["ln σ of the last one"] * len(samples)
    c = canvas(backend, th, titles=titles, columns=len(samples), size=size or (80 + 240 * len(samples), 480))
    height, width = data["count"].shape[1:]
    across, down = np.arange(width), np.arange(height)
    logs = np.log(np.where(data.sigma.values > 0, data.sigma.values, np.nan))
    counts = data["count"].values[samples]
    last = data.last_step.values[samples]
    when = np.where(last >= 0, logs[np.maximum(last, 0)], np.nan)
    for j in range(len(samples)):
        for row, values, label in ((0, counts[j].astype(float), "events"), (1, when[j], "ln σ")):
            panel = c.panel(row * len(samples) + j)
            panel.heat(across, down, values[::-1], label=label if j == len(samples) - 1 else "")
            panel.axes(equal=True, hide=True)
    return c.finish(
        f"n = {len(samples)} of {data.attrs['n']}; an event is a change of brightness by {data.attrs['threshold']:g}"
    )


def numbers(
    settings: Mapping[str, xr.Dataset],
    names: Sequence[str] | None = None,
    *,
    pinned: str | None = None,
    theme: str | Theme = "light",
    backend: Backend = "plotly",
    size: tuple[int, int] | None = None,
) -> Any:
    """Figure of numbers that belong to whole runs, a panel each and a row per setting: mean and two standard errors.

    Args:
        settings: by their name, what `RunningGeometry.result`, `budget`, `mean_and_error` and the like return.
        names: which, and in which order; by default all that have an error and are finite.
    """
    names = list(names or dict.fromkeys(name for ds in settings.values() for name in _scalar_names(ds)))
    if not settings or not names:
        raise BadValue("nothing here is a number with its error: pass RunningGeometry(path).result(), budget(...), ...")
    th = theme_of(theme)
    colors = setting_colors(list(settings), th, pinned)
    first = {n: next(ds[n] for ds in settings.values() if n in ds) for n in names}
    titles = [_with_unit(first[n]) for n in names]
    columns = min(3, len(names))
    rows = -(-len(names) // columns)
    c = canvas(backend, th, titles=titles, columns=columns, size=size or (780, 70 + rows * (80 + 26 * len(settings))))
    at = {label: -i for i, label in enumerate(settings)}
    for i, name in enumerate(names):
        panel = c.panel(i)
        for label, ds in settings.items():
            if name not in ds or not np.isfinite(ds[name]):
                continue
            mean, error = float(ds[name]), float(np.nan_to_num(ds[f"{name}_se"]))
            panel.line([mean - 2 * error, mean + 2 * error], [at[label]] * 2, colors[label], width=2)
            panel.points([mean], [at[label]], colors[label], size=8, texts=[f"{label}: {mean:.4g} ± {error:.2g}"])
        shown = (list(at.values()), list(settings) if i % columns == 0 else [""] * len(at))
        panel.axes(y_range=(-len(at) + 0.4, 0.6), y_ticks=shown)
    return c.finish(f"{_counts(settings)}; lines: ± 2 standard errors over samples")


def _scalar_names(ds: xr.Dataset) -> list[str]:
    return [n for n in ds.data_vars if f"{n}_se" in ds and ds[n].ndim == 0 and np.isfinite(ds[n])]


def _with_unit(values: xr.DataArray) -> str:
    unit = values.attrs.get("units", "").replace("^2", "²")
    name = values.attrs.get("long_name", values.name)
    return name if unit in ("", "1") else f"{name}, {unit}"


def _named(data: Settings, needed: str, maker: str) -> dict[str, xr.Dataset]:
    settings = {"": data} if isinstance(data, xr.Dataset) else dict(data)
    if not settings or any(needed not in ds for ds in settings.values()):
        raise BadValue(f"this figure is drawn from {maker}, or several of them by name.")
    return settings


def _counts(settings: Mapping[str, xr.Dataset]) -> str:
    counts = {label: ds.attrs["n"] for label, ds in settings.items()}
    if len(set(counts.values())) == 1:
        return f"n = {next(iter(counts.values()))}"
    return ", ".join(f"n = {n} ({label})" for label, n in counts.items())


def _bill(label: str, ds: xr.Dataset) -> str:
    if "final_error" not in ds:
        return label
    total = f"final error {float(ds.final_error):.3g} ± {float(ds.final_error_se):.1g}"
    return f"{label}: {total}" if label else total


def _whiskers(at: np.ndarray, low: np.ndarray, high: np.ndarray) -> list[np.ndarray]:
    return [np.array([[x, a], [x, b]]) for x, a, b in zip(at, low, high, strict=True) if np.isfinite(a + b)]


def _class_colors(kinds: np.ndarray, th: Theme) -> dict[int, str]:
    """Colours told apart for up to seven classes, hues beyond."""
    if len(kinds) <= len(th.settings):
        return {int(k): th.color(i) for i, k in enumerate(kinds)}
    return dict(
        zip(kinds.astype(int).tolist(), angle_colors(2 * np.pi * np.arange(len(kinds)) / len(kinds), th), strict=True)
    )
