"""Pickles read without running anything that the file asks for.

A pickle is a program: it may call any function it names. A `Reader` has a table of the few names that a file of its kind needs,
with stand-ins of our own for them; anything else is refused by name. `ARRAYS` are those of numpy's arrays, types and numbers.
"""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from explorer.errors import BadFile

MAX_BYTES = 16 * 2**30
"""What a file may claim of memory in one piece; no published checkpoint is that large."""

_KEYS = (str, bytes, int, float, bool, type(None))


class Array:
    """What an array is while it is being read; `value` is None until its content has come."""

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


class Named:
    """Something a pickle may name but not call: a type that stands as an argument."""

    __slots__ = ("text",)

    def __init__(self, text: str):
        self.text = text


class Call:
    """A name that a pickle may call, made anew for each mention: a pickle can write attributes of what it is given."""

    __slots__ = ("make",)

    def __init__(self, make: Callable):
        self.make = make

    def __call__(self, *args):
        return self.make(*args)


Allowed = Mapping[tuple[str, str], Callable[[], Any]]
"""(module, name) -> what makes the stand-in."""


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
    return Array()


def _number(dtype, raw=None):
    return _filled(raw, dtype, (1,), "C")[0]


def _from_buffer(raw, dtype, shape, order):
    return _filled(bytes(raw), dtype, shape, order if order in ("C", "F") else "C")


def _encode(text, encoding="latin1"):
    return text.encode("latin1")


ARRAYS: dict[tuple[str, str], Callable[[], Any]] = {
    ("numpy", "ndarray"): lambda: Named("ndarray"),  # only ever the first argument of _reconstruct
    ("numpy", "dtype"): lambda: Call(_Type),
    ("_codecs", "encode"): lambda: Call(_encode),  # bytes, as Python 3 writes them for Python 2
}
for _core in ("numpy.core", "numpy._core"):
    ARRAYS[f"{_core}.multiarray", "_reconstruct"] = lambda: Call(_empty)
    ARRAYS[f"{_core}.multiarray", "scalar"] = lambda: Call(_number)
    ARRAYS[f"{_core}.numeric", "_frombuffer"] = lambda: Call(_from_buffer)


class Reader(pickle._Unpickler):
    """The reader written in Python: the one in C takes memory for numbers and lengths that a damaged file merely claims.

    Args:
        stream: with read and readline.
        allowed: the names the pickle may use.
        needed_by: what such a file is, for the message about any other name.
        persistent: makes an object of a persistent id; None refuses them.
    """

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(
        self,
        stream: Any,
        allowed: Allowed,
        needed_by: str,
        *,
        persistent: Callable[[Any], Any] | None = None,
        encoding: str = "ASCII",
    ):
        super().__init__(stream, encoding=encoding)
        self.allowed, self.needed_by, self.persistent = allowed, needed_by, persistent

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise BadFile(f"it asks to run {module}.{name}, which {self.needed_by} needs; nothing was run.")
        return self.allowed[module, name]()

    def get_extension(self, code: int) -> Any:
        raise BadFile(f"it asks for extension {code} of the pickle registry, which {self.needed_by} needs.")

    def persistent_load(self, pid: Any) -> Any:
        if self.persistent is None:
            raise BadFile("it points at something outside of itself.")
        return self.persistent(pid)

    def load_bytearray8(self):
        (size,) = struct.unpack("<Q", self.read(8))
        if size > MAX_BYTES:
            raise BadFile(f"it claims {size} bytes in one piece.")
        self.append(bytearray(self.read(size)))

    def load_reduce(self):
        args = self.stack.pop()
        self.stack[-1] = self._called(self.stack[-1], args)

    def load_newobj(self):
        args = self.stack.pop()
        self.append(self._called(self.stack.pop(), args))

    def _called(self, function: Any, args: Any) -> Any:
        if not isinstance(function, Call) or not isinstance(args, tuple):
            raise pickle.UnpicklingError(f"calls a {type(function).__name__}")
        return function(*args)

    def load_build(self):
        state = self.stack.pop()
        if not hasattr(type(self.stack[-1]), "__setstate__"):
            raise pickle.UnpicklingError(f"sets attributes of a {type(self.stack[-1]).__name__}")
        self.stack[-1].__setstate__(state)

    def load_setitem(self):
        _check_keys(self.stack[-2:-1])
        super().load_setitem()

    def load_setitems(self):
        _check_keys(self.stack[::2])
        super().load_setitems()

    def load_dict(self):
        _check_keys(self.stack[::2])
        super().load_dict()

    def load_additems(self):
        _check_keys(self.stack)
        super().load_additems()

    def load_frozenset(self):
        _check_keys(self.stack)
        super().load_frozenset()

    def _refused(self):
        raise pickle.UnpicklingError("makes an instance of a class")

    for _code, _method in {
        pickle.BYTEARRAY8: load_bytearray8,
        pickle.REDUCE: load_reduce,
        pickle.NEWOBJ: load_newobj,
        pickle.NEWOBJ_EX: _refused,
        pickle.INST: _refused,
        pickle.OBJ: _refused,
        pickle.BUILD: load_build,
        pickle.SETITEM: load_setitem,
        pickle.SETITEMS: load_setitems,
        pickle.DICT: load_dict,
        pickle.ADDITEMS: load_additems,
        pickle.FROZENSET: load_frozenset,
    }.items():
        dispatch[_code[0]] = _method
    del _code, _method


def _check_keys(keys: list) -> None:
    """Tuples of tuples of tuples take for ever to hash, and nothing that we read has them as keys."""
    for key in keys:
        if not isinstance(key, _KEYS) and not (isinstance(key, tuple) and all(isinstance(k, _KEYS) for k in key)):
            raise pickle.UnpicklingError(f"a {type(key).__name__} as a key")
