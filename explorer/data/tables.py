"""Arrow and parquet files as pictures and classes: which columns they are, and their rows, a few at a time.

Needs pyarrow. Of columns with an extension type only the storage is read: nothing that such a type names is run.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from explorer.data.pictures import MAX_JSON_BYTES, picture
from explorer.errors import BadFile, BadValue, ExplorerError, MissingExtra

IMAGE_NAMES = ("image", "img", "images", "picture", "pixels", "pixel_values")
LABEL_NAMES = ("label", "labels", "class", "fine_label", "target", "y")
ROWS = 256
"""Read at a time."""


class Tables:
    """The rows of arrow or parquet files, a few at a time.

    Args:
        files: with the same columns.
        parquet: which of the two they are.
    Raises:
        BadFile: no rows, damaged, or columns that differ. MissingExtra: pyarrow is not installed.
    """

    def __init__(self, files: Sequence[Path], parquet: bool):
        try:
            import pyarrow
        except ImportError:
            raise MissingExtra("pyarrow", "hub", "a folder of Hugging Face datasets") from None
        self.arrow, self.files, self.parquet = pyarrow, tuple(files), parquet
        heads = [self._guarded(file, lambda file=file: self._head(file)) for file in self.files]
        self.n, self.schema = sum(n for n, _, _ in heads), heads[0][1]
        self.where = self.files[0].parent.name
        if odd := next((f for f, (*_, names) in zip(self.files, heads, strict=True) if names != heads[0][2]), None):
            raise BadFile(
                f"{odd.name} has other columns than {self.files[0].name}: {', '.join(self.schema.names[:8])}."
            )
        if self.n == 0:
            raise BadFile(f"{self.where} holds no rows.")
        self.features = self._features()

    def image(self, given: str | None) -> tuple[str, str]:
        """The column of pictures, and whether they are "files" or "numbers"."""
        kinds = {name: self._kind(name) for name in self.schema.names}
        if given is not None:
            self._check(given)
            if kinds[given] is None:
                raise BadValue(f"column {given!r} of {self.where} holds {self.schema.field(given).type}, no pictures.")
            return given, kinds[given]
        found = [name for name, kind in kinds.items() if kind is not None]
        named = [name for name in IMAGE_NAMES if name in found]
        if len(found) > 1 and len(named) != 1:
            raise BadValue(
                f"{self.where} has several columns of pictures ({', '.join(found)}): choose one with image=."
            )
        if not found:
            raise BadFile(f"{self.where} has no column of pictures; it has {', '.join(self.schema.names[:8])}.")
        chosen = (named or found)[0]
        return chosen, kinds[chosen]

    def label(self, given: str | None, image: str) -> tuple[str | None, tuple[str, ...]]:
        """The column of classes and their names; None where there is none."""
        if given is not None:
            self._check(given)
            return given, self._names(given)
        found = [name for name in self.schema.names if name != image and self._names(name)]
        found = [name for name in LABEL_NAMES if name in found] or found
        types = self.arrow.types
        plain = [n for n in LABEL_NAMES if n in self.schema.names and n != image]
        plain = [n for n in plain if types.is_integer(t := self.schema.field(n).type) or types.is_string(t)]
        chosen = next(iter([*found, *plain]), None)
        return chosen, () if chosen is None else self._names(chosen)

    def pixels(self, column: str, kind: str) -> Iterator[np.ndarray]:
        """Pictures (H, W, C) uint8 in the order of the rows."""
        first, i = None, 0
        for values in self._columns(column):
            for each in self._files(values, i) if kind == "files" else self._numbers(values, column):
                if first is not None and each.shape != first:
                    raise BadFile(
                        f"{self.where}: picture {i} has {each.shape[1]} x {each.shape[0]} pixels in {each.shape[2]} channels, those "
                        f"before {first[1]} x {first[0]} in {first[2]}; resize them first."
                    )
                first, i = each.shape, i + 1
                yield each

    def classes(self, column: str, names: tuple[str, ...]) -> tuple[Tensor | None, tuple[str, ...]]:
        """Labels (N,) int64, None where all are -1, and the names of the classes."""
        found = [values.to_pylist() for values in self._columns(column)]
        values = [value for part in found for value in part]
        if all(isinstance(value, str) for value in values):
            names = tuple(sorted(set(values)))
            rank = {name: k for k, name in enumerate(names)}
            values = [rank[value] for value in values]
        if not all(type(value) is int for value in values):
            odd = next(value for value in values if type(value) is not int)
            raise BadFile(f"{self.where}: column {column!r} holds {str(odd)[:40]!r} where a class was expected.")
        if all(value == -1 for value in values):  # how parts whose answers are kept secret are published
            return None, ()
        top = len(names) if names else 2**31
        if odd := [value for value in values if not 0 <= value < top]:
            raise BadFile(f"{self.where}: label {odd[0]} in column {column!r} is none of its {top} classes.")
        return torch.tensor(values), names

    def _head(self, file: Path) -> tuple[int, Any, list[str]]:
        """Number of rows, schema, names of the columns."""
        if self.parquet:
            import pyarrow.parquet

            with pyarrow.parquet.ParquetFile(file) as opened:
                return opened.metadata.num_rows, opened.schema_arrow, list(opened.schema_arrow.names)
        with self._stream(file) as reader:
            return sum(batch.num_rows for batch in _batches(reader)), reader.schema, list(reader.schema.names)

    def _columns(self, column: str) -> Iterator[Any]:
        """One array of the column after the other."""
        for file in self.files:
            if self.parquet:
                import pyarrow.parquet

                with self._reported(file), pyarrow.parquet.ParquetFile(file) as opened:
                    for batch in opened.iter_batches(ROWS, columns=[column]):
                        yield self._checked(batch.column(column))
            else:
                with self._reported(file), self._stream(file) as reader:
                    for batch in _batches(reader):
                        whole = batch.column(self.schema.names.index(column))
                        for at in range(0, len(whole), ROWS):
                            yield self._checked(whole.slice(at, ROWS))

    @staticmethod
    def _checked(values: Any) -> Any:
        values.validate(full=True)  # of offsets that lead out of the file
        return getattr(values, "storage", values)

    @contextlib.contextmanager
    def _stream(self, file: Path) -> Iterator[Any]:
        with self.arrow.memory_map(str(file)) as mapped:
            try:
                reader = self.arrow.ipc.open_stream(mapped)
            except self.arrow.ArrowInvalid:  # the other of arrow's two formats
                mapped.seek(0)
                reader = self.arrow.ipc.open_file(mapped)
            yield reader

    @contextlib.contextmanager
    def _reported(self, file: Path) -> Iterator[None]:
        try:
            yield
        except (ExplorerError, GeneratorExit, MemoryError):
            raise
        except Exception as error:  # pyarrow raises what it likes on damaged files
            reason = " ".join(str(error).split())[:120]
            raise BadFile(f"{file.name} is not a readable table (half downloaded?): {reason}.") from None

    def _guarded(self, file: Path, work: Callable[[], Any]) -> Any:
        with self._reported(file):
            return work()

    def _features(self) -> Mapping[str, Any]:
        """What the writer says of each column; nothing where it says nothing."""
        about = (self.schema.metadata or {}).get(b"huggingface")
        with contextlib.suppress(ValueError, TypeError, KeyError, RecursionError):
            found = json.loads(about)["info"]["features"]
            return found if isinstance(found, dict) else {}
        info = self.files[0].parent / "dataset_info.json"
        found = settings_in(info).get("features") if info.is_file() else None
        return found if isinstance(found, dict) else {}

    def _names(self, column: str) -> tuple[str, ...]:
        about = self.features.get(column)
        names = about.get("names") if isinstance(about, dict) and about.get("_type") == "ClassLabel" else None
        return tuple(map(str, names)) if isinstance(names, list) else ()

    def _kind(self, column: str) -> str | None:
        kind, about = self.schema.field(column).type, self.features.get(column)
        kind, types = getattr(kind, "storage_type", kind), self.arrow.types
        if types.is_struct(kind) and {"bytes", "path"} <= {kind.field(i).name for i in range(kind.num_fields)}:
            return "files"
        if types.is_binary(kind) or types.is_large_binary(kind):
            return (
                "files" if column in IMAGE_NAMES or isinstance(about, dict) and about.get("_type") == "Image" else None
            )
        depth = 0
        while types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            kind, depth = kind.value_type, depth + 1
        return "numbers" if depth in (2, 3) and types.is_integer(kind) else None

    def _check(self, column: str) -> None:
        if column not in self.schema.names:
            raise BadValue(f"{self.where} has no column {column!r}; it has {', '.join(self.schema.names[:8])}.")

    def _files(self, values: Any, first: int) -> Iterator[np.ndarray]:
        for i, value in enumerate(values.to_pylist(), first):
            content = value.get("bytes") if isinstance(value, dict) else value
            if not content:
                raise BadFile(
                    f"{self.where}: row {i} names a picture elsewhere instead of holding it; save it with its files."
                )
            yield picture(content, f"picture {i} of {self.where}")

    def _numbers(self, values: Any, column: str) -> np.ndarray:
        """Pictures (n, H, W, C) uint8 from nested lists (n, H, W), (n, H, W, C) or (n, C, H, W)."""
        import pyarrow.compute

        sizes, types = [len(values)], self.arrow.types
        while not types.is_integer(values.type):
            lengths = pyarrow.compute.list_value_length(values).unique().to_pylist()
            if len(lengths) != 1 or not lengths[0]:
                raise BadFile(f"{self.where}: the arrays in column {column!r} are of several sizes, or empty.")
            sizes.append(lengths[0])
            values = values.flatten()
        x = values.to_numpy(zero_copy_only=False).reshape(sizes)
        if x.dtype.kind not in "iu" or (x.size and not 0 <= int(x.min()) <= int(x.max()) <= 255):
            raise BadFile(f"{self.where}: column {column!r} must hold whole numbers 0..255.")
        x = x[..., None] if x.ndim == 3 else x
        x = x.transpose(0, 2, 3, 1) if x.shape[-1] not in (1, 3) and x.shape[1] in (1, 3) else x
        if x.shape[-1] not in (1, 3):
            raise BadFile(f"{self.where}: arrays of shape {tuple(sizes[1:])} in column {column!r} are no pictures.")
        return x.astype(np.uint8)


def settings_in(file: Path) -> dict[str, Any]:
    """What a JSON file holds, which must be names with values."""
    try:
        if file.stat().st_size > MAX_JSON_BYTES:
            raise BadFile(f"{file.name} has {file.stat().st_size} bytes; refused.")
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        if isinstance(error, BadFile):
            raise
        raise BadFile(f"{file.name} of {file.parent.name} cannot be read: {str(error)[:120]}.") from None
    if not isinstance(content, dict):
        raise BadFile(f"{file.name} of {file.parent.name} holds a {type(content).__name__}, not settings.")
    return content


def _batches(reader: Any) -> Iterator[Any]:
    if hasattr(reader, "num_record_batches"):
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)
