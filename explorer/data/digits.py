"""The 8x8 handwritten digits that come with scikit-learn, with a fixed split.

1797 images of 10 classes, 17 grey levels, from the UCI collection (Alpaydin and Kaynak 1998). They are scaled from 0..16 to
[-1, 1]. The split is stratified: of every class a fixed share goes to the 500 test images, the other 1297 train.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.errors import BadValue

N_TEST = 500
SPLIT_SEED = 0
SIGMA_DATA = 0.75
"""Standard deviation of all pixels of the training split, rounded from 0.753."""

Split = Literal["train", "test"]


def digits(split: Split = "train") -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) float32 in [-1, 1] and labels (N,) int64 of one part of the fixed split.

    Args:
        split: "train" (1297 images) or "test" (500).
    """
    if split not in ("train", "test"):
        raise BadValue(f"unknown split {split!r} of the digits; use 'train' or 'test'.")
    images, labels, is_test = _all()
    keep = is_test if split == "test" else ~is_test
    return images[keep], labels[keep]


def digits_dataset(split: Split = "train") -> Dataset:
    x, labels = digits(split)
    card = {
        "about": "scikit-learn's 8x8 digits scaled to [-1, 1]",
        "split": split,
        "split_seed": SPLIT_SEED,
        "n_test": N_TEST,
    }
    return Dataset("digits" if split == "train" else "digits-test", x, labels, 10, SIGMA_DATA, card)


@lru_cache(maxsize=1)
def _all() -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels, and which of them belong to the test split."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    images = torch.tensor(raw.images, dtype=torch.float32)[:, None] / 8 - 1
    labels = torch.tensor(raw.target, dtype=torch.int64)
    generator = torch.Generator().manual_seed(SPLIT_SEED)
    counts = torch.bincount(labels)
    share = counts.double() * N_TEST / len(labels)
    quota = share.floor().long()
    largest = (share - quota).argsort(descending=True, stable=True)[: N_TEST - int(quota.sum())]
    quota[largest] += 1  # largest remainders, so that the parts add up to N_TEST exactly
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    for k, take in enumerate(quota.tolist()):
        members = (labels == k).nonzero()[:, 0]
        is_test[members[torch.randperm(len(members), generator=generator)[:take]]] = True
    return images, labels, is_test
