"""Folders of Hugging Face `datasets` on disk: what `save_to_disk` writes, parquet and arrow files as on the hub, pictures by split.

Nothing is fetched and nothing is run. A picture is a column of encoded files (the feature Image) or of whole numbers 0..255 (Array2D,
Array3D, nested lists); a class is a column of the feature ClassLabel, of whole numbers, or of words, which are then counted
alphabetically. Arrow files are mapped, parquet files read a few rows at a time; of a set of more than a gigabyte the decoded pixels are
collected once into a file and mapped from it.

Arrow and parquet files need pyarrow, not the package `datasets`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from explorer.data.batches import image_dataset
from explorer.data.dataset import Dataset
from explorer.data.gathered import cache_folder, pixels_of, signs_of
from explorer.data.pictures import ENDINGS, pictures
from explorer.data.tables import Tables, settings_in
from explorer.errors import BadFile, BadValue

PARTS = {"train": ("train", "training"), "test": ("test", "testing", "validation", "valid", "val", "dev", "eval")}
"""Our splits -> what others call them; of a test split and a validation split the former is taken."""


@dataclass(frozen=True)
class Layout:
    """Where the rows of one split are.

    Args:
        kind: "save_to_disk", "parquet", "arrow" or "pictures".
        part: what the folder calls the split.
        files: tables, or for "pictures" the folder of them.
    """

    kind: str
    part: str
    files: tuple[Path, ...]


def fits(folder: Path) -> bool:
    """Whether a folder is one of these."""
    if (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file():
        return True
    return any(True for _ in _tables(folder)) or bool(_split_folders(folder))


def huggingface(
    source: str | Path,
    split: str = "train",
    *,
    image: str | None = None,
    label: str | None = None,
    name: str | None = None,
    cache: Path | None = None,
) -> Dataset:
    """A data set from such a folder, or from one parquet or arrow file.

    Args:
        source: the folder that `save_to_disk` was given, a folder of parquet or arrow files whose names say their split, or one with
            folders train and test of pictures.
        split: "train", or "test", which is the part called test, or else validation.
        image, label: columns; by default the only one of pictures, and the one of classes or none.
        name: for captions; the folder's own.
        cache: where pixels of a large set are collected; by default a folder of its own in EXPLORER_CACHE.
    Raises:
        BadFile: a folder of another layout, a file that is missing or damaged, pictures of several sizes, labels out of range.
        BadValue: the split or a column must be chosen otherwise.
        MissingExtra: pyarrow is not installed.
    """
    source = Path(source)
    if split not in PARTS:
        raise BadValue(f"unknown split {split!r}; use 'train' or 'test'.")
    if not source.exists():
        raise BadFile(f"there is no {str(source)!r}; expected a folder of Hugging Face datasets.")
    layout = Layout(source.suffix[1:], split, (source,)) if source.is_file() else _layout(source, split)
    name = name or source.stem
    if layout.kind == "pictures":
        if image is not None or label is not None:
            raise BadValue("a folder of pictures has no columns; leave image and label out.")
        return pictures(layout.files[0], name=name, split=split, cache=cache or _own_cache(source, layout))
    tables = Tables(layout.files, layout.kind == "parquet")
    image, kind = tables.image(image)
    label, names = tables.label(label, image)
    signs = [image, *signs_of(layout.files)]
    pixels = pixels_of(
        tables.n, lambda: tables.pixels(image, kind), cache=cache or _own_cache(source, layout), sources=signs
    )
    labels, names = (None, names) if label is None else tables.classes(label, names)
    card = {
        "about": f"pictures of {source.name}, a folder of Hugging Face datasets",
        "source": source.name,
        "layout": layout.kind,
        "part": layout.part,
        "columns": {"image": image, "label": label},
        "resize": "as they are",
        "split": split,
        **({"classes": list(names)} if names else {}),
    }
    n_classes = 0 if labels is None else len(names) or int(labels.max()) + 1
    return image_dataset(name, split, pixels, labels, n_classes, card)


def _layout(folder: Path, split: str) -> Layout:
    if (folder / "dataset_dict.json").is_file():
        parts = settings_in(folder / "dataset_dict.json").get("splits")
        if not isinstance(parts, list) or not all(_is_name(part) for part in parts):
            raise BadFile(f"{folder.name}: dataset_dict.json must list the names of its splits.")
        part = _chosen(parts, split, folder)
        return Layout("save_to_disk", part, _saved(folder / part))
    if (folder / "state.json").is_file():
        part = settings_in(folder / "state.json").get("_split") or "train"
        _chosen([str(part)], split, folder)
        return Layout("save_to_disk", str(part), _saved(folder))
    if files := list(_tables(folder)):
        kind = "parquet" if files[0].suffix == ".parquet" else "arrow"
        files = [file for file in files if file.suffix == files[0].suffix]
        named = {file: _part_of(file.relative_to(folder).with_suffix("").as_posix()) for file in files}
        part = _chosen([part or "train" for part in named.values()], split, folder)
        chosen = [file for file, own in named.items() if (own or "train") == part]
        if len(homes := sorted({file.parent.relative_to(folder).as_posix() for file in chosen})) > 1:
            raise BadFile(
                f"{folder.name} holds {part} files in several folders ({', '.join(homes[:4])}): give one of them."
            )
        return Layout(kind, part, tuple(chosen))
    if found := _split_folders(folder):
        part = _chosen(list(found), split, folder)
        return Layout("pictures", part, (found[part],))
    raise BadFile(
        f"{folder.name} is no folder of Hugging Face datasets: expected dataset_dict.json, state.json, parquet or arrow files, or "
        "folders train and test of pictures."
    )


def _saved(folder: Path) -> tuple[Path, ...]:
    """The arrow files that a state.json lists."""
    state = settings_in(folder / "state.json")
    if state.get("_indices_data_files"):
        raise BadFile(
            f"{folder.name} was saved with a selection of rows beside it; save it again with a newer version."
        )
    listed = state.get("_data_files")
    files = [entry.get("filename") if isinstance(entry, dict) else None for entry in listed or ()]
    if not isinstance(listed, list) or not files or not all(_is_name(file) for file in files):
        raise BadFile(f"{folder.name}: state.json must list the arrow files beside it under _data_files.")
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise BadFile(f"{folder.name} lacks {missing[0]}, which its state.json lists ({len(missing)} missing in all).")
    return tuple(folder / file for file in files)


def _tables(folder: Path) -> Iterator[Path]:
    """Parquet files, or where there are none arrow files, in the order of their names."""
    for ending in (".parquet", ".arrow"):
        if found := sorted(file for file in folder.rglob(f"*{ending}") if file.is_file()):
            yield from found
            return


def _split_folders(folder: Path) -> dict[str, Path]:
    """Folders with the names of splits that hold pictures, one for training at least."""
    known = {part for parts in PARTS.values() for part in parts}
    found = {f.name: f for f in sorted(folder.iterdir()) if f.is_dir() and f.name in known}
    found = {name: f for name, f in found.items() if any(x.suffix.lower() in ENDINGS for x in f.rglob("*"))}
    return found if len(found) > 1 and set(found) & set(PARTS["train"]) else {}


def _part_of(path: str) -> str | None:
    """The split that the name of a file says, or the folder it is in."""
    for words in (re.split(r"[^a-z]+", step.lower()) for step in reversed(path.split("/"))):
        for part in (part for parts in PARTS.values() for part in parts):
            if part in words:
                return part
    return None


def _chosen(parts: Sequence[str], split: str, folder: Path) -> str:
    found = next((part for part in PARTS[split] if part in parts), None)
    if found is None:
        raise BadValue(
            f"{folder.name} has no {split} split; it has {', '.join(sorted(set(parts))[:8]) or 'none'}: choose another split."
        )
    return found


def _is_name(value: Any) -> bool:
    """A plain name, which leads nowhere else."""
    return isinstance(value, str) and bool(re.fullmatch(r"[\w][\w.+-]*", value)) and len(value) < 256


def _own_cache(source: Path, layout: Layout) -> Path:
    place = f"{source.resolve()}/{layout.part}".encode()
    return cache_folder(f"huggingface-{hashlib.sha256(place).hexdigest()[:16]}")
