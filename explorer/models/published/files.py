"""What a checkpoint file holds, read without running anything that it asks for: torch's archives and pickled networks.

Dictionaries, lists, numbers and text come out as they are, a tensor as `Stored` (its values are read when they are wanted), and an
instance of a class as `Module`: its name and its attributes, never the source text that some files carry along.
"""

from __future__ import annotations

import contextlib
import io
import math
import mmap
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from explorer.errors import BadFile
from explorer.unpickle import ARRAYS, Array, Call, Named, Reader

MAX_BYTES = 32 * 2**30
MAX_PICKLE = 256 * 2**20
"""Of the pickle in an archive, which holds names and shapes only."""
MAX_MODULES, MAX_DEPTH = 100_000, 32

LEGACY = 0x1950A86A20F9469CFC6C
"""With which torch's format before version 1.6 begins."""

DTYPES = {
    "Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16,
    "Long": torch.int64, "Int": torch.int32, "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8,
    "Bool": torch.bool,
}  # fmt: skip


@dataclass
class Storage:
    """A run of numbers in a file; `read` gives its bytes."""

    dtype: torch.dtype
    numel: int
    read: Callable[[], bytes | memoryview] | None = None


@dataclass(frozen=True)
class Stored:
    """A tensor in a file, not yet read."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """Its values, contiguous, in the type of the file.

        Raises:
            BadFile: the file has fewer numbers than it says.
        """
        if self.storage.read is None:
            raise BadFile("it describes a tensor whose numbers it does not hold.")
        raw, dtype = memoryview(self.storage.read()), self.storage.dtype
        if len(raw) != self.storage.numel * dtype.itemsize:
            raise BadFile(
                f"a tensor's numbers take {len(raw)} bytes where {self.storage.numel} of {dtype} are described."
            )
        if 0 in self.shape:
            return torch.empty(self.shape, dtype=dtype)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        own = bytearray(raw[self.offset * dtype.itemsize : (last + 1) * dtype.itemsize])
        return torch.frombuffer(own, dtype=dtype).as_strided(self.shape, self.stride).contiguous()


class Module:
    """An instance of a class in a pickle, taken apart: the name of the class and its attributes."""

    __slots__ = ("kind", "state")

    def __init__(self, kind: str, state: dict | None = None):
        self.kind, self.state = kind, state or {}

    def __setstate__(self, state):
        if not isinstance(state, dict):
            raise BadFile(f"a {self.kind} without attributes.")
        self.state = state

    def attribute(self, name: str, default: Any = None) -> Any:
        value = self.state.get(name, default)
        return value.value if isinstance(value, Array) else value

    def tensors(self) -> dict[str, Stored]:
        """Name -> parameter or saved buffer, in the order of torch's `state_dict`."""
        budget = iter(range(MAX_MODULES))
        return dict(self._tensors("", 0, budget))

    def _tensors(self, prefix: str, depth: int, budget: Iterator[int]) -> Iterator[tuple[str, Stored]]:
        if depth > MAX_DEPTH or next(budget, None) is None:
            raise BadFile(f"a network of more than {MAX_MODULES} parts or nested deeper than {MAX_DEPTH}.")
        unsaved = self.state.get("_non_persistent_buffers_set") or ()
        parts = [self._of(name, dict) for name in ("_parameters", "_buffers", "_modules")]
        for group, skipped in ((parts[0], ()), (parts[1], unsaved)):
            for name, value in group.items():
                if value is None or name in skipped:
                    continue
                if not isinstance(value, Stored):
                    raise BadFile(f"{prefix}{name} of its network is a {type(value).__name__}, not a tensor.")
                yield f"{prefix}{name}", value
        for name, value in parts[2].items():
            if value is None:
                continue
            if not isinstance(value, Module):
                raise BadFile(f"{prefix}{name} of its network is a {type(value).__name__}, not a layer.")
            yield from value._tensors(f"{prefix}{name}.", depth + 1, budget)

    def _of(self, name: str, kind: type) -> Any:
        value = self.state.get(name)
        if value is not None and not isinstance(value, kind):
            raise BadFile(f"{name} of a {self.kind} is a {type(value).__name__}.")
        return value or {}


class Dict(dict):
    """An ordered or an attribute dictionary; what a file adds to it besides its items is left out."""

    def __setstate__(self, state):
        pass


@dataclass
class _Type:
    dtype: torch.dtype


@dataclass
class _Reading:
    """One file while it is read: its name tables are made from this, since nested streams need the outer one."""

    nested: bool = False
    later: dict[str, Storage] = field(default_factory=dict)

    def allowed(self) -> dict[tuple[str, str], Callable[[], Any]]:
        def call(function):
            return lambda: Call(function)

        table = {
            **ARRAYS,
            ("collections", "OrderedDict"): call(_dict),
            ("dnnlib.util", "EasyDict"): call(_dict),
            ("torch._utils", "_rebuild_tensor_v2"): call(_tensor),
            ("torch._utils", "_rebuild_tensor"): call(_tensor),
            ("torch._utils", "_rebuild_parameter"): call(lambda data, *_: data),
            ("torch", "Size"): call(lambda sizes: tuple(sizes)),
            ("torch", "device"): call(lambda *_: None),
            ("torch.storage", "_load_from_bytes"): call(self.embedded),
            ("torch.storage", "UntypedStorage"): lambda: _Type(torch.uint8),
            ("torch_utils.persistence", "_reconstruct_persistent_obj"): call(_persistent),
        }
        for kind in ("ModuleDict", "ModuleList", "Sequential"):
            table["torch.nn.modules.container", kind] = call(lambda *_, kind=kind: Module(kind))
        for name, dtype in DTYPES.items():
            table["torch", f"{name}Storage"] = lambda dtype=dtype: _Type(dtype)
            table["torch", str(dtype).removeprefix("torch.")] = lambda name=name: Named(name)
        for builtin in ("builtins", "__builtin__"):
            table[builtin, "set"] = call(_set)
        return table

    def pickle(self, stream: Any, persistent: Callable[[Any], Any] | None = None) -> Any:
        return Reader(stream, self.allowed(), "no published checkpoint", persistent=persistent).load()

    def embedded(self, raw: Any) -> Storage:
        """The numbers of a tensor in a pickled network: torch's older format once more, as bytes."""
        if self.nested or not isinstance(raw, bytes):
            raise BadFile("a stream within a stream within a stream.")
        inner = _Reading(nested=True)
        stream = io.BytesIO(raw)
        if inner.pickle(stream) != LEGACY:
            raise BadFile("the numbers of a tensor are in no format of torch's.")
        storage = inner.legacy(stream, memoryview(raw))
        if not isinstance(storage, Storage):
            raise BadFile(f"a {type(storage).__name__} in place of a tensor's numbers.")
        return storage

    def legacy(self, stream: Any, whole: memoryview | mmap.mmap) -> Any:
        """The object after the first word of torch's older format; its numbers follow it in the stream."""
        if self.pickle(stream) != 1001:
            raise BadFile("a protocol of torch's that is not 1001.")
        system = self.pickle(stream)
        if not isinstance(system, dict) or system.get("little_endian") is not True:
            raise BadFile("it was written on a big-endian machine, or does not say.")
        content = self.pickle(stream, self.storage_later)
        keys = self.pickle(stream)
        if not isinstance(keys, list) or set(map(str, keys)) != set(self.later):
            raise BadFile("the list of its tensors is not that of its content.")
        for key in map(str, keys):
            storage = self.later[key]
            head = stream.read(8)
            count = struct.unpack("<q", head)[0] if len(head) == 8 else -1
            begin, size = stream.tell(), count * storage.dtype.itemsize
            if count != storage.numel or begin + size > len(whole):
                raise BadFile(f"it is cut short: tensor {key} of {storage.numel} numbers is not all there.")
            storage.read = lambda begin=begin, end=begin + size: whole[begin:end]
            stream.seek(begin + size)
        return content

    def storage_later(self, pid: Any) -> Storage:
        dtype, key, numel = _described(pid)
        storage = self.later.setdefault(key, Storage(dtype, numel))
        if (storage.dtype, storage.numel) != (dtype, numel):
            raise BadFile(f"it describes tensor {key} in two ways.")
        return storage

    def archive(self, file: Path, held: contextlib.ExitStack) -> Any:
        """The object in a zip archive of torch's."""
        try:
            archive = held.enter_context(zipfile.ZipFile(file))
        except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
            raise BadFile(f"it is a damaged or incomplete archive: {error}.") from None
        members = {info.filename: info for info in archive.infolist()}
        if any("/code/" in name or name.endswith("constants.pkl") for name in members):
            raise BadFile("it is a TorchScript program; only weights are read.")
        [inside, *others] = [name for name in members if name.rpartition("/")[2] == "data.pkl"] or [None]
        if inside is None or others:
            raise BadFile("it is a zip archive but none of torch's: it has no single data.pkl.")
        prefix = inside.removesuffix("data.pkl")
        for info in members.values():
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise BadFile(f"{info.filename} in it is compressed or encrypted, which torch never does.")
            if info.file_size != info.compress_size or info.file_size > MAX_BYTES:
                raise BadFile(f"{info.filename} in it claims {info.file_size} bytes and has {info.compress_size}.")

        def read(name: str) -> bytes:
            try:
                return archive.read(members[name])
            except (zipfile.BadZipFile, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
                raise BadFile(f"{name} in it cannot be read: {error}.") from None

        if members[inside].file_size > MAX_PICKLE:
            raise BadFile(f"its list of tensors takes {members[inside].file_size} bytes.")
        order = prefix + "byteorder"
        if order in members and (members[order].file_size > 16 or read(order) != b"little"):
            raise BadFile("it was written on a big-endian machine.")

        def persistent(pid: Any) -> Storage:
            dtype, key, numel = _described(pid)
            name = f"{prefix}data/{key}"
            if name not in members:
                raise BadFile(f"it points at tensor data {key!r}, which it does not hold.")
            if members[name].file_size != numel * dtype.itemsize:
                raise BadFile(
                    f"{name} in it has {members[name].file_size} bytes where {numel} numbers of {dtype} are described."
                )
            return Storage(dtype, numel, lambda: read(name))

        return self.pickle(io.BytesIO(read(inside)), persistent)


@contextlib.contextmanager
def opened(file: Path) -> Iterator[Any]:
    """The content of a checkpoint; its tensors can be read inside this block only.

    Raises:
        BadFile: not there, not a checkpoint, incomplete, or one that asks for anything but weights and plain data.
    """
    with contextlib.ExitStack() as held:
        try:
            yield _content(file, held)
        except BadFile as error:
            raise BadFile(f"{file.name}: {error}") from None
        except MemoryError:
            raise BadFile(f"{file.name} asks for more memory than there is.") from None


def _content(file: Path, held: contextlib.ExitStack) -> Any:
    try:
        stream = held.enter_context(file.open("rb"))
        size = file.stat().st_size
        head = stream.read(4)
        if size > MAX_BYTES:
            raise BadFile(f"it has {size / 2**30:.0f} GiB; no published checkpoint of a kind known here is as large.")
        if size < 16:
            raise BadFile(f"it has {size} bytes: no checkpoint; fetch it again.")
        if head == b"PK\x03\x04":
            return _Reading().archive(file, held)
        if head[:1] != b"\x80":
            raise BadFile("it begins like no checkpoint known here: neither a torch archive nor a pickle.")
        whole = held.enter_context(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
        reading = _Reading()
        first = reading.pickle(whole, reading.storage_later)
        return reading.legacy(whole, whole) if type(first) is int and first == LEGACY else first
    except BadFile:
        raise
    except OSError as error:
        raise BadFile(f"it cannot be read: {error.strerror or error}.") from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way; none of them is worth a traceback
        raise BadFile(f"it is damaged or incomplete ({type(error).__name__}: {str(error)[:120]}).") from None


def _described(pid: Any) -> tuple[torch.dtype, str, int]:
    """Type, key and length of what a persistent id points at."""
    if not isinstance(pid, tuple) or len(pid) not in (5, 6) or pid[0] != "storage" or not isinstance(pid[1], _Type):
        raise BadFile("it points at something that is no tensor.")
    if len(pid) == 6 and pid[5] is not None:
        raise BadFile("it holds tensors that are views of one another, which torch has not written for years.")
    key, numel = pid[2], pid[4]
    if not isinstance(key, str) or not isinstance(numel, int) or not 0 <= numel <= MAX_BYTES:
        raise BadFile(f"it describes tensor data of {numel!r} numbers.")
    return pid[1].dtype, key, numel


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Stored:
    if not isinstance(storage, Storage) or not all(isinstance(v, tuple | list) for v in (size, stride)):
        raise BadFile("a tensor without numbers or shape.")
    if (
        len(size) != len(stride)
        or len(size) > 8
        or not all(type(n) is int and n >= 0 for n in (offset, *size, *stride))
    ):
        raise BadFile(f"a tensor of shape {tuple(size)!r}, steps {tuple(stride)!r}.")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= storage.numel or math.prod(size) > storage.numel):
        raise BadFile(f"a tensor of shape {tuple(size)} in {storage.numel} numbers.")
    return Stored(storage, offset, tuple(size), tuple(stride))


def _dict(items: Any = ()) -> Dict:
    out = Dict()
    for item in items.items() if isinstance(items, dict) else items:
        key, value = item
        if not isinstance(key, str | int):
            raise BadFile(f"a {type(key).__name__} as a key.")
        out[key] = value
    return out


def _set(items: Any = ()) -> set:
    if not all(isinstance(item, str | int) for item in items):
        raise BadFile("a set of anything but names.")
    return set(items)


def _persistent(meta: Any) -> Module:
    """An instance that was saved with the source text of its class. The text is dropped, unread."""
    if not isinstance(meta, dict) or meta.get("type") != "class" or not isinstance(meta.get("class_name"), str):
        raise BadFile("an instance of a class without its name.")
    if not isinstance(meta.get("state"), dict):
        raise BadFile(f"an instance of {meta['class_name'][:60]} without attributes.")
    return Module(meta["class_name"], meta["state"])
