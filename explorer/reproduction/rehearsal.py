"""A recipe built at full size and moved by one step on made-up data: does it fit together before days are spent on it?

Nothing is trained and no data set is read: images are noise of the right shape with labels of the right number, teachers have the
right architecture and the weights they start from.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from explorer.data import Dataset, load_dataset
from explorer.data import names as present
from explorer.data.sources import SOURCES
from explorer.errors import BadValue, NonFinite
from explorer.reproduction.bench import Bench
from explorer.reproduction.recipe import Recipe
from explorer.reproduction.run import batches_of, method_of
from explorer.reproduction.watching import watched
from explorer.training.loop import train

BATCH = 2
"""Images in the one step of a rehearsal."""

BUILT = 0.1
"""Share of a rehearsal's time that goes into building its networks, about."""

ELSEWHERE: dict[str, tuple[tuple[int, ...], int]] = {
    "mnist": ((1, 28, 28), 10),
    "celeba64": ((3, 64, 64), 0),
    "afhq-cat256": ((3, 256, 256), 0),
    "celeba-hq256": ((3, 256, 256), 0),
    "lsun-bedroom256": ((3, 256, 256), 0),
    "lsun-cat256": ((3, 256, 256), 0),
    "lsun-church256": ((3, 256, 256), 0),
    "imagenet256-latents": ((4, 32, 32), 1000),
    "imagenet512-latents": ((4, 64, 64), 1000),
}
"""Shape and number of classes of data sets that papers use and this package does not read."""

SHAPES = {name: (source.shape, source.n_classes) for name, source in SOURCES.items()} | ELSEWHERE
"""Shape and number of classes of every data set that can be stood in for."""


@dataclass(frozen=True)
class Rehearsal:
    """What one step of a recipe showed.

    Attributes:
        parameters: of the network that is sampled from.
        paper_parameters: of the paper's, where the recipe knows.
        effective_batch: images per optimizer step in the real run, over all processes and micro-batches.
        networks: parameters of every network that is trained or frozen, by name.
        logs: losses and gradient norms of the step.
        seconds: of everything; step_seconds: of the step alone.
    """

    recipe: str
    data: str
    shape: tuple[int, ...]
    n_classes: int
    parameters: int
    paper_parameters: float | None
    effective_batch: int
    networks: dict[str, int]
    logs: dict[str, float]
    seconds: float
    step_seconds: float

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def rehearse(
    recipe: Recipe,
    *,
    device: torch.device | str = "cpu",
    seed: int = 0,
    show: Callable[[float, str], None] = lambda fraction, words: None,
) -> Rehearsal:
    """Build a recipe at its own size, with stand-ins for what it needs, and take one optimisation step at batch 2.

    Args:
        show: told the fraction done, roughly, and what is being done.
    Raises:
        UnknownName: the recipe's data set has no known shape.
        BadValue: method, needs and data do not fit together.
        NonFinite: the step's loss or gradient is not finite.
    """
    began = time.monotonic()
    data = synthetic(recipe.data)
    bench = Bench(seed=seed, device=device, rehearse=True)
    plan = dataclasses.replace(
        recipe.plan,
        n_steps=1,
        batch_size=BATCH,
        accumulate=1,
        seed=seed,
        minutes=None,
        tick_steps=1,
        checkpoint_steps=0,
        max_skips=0,
        compile=False,
    )
    needs = {}
    for i, (name, need) in enumerate(recipe.needs.items()):
        show(BUILT * i / (len(recipe.needs) + 1), f"building {name}")
        needs[name] = bench.need(need)
    show(BUILT * len(needs) / (len(needs) + 1), "building what is trained")
    method = method_of(recipe, data, needs, seed).to(device)
    networks = {name: count(net) for name, net in method.nets.items()}
    networks |= {name: count(need) for name, need in needs.items() if isinstance(need, nn.Module)}
    parameters = count(method.export(method.nets))
    started = time.monotonic()
    with watched(method.nets, lambda part, words: show(BUILT + (1 - BUILT) * part, words)):
        (tick,) = train(method, batches_of(recipe, data, plan, needs), plan)
    logs = {name: value for name, value in tick.logs.items() if name.startswith(("loss", "grad_norm"))}
    if not logs:
        raise NonFinite(f"no update of recipe {recipe.name!r} was finite in its first step.", step=0)
    ended = time.monotonic()
    return Rehearsal(
        recipe.name,
        recipe.data,
        data.shape,
        data.n_classes,
        parameters,
        recipe.parameters,
        recipe.plan.batch_size,
        networks,
        logs,
        round(ended - began, 2),
        round(ended - started, 2),
    )


def synthetic(name: str, n: int = 64) -> Dataset:
    """n samples of noise with the shape, the labels and the name of a data set; those that are here lend their scale too.

    Raises:
        UnknownName: neither a data set of this package nor one whose shape is known.
    """
    g = torch.Generator().manual_seed(0)
    (shape, n_classes), scale = shape_of(name), 0.5 if name in SHAPES else load_dataset(name).sigma_data
    x = (scale * torch.randn(n, *shape, generator=g)).clamp(-1, 1)
    labels = torch.randint(n_classes, (n,), generator=g) if n_classes else None
    return Dataset(name, x, labels, n_classes, scale, {"synthetic": True})


def shape_of(name: str) -> tuple[tuple[int, ...], int]:
    """Shape of one sample and number of classes of a data set, which need not be on this machine.

    Raises:
        UnknownName: neither a data set of this package nor one whose shape is known.
    """
    if name in SHAPES:
        return SHAPES[name]
    real = load_dataset(name)
    return real.shape, real.n_classes


def untrained(recipe: Recipe, bench: Bench) -> nn.Module:
    """The recipe's model with the weights it starts from, frozen: same architecture, nothing learnt."""
    needs = {name: bench.need(need) for name, need in recipe.needs.items()}
    method = method_of(recipe, synthetic(recipe.data), needs, bench.seed).to(bench.device)
    return method.export(method.nets).eval().requires_grad_(False)


def count(model: nn.Module) -> int:
    """Trainable and frozen parameters; buffers do not count."""
    return sum(p.numel() for p in model.parameters())


def missing(name: str) -> BadValue:
    """What to say of a recipe whose data set this package does not read."""
    shape = " x ".join(map(str, ELSEWHERE[name][0]))
    return BadValue(
        f"this package does not read the data set {name} ({shape}); --dry-run builds the recipe and takes one step without it. "
        f"Recipes on {', '.join((*present(), *SOURCES))} can be trained."
    )
