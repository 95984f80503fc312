"""When a sample decides: the denoised picture read as a film, its events and its last change of mind.

Two readings of the denoised predictions along a run. *Decisions*: every prediction belongs to a mode or class; the
sample has decided at the step from which that never changes again. *Pixel events*: as an event camera sees it, a pixel
reports whenever its brightness has moved by a threshold since its last report; nothing moves, nothing is said.

A straight flow with the exact velocity has the same denoised prediction all along: no event, decided from the start.
B batch, S samples, N steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.trajectory.dataset import By, along, data_of, denoised, mean_and_error, merged

Assign = Callable[[Tensor], Tensor]
"""assign(points (B, *shape)) -> (B,) int64: the mode or class that each belongs to."""

LUMA = (0.2126, 0.7152, 0.0722)
"""Weights of red, green and blue in brightness (ITU-R BT.709)."""


def nearest(points: Tensor, names: Sequence[int] | Tensor | None = None, *, features: Assign | None = None) -> Assign:
    """A function that gives the index (or name) of the nearest of these points, in their own space or in features.

    Args:
        points: (K, *shape), the modes of a mixture or labelled samples.
        names: (K,) integers given instead of the index: labels make it a 1-nearest-neighbour classifier.
        features: a map of (B, *shape) to (B, F), a `FeatureSpace` say, in which distances are taken.
    """
    made = (points if features is None else features(points)).flatten(1).double()
    called = torch.arange(len(points)) if names is None else torch.as_tensor(names, dtype=torch.int64)
    if len(called) != len(points):
        raise BadValue(f"{len(points)} points need as many names, got {len(called)}.")

    def assign(x: Tensor) -> Tensor:
        seen = (x if features is None else features(x)).flatten(1).double()
        return called[torch.cdist(seen, made.to(seen.device)).argmin(dim=1).cpu()]

    return assign


def last_change(assigned: Tensor) -> Tensor:
    """The first position from which a sequence stays what it is at its end: (S, N) -> (S,), 0 for a constant one."""
    changed = assigned[:, 1:] != assigned[:, :-1]
    last = torch.arange(1, assigned.shape[1], device=assigned.device) * changed
    return last.amax(dim=1) if assigned.shape[1] > 1 else torch.zeros(len(assigned), dtype=torch.int64)


@torch.inference_mode()
def decisions(ds: xr.Dataset, assign: Assign, by: By = None, *, batch: int = 1024) -> xr.Dataset:
    """When each sample decides which mode or class to become, read from its denoised predictions.

    Args:
        ds: recorded with `x0_hat`, or with `slope`, from which it follows.
        assign: to which mode or class points belong: `nearest(means)`, or a classifier's argmax.
    Returns:
        per sample: `assigned` (sample, step) of the prediction at the start of each step, `final` of the sample itself,
        `decided` the first step from which the prediction stays with `final` (N where not even the last does),
        `t_decided` and `sigma_decided` of its start, `n_changes` along the predictions and to the final one.
        by="step": `decided_share`, `changes` the share of samples that have decided by, and that change at, each step,
        with `<name>_se`.
    """
    x0, ends = denoised(ds), data_of(ds)
    n, n_steps = x0.shape[:2]
    flat = x0.flatten(0, 1)
    assigned = torch.cat([assign(flat[lo : lo + batch]).cpu() for lo in range(0, len(flat), batch)])
    assigned = assigned.reshape(n, n_steps)
    final = torch.cat([assign(ends[lo : lo + batch]).cpu() for lo in range(0, n, batch)])
    course = torch.cat((assigned, final[:, None]), dim=1)
    decided, changed = last_change(course), course[:, 1:] != course[:, :-1]
    coords = {
        "step": np.arange(n_steps), "t": ("step", ds.t.values[:-1]), "sigma": ("step", ds.sigma.values[:-1]),
        "seed": ds.seed, "label": ds.label,
    }  # fmt: skip
    attrs = {"n": n, "model": ds.attrs["model"]}
    if by == "step":
        settled = decided[:, None] <= torch.arange(n_steps)
        changes = torch.cat((torch.zeros(n, 1, dtype=torch.bool), changed[:, :-1]), dim=1)
        shares = {"decided_share": (settled, "share that has decided"), "changes": (changes, "share that changes")}
        parts = [
            mean_and_error(
                xr.DataArray(
                    v.double().numpy(), dims=("sample", "step"), coords=coords, name=k, attrs={"long_name": w, "units": "1"}
                )
            )
            for k, (v, w) in shares.items()
        ]  # fmt: skip
        return merged(parts).assign_attrs(attrs)
    if by is not None:
        raise UnknownName("grouping", by, ("step",))
    return xr.Dataset(
        {
            "assigned": (("sample", "step"), assigned.numpy()),
            "final": ("sample", final.numpy()),
            "decided": ("sample", decided.numpy()),
            "t_decided": ("sample", ds.t.values[decided.numpy()]),
            "sigma_decided": ("sample", ds.sigma.values[decided.numpy()]),
            "n_changes": ("sample", changed.sum(dim=1).numpy()),
        },
        coords,
        attrs,
    )


def luminance(x: Tensor) -> Tensor:
    """Brightness of images (..., 3, H, W) by BT.709, of (..., C, H, W) the mean of the channels: (..., H, W)."""
    weights = torch.tensor(
        LUMA if x.shape[-3] == 3 else [1 / x.shape[-3]] * x.shape[-3], dtype=x.dtype, device=x.device
    )
    return torch.einsum("...chw,c->...hw", x, weights)


def threshold_events(values: Tensor, threshold: float) -> Tensor:
    """Events of signals over time: (S, N, ...) -> (S, N, ...) int64, how many steps of the threshold each point crossed
    since its last report, with the sign of the change; nothing at the first time.

    The reference of each point starts at its first value and moves by whole thresholds, so a ramp of height A gives
    floor(A / threshold) events, and a slow drift is not lost.
    """
    if not threshold > 0:
        raise BadValue(f"the threshold of an event must be positive, got {threshold}.")
    reference, out = values[:, 0].clone(), torch.zeros(values.shape, dtype=torch.int64, device=values.device)
    for i in range(1, values.shape[1]):
        # a whole number of thresholds up to rounding counts as reached
        crossed = ((values[:, i] - reference) / threshold * (1 + 1e-12)).trunc()
        out[:, i] = crossed.to(torch.int64)
        reference += crossed * threshold
    return out


def pixel_events(ds: xr.Dataset, threshold: float = 0.2, by: By = None) -> xr.Dataset:
    """Where and when the denoised picture moves, as an event camera would report it.

    Args:
        ds: recorded with `x0_hat` or `slope`; of images the brightness is watched, of vectors every feature.
        threshold: change of brightness that is one event, in data units (images span 2).
    Returns:
        `event` (sample, step, feature dims) signed numbers of events at each step since the one before; `count` (sample,
        feature dims) of all signs; `last_step` (sample, feature dims) of the last event, -1 where nothing happened;
        `events` (sample, step) the sum over the picture. by="step": the mean of `events` and its error.
    Source: the asynchronous change detection of Lichtsteiner, Posch & Delbruck 2008, IEEE JSSC 43(2), read along a run.
    """
    x0 = denoised(ds)
    watched = luminance(x0) if x0.ndim == 5 else x0
    dims = ("row", "col") if x0.ndim == 5 else tuple(ds.x.dims[2:])
    found = threshold_events(watched, threshold)
    happened = found != 0
    order = along(torch.arange(found.shape[1]), found)
    last = torch.where(happened, order, -1).amax(dim=1)
    coords = {
        "step": np.arange(found.shape[1]), "t": ("step", ds.t.values[:-1]), "sigma": ("step", ds.sigma.values[:-1]),
        "seed": ds.seed, "label": ds.label,
    }  # fmt: skip
    attrs = {"n": ds.sizes["sample"], "threshold": threshold, "model": ds.attrs["model"]}
    total = found.abs().flatten(2).sum(dim=2)
    events = xr.DataArray(
        total.numpy(), dims=("sample", "step"), coords=coords, name="events",
        attrs={"long_name": "events", "units": "per step and sample"},
    )  # fmt: skip
    if by == "step":
        return mean_and_error(events.astype(float)).assign_attrs(attrs)
    if by is not None:
        raise UnknownName("grouping", by, ("step",))
    out = xr.Dataset({"events": events, "event": (("sample", "step", *dims), found.numpy())}, attrs=attrs)
    out["count"] = (("sample", *dims), found.abs().sum(dim=1).numpy())
    out["last_step"] = (("sample", *dims), last.numpy())
    return out
