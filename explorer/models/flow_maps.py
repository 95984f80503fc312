"""Flow maps: models that jump along a path instead of saying where it leads at once."""

from __future__ import annotations

import torch
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Cond, Denoiser, FlowMap, Model
from explorer.process.broadcast import like
from explorer.process.paths import Path, Time


class ConsistencyModel(FlowMap):
    """The jump from any state to the data: f(x_t, t), one network call, learnt for r = 0 only.

    Args:
        inner: whose prediction, read as x0, is the end of the path instead of the mean E[x0 | x_t]. Its preconditioning must
            give f(x, t) -> x as t -> t_range[0]: the boundary condition. Skip-tuning goes around `inner`.
    Sources: Song et al. 2023, arXiv 2303.01469, Eq. 5; one-step generators of distribution matching are the same map asked at
    the highest time only (Yin et al. 2024, arXiv 2405.14867).
    """

    to_data = True

    def __init__(self, inner: Denoiser, *, name: str = ""):
        super().__init__()
        self.inner, self.name = inner, name or inner.name
        self.path, self.shape, self.n_classes = inner.path, inner.shape, inner.n_classes
        self.t_range, self.n_skips, self.n_layers = inner.t_range, inner.n_skips, inner.n_layers

    def calls_at(self, t):
        return self.inner.calls_at(t)

    def jump(self, x_t, t, r, cond=None):
        if isinstance(r, Tensor):
            if not torch.equal(r, torch.zeros_like(r)):
                raise self._only_data()
        elif r != 0:
            raise self._only_data()
        return self.inner.denoise(x_t, t, cond)

    def on(self, path: Path) -> ConsistencyModel:
        return self if path == self.path else ConsistencyModel(self.inner.on(path), name=self.name)

    def _only_data(self) -> BadValue:
        return BadValue(
            f"{self.name or 'this consistency model'} jumps to the data (r = 0) only; to reach a level between, add noise to what "
            "it returns, as the solver 'jump' does."
        )


class OdeMap(FlowMap):
    """A denoiser's own flow map by solving its ODE: the reference that learnt maps are held against; see `as_flow_map`."""

    def __init__(self, base: Denoiser, step, n_steps: int):
        super().__init__()
        self.base, self._solve, self.n_steps = base, step, n_steps
        self.path, self.shape, self.n_classes, self.name = base.path, base.shape, base.n_classes, base.name
        self.t_range, self.n_skips = base.t_range, base.n_skips

    def on(self, path: Path) -> OdeMap:
        return OdeMap(self.base.on(path), self._solve, self.n_steps)

    def jump(self, x_t, t, r, cond=None):
        return self._solve(self.base, x_t, t, r, self.n_steps, cond)


def as_flow_map(model: Model, n_steps: int = 100) -> FlowMap:
    """The flow map of a model's probability-flow ODE by `n_steps` Heun steps, uniform in ln sigma and ending exactly at r.

    A flow map is returned as it is. Times t and r may be numbers or (B,); for r = 0 the last step, from t_range[0], is the
    denoised mean there. The error falls as n_steps^-2.
    """
    return model if isinstance(model, FlowMap) else OdeMap(model, _heun, n_steps)


def _heun(model: Denoiser, x: Tensor, t: Time, r: Time, n_steps: int, cond: Cond) -> Tensor:
    """The state at r in float64 arithmetic, x's dtype; every sample has its own grid."""
    path, n = model.path, len(x)
    dtype, low = x.dtype, model.t_range[0]
    t, r = (torch.as_tensor(v, dtype=torch.float64, device=x.device).expand(n) for v in (t, r))
    if bool((r > t).any()) or bool((r < 0).any()):
        raise BadValue("a flow map goes from t to r with 0 <= r <= t.")
    x, end = x.double(), r.clamp_min(low)
    begin = t.clamp_min(low)
    high, floor = path.ratio(begin).log(), path.ratio(end).log()
    times = [path.time((high + (floor - high) * (i / n_steps)).exp()) for i in range(n_steps + 1)]
    times[0], times[-1] = begin, end
    for s, s_next in zip(times[:-1], times[1:], strict=True):
        slope = model.velocity(x, s, cond)
        euler = x + like(s_next - s, x) * slope
        x = x + like(0.5 * (s_next - s), x) * (slope + model.velocity(euler, s_next, cond))
    final = (r < low) & (t > 0)
    if bool(final.any()):
        x = torch.where(like(final, x), model.denoise(x, end, cond), x)
    return x.to(dtype)
