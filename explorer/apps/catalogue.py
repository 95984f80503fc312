"""Models and their metrics as the pages offer them: loaded once, shared by all sessions, only computed with on the worker."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import lru_cache

import torch

from explorer.data import load_dataset
from explorer.knobs import SamplerKnobs
from explorer.live import data_of, metric_for
from explorer.metrics.base import Metric
from explorer.models import bundled
from explorer.models.base import Model
from explorer.sampling import device_of

POINTS, EXACT, KEPT = "Points in the plane", "Exact, no network", "Kept from your runs"
WORDS = {"uncond": "unconditional", "early": "stopped early"}
_lock = threading.Lock()


def names() -> list[str]:
    """Models that can be sampled from: trained ones, then exact ones."""
    return list(_names(bundled.stamp()))


@lru_cache(maxsize=1)
def _names(stamp: tuple) -> tuple[str, ...]:
    return tuple(
        name for kind in ("denoiser", "consistency", "oracle") for name in bundled.names(kind)
    )  # reads every card


def default() -> str:
    """The model a new page opens with: the class-conditional digits, or the nearest thing to them."""
    return min(names(), key=lambda name: (name != "digits", "digits" not in name, name))


def groups() -> list[dict]:
    """Models for a picker: [{"title", "items": [{"name", "title"}]}]."""
    return _groups(tuple(names()), bundled.stamp())


@lru_cache(maxsize=4)
def _groups(names: tuple[str, ...], stamp: tuple) -> list[dict]:
    kinds: dict[str, list[dict]] = {}
    for name in names:
        kinds.setdefault(_group(name), []).append({"name": name, "title": title(name)})
    last = {
        kind: place for place, kind in enumerate((POINTS, EXACT, KEPT), 1)
    }  # images come first, in the order of their names
    order = sorted(kinds, key=lambda kind: last.get(kind, 0))
    return [{"title": kind, "items": kinds[kind]} for kind in order]


def _group(name: str) -> str:
    """The heading a model stands under: "Shapes, 32 × 32, colour"."""
    card = bundled.card(name)
    shape = card.get("shape", ())
    if card.get("run"):
        return KEPT
    if card["kind"] == "oracle":
        return EXACT
    if len(shape) != 3:
        return POINTS
    colours, height, width = shape
    return f"{data_of(name).rstrip('0123456789').capitalize()}, {height} × {width}{', colour' if colours == 3 else ''}"


def title(name: str) -> str:
    """The name in words: "digits / class-conditional", "8gaussians / ict"."""
    rest, data = name.removeprefix("toy-").removeprefix("oracle-"), data_of(name)
    if not rest.startswith(data):
        return name
    card, words = bundled.card(name), rest[len(data) :].strip("-")
    if not words:
        trained = (
            "trained"
            if len(card.get("shape", ())) < 3
            else "class-conditional"
            if card.get("n_classes")
            else "unconditional"
        )
        words = "exact" if card["kind"] == "oracle" else trained
    return f"{data} / {WORDS.get(words, words)}"


def class_names(name: str, labels: Sequence[int]) -> list[str]:
    """What classes of a model are called: "star" where its card says so, else their numbers."""
    known = bundled.card(name).get("classes") or []
    return [str(known[label] if 0 <= label < len(known) else label) for label in labels]


def model(name: str) -> Model:
    """The model of that name, in evaluation mode; UnknownName where there is none."""
    with _lock:
        return _model(name)


@lru_cache(maxsize=32)
def _model(name: str) -> Model:
    return bundled.load(name).eval()


def defaults(name: str) -> dict:
    """Knobs with which the pages open a model: points are drawn without a class, as one class alone is often a plain Gaussian."""
    given = model(name)
    return SamplerKnobs.defaults(given) | ({"label": -1} if len(given.shape) == 1 and given.n_classes else {})


def metric(name: str) -> Metric:
    """An empty metric for samples of that model."""
    with _lock:
        return _metric(name).empty()


@lru_cache(maxsize=32)
def _metric(name: str) -> Metric:
    return metric_for(_model(name))


def metric_name(name: str) -> str:
    """How that metric is printed, e.g. "FD[digits-cnn]"."""
    return metric(name).name


def dtype(name: str) -> str:
    """Precision of the network, or of the state where there is none."""
    first = next(iter(model(name).parameters()), None)
    return str(torch.float64 if first is None else first.dtype).removeprefix("torch.")


def device(name: str) -> str:
    return str(device_of(model(name)))


@lru_cache(maxsize=32)
def points(name: str) -> torch.Tensor:
    """Data points (N, 2) behind a 2-D model."""
    return load_dataset(data_of(name)).x.float()


def extent(name: str) -> float:
    """Half the side of the square on which a 2-D model is shown."""
    return float(points(name).abs().amax()) * 1.25


def warm() -> None:
    """Loads the default model and its metric, in the background."""
    threading.Thread(target=lambda: metric(default()), name="explorer-warm", daemon=True).start()
