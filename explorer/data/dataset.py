"""A data set as a value: samples, labels, scale, provenance."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from explorer.errors import BadValue

Draw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples with what a recipe must know about them.

    Args:
        name: for captions and cards.
        x: (N, *shape) float32; or, for sets too large for that, pixels (N, C, H, W) uint8, perhaps mapped from a file.
            `take` gives values in either case.
        labels: (N,) int64 in 0..n_classes-1, or None.
        n_classes: 0 when there are no labels.
        sigma_data: standard deviation of the data, all coordinates pooled: the constant of EDM preconditioning.
        card: provenance and constants, JSON-able.
        draw: (n, generator) -> fresh samples and labels, where the distribution itself is known; None for finite data.
    Raises:
        BadValue: shapes or labels that do not fit together, values that are not finite.
    """

    name: str
    x: Tensor
    labels: Tensor | None = None
    n_classes: int = 0
    sigma_data: float = 0.5
    card: Mapping[str, Any] = field(default_factory=dict)
    draw: Draw | None = field(default=None, repr=False)

    def __post_init__(self):
        if self.x.ndim < 2 or len(self.x) == 0:
            raise BadValue(f"data must be (samples, features...) with at least one sample, got {tuple(self.x.shape)}.")
        if self.x.dtype != torch.uint8 and not torch.isfinite(self.x).all():
            raise BadValue(f"data set {self.name!r} contains NaN or infinity.")
        if (self.labels is None) != (self.n_classes == 0):
            raise BadValue(f"data set {self.name!r} needs labels and n_classes together, or neither.")
        if self.labels is not None:
            if self.labels.shape != (len(self.x),) or self.labels.dtype != torch.int64:
                raise BadValue(f"labels must be int64 of shape ({len(self.x)},), got {tuple(self.labels.shape)}.")
            if int(self.labels.min()) < 0 or int(self.labels.max()) >= self.n_classes:
                raise BadValue(f"labels must lie in 0..{self.n_classes - 1}.")

    def __len__(self) -> int:
        return len(self.x)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""
        return tuple(self.x.shape[1:])

    def take(self, rows: Tensor | slice) -> Tensor:
        """Samples (n, *shape) float32; pixels as value / 127.5 - 1."""
        x = self.x[rows]
        return x.float().div_(127.5).sub_(1) if x.dtype == torch.uint8 else x

    @cached_property
    def checksum(self) -> str:
        """First 16 hex digits of the SHA-256 of samples and labels; of evenly spaced samples where they exceed a gigabyte."""
        step = 1 + self.x.numel() * self.x.element_size() // 2**30
        digest = hashlib.sha256(self.x[::step].contiguous().numpy().tobytes())
        if self.labels is not None:
            digest.update(self.labels.contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]
