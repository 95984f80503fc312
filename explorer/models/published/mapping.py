"""From the tensors of a file to those of a network, every one accounted for.

A format is a table: which of its layers stands for which of ours (`Part`), and what is done to the numbers on the way.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from explorer.errors import BadFile
from explorer.models.published.files import Stored

Change = Callable[[list[Tensor], nn.Module, nn.Module], Tensor]
"""(tensors of the file, our layer, the module it is part of) -> the tensor of our layer."""

WEIGHTS = {"weight": "weight", "bias": "bias"}


@dataclass(frozen=True)
class Part:
    """What stands in a file for one of our layers.

    Args:
        names: of its layers, relative to where the block is.
        change: of the numbers; None where at most dimensions of length one differ.
        does: `change` in a word, for the report.
        leaves: our tensor -> theirs, within a layer.
    """

    names: tuple[str, ...]
    change: Change | None = None
    does: str = ""
    leaves: Mapping[str, str] = field(default_factory=lambda: WEIGHTS)


@dataclass(frozen=True)
class Row:
    """Fate of one of our tensors, or of one of the file's that is none of ours (`target` is "")."""

    target: str
    sources: tuple[str, ...]
    how: str


@dataclass(frozen=True)
class Report:
    """What became of every tensor of a file."""

    rows: tuple[Row, ...]

    def counts(self) -> dict[str, int]:
        """How many rows have each fate, as "renamed": 427."""
        return dict(Counter(row.how for row in self.rows))

    @property
    def n_sources(self) -> int:
        return len({name for row in self.rows for name in row.sources})

    def to_dict(self) -> dict[str, Any]:
        return {
            "counts": self.counts(),
            "n_tensors": self.n_sources,
            "rows": [{"target": r.target, "sources": list(r.sources), "how": r.how} for r in self.rows],
        }


@dataclass(frozen=True)
class Checked:
    """A tensor of the file that our network computes: it must have this value, else the file is another's."""

    value: Callable[[Tensor], Tensor | None]
    why: str = "constant, as expected"
    rtol: float = 1e-4


def fill(
    net: nn.Module,
    wanted: Mapping[str, tuple[Part, tuple[str, ...]]],
    tensors: Mapping[str, Stored | Tensor],
    checked: Mapping[str, Checked] | None = None,
    progress: Callable[[float], object] | None = None,
) -> Report:
    """Give the network, made on the meta device, the numbers of a file.

    Args:
        wanted: our tensor -> its part and the names of the file's tensors.
        tensors: all that the file holds.
        checked: those of them that have no place in the network.
    Raises:
        BadFile: a tensor that is missing, left over, of another shape, or not finite.
    """
    checked, modules = checked or {}, dict(net.named_modules())
    ours = net.state_dict()
    used = {name for _, names in wanted.values() for name in names} | set(checked)
    _compare(
        missing=[n for _, names in wanted.values() for n in names if n not in tensors],
        left=[n for n in tensors if n not in used],
    )
    unwritten = [key for key in ours if key not in wanted]
    assert not unwritten, f"no rule for {unwritten[:3]}"
    rows, filled = [], {}
    for i, (key, (part, names)) in enumerate(wanted.items()):
        values = [_value(name, tensors[name]) for name in names]
        value, does = _changed(part, values, modules, key)
        if value.shape != ours[key].shape:
            raise BadFile(
                f"{', '.join(names)} of shape {_shapes(values)} cannot be {key}, which has {tuple(ours[key].shape)}: "
                "the file is of another network than its own description says."
            )
        filled[key] = value.float().contiguous()
        same = names == (key,)
        rows.append(Row(key, names, does or ("same name" if same else "renamed")))
        if progress is not None:
            progress((i + 1) / len(wanted))
    for name, check in checked.items():
        value = _value(name, tensors[name]).double()
        expected = check.value(value)
        if expected is not None and (
            expected.shape != value.shape or not torch.allclose(value, expected.double(), rtol=check.rtol, atol=1e-6)
        ):
            raise BadFile(f"{name} is not what this kind of network computes with; the file is of another kind.")
        rows.append(Row("", (name,), check.why))
    net.load_state_dict(filled, assign=True)
    return Report(tuple(rows))


def _changed(part: Part, values: list[Tensor], modules: Mapping[str, nn.Module], key: str) -> tuple[Tensor, str]:
    name, _, leaf = key.rpartition(".")
    layer = modules[name]
    if part.change is None:
        value = values[0]
        wanted = getattr(layer, leaf).shape
        if value.shape != wanted and [n for n in value.shape if n > 1] == [n for n in wanted if n > 1]:
            return value.reshape(wanted), "reshaped"
        return value, ""
    try:
        return part.change(values, layer, modules[name.rpartition(".")[0]]), part.does
    except RuntimeError:
        raise BadFile(f"tensors of shape {_shapes(values)} cannot be {key}.") from None


def _value(name: str, stored: Stored | Tensor) -> Tensor:
    value = stored.tensor() if isinstance(stored, Stored) else stored
    if not value.is_floating_point():
        raise BadFile(f"{name} holds {value.dtype}, not weights.")
    if not bool(torch.isfinite(value).all()):
        raise BadFile(
            f"{name} contains NaN or infinity: the training it comes from had diverged, or the file is damaged."
        )
    return value


def _shapes(values: list[Tensor]) -> str:
    return ", ".join(str(tuple(v.shape)) for v in values)


def _compare(missing: list[str], left: list[str]) -> None:
    if missing or left:
        parts = [
            f"{len(names)} {what} ({', '.join(names[:4])}{', ...' if len(names) > 4 else ''})"
            for what, names in (("missing", missing), ("left over", left))
            if names
        ]
        raise BadFile(f"its tensors are not those of the network that it describes: {' and '.join(parts)}.")


def wanted(
    net: nn.Module, tops: Mapping[str, Part], parts: Mapping[str, Part], places: Mapping[str, tuple[str, str]]
) -> dict[str, tuple[Part, tuple[str, ...]]]:
    """Our tensors with the part and the names that a format has for them.

    Args:
        tops: our layers outside of blocks -> their part, names in full.
        parts: our layers inside a block, "conv0" or "attention.qkv" -> their part, names relative to the block.
        places: our block, "encoder.8x8_block0" -> the file's block and its attention (each "" or with a dot at its end).
    """
    out = {}
    for key in net.state_dict():
        layer, _, leaf = key.rpartition(".")
        if layer in tops:
            part, place = tops[layer], ""
        else:
            block = ".".join(layer.split(".")[:2])
            inner = layer[len(block) + 1 :]
            part, place = parts[inner], places[block][inner.startswith("attention.")]
        names = tuple(
            f"{place}{name}.{part.leaves[leaf]}" if name else f"{place}{part.leaves[leaf]}" for name in part.names
        )
        out[key] = part, names
    return out


def heads_last(values: list[Tensor], layer: nn.Module, parent: nn.Module) -> Tensor:
    """Queries, keys and values interleaved, (heads, features, 3), to ours, (3, heads, features)."""
    return _regrouped(values[0], parent.heads, (-1, 3), (2, 0, 1))


def heads_first(values: list[Tensor], layer: nn.Module, parent: nn.Module) -> Tensor:
    """(heads, 3, features) to (3, heads, features)."""
    return _regrouped(values[0], parent.heads, (3, -1), (1, 0, 2))


def _regrouped(value: Tensor, heads: int, inner: tuple[int, int], order: tuple[int, int, int]) -> Tensor:
    rest = value.shape[1:]
    shape = (heads, *(n if n > 0 else len(value) // (3 * heads) for n in inner))
    return value.reshape(*shape, math.prod(rest)).permute(*order, 3).reshape(len(value), *_conv(rest))


def _conv(rest: tuple[int, ...]) -> tuple[int, ...]:
    """What follows the rows of a 1x1 convolution: (C, 1, 1) for weights, () for biases."""
    return (rest[0], 1, 1) if rest else ()


def joined(values: list[Tensor], layer: nn.Module, parent: nn.Module) -> Tensor:
    """Three linear maps as one 1x1 convolution."""
    value = torch.cat(values)
    return value.reshape(len(value), *_conv(value.shape[1:]))


def transposed(values: list[Tensor], layer: nn.Module, parent: nn.Module) -> Tensor:
    """Maps stored as (in, out), one or several, as one (out, in) or 1x1 convolution; biases as they are."""
    value = torch.cat([v.T if v.ndim == 2 else v for v in values])
    return value.reshape(len(value), *_conv(value.shape[1:])) if isinstance(layer, nn.Conv2d) else value


def first_rows(values: list[Tensor], layer: nn.Module, parent: nn.Module) -> Tensor:
    """The mean of a network that also predicts a variance."""
    return values[0][: layer.out_channels]


def radians(values: list[Tensor], layer: nn.Module, parent: nn.Module) -> Tensor:
    """Frequencies in cycles as angular ones."""
    return values[0].double() * (2 * math.pi)
