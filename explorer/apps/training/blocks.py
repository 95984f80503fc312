"""What moves on the Training page as bytes: pictures of the averaged weights, and losses by noise level."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from explorer.apps.training import choices
from explorer.apps.training.own import flattened
from explorer.apps.training.previews import N_PARTICLES, Picture, read_preview
from explorer.apps.training.reading import History
from explorer.apps.training.state import Trainings
from explorer.apps.training.views import LETTERS, MOST_COLUMNS
from explorer.apps.trajectory.views import N_HUES, pack
from explorer.data import load_dataset, test_split
from explorer.errors import ExplorerError
from explorer.sampling import Seeds
from explorer.training.levels import LEVEL_EDGES, N_LEVELS

MOST_PICTURES = 24  # in one block: the first appear before the last are read
N_DATA = 600
SURE = 16  # samples of a noise level from which its colour is drawn in full


def strip_block(store: Trainings, slot: int, net: str = "") -> bytes | None:
    """Mean loss by noise level (columns are time, rows log sigma) of one run; None where the slot is empty."""
    name = store.shown[slot]
    history = store.histories.get(name)
    if history is None:
        return None
    nets = list(history.levels)
    net = net if net in nets else nets[0] if nets else ""
    means, count = history.level_means(net, MOST_COLUMNS) if net else np.zeros((2, 0, N_LEVELS))
    sure = np.rint(40 + 215 * np.minimum(count / SURE, 1)).astype(np.uint8)
    rows = np.flatnonzero(np.isfinite(means).any(0))
    low, high = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
    header = {
        "slot": slot,
        "run": name,
        "letter": LETTERS[slot],
        "color": f"var(--c{slot})",
        "net": net,
        "nets": nets,
        "edges": [float(f"{v:.4g}") for v in LEVEL_EDGES[low : high + 1]],
        "columns": len(means),
        "missing": _why_no_levels(history),
    }
    x = {
        by: history.binned(history.axis(by), MOST_COLUMNS).astype(np.float32)[: len(means)]
        for by in ("images", "seconds")
    }
    return pack(header, **x, loss=means[:, low:high].astype(np.float32), sure=sure[:, low:high])


def _why_no_levels(history: History) -> str:
    if history.levels:
        return ""
    return (
        "This method does not say which noise level its losses belong to."
        if len(history.steps) > 3
        else "The first losses are on their way."
    )


def book_block(store: Trainings, slot: int, have: list[str]) -> tuple[bytes, list[str]] | None:
    """Pictures that the browser lacks, and which it has then; None when it has all of them.

    Args:
        have: names of the picture files that were sent; when they are not the beginning of what there is, all are sent anew.
    """
    history = store.histories.get(store.shown[slot])
    if history is None:
        return None
    names = [file.name for file in history.pictures]
    anew = names[: len(have)] != have or not have
    start = 0 if anew else len(have)
    fresh = history.pictures[start : start + MOST_PICTURES]
    if not fresh and not (anew and have):
        return None
    pictures: list[Picture] = []
    for file in fresh:
        try:
            pictures.append(read_preview(file))
        except ExplorerError:
            continue  # a resumed run has taken it back
    sent = names[: start + len(fresh)]
    header: dict[str, Any] = {
        "slot": slot,
        "run": history.name,
        "anew": anew,
        "more": len(sent) < len(names),
        "serial": time.monotonic(),
        "pictures": [{"step": p.step, "images": p.n_images, "seconds": p.seconds} for p in pictures],
    }
    if not pictures:
        return pack(header, x=np.zeros(0, np.uint8)), sent
    if pictures[0].flat:
        data, extent, flat = _real(store, history.name)
        header |= {"kind": "points", "n": len(pictures[0].x), "extent": extent}
        x = np.stack([flat(p.x).numpy() for p in pictures])
        arrays = {"x": _quantised(x, extent)}
        if anew:
            arrays |= {"hue": _hues(len(pictures[0].x), pictures[0].x.shape[1]), "data": _quantised(data, extent)}
        return pack(header, **arrays), sent
    shape = tuple(pictures[0].x.shape)
    header |= {"kind": "images", "shape": list(shape), "n": shape[0]}
    return pack(header, x=np.stack([p.x.numpy() for p in pictures])), sent


def _quantised(x: np.ndarray, extent: float) -> np.ndarray:
    """Points as two bytes each, on twice the square; what lies beyond is drawn at its edge."""
    return np.rint((np.clip(x / (2 * extent), -1, 1) + 1) * 32767.5).astype("<u2")


@lru_cache(maxsize=8)
def _hues(n: int, d: int = 2) -> np.ndarray:
    """Direction of each particle's noise, in its first two coordinates, as one of N_HUES colours: (n,) uint8."""
    start = Seeds(range(max(n, N_PARTICLES))).normal((d,)).numpy()[:n]
    start = np.concatenate([start, np.zeros((n, 1))], 1) if d == 1 else start
    turn = np.arctan2(start[:, 1], start[:, 0]) / (2 * np.pi) % 1.0
    return (np.floor(turn * N_HUES).astype(int) % N_HUES).astype(np.uint8)


def _real(store: Trainings, name: str) -> tuple[np.ndarray, float, Callable[[Tensor], Tensor]]:
    """Data that are drawn behind the particles, half the side of the square, and what brings points into the plane."""
    card = store.card(name)
    try:
        return _points(choices.recipe_of(card.request if card is not None else {}).data)
    except ExplorerError:
        return np.zeros((0, 2), np.float32), 2.0, lambda x: x[:, :2] if x.shape[1] > 1 else x.repeat(1, 2)


@lru_cache(maxsize=16)
def _points(name: str) -> tuple[np.ndarray, float, Callable[[Tensor], Tensor]]:
    data, held = load_dataset(name), test_split(name)
    flat = flattened(data)
    x = flat((data if held is None else held).x[:N_DATA].float())
    return x.numpy(), float(x.abs().amax()) * 1.25, flat
