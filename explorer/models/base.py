"""A network made to mean something: the interfaces of denoisers and flow maps, and the final forms of the former.

Time is the model's own path's; `t` is a number (the inner loop of a solver: one fused affine map with cached Python-float coefficients,
state in the solver's dtype, network in its own) or a tensor (B,) (training, arbitrary queries).
"""

from __future__ import annotations

import inspect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache
from types import MappingProxyType
from typing import Any, get_args

import torch
from torch import Tensor, nn

from explorer.errors import BadValue, UnknownName
from explorer.process.broadcast import like
from explorer.process.oracles import GaussianMixture
from explorer.process.paths import EDM, Kind, Path, Time
from explorer.process.precondition import Precondition

Cond = Tensor | None
"""Class labels (B,) int64; -1 stands for no class. None: no class for the whole batch."""


class Model(nn.Module, ABC):
    """What denoisers and flow maps have in common: a path, a shape, a range of times, and a count of network evaluations.

    Attributes:
        path: the path whose states x_t the model takes.
        shape: of one sample.
        n_classes: 0 when the model is unconditional.
        t_range: (lowest, highest) time at which it was trained or is defined, in its own path's time.
        name: for captions and records.
        n_skips: skip connections that can be scaled (see `SkipTuned`); 0 when there are none.
        n_layers: blocks that can be left out (see `LayersLeftOut`); 0 when there are none.
        suggested: sampler knobs that its makers recommend, from its card; see `SamplerKnobs.defaults`.
    """

    path: Path
    shape: tuple[int, ...]
    n_classes: int = 0
    t_range: tuple[float, float]
    name: str = ""
    n_skips: int = 0
    n_layers: int = 0
    suggested: Mapping[str, Any] = MappingProxyType({})

    def __init__(self):
        super().__init__()
        self._calls = [0]  # a list: assigning an attribute of a Module costs microseconds in the inner loop

    @abstractmethod
    def denoise(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """The model's answer in data space at (x_t, t): a denoiser's mean E[x0 | x_t], a flow map's end of the path, (B, *shape)."""

    @abstractmethod
    def on(self, path: Path) -> Model:
        """The same marginals seen on another path."""

    @property
    def n_calls(self) -> int:
        """Network evaluations since construction or `reset_calls`, a whole batch counted once; everything wrapped is included."""
        return sum(m._calls[0] for m in self.modules() if isinstance(m, Model))

    def reset_calls(self) -> None:
        for module in self.modules():
            if isinstance(module, Model):
                module._calls[0] = 0

    def calls_at(self, t: float) -> int:
        """Network evaluations that one prediction at this time costs (2 under guidance, say)."""
        return 1

    @property
    def sigma_range(self) -> tuple[float, float]:
        """`t_range` in EDM's sigma, the coordinate all models share."""
        low, high = self.t_range
        return self.path.ratio_at(low), self.path.ratio_at(high)


class Denoiser(Model):
    """What can be asked of a model of the data along a path: denoised data, noise, velocity, score."""

    @abstractmethod
    def predict(self, x_t: Tensor, t: Time, cond: Cond = None) -> tuple[Tensor, Kind]:
        """The model's native prediction at (x_t, t), of x_t's shape and dtype, and which kind it is."""

    def denoise(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """E[x0 | x_t], (B, *shape)."""
        return self._as("x0", x_t, t, cond)

    def eps(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """E[eps | x_t], (B, *shape)."""
        return self._as("eps", x_t, t, cond)

    def velocity(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """dx_t/dt of the probability-flow ODE, (B, *shape). Not defined at sigma = 0 for most predictions (0/0)."""
        return self._as("velocity", x_t, t, cond)

    def score(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """Gradient of ln p_t at x_t, (B, *shape)."""
        return self._as("score", x_t, t, cond)

    def on(self, path: Path) -> Denoiser:
        """The same marginals seen on another path: identical denoiser, another ODE to solve."""
        from explorer.models.wrappers import Moved

        return self if path == self.path else Moved(self, path)

    def _as(self, kind: Kind, x_t: Tensor, t: Time, cond: Cond) -> Tensor:
        pred, native = self.predict(x_t, t, cond)
        if native == kind:
            return pred
        a, b = self.path.convert(native, kind, t)
        return affine(a, x_t, b, pred)


class FlowMap(Model):
    """What jumps along the paths of a probability-flow ODE: (x_t, t) to the state at another time r of the same path.

    Attributes:
        to_data: the map was made for jumps to r = 0 only (consistency models, one-step generators).
    """

    to_data: bool = False

    @abstractmethod
    def jump(self, x_t: Tensor, t: Time, r: Time, cond: Cond = None) -> Tensor:
        """x_r, (B, *shape) in x_t's dtype; `jump(x, t, t)` is x. t and r are numbers or (B,), 0 <= r <= t."""

    def denoise(self, x_t, t, cond=None):
        return self.jump(x_t, t, 0.0, cond)


def affine(a: Time, x: Tensor, b: Time, y: Tensor) -> Tensor:
    """a x + b y in x's dtype, y possibly of another; a and b numbers or (B,). Skips what is multiplied by exactly 0 or 1."""
    y = cast(y, x.dtype)
    if isinstance(b, Tensor):
        return like(a, x) * x + like(b, y) * y
    if isinstance(a, Tensor):  # (), from `scalar`
        return torch.add(x * a, y, alpha=b)
    if a == 0.0:
        return y if b == 1.0 else y * b
    return torch.add(x if a == 1.0 else x * scalar(a, x.dtype), y, alpha=b)


# On small batches the solver's own time is the fixed cost of each tensor operation; these two halve it.

CASTS = {
    torch.float64: Tensor.double, torch.float32: Tensor.float, torch.bfloat16: Tensor.bfloat16, torch.float16: Tensor.half
}  # fmt: skip


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """x in this floating dtype: `x.to(dtype)` without its argument parsing."""
    return x if x.dtype is dtype else CASTS[dtype](x)


@lru_cache(maxsize=65536)
def scalar(value: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """The number as a tensor (), for products with tensors of that dtype.

    A Python number would be wrapped into one on every call, and one of another dtype would be converted.
    """
    with torch.inference_mode(False):  # it may be used again where gradients are wanted
        return torch.tensor(value, dtype=dtype)


class Preconditioned(Denoiser):
    """A raw network F behind pred = c_skip x + c_out F(c_in x; c_noise).

    Args:
        net: forward(x (B, *shape), noise (B,) or (1,), cond (B,) or None[, skip_scale][, skip_layers]) -> (B, *shape).
        path: the path the states live on.
        precondition: the four coefficients and the kind of the result.
        shape: of one sample.
        t_range: trained range in the path's time.
    """

    def __init__(
        self,
        net: nn.Module,
        path: Path,
        precondition: Precondition,
        *,
        shape: tuple[int, ...],
        t_range: tuple[float, float],
        n_classes: int = 0,
        name: str = "",
    ):
        super().__init__()
        self.net, self.path, self.precondition = net, path, precondition
        self.shape, self.n_classes, self.name = tuple(shape), n_classes, name
        self.t_range = (float(t_range[0]), float(t_range[1]))
        self.n_skips, self.n_layers = getattr(net, "n_skips", 0), getattr(net, "n_layers", 0)
        self._probe = tuple(
            itertools.islice(net.parameters(), 1)
        )  # tells the network's dtype; a tuple is not registered as a parameter
        self._at: dict[tuple, tuple[float, float, float, Tensor]] = {}

    def predict(self, x_t, t, cond=None, *, skip_scale: Tensor | None = None, skip_layers: Collection[int] = ()):
        return self._as(self.precondition.kind, x_t, t, cond, skip_scale, skip_layers), self.precondition.kind

    def _as(self, kind, x_t, t, cond, skip_scale=None, skip_layers=()):
        if cond is not None and self.n_classes == 0:
            name = self.name or type(self.net).__name__
            raise BadValue(f"model {name!r} is unconditional, but class labels were given")
        dtype = self._probe[0].dtype if self._probe else x_t.dtype
        if isinstance(t, Tensor):
            c_skip, c_out, c_in, c_noise = self.precondition.coefficients(t, self.path)
            a, b = self.path.convert(self.precondition.kind, kind, t)
            a, b = a + b * c_skip, b * c_out  # numbers where no time is in them: `affine` then multiplies by nothing
            x = x_t if isinstance(c_in, float) and c_in == 1.0 else like(c_in, x_t) * x_t
            x, noise = x.to(dtype), c_noise.to(dtype).reshape(-1)
        else:
            key = (kind, t, x_t.device, x_t.dtype, dtype)
            a, b, c_in, noise = self._at.get(key) or self._number(*key)
            x = cast(x_t if c_in is None else x_t * c_in, dtype)
        self._calls[0] += 1
        net = self._modules["net"]  # `self.net` goes through Module.__getattr__, a microsecond
        if skip_scale is None and not skip_layers:
            raw = net(x, noise, cond)
        else:
            inside = {} if skip_scale is None else {"skip_scale": skip_scale.to(dtype)}
            raw = net(x, noise, cond, **inside, **({"skip_layers": skip_layers} if skip_layers else {}))
        if a is None:
            raw = cast(raw, x_t.dtype)
            return raw if b == 1.0 else raw * b
        return affine(a, x_t, b, raw)

    def _number(self, *key) -> tuple[Tensor | None, float, Tensor | None, Tensor]:
        """(a, b, c_in, noise) with result = a x + b F(c_in x, noise): preconditioning and conversion composed, cached per time.

        The key: kind, t, device, dtype of the state, dtype of the network. None stands for a = 0 and for c_in = 1.
        """
        kind, t, device, state, dtype = key
        if len(self._at) > 4096:
            self._at.clear()
        c_skip, c_out, c_in, c_noise = self.precondition.at(t, self.path)
        a, b = self.path.convert(self.precondition.kind, kind, t)
        with torch.inference_mode(False):
            noise = torch.tensor([c_noise], device=device, dtype=dtype)
        a, b = a + b * c_skip, b * c_out
        self._at[key] = (scalar(a, state) if a else None, b, scalar(c_in, state) if c_in != 1.0 else None, noise)
        return self._at[key]


class Oracle(Denoiser):
    """The exact denoiser of a Gaussian mixture or of a finite data set: no network, no training error.

    Args:
        mixture: the data distribution.
        path: the path the states live on.
        t_range: where it may be asked; by default all of the path but its ends (sigma from 1e-4 to 1e3).
    """

    def __init__(self, mixture: GaussianMixture, path: Path | None = None, *, name: str = "oracle", t_range=None):
        super().__init__()
        self.mixture, self.path, self.name = mixture, path or EDM(), name
        self.shape, self.n_classes = mixture.shape, mixture.n_classes
        self.t_range = t_range or (self.path.time_at(1e-4), self.path.time_at(1e3))

    def predict(self, x_t, t, cond=None):
        if cond is not None and self.n_classes == 0:
            raise BadValue(f"model {self.name!r} is unconditional, but class labels were given")
        self._calls[0] += 1
        if isinstance(t, Tensor):
            alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        else:
            alpha, sigma, _, _ = self.path.at(t)
        return self.mixture.denoise(x_t, alpha, sigma, cond), "x0"

    def log_prob(self, x_t: Tensor, t: Time, cond: Cond = None) -> Tensor:
        """ln p_t(x_t), (B,)."""
        if isinstance(t, Tensor):
            return self.mixture.log_prob(x_t, self.path.alpha(t), self.path.sigma(t), cond)
        alpha, sigma, _, _ = self.path.at(t)
        return self.mixture.log_prob(x_t, alpha, sigma, cond)


class FunctionDenoiser(Denoiser):
    """A function or somebody's network made a Denoiser; see `as_denoiser`."""

    def __init__(self, function, kind: Kind, path: Path, shape, t_range, n_classes: int, name: str):
        super().__init__()
        self.function, self.kind, self.path = function, kind, path
        self.shape, self.n_classes, self.t_range, self.name = tuple(shape), n_classes, t_range, name
        self._network = isinstance(function, nn.Module) and not isinstance(function, Model)
        self._probe = tuple(itertools.islice(function.parameters(), 1)) if self._network else ()
        self._takes_class = _takes_class(function, n_classes, self._network)

    def predict(self, x_t, t, cond=None):
        self._calls[0] += 1
        x, given = x_t, t
        if self._network:
            x = x_t.to(self._probe[0].dtype) if self._probe else x_t
            given = t.to(x).expand(len(x)) if isinstance(t, Tensor) else x.new_full((len(x),), t)
        try:
            pred = self.function(x, given, cond) if self._takes_class else self.function(x, given)
        except Exception as error:
            error.add_note(
                f"It was called as {self.name}(x {tuple(x.shape)} {x.dtype}, t {_shown(given)}, class {_shown(cond)}). A function is given "
                "the solver's own state, in double precision as a rule, and the time as a number or a tensor (B,); a network passed "
                "to as_denoiser as it is gets both in its own precision, the time as (B,)."
            )
            raise
        if not isinstance(pred, Tensor) or pred.shape != x.shape:
            raise BadValue(
                f"{self.name} returned {_shown(pred)} for x of shape {tuple(x.shape)}, expected {_hint(pred, x)}"
            )
        return (pred.to(x_t.dtype) if self._network else pred), self.kind


def as_denoiser(
    function: Callable[[Tensor, Time, Cond], Tensor],
    kind: Kind,
    path: Path,
    shape: tuple[int, ...],
    *,
    t_range: tuple[float, float] | None = None,
    n_classes: int = 0,
    name: str = "function",
) -> Denoiser:
    """A Denoiser made of anybody's function or network: every sampler, recording, metric and search takes it.

    >>> import torch
    >>> from explorer import VP, as_denoiser
    >>> class Noise(torch.nn.Module):
    ...     def forward(self, x, t):  # steps 0 to 999 where the network counts: 999 * t
    ...         return x * (1 - t)[:, None, None, None]
    >>> model = as_denoiser(Noise(), kind="eps", path=VP(), shape=(3, 16, 16), name="mine")
    >>> model.denoise(torch.ones(2, 3, 16, 16), 0.5).shape
    torch.Size([2, 3, 16, 16])

    Args:
        function: function(x (B, *shape), t, cond) -> prediction (B, *shape). x comes in the solver's precision, float64 as a rule; t
            is a number or a tensor (B,); cond is None or labels (B,) int64, -1 for no class. A network (`torch.nn.Module`) is given x and
            t (B,) in the precision of its parameters, and cond only where its `forward` has a third argument and there are classes or
            that argument has no default. Put it in evaluation mode first.
        kind: of the prediction: "x0" (denoised data), "eps" (noise), "velocity" (dx/dt), "v" (alpha eps - sigma x0) or "score".
        path: how its data become noise: VP(), Linear() for rectified flows, EDM() where t is sigma, ... `t` is this path's time,
            which grows with noise from t = 0 at the data: a flow that runs from noise to data is `lambda x, t, c: -net(x, 1 - t, c)`.
        shape: of one sample, without the batch.
        t_range: lowest and highest time it was trained at; by default from sigma = 0.002 to the end of the path, at most 1000, and to 80
            on EDM's, which has no end. Grids, knobs and searches begin with it.
        n_classes: 0 for a model without classes.
    Raises:
        UnknownName: no such kind; BadValue: a path, a shape or a range that cannot be, a function that does not take what it would be
            given; later, when it is called: a result that is no tensor of x's shape.
    """
    if kind not in get_args(Kind):
        raise UnknownName("kind of prediction", kind, get_args(Kind))
    if not isinstance(path, Path):
        made = f"{path.__name__}()" if isinstance(path, type) else "one of explorer.process: VP(), Linear(), EDM(), ..."
        raise BadValue(f"path is {path!r}, expected {made}")
    if (
        not isinstance(shape, Sequence)
        or isinstance(shape, str)
        or not all(isinstance(n, int) and n > 0 for n in shape)
    ):
        raise BadValue(f"shape is {shape!r}, expected that of one sample, without the batch: (3, 32, 32) say")
    if t_range is None:
        far = 80.0 if math.isinf(path.t_max) else min(1e3, path.ratio_at(path.t_max))
        t_range = (path.time_at(2e-3), path.time_at(far))
    elif not 0 <= t_range[0] < t_range[1] <= path.t_max:
        steps = (
            ". A network that counts steps is wrapped: lambda x, t, c: net(x, 999 * t)"
            if max(t_range) > path.t_max
            else ""
        )
        raise BadValue(
            f"t_range is {tuple(t_range)}, expected (lowest, highest) in the path's own time, from 0 at the data to {path.t_max:g}{steps}"
        )
    return FunctionDenoiser(function, kind, path, shape, t_range, n_classes, name)


def _takes_class(function: Callable, n_classes: int, network: bool) -> bool:
    """Whether it is called with a third argument. Raises: BadValue where it cannot be called as it would be."""
    try:
        arguments = inspect.signature(function.forward if network else function)
    except (TypeError, ValueError):
        return True  # written in C: nothing is known of it
    takes = {n: _binds(arguments, n) for n in (2, 3)}
    if network and takes[2] and not (n_classes and takes[3]):
        if n_classes:
            raise BadValue(
                f"n_classes is {n_classes}, but {type(function).__name__}.forward{arguments} has no argument for the class"
            )
        return False
    if not takes[3]:
        name = f"{type(function).__name__}.forward" if network else getattr(function, "__name__", "function")
        raise BadValue(f"{name}{arguments} cannot be called as (x, t, class): wrap it, lambda x, t, c: ...")
    return True


def _binds(arguments: inspect.Signature, n: int) -> bool:
    try:
        arguments.bind(*range(n))
    except TypeError:
        return False
    return True


def _shown(value: object) -> str:
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} {value.dtype}"
    return f"{value!r}" if value is None or isinstance(value, int | float) else f"a {type(value).__name__}"


def _hint(pred: object, x: Tensor) -> str:
    if isinstance(pred, Tensor):
        double = pred.shape[:1] == x.shape[:1] and pred.shape[1:2] == (2 * x.shape[1],)
        return "one of that shape" + (
            ": where the second half is a learnt variance, return the first" if double else ""
        )
    return "a tensor of that shape" + (": return its .sample" if hasattr(pred, "sample") else "")
