"""Where samples come from: toys of the plane, digits, shapes in colour, a user's own points, and batches of them."""

from explorer.data.dataset import Dataset
from explorer.data.digits import digits, digits_dataset
from explorer.data.loader import Batch, Loader
from explorer.data.points import Drawing, load_points, points_dataset
from explorer.data.shapes import Shapes, shapes_dataset, shapes_factors
from explorer.data.toys import TOYS, oracle, points, toy_dataset
from explorer.errors import BadValue, UnknownName

__all__ = [
    "TOYS",
    "Batch",
    "Dataset",
    "Drawing",
    "Loader",
    "Shapes",
    "digits",
    "digits_dataset",
    "load_dataset",
    "load_points",
    "names",
    "oracle",
    "points",
    "points_dataset",
    "shapes_dataset",
    "shapes_factors",
    "toy_dataset",
]

TEST_SEED = 1
"""Seed of the fixed sample that stands for the test split of a toy; the training split has seed 0."""


def names() -> tuple[str, ...]:
    """Names that `load_dataset` knows."""
    return ("digits", "shapes", *TOYS)


def load_dataset(name: str, split: str = "train") -> Dataset:
    """A data set by name, or from a user's file of points.

    Args:
        name: one of `names()`, or a path ending in .csv, .txt or .npz.
        split: "train" or "test"; a toy's test split is another fixed sample, a user's file has no test split.
    Raises:
        UnknownName: no such data set.
    """
    if split not in ("train", "test"):
        raise BadValue(f"unknown split {split!r}; use 'train' or 'test'.")
    if name == "digits":
        return digits_dataset(split)
    if name == "shapes":
        return shapes_dataset(split)
    if name in TOYS:
        return toy_dataset(name, seed=0 if split == "train" else TEST_SEED)
    if str(name).endswith((".csv", ".txt", ".npz")):
        if split == "test":
            raise BadValue("a file of points has no test split; use split='train'.")
        return load_points(name)
    raise UnknownName("data set", name, names())
