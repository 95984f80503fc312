"""The one place where a time (B,) meets a batch (B, ...)."""

from __future__ import annotations

from torch import Tensor


def like(a: float | Tensor, x: Tensor) -> float | Tensor:
    """`a` shaped to broadcast against `x`.

    Args:
        a: a number, a 0-d tensor, or one value per sample (B,) (or (1,)).
        x: (B, ...).
    Returns:
        the number itself, or a tensor (B, 1, ..., 1).
    Raises:
        ValueError: `a` has more than one dimension, or another length than B.
    """
    if not isinstance(a, Tensor) or a.ndim == 0:
        return a
    if a.ndim != 1 or a.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"expected one value per sample, shape ({x.shape[0]},), got {tuple(a.shape)}")
    return a.reshape(-1, *(1,) * (x.ndim - 1))
