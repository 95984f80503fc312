"""A slice of the quality of weights: the plane through three snapshots of a run, with the run, its averages and other combinations in it.

    theta(x, y) = theta_a + x (theta_b - theta_a) + y (theta_c - theta_a)
Source: Liu, Zhu et al. 2024, arXiv 2404.02241, metric landscapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
import xarray as xr

from explorer.errors import BadValue, NonFinite
from explorer.models.base import Model
from explorer.training.weights import gram
from explorer.tuning.objective import Objective
from explorer.tuning.setting import Setting
from explorer.tuning.weights import RATES, Basis, ema_coefficients

Progress = Callable[[int, int], None]


def slice_coefficients(k: int, corners: tuple[int, int, int], x: float, y: float) -> tuple[float, ...]:
    """Coefficients (K,) of the point (x, y) of the plane through three of the snapshots: 1 - x - y, x, y."""
    a = [0.0] * k
    for place, value in zip(corners, (1 - x - y, x, y), strict=True):
        a[place] += value
    return tuple(a)


def landscape(
    model: Model,
    basis: Basis,
    start: Setting,
    objective: Objective,
    corners: tuple[int, int, int] | None = None,
    *,
    x: Sequence[float] = tuple(np.linspace(-0.5, 1.5, 9)),
    y: Sequence[float] = tuple(np.linspace(-0.5, 1.5, 9)),
    marks: Mapping[str, Sequence[float]] | None = None,
    progress: Progress | None = None,
) -> xr.Dataset:
    """The objective over the plane through three snapshots, and where everything else lies in it.

    Args:
        corners: places of the three in the basis; by default the first, the middle and the last.
        marks: name -> coefficients (K,) of further combinations to place, such as a search's result.
    Returns:
        `value` and `std_error` (y, x), NaN where the sampler diverges; for each point of `name` (the snapshots "step 50", the averages
            "rate 0.9", and the marks): `kind` ("snapshot", "average", "mark"), `at_x`, `at_y` of its foot on the plane, and `off`, its
            distance from the plane in units of |theta_b - theta_a|. Attributes: corners (steps), objective, n.
    Raises: BadValue for corners that are not three different snapshots, or that lie on a line.
    """
    k = len(basis)
    corners = corners or (0, k // 2, k - 1)
    if len(set(corners)) < 3 or not all(0 <= c < k for c in corners):
        raise BadValue(f"a plane goes through three different ones of {k} snapshots, got {corners}")
    products = gram(basis.snapshots(), basis.net, basis.averaged(model), basis.ema).numpy()
    edges = np.array([_edge(k, corners[0], c) for c in corners[1:]])
    inside = edges @ products @ edges.T
    if np.linalg.cond(inside) > 1e12:
        raise BadValue(f"snapshots {corners} lie on one line of weight space: choose others")
    named = {f"step {step}": ("snapshot", _one(k, i)) for i, step in enumerate(basis.steps)}
    named |= {f"rate {rate:g}": ("average", np.array(ema_coefficients(k, rate))) for rate in RATES}
    named |= {name: ("mark", np.asarray(a, np.float64)) for name, a in (marks or {}).items()}
    places = []
    for _, a in named.values():
        away = a - _one(k, corners[0])
        foot = np.linalg.solve(inside, edges @ products @ away)
        rest = away - foot @ edges
        places.append((*foot, np.sqrt(max(rest @ products @ rest, 0.0) / inside[0, 0])))
    values = np.full((len(y), len(x), 2), np.nan)
    for j, v in enumerate(y):
        for i, u in enumerate(x):
            setting = basis.setting(start, slice_coefficients(k, corners, float(u), float(v)))
            values[j, i] = _measured(objective, setting, model)
            if progress is not None:
                progress(j * len(x) + i + 1, len(x) * len(y))
    at = np.array(places)
    return xr.Dataset(
        {
            "value": (("y", "x"), values[..., 0]),
            "std_error": (("y", "x"), values[..., 1]),
            "kind": ("name", [kind for kind, _ in named.values()]),
            "at_x": ("name", at[:, 0]),
            "at_y": ("name", at[:, 1]),
            "off": ("name", at[:, 2]),
        },
        {"x": [float(u) for u in x], "y": [float(v) for v in y], "name": list(named)},
        {"corners": [basis.steps[c] for c in corners], "objective": objective.name, "n": len(objective.seeds)},
    )


def _measured(objective: Objective, setting: Setting, model: Model) -> tuple[float, float]:
    try:
        with torch.inference_mode():
            estimate = objective(*setting.on(model))
    except NonFinite:
        return np.nan, np.nan
    return estimate.value, estimate.std_error


def _one(k: int, i: int) -> np.ndarray:
    out = np.zeros(k)
    out[i] = 1.0
    return out


def _edge(k: int, a: int, b: int) -> np.ndarray:
    return _one(k, b) - _one(k, a)
