"""Scale-time solvers: Runge-Kutta steps in a time and a scale of their own, two numbers and two speeds at every stage.

With r from 0 (noise) to 1 (data), xbar(r) = s_r x(t_r) moves by
    dxbar/dr = (s'_r / s_r) xbar + t'_r s_r u(xbar / s_r, t_r),      u(x, t) = dx/dt on the path,
and n steps of length h = 1/n of a Runge-Kutta method on it, brought back by x = xbar / s, are
    rk1:  x_next = (s / s_next) [(1 + h s'/s) x + h t' u(x, t)]
    rk2:  y = (s / s_half) [(1 + h s'/2s) x + (h/2) t' u(x, t)],
          x_next = (s / s_next) x + (s_half / s_next) h [(s'_half / s_half) y + t'_half u(y, t_half)].
t, t', s and s' at the nodes are independent numbers: any of them give a consistent step where they come from smooth functions of r, and
s = 1, t linear is the plain method. Every Gaussian path with its own clock is one choice of the two functions, see `Warp.of_grid`.

Source: Shaul et al. 2024, arXiv 2310.19075 (scale-time transformations, RK1- and RK2-Bespoke); there t rises from noise to data, here
it falls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Denoiser
from explorer.process.paths import Linear, Path
from explorer.sampling.base import Sampler, built_path, check_noise, described_path
from explorer.sampling.solve import Solver, Step, solve

Base = Literal["rk1", "rk2"]
STAGES: dict[str, int] = {"rk1": 1, "rk2": 2}
"""Stages of a step, and so nodes of r a step spans: Euler's method, and the midpoint method."""


@dataclass(frozen=True)
class Warp:
    """t, dt/dr, s and ds/dr at r = 0, 1/m, ..., 1; the derivatives not at r = 1, where no stage is.

    Args:
        t: m + 1 times of the path, falling; the last may be 0.
        t_dot: m speeds, negative or 0.
        s: m + 1 positive scales; only ratios matter, and the first is made 1.
        s_dot: m numbers.
    m is the number of steps, or twice that for "rk2", whose every other node is the middle of a step.
    Raises: BadValue: lengths that do not match, times that do not fall, scales that are not positive, anything not finite.
    """

    t: tuple[float, ...]
    t_dot: tuple[float, ...]
    s: tuple[float, ...]
    s_dot: tuple[float, ...]

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, tuple(float(v) for v in getattr(self, f.name)))
        m = len(self.t) - 1
        lengths = [len(getattr(self, f.name)) for f in fields(self)]
        if m < 1 or lengths != [m + 1, m, m + 1, m]:
            raise BadValue(f"a warp of m nodes has m + 1 t, m t_dot, m + 1 s and m s_dot; got {lengths}")
        if not all(math.isfinite(v) for f in fields(self) for v in getattr(self, f.name)):
            raise BadValue("a warp must be made of finite numbers: start below pure noise, or choose another schedule")
        if not all(a > b >= 0 for a, b in pairwise(self.t)):
            raise BadValue(f"the times of a warp must fall and not be negative, got {self.t}")
        if not all(v <= 0 for v in self.t_dot) or not all(v > 0 for v in self.s):
            raise BadValue("in a warp no t_dot is positive (time falls as r grows), and every s is")
        if self.s[0] != 1.0:
            first = self.s[0]
            object.__setattr__(self, "s", tuple(v / first for v in self.s))
            object.__setattr__(self, "s_dot", tuple(v / first for v in self.s_dot))

    @property
    def n_nodes(self) -> int:
        """m."""
        return len(self.t_dot)

    @classmethod
    def of_functions(
        cls, time: Callable[[Tensor], Tensor], scale: Callable[[Tensor], Tensor], n_steps: int, base: Base = "rk2"
    ) -> Warp:
        """The nodes of two smooth functions of r in [0, 1], float64 tensors to float64 tensors; speeds by differentiation."""
        m = _count(n_steps) * _stages(base)
        r = torch.linspace(0, 1, m + 1, dtype=torch.float64)
        (t, t_dot), (s, s_dot) = _with_slope(time, r), _with_slope(scale, r)
        return cls(tuple(t.tolist()), tuple(t_dot.tolist()), tuple(s.tolist()), tuple(s_dot.tolist()))

    @classmethod
    def of_grid(
        cls, times: Sequence[float], base: Base = "rk2", path: Path | None = None, other: Path | None = None
    ) -> Warp:
        """The plain method on a grid, seen from `path`: exactly what it does on the path `other`, whose times these are.

        With x' = (alpha' / alpha) x at equal sigma / alpha, a step on the other path is a scale-time step on this one. Without
        `other` nothing is scaled. Equal steps on VP's or the cosine path, EDM's grid on EDM's path are the schedules of their papers.

        Args: times: falling, of `other`, where every one but the last has a velocity; path: linear by default.
        Raises: BadValue where a schedule has no finite speed, as at pure noise.
        """
        stages, times = _stages(base), [float(t) for t in times]
        path = path or Linear()
        other = other or path
        n = len(times) - 1
        nodes, speeds = [], []
        for t, t_next in pairwise(times):
            for k in range(stages):
                nodes.append(t + k / stages * (t_next - t))
                speeds.append(n * (t_next - t))
        nodes.append(times[-1])
        if other == path:
            return cls(tuple(nodes), tuple(speeds), (1.0,) * len(nodes), (0.0,) * len(speeds))

        def size(p: Path, t: Tensor) -> Tensor:  # their ratio is alpha' / alpha, also where alpha is 0
            return torch.hypot(p.alpha(t), p.sigma(t))

        at = torch.tensor(nodes, dtype=torch.float64)
        t, t_slope = _with_slope(lambda tau: path.time(other.ratio(tau)), at)
        s, s_slope = _with_slope(lambda tau: size(other, tau) / size(path, path.time(other.ratio(tau))), at)
        speed = torch.tensor(speeds, dtype=torch.float64)
        return cls(
            tuple(t.tolist()), tuple((t_slope * speed).tolist()), tuple(s.tolist()), tuple((s_slope * speed).tolist())
        )


def _with_slope(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """Values at every node, and derivatives at every one but the last."""
    with torch.inference_mode(False), torch.enable_grad():
        inner = at[:-1].clone().requires_grad_(True)
        out = function(inner)
        slope = torch.autograd.grad(out.sum(), inner)[0] if out.requires_grad else torch.zeros_like(inner)
        return torch.cat([out.detach(), function(at[-1:].clone()).detach()]), slope


def _stages(base: str) -> int:
    if base not in STAGES:
        raise UnknownName("base of a scale-time solver", base, STAGES)
    return STAGES[base]


def _count(n_steps: int) -> int:
    if n_steps < 1:
        raise BadValue(f"a solver needs at least one step, got {n_steps}")
    return n_steps


@dataclass(frozen=True)
class ScaleTime(Solver):
    """Steps between the whole nodes of a warp; elsewhere it has no numbers, and says so. One step does not depend on those before.

    Args:
        base: "rk1" (Euler, one evaluation a step) or "rk2" (midpoint, two).
    """

    base: Base
    warp: Warp

    def __post_init__(self):
        if self.warp.n_nodes % _stages(self.base):
            raise BadValue(f"{self.base} needs two nodes a step, and this warp has {self.warp.n_nodes}")

    @property
    def order(self) -> int:
        """Of steps whose numbers come from smooth functions of r."""
        return STAGES[self.base]

    @property
    def nfe_formula(self) -> str:
        return "N" if self.base == "rk1" else "2N"

    @property
    def n_steps(self) -> int:
        return self.warp.n_nodes // STAGES[self.base]

    @property
    def times(self) -> tuple[float, ...]:
        """Where steps begin and end."""
        return self.warp.t[:: STAGES[self.base]]

    def step(self, model, x, t, t_next, state, *, cond=None, rng=None):
        i, w, h = self._index(t, t_next), self.warp, 1 / self.n_steps
        u = model.velocity(x, t, cond)
        if self.base == "rk1":
            ratio = w.s[i] / w.s[i + 1]
            x_next = (ratio * (1 + h * w.s_dot[i] / w.s[i])) * x + (ratio * h * w.t_dot[i]) * u
            return Step(x_next, u, None, None)
        k, half, end = 2 * i, 2 * i + 1, 2 * i + 2
        y = (1 + 0.5 * h * w.s_dot[k] / w.s[k]) * x + (0.5 * h * w.t_dot[k]) * u
        y = (w.s[k] / w.s[half]) * y
        move = (h * w.s_dot[half] / w.s[half]) * y + (h * w.t_dot[half]) * model.velocity(y, w.t[half], cond)
        return Step((w.s[k] / w.s[end]) * x + (w.s[half] / w.s[end]) * move, u, None, None)

    def eval_times(self, times, path):
        out = []
        for t, t_next in pairwise(times):
            i = self._index(t, t_next) * STAGES[self.base]
            out += self.warp.t[i : i + STAGES[self.base]]
        return out

    def _index(self, t: float, t_next: float) -> int:
        nodes = self.times
        for i, (a, b) in enumerate(pairwise(nodes)):
            if math.isclose(a, t, rel_tol=1e-12) and math.isclose(b, t_next, rel_tol=1e-12, abs_tol=1e-15):
                return i
        raise BadValue(
            f"a scale-time solver steps between its own times only, and {t:.6g} to {t_next:.6g} is no step of it: "
            f"they are {', '.join(f'{v:.4g}' for v in nodes)}"
        )


LINEAR = Linear()


@dataclass(frozen=True)
class ScaleTimeSampler(Sampler):
    """A scale-time solver walking its own times: noise to data in as many steps as its warp has.

    Args: path: of the ODE and of the warp's times, not necessarily the model's own.
    """

    solver: ScaleTime
    path: Path = LINEAR

    @classmethod
    def plain(
        cls, times: Sequence[float], base: Base = "rk2", path: Path = LINEAR, other: Path | None = None
    ) -> ScaleTimeSampler:
        """Euler's or the midpoint method on these times of `other`, as numbers that can then be changed; see `Warp.of_grid`."""
        return cls(ScaleTime(base, Warp.of_grid(times, base, path, other)), path)

    def path_on(self, model: Denoiser) -> Path:
        return self.path

    def sample(self, model, noise, cond=None, *, rng=None, observe=None):
        check_noise(model, noise)
        times = self.solver.times
        start = self.path.at(times[0])[1] * noise
        return solve(model.on(self.path), self.solver, start, times, cond=cond, rng=rng, observe=observe)

    def nfe(self, model):
        moved = model.on(self.path)
        return sum(moved.calls_at(t) for t in self.solver.eval_times(self.solver.times, self.path))

    def n_steps(self, model):
        return self.solver.n_steps

    def to_dict(self):
        warp = {name: list(values) for name, values in asdict(self.solver.warp).items()}
        return {
            "sampler": "scale-time",
            "solver": {"name": self.solver.base},
            "warp": warp,
            "path": described_path(self.path),
        }

    @classmethod
    def from_dict(cls, data):
        base = data["solver"]["name"]
        if base not in get_args(Base):
            raise UnknownName("base of a scale-time solver", base, STAGES)
        path = built_path(data["path"])
        return cls(ScaleTime(base, Warp(**data["warp"])), path or LINEAR)
