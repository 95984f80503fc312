"""Pickled batches of images, read without running anything that the file asks for.

What comes out holds dict, list, tuple, str, bytes, int, float, bool, None and numeric arrays; see `explorer.unpickle`.
"""

from __future__ import annotations

from typing import Any, BinaryIO

import numpy as np

from explorer.errors import BadFile
from explorer.unpickle import ARRAYS, Array, Reader

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
        content = Reader(stream, ARRAYS, "no batch of images", encoding="bytes").load()
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


def _plain(value: Any, seen: dict[int, Any], depth: int = 0) -> Any:
    """The value with arrays in place of their stand-ins; what a file shares among many places is visited once."""
    if isinstance(value, Array):
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
