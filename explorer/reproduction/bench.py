"""Where trained things live: each is made once and found again by the hash of all that determines it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from explorer.reproduction.recipe import Need, Recipe


class Bench:
    """Trains what recipes and claims ask for, and keeps it.

    Args:
        folder: run folders go here, one for each recipe and seed; a run that was stopped goes on. None keeps models in memory only.
        seed: of every training and, by convention, of every measurement of a claim.
        device: where to compute.
        show: (words, fraction) is called while something is trained or made.
        rehearse: train and make nothing: models keep the weights they start from, needs are stood in for.
    """

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        show: Callable[[str, float], None] | None = None,
        rehearse: bool = False,
    ):
        self.folder = None if folder is None else Path(folder)
        self.seed, self.device, self.show = seed, torch.device(device), show or (lambda words, fraction: None)
        self.rehearse = rehearse
        self._made: dict[str, Any] = {}

    def model(self, recipe: Recipe) -> nn.Module:
        """The recipe's model at this bench's seed, trained now if it is not there yet; frozen, in evaluation mode."""
        return self._once(recipe.describe(), lambda: self._trained(recipe))

    def need(self, need: Need) -> Any:
        """What a need stands for."""
        return self._once(need.describe(), lambda: need.stand_in(self) if self.rehearse else need.make(self))

    def generator(self, stream: int = 0) -> torch.Generator:
        """For what a measurement draws: another one at each seed and, below 1000, each stream."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)

    def place(self, name: str, about: dict[str, Any]) -> Path | None:
        """The folder of what `about` describes, e.g. runs/toy-1rf-seed0-1a2b3c4d5e; None when nothing is kept on disk."""
        return None if self.folder is None else self.folder / f"{name}-seed{self.seed}-{key(about)}"

    def _once(self, about: dict[str, Any], make: Callable[[], Any]) -> Any:
        name = key(about)
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]

    def _trained(self, recipe: Recipe) -> nn.Module:
        from explorer.reproduction.rehearsal import untrained
        from explorer.reproduction.run import exported, train_recipe

        if self.rehearse:
            return untrained(recipe, self)
        tick = None
        folder = self.place(recipe.name, recipe.describe())
        for tick in train_recipe(recipe, folder, seed=self.seed, device=self.device, bench=self):
            self.show(f"training {recipe.name}, seed {self.seed}", tick.fraction)
        return exported(recipe, tick).requires_grad_(False)


def key(about: dict[str, Any]) -> str:
    """Ten hex digits that stand for a description."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:10]
