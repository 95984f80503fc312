"""Where samples come from: toys of the plane, digits, shapes, glyphs, photographs and fractals, published sets, a user's own files."""

from dataclasses import replace
from pathlib import Path

from explorer.data.augment import NonLeaking
from explorer.data.dataset import Dataset
from explorer.data.digits import digits, digits_dataset
from explorer.data.fractals import Fractals, fractals_dataset
from explorer.data.glyphs import Glyphs, glyph_factors, glyphs_dataset
from explorer.data.huggingface import huggingface
from explorer.data.loader import Batch, Loader
from explorer.data.own import is_own, keep, measured_sigma
from explorer.data.own import own as own_part
from explorer.data.patches import Patches, patch_factors, patches_dataset
from explorer.data.pictures import array_dataset, pictures, write_zip
from explorer.data.points import Drawing, load_points, points_dataset
from explorer.data.projected import ProjectedModes
from explorer.data.shapes import Shapes, shapes_dataset, shapes_factors
from explorer.data.sources import SOURCES, holds_images, named, opened
from explorer.data.toys import TOYS, oracle, points, toy_dataset
from explorer.data.trees import TREES, tree_dataset
from explorer.errors import BadValue, UnknownName

__all__ = [
    "FRACTALS",
    "SHAPES",
    "SOURCES",
    "TOYS",
    "TREES",
    "Batch",
    "Dataset",
    "Drawing",
    "Fractals",
    "Glyphs",
    "Loader",
    "NonLeaking",
    "Patches",
    "ProjectedModes",
    "Shapes",
    "array_dataset",
    "digits",
    "digits_dataset",
    "fractals_dataset",
    "glyph_factors",
    "glyphs_dataset",
    "huggingface",
    "is_own",
    "keep",
    "load_dataset",
    "load_points",
    "names",
    "oracle",
    "points",
    "patch_factors",
    "patches_dataset",
    "pictures",
    "points_dataset",
    "shapes_dataset",
    "shapes_factors",
    "test_split",
    "toy_dataset",
    "tree_dataset",
    "write_zip",
]

TEST_SEED = 1
"""Seed of the fixed sample that stands for the test split of a toy; the training split has seed 0."""

ENDINGS = (".zip", ".npy", ".npz", ".tar.gz", ".tgz", ".tar", ".parquet", ".arrow")
"""Of files that hold images."""

SHAPES = {"shapes": Shapes(), "shapes32": Shapes(side=32, lit=True)}
FRACTALS = {
    "fractals": Fractals(),
    "fractals16": Fractals(side=16, chains=256, steps=40),
    "fractals64": Fractals(side=64, chains=1024, steps=80),
}
"""Sets that are rendered when they are first asked for, in up to minutes, and kept on disk from then on."""
PROJECTED = {"projected-modes": ProjectedModes()}
"""Points of more than two coordinates."""


def names() -> tuple[str, ...]:
    """Names that `load_dataset` knows and that load at once; `FRACTALS` take time, `SOURCES` need the user's files."""
    return ("digits", *SHAPES, "glyphs", "patches", *TOYS, *TREES)


def load_dataset(name: str, split: str = "train", source: str | Path | None = None) -> Dataset:
    """A data set by name, or from a user's file.

    Args:
        name: one of `names()`, `PROJECTED`, `FRACTALS` or `SOURCES`; a path to points (.csv, .txt, .npz, .npy); a path to images (see
            `opened`), whose sigma_data is measured unless they are a published set; a folder that `keep` has made.
        split: "train" or "test"; a toy's test split is another fixed sample, a user's points and pictures have none but what
            `keep` holds out.
        source: where a set of `SOURCES` lies; by default in the folder that EXPLORER_DATA names.
    Raises:
        UnknownName: no such data set.
        BadFile: a file that is missing, damaged or of another format.
    """
    if split not in ("train", "test"):
        raise BadValue(f"unknown split {split!r}; use 'train' or 'test'.")
    if source is not None and name not in SOURCES:
        raise BadValue(f"a source goes with {', '.join(SOURCES)}; for your own files give the path as the name.")
    if name == "digits":
        return digits_dataset(split)
    if name in SHAPES:
        return shapes_dataset(split, SHAPES[name])
    if name == "glyphs":
        return glyphs_dataset(split)
    if name == "patches":
        return patches_dataset(split)
    if name in FRACTALS:
        return fractals_dataset(split, FRACTALS[name])
    if name in PROJECTED:
        return PROJECTED[name].dataset(split)
    if name in TOYS:
        return toy_dataset(name, seed=0 if split == "train" else TEST_SEED)
    if name in TREES:
        return tree_dataset(name, seed=0 if split == "train" else TEST_SEED)
    if name in SOURCES:
        return named(name, split, source)
    path = str(name)
    if is_own(path):
        return _apart(own_part(path, split))
    if path.endswith((".csv", ".txt")) or (
        path.endswith((".npz", ".npy")) and Path(path).is_file() and not holds_images(path)
    ):
        if split == "test":
            raise BadValue("a file of points has no test split; use split='train'.")
        return _apart(load_points(name))
    if path.endswith(ENDINGS) or Path(path).is_dir():
        data = opened(path, split)
        published = data.name.removesuffix("-test") in SOURCES
        return data if published else _apart(replace(data, sigma_data=measured_sigma(data)))
    raise UnknownName("data set", name, (*names(), *PROJECTED, *FRACTALS, *SOURCES))


def _apart(data: Dataset) -> Dataset:
    """A user's data under a name that no other data set has: what is called "digits" is measured with the features of digits."""
    stem = data.name.removesuffix("-test")
    known = stem in (*names(), *PROJECTED, *FRACTALS, *SOURCES)
    return replace(data, name=data.name.replace(stem, f"{stem}-own", 1)) if known else data


def test_split(name: str) -> Dataset | None:
    """The test split of a data set; None where it has none, as a user's own points and pictures."""
    try:
        return load_dataset(name, "test")
    except BadValue:
        return None
