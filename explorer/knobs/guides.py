"""Which models can guide another one."""

from __future__ import annotations

from functools import lru_cache

import torch

from explorer.errors import UnknownName
from explorer.models import bundled
from explorer.models.base import FlowMap, Model


def guides_for(model: Model) -> tuple[str, ...]:
    """Names of the bundled and kept denoisers that can guide this one and have learnt the same data, where that is known."""
    stamp = bundled.stamp()
    own = _data(model.name, stamp)
    return tuple(name for name in able_to_guide(model) if own in ("", _data(name, stamp)))


def able_to_guide(model: Model) -> tuple[str, ...]:
    """Names of the bundled and kept denoisers whose samples have the same shape, and that know the same classes or none."""
    return (
        () if isinstance(model, FlowMap) else _alike(tuple(model.shape), model.n_classes, model.name, bundled.stamp())
    )


def can_guide(model: Model, name: str) -> bool:
    """Whether the model of this name, file or run folder makes samples of that shape and knows the same classes or none.

    An exact one can, too. Raises: BadFile where its card cannot be read.
    """
    if isinstance(model, FlowMap) or not bundled.known(name):
        return False
    about = bundled.card(name)
    return (
        about["kind"] in ("denoiser", "oracle")
        and tuple(about.get("shape", ())) == tuple(model.shape)
        and about.get("n_classes", 0) in (0, model.n_classes)
    )


def suits(model: Model, name: str) -> bool:
    """Whether it `can_guide` and has learnt the same data, where both cards say what they learnt."""
    own, other = (_data(n, bundled.stamp()) for n in (model.name, name))
    return can_guide(model, name) and (own == other or "" in (own, other))


def check_guide(model: Model, name: str) -> None:
    """Raises UnknownName, which lists those that can, unless the model of this name `can_guide`."""
    if not can_guide(model, name):
        raise UnknownName(f"guide for {model.name or 'this model'}", name, able_to_guide(model))


@lru_cache(maxsize=64)
def _alike(shape: tuple[int, ...], n_classes: int, name: str, stamp: tuple) -> tuple[str, ...]:
    cards = {other: bundled.card(other) for other in bundled.names("denoiser") if other != name}
    alike = {other: card for other, card in cards.items() if tuple(card.get("shape", ())) == shape}
    return tuple(other for other, card in alike.items() if card.get("n_classes", 0) in (0, n_classes))


@lru_cache(maxsize=64)
def _data(name: str, stamp: tuple) -> str:
    """What a card says was learnt; "" where there is no card or it does not say."""
    return str(bundled.card(name).get("data") or "") if name in bundled.names() else ""


def worse(name: str, device: torch.device) -> Model:
    """The model of that name on a device, shared by all who ask for it until models come or go."""
    return _worse(name, device, bundled.stamp())


@lru_cache(maxsize=4)
def _worse(name: str, device: torch.device, stamp: tuple) -> Model:
    return bundled.load(name, device)
