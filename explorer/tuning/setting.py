"""What is tuned: a sampler and the wrappers around a frozen model, as one value that can be stored, compared and applied."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.models import bundled
from explorer.models.base import Model
from explorer.models.flow_maps import ConsistencyModel
from explorer.models.wrappers import AskedElsewhere, Guided, LayersLeftOut, SkipTuned
from explorer.sampling.samplers import Sampler, sampler_from_dict

Interval = tuple[float, float]
EVERYWHERE: Interval = (0.0, math.inf)


class Wrapper(ABC):
    """A change of a model that costs no training. Finals are frozen dataclasses with a stored form."""

    @abstractmethod
    def wrap(self, model: Model) -> Model:
        """The model so changed; the given one is left as it is."""

    def describe(self) -> str:
        """A few words for a table."""
        return type(self).__name__.lower()

    def to_dict(self) -> dict[str, Any]:
        plain = dataclasses.asdict(self)
        if "interval" in plain:
            plain["interval"] = [None if math.isinf(end) else end for end in plain["interval"]]
        return {"wrapper": next(name for name, cls in WRAPPERS.items() if type(self) is cls), **plain}


@dataclass(frozen=True)
class Skips(Wrapper):
    """Skip features of a U-Net multiplied by one factor each, from the lowest resolution up. Ma et al. 2024, arXiv 2402.15170.

    Args:
        scales: one for every skip connection.
        interval: (low, high) in sigma where they act.
    """

    scales: tuple[float, ...]
    interval: Interval = EVERYWHERE

    def __post_init__(self):
        object.__setattr__(self, "scales", tuple(float(s) for s in self.scales))
        object.__setattr__(self, "interval", _interval(self.interval))

    def wrap(self, model):
        return _inside(model, lambda inner: SkipTuned(inner, self.scales, interval=self.interval))

    def describe(self):
        return "skips " + " ".join(f"{s:.3g}" for s in self.scales) + _where(self.interval)


@dataclass(frozen=True)
class Layers(Wrapper):
    """Blocks of a U-Net left out, others at each noise level; shortcuts stay. Li et al. 2023, arXiv 2309.10438.

    Args: levels: (sigma, numbers of the blocks left out there); a prediction takes the level nearest in ln sigma.
    """

    levels: tuple[tuple[float, tuple[int, ...]], ...]

    def __post_init__(self):
        levels = ((float(sigma), tuple(sorted({int(i) for i in out}))) for sigma, out in self.levels)
        object.__setattr__(self, "levels", tuple(sorted(levels, reverse=True)))

    def wrap(self, model):
        return _inside(model, lambda inner: LayersLeftOut(inner, self.levels))

    def describe(self):
        some = [f"{' '.join(map(str, out))} at σ {sigma:.3g}" for sigma, out in self.levels if out]
        return "without layers " + "; ".join(some) if some else "all layers"


@dataclass(frozen=True)
class Guidance(Wrapper):
    """Guidance away from a worse prediction. Ho & Salimans 2022, arXiv 2207.12598; by a bad model: Karras et al. 2024, arXiv 2406.02507.

    Args:
        scale: 1 means none.
        interval: (low, high) in sigma where it acts, and where it costs a second evaluation.
        guide: name of a bundled model to move away from; "" is the model itself asked without a class.
    """

    scale: float
    interval: Interval = EVERYWHERE
    guide: str = ""

    def __post_init__(self):
        object.__setattr__(self, "interval", _interval(self.interval))

    def wrap(self, model):
        guide = bundled.load(self.guide, _device(model)) if self.guide else None
        return Guided(model, self.scale, guide, self.interval)

    def describe(self):
        return f"guidance {self.scale:.3g}" + (f" by {self.guide}" if self.guide else "") + _where(self.interval)


@dataclass(frozen=True)
class Asked(Wrapper):
    """The model asked at other noise levels than those where its answers are used. Tong et al. 2024, arXiv 2405.15506.

    Args: levels: (sigma, the sigma asked instead); see `AskedElsewhere`.
    """

    levels: tuple[tuple[float, float], ...]

    def __post_init__(self):
        levels = ((float(sigma), float(asked)) for sigma, asked in self.levels)
        object.__setattr__(self, "levels", tuple(sorted(levels, reverse=True)))

    def wrap(self, model):
        return _inside(model, lambda inner: AskedElsewhere(inner, self.levels))

    def describe(self):
        return "asked at " + " ".join(f"{asked:.3g}" for _, asked in self.levels)


WRAPPERS: dict[str, type[Wrapper]] = {"skips": Skips, "guidance": Guidance, "layers": Layers, "asked": Asked}


def wrapper_from_dict(given: dict[str, Any]) -> Wrapper:
    """The wrapper that `to_dict` wrote.

    Raises: UnknownName; BadValue where a field is missing or does not belong.
    """
    fields = dict(given) if isinstance(given, dict) else {}
    name = fields.pop("wrapper", None)
    if name not in WRAPPERS:
        raise UnknownName("wrapper", name, WRAPPERS)
    if "interval" in fields:
        low, high = fields["interval"]
        fields["interval"] = (low, math.inf if high is None else high)
    try:
        return WRAPPERS[name](**fields)
    except TypeError as error:
        raise BadValue(f"this does not describe a wrapper: {error}") from None


@dataclass(frozen=True)
class Setting:
    """A sampler, and what is put around the model before it is sampled: applied from the first wrapper to the last.

    `Setting.from_dict(s.to_dict()) == s`.
    """

    sampler: Sampler
    wrappers: tuple[Wrapper, ...] = ()

    def __post_init__(self):
        object.__setattr__(self, "wrappers", tuple(self.wrappers))

    def on(self, model: Model) -> tuple[Model, Sampler]:
        """The model to sample and the sampler.

        Raises: BadValue where a wrapper does not fit the model.
        """
        for wrapper in self.wrappers:
            model = wrapper.wrap(model)
        return model, self.sampler

    def nfe(self, model: Model) -> int | None:
        """Network evaluations per sample on this bare model, guidance included; None for adaptive steps."""
        return self.sampler.nfe(self.on(model)[0])

    def using(self, wrapper: Wrapper) -> Setting:
        """The same with this wrapper in place of one of its kind, or after the others."""
        kinds = [type(w) for w in self.wrappers]
        if type(wrapper) not in kinds:
            return dataclasses.replace(self, wrappers=(*self.wrappers, wrapper))
        kept = tuple(wrapper if type(w) is type(wrapper) else w for w in self.wrappers)
        return dataclasses.replace(self, wrappers=kept)

    def wrapper(self, kind: type[Wrapper]) -> Wrapper | None:
        """Its wrapper of a kind."""
        return next((w for w in self.wrappers if type(w) is kind), None)

    def to_dict(self) -> dict[str, Any]:
        return {"sampler": self.sampler.to_dict(), "wrappers": [w.to_dict() for w in self.wrappers]}

    @classmethod
    def from_dict(cls, given: dict[str, Any]) -> Setting:
        """Raises UnknownName or BadValue where this describes no setting."""
        try:
            return cls(sampler_from_dict(given["sampler"]), tuple(wrapper_from_dict(w) for w in given["wrappers"]))
        except ExplorerError:
            raise
        except (KeyError, TypeError, ValueError) as error:
            raise BadValue(f"this does not describe a setting: {error!r}") from None

    def key(self) -> str:
        """Short hash of everything in it."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:16]

    def describe(self) -> str:
        """A short name for a table: solver, steps and their noise levels, then what is put around the model."""
        about = self.sampler.to_dict()
        name = about.get("solver", {}).get("name", about["sampler"])
        parts = [name if about["sampler"] in ("ode", name) else f"{about['sampler']} {name}"]
        if "warp" in about:
            parts.append("t " + " ".join(f"{t:.3g}" for t in self.sampler.solver.times))
        if "grid" in about:
            times = about["grid"]["times"]
            shown = times if len(times) <= 14 else [*times[:3], "…", *times[-3:]]
            parts.append(" ".join(t if isinstance(t, str) else f"{t:.3g}" for t in shown))
        return " · ".join([*parts, *(w.describe() for w in self.wrappers)])


def fingerprint(model: Model) -> dict[str, Any]:
    """What tells one model from another: name, shape, class of samples, and a hash of its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name}{array.dtype}{array.shape}".encode() + array.tobytes())
    return {
        "name": model.name,
        "shape": list(model.shape),
        "n_classes": model.n_classes,
        "sha256": digest.hexdigest(),
    }


def _inside(model: Model, wrap: Callable[[Model], Model]) -> Model:
    """A wrapper put around a denoiser, or around the one inside a consistency model."""
    if isinstance(model, ConsistencyModel):
        return ConsistencyModel(wrap(model.inner), name=model.name)
    return wrap(model)


def _where(interval: Interval) -> str:
    return "" if interval == EVERYWHERE else f" for σ in {interval[0]:.3g}–{interval[1]:.3g}"


def _interval(ends) -> Interval:
    low, high = (float(end) for end in ends)
    if not 0 <= low < high:
        raise BadValue(
            f"an interval of sigma runs from a low to a higher end, neither negative; got {low:g} to {high:g}"
        )
    return low, high


def _device(model: Model):
    return next((t.device for t in (*model.parameters(), *model.buffers())), "cpu")
