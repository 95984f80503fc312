"""What a file is found to be before its numbers are read: a network of ours, how to fill it, and what its output means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.models.base import Model, Preconditioned
from explorer.models.flow_maps import ConsistencyModel
from explorer.models.published.files import Stored
from explorer.models.published.mapping import Checked, Part, Report, fill
from explorer.nets.edm_unet import EDMUNet
from explorer.process.paths import EDM, VP, Linear, Path
from explorer.process.precondition import (
    ConsistencyPrecondition,
    DDPMPrecondition,
    EDMPrecondition,
    EpsPrecondition,
    FlowPrecondition,
    Precondition,
    VEPrecondition,
)

Wanted = dict[str, tuple[Part, tuple[str, ...]]]
Progress = Callable[[float, str], object]


@dataclass(frozen=True)
class Process:
    """What a network's output means and where: the path, the preconditioning, the range of noise levels.

    Args:
        frequency: factor between our c_noise and what the network was shown, which its embedding takes up.
    """

    path: Path
    precondition: Precondition
    sigma_range: tuple[float, float]
    consistency: bool = False
    frequency: float = 1.0


def _ddpm(**options: Any) -> Process:
    precondition = DDPMPrecondition(**options)
    levels = precondition.levels()
    return Process(EDM(), precondition, (float(levels[0]), float(levels[-1])))


def _flow() -> Process:
    path = Linear()
    return Process(path, FlowPrecondition(999.0, backward=True), (path.ratio_at(1e-4), path.ratio_at(0.999)))


def _vp() -> Process:
    path = VP()
    return Process(path, EpsPrecondition(999.0), (path.ratio_at(1e-5), path.ratio_at(1.0)))


PROCESSES: dict[str, Callable[[], Process]] = {
    "edm": lambda: Process(EDM(), EDMPrecondition(), (0.002, 80.0)),
    "edm-1000": lambda: Process(EDM(), EDMPrecondition(), (0.002, 80.0), frequency=1000.0),
    "consistency": lambda: Process(EDM(), ConsistencyPrecondition(), (0.002, 80.0), True, frequency=1000.0),
    "ddpm-linear": _ddpm,
    "ddpm-scaled": lambda: _ddpm(betas="scaled_linear"),
    "ddpm-cosine": lambda: _ddpm(betas="cosine"),
    "vp": _vp,
    "ve": lambda: Process(EDM(), VEPrecondition(), (0.02, 100.0)),
    "flow": _flow,
}
"""What the weights alone do not say, by name. "edm-1000" is EDM's with the noise level as 1000 ln(sigma)/4, as openai trained it."""


def process_named(name: str) -> Process:
    if name not in PROCESSES:
        raise UnknownName("process", name, PROCESSES)
    return PROCESSES[name]()


@dataclass(frozen=True)
class Plan:
    """A file understood.

    Args:
        format: of the file, in a word or two.
        config: of the network, `make(**config)`.
        tensors: all that the file holds of the network.
        wanted: the rules that fill it; see `mapping.wanted`.
        process: what its output means.
        checked: tensors that are constants of the network.
        facts: for the card.
        assumed: what the file does not say and was taken for granted, a sentence each.
        unused: parts of the file that were not read.
    """

    format: str
    config: dict[str, Any]
    tensors: Mapping[str, Stored | Tensor]
    wanted: Callable[[nn.Module], Wanted]
    process: Process
    checked: Mapping[str, Checked] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    make: type[nn.Module] = EDMUNet

    def built(self, progress: Progress | None = None) -> tuple[Model, Report]:
        """The model with the numbers of the file, in evaluation mode, and what became of every tensor.

        Raises:
            BadFile: the description does not fit together, or the tensors do not fit it.
        """
        try:
            with torch.device("meta"):
                net = self.make(**self.config)
        except (BadValue, ValueError, TypeError, ArithmeticError) as error:
            raise BadFile(f"it describes a network that cannot be: {error}") from None
        show = None if progress is None else lambda share: progress(share, "reading weights")
        report = fill(net, self.wanted(net), self.tensors, self.checked, show)
        net.to(memory_format=getattr(net, "memory_format", torch.contiguous_format))
        path, (low, high) = self.process.path, self.process.sigma_range
        model: Model = Preconditioned(
            net, path, self.process.precondition, shape=tuple(self.config["shape"]), n_classes=self.config["n_classes"],
            t_range=(path.time_at(low), path.time_at(high)),
        )  # fmt: skip
        if self.process.consistency:
            model = ConsistencyModel(model)
        return model.eval().requires_grad_(False), report


def shape_of(tensors: Mapping[str, Stored | Tensor], name: str) -> tuple[int, ...]:
    """Of a tensor that must be there, with at least one number along every dimension."""
    if name not in tensors:
        raise BadFile(f"{name} is missing, which every file of this format has.")
    shape = tuple(tensors[name].shape)
    if 0 in shape:
        raise BadFile(f"{name} is empty, of shape {shape}.")
    return shape


def width(tensors: Mapping[str, Stored | Tensor], name: str, axis: int) -> int:
    """Length of one axis of a tensor that must be there."""
    shape = shape_of(tensors, name)
    if axis >= len(shape):
        raise BadFile(f"{name} has {len(shape)} dimensions, too few for what it is.")
    return shape[axis]


def multiples(widths: list[int], base: int) -> list[float]:
    """Widths in units of the base, whole ones as int."""
    return [w // base if w % base == 0 else w / base for w in widths]


def indices(names: Mapping[str, Any], prefix: str) -> int:
    """How many numbered layers begin with a prefix: one more than the highest number."""
    found = {head for n in names if n.startswith(prefix) and (head := n[len(prefix) :].split(".")[0]).isdigit()}
    highest = max((int(n) for n in found if len(n) < 6), default=-1)
    if len(found) != highest + 1:
        raise BadFile(f"{prefix}* skips a number: it has {len(found)} layers up to {highest}.")
    return highest + 1


def sized(size: int) -> int:
    if not 1 <= size <= 4096:
        raise BadFile(f"images of {size} pixels a side are not what any published network makes.")
    return size
