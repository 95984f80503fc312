"""Pickled batches of images, read without running anything that the file asks for.

A pickle is a program: it may call any function it names. Ours may name eight, the constructors that numpy writes for arrays,
types and numbers, and gets stand-ins of our own for them; anything else is refused by name. What comes out holds dict, list,
tuple, str, bytes, int, float, bool, None and numeric arrays.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from typing import Any, BinaryIO

import numpy as np

from explorer.errors import BadFile

MAX_BYTES = 4 * 2**30
"""A larger file is refused unread; the largest published batch has 1.6e9 bytes."""

_PLAIN = (str, bytes, int, float, bool, type(None), np.ndarray, np.generic)


def read_batch(stream: BinaryIO, name: str) -> dict[str, Any]:
    """The dictionary in a pickled batch, its keys as str.

    Args:
        stream: of the pickle, by Python 2 or 3.
        name: of the file, for messages.
    Raises:
        BadFile: not a pickle, truncated, one that asks for anything but plain data and numeric arrays, or no dictionary.
    """
    try:
        content = _Reader(stream, encoding="bytes").load()
        content = _plain(content, {})
    except BadFile as error:
        raise BadFile(f"{name}: {error}") from None
    except MemoryError:
        raise BadFile(f"{name} asks for more memory than there is.") from None
    except Exception as error:  # a damaged pickle can fail in any way; none of them is worth a traceback
        raise BadFile(f"{name} is not a readable pickled batch: {type(error).__name__}: {str(error)[:120]}.") from None
    if not isinstance(content, dict):
        raise BadFile(f"{name} holds a {type(content).__name__} where a batch is a dictionary.")
    return {key.decode("latin1") if isinstance(key, bytes) else str(key): value for key, value in content.items()}


class _Array:
    """What an array is while it is being read; `_plain` makes it one."""

    __slots__ = ("value",)

    def __init__(self):
        self.value = None

    def __setstate__(self, state):
        _, shape, dtype, fortran, raw = state
        if not isinstance(raw, bytes | bytearray | str):
            raise BadFile("an array of Python objects; only numbers are read.")
        self.value = _filled(raw, dtype, shape, "F" if fortran else "C")


class _Type:
    """A numeric numpy type and its byte order."""

    __slots__ = ("value",)

    def __init__(self, name, *_):
        text = name.decode("ascii") if isinstance(name, bytes) else name
        self.value = np.dtype(text) if isinstance(text, str) and len(text) <= 8 else None
        if self.value is None or self.value.kind not in "uifb" or self.value.shape:
            raise BadFile(f"an array of type {text!r}; only numbers are read.")

    def __setstate__(self, state):
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        if order in ("<", ">"):
            self.value = self.value.newbyteorder(order)


class _Call:
    """A name that a pickle may call, made anew for each mention: a pickle can write attributes of what it is given."""

    __slots__ = ("make",)

    def __init__(self, make: Callable):
        self.make = make

    def __call__(self, *args):
        return self.make(*args)


def _filled(raw: bytes | bytearray | str, dtype: Any, shape: Any, order: str) -> np.ndarray:
    """An array of these bytes; numpy checks that they are as many as the shape says."""
    if not isinstance(dtype, _Type):
        raise BadFile("an array without a type.")
    data = raw.encode("latin1") if isinstance(raw, str) else raw
    shape = (shape,) if isinstance(shape, int) else tuple(int(n) for n in shape)
    if any(n < 0 for n in shape):
        raise BadFile(f"an array of shape {shape}.")
    return np.frombuffer(data, dtype.value).reshape(shape, order=order)


def _empty(_kind, *_ignored):
    return _Array()


def _number(dtype, raw=None):
    return _filled(raw, dtype, (1,), "C")[0]


def _from_buffer(raw, dtype, shape, order):
    return _filled(bytes(raw), dtype, shape, order if order in ("C", "F") else "C")


def _encode(text, encoding="latin1"):
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Callable[[], Any]] = {
    ("numpy", "ndarray"): lambda: "ndarray",  # only ever the first argument of _reconstruct
    ("numpy", "dtype"): lambda: _Call(_Type),
    ("_codecs", "encode"): lambda: _Call(_encode),  # bytes, as Python 3 writes them for Python 2
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray", "_reconstruct"] = lambda: _Call(_empty)
    _ALLOWED[f"{_core}.multiarray", "scalar"] = lambda: _Call(_number)
    _ALLOWED[f"{_core}.numeric", "_frombuffer"] = lambda: _Call(_from_buffer)


class _Reader(pickle._Unpickler):
    """The reader written in Python: the one in C takes memory for numbers and lengths that a damaged file merely claims."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def load_bytearray8(self):
        (size,) = struct.unpack("<Q", self.read(8))
        if size > MAX_BYTES:
            raise BadFile(f"it claims {size} bytes in one piece.")
        self.append(bytearray(self.read(size)))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray8

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise BadFile(f"it asks to run {module}.{name}, which no batch of images needs; nothing was run.")
        return _ALLOWED[module, name]()


def _plain(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """The value with arrays in place of their stand-ins; what a file shares among many places is visited once."""
    if isinstance(value, _Array):
        if value.value is None:
            raise BadFile("an array without content.")
        return value.value
    if not isinstance(value, dict | list | tuple):
        if not isinstance(value, _PLAIN):
            raise BadFile(f"it holds a {type(value).__name__}.")
        return value
    if depth > 4:
        raise BadFile("it is nested more than four levels deep.")
    if id(value) not in seen:
        if isinstance(value, dict):
            seen[id(value)] = {key: _plain(v, seen, depth + 1) for key, v in value.items()}
        else:
            kept = value if all(type(v) is int for v in value) else [_plain(v, seen, depth + 1) for v in value]
            seen[id(value)] = tuple(kept) if isinstance(value, tuple) else kept
    return seen[id(value)]
