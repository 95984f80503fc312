"""Reduced precision: autocast, dynamic loss scaling for float16, TF32."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch

START, LARGEST = 2.0**16, 2.0**24
PATIENCE = 2000


@dataclass
class LossScale:
    """Factor that keeps float16 gradients from vanishing: halved by an overflow, doubled after 2000 finite updates.

    A power of two from 1 to 2^24, so that scaling and unscaling are exact. Source: Micikevicius et al. 2018,
    arXiv 1710.03740, Sec. 3.2.
    """

    value: float = START
    finite: int = 0

    def update(self, finite: bool) -> None:
        if not finite:
            self.value, self.finite = max(self.value / 2, 1.0), 0
        elif (finite_now := self.finite + 1) >= PATIENCE:
            self.value, self.finite = min(self.value * 2, LARGEST), 0
        else:
            self.finite = finite_now


def autocast(device: torch.device, dtype: str | None) -> contextlib.AbstractContextManager:
    """Context in which losses are computed; None changes nothing."""
    if dtype is None:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, dtype))


@contextlib.contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Let float32 matrix products round their factors to TF32 inside the block, where the GPU can."""
    if not on:
        yield
        return
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
