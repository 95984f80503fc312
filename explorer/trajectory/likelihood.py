"""How likely a model finds given data: ln p by the probability-flow ODE, in nats and in bits per dimension.

Along the flow dx/dt = v(x, t) the density obeys d ln p_t(x_t) / dt = -div v. Walking a data point up from the smallest noise level,

    ln p(x) = ln N(x_T; 0, s_T^2 I) + int_{t_0}^{T} div v(x_t, t) dt + D ln alpha(t_0)

where the last term turns a density of states into one of data. State and integral are carried together by one Runge-Kutta solver.

What is evaluated: x counts as a sample at the smallest noise level, so p is the data's law blurred by sigma_min. Numbers at another
sigma_min, or with noise added first, differ in the second decimal or more and are not comparable.

Two sources of error are kept apart: the samples (which images) and, where the divergence is estimated, the probes (which random
vectors). A third, the solver's steps, is measured by halving the grid.

Legend: S samples, P probes, `...` feature dimensions, D their number.
Source: Song et al. 2021, arXiv 2011.13456, Sec. 4.3 and App. D.2; the divergence estimate: Hutchinson 1990, Skilling 1989.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Cond, Denoiser
from explorer.sampling import RK4, Seeds, TimeGrid, device_of, solve
from explorer.trajectory.dataset import feature_dims

Divergence = Literal["auto", "exact", "rademacher", "gaussian"]
DIVERGENCES = ("auto", "exact", "rademacher", "gaussian")
EXACT_UP_TO = 16
"""Dimensions up to which "auto" takes the whole trace; above, it probes."""


def log_likelihood(
    model: Denoiser,
    data: Tensor,
    cond: Cond = None,
    *,
    n_steps: int = 32,
    solver=None,
    grid: TimeGrid | None = None,
    divergence: Divergence = "auto",
    n_probes: int = 1,
    seeds: Seeds | Iterable[int] | None = None,
    width: float | None = None,
    data_std: float = 0.0,
    check: bool = True,
    batch: int = 256,
) -> xr.Dataset:
    """ln p of each data point under a model, with what it is made of and three kinds of error.

    Args:
        data: (S, ...) in data units; for images dequantised (`dequantise`), else a density is compared with a lattice.
        cond: (S,) classes or None.
        n_steps: Karras steps over the model's range of sigma, unless `grid` (noise to data, a last 0 is left out) is given.
        solver: a Runge-Kutta solver, `RK4()` by default; it must ask for velocities alone.
        divergence: "exact" trace by D backward passes; "rademacher" or "gaussian" probes, each drawn once per sample and
            kept along its path; "auto" is exact up to 16 dimensions and Rademacher above.
        n_probes: P, independent probes per sample; at least 2 for a probe error.
        seeds: of the probes, one per sample; by default 0, 1, ...: a result does not depend on the batch.
        width: distance between neighbouring grey levels in data units (2/255 for 8 bits on [-1, 1], 1/8 for the digits);
            adds `bits_per_dim` of the discrete image.
        data_std: standard deviation of the data in the prior at the noisy end, s_T^2 = sigma^2 + alpha^2 data_std^2. 0 is the
            published convention; where the grid ends at a small sigma the difference shows. The mean of the data is left out of
            the prior in either case: an error of about |mean| |z| / sigma_max.
        check: walk the halved grid as well and report the difference (half as many evaluations more).
    Returns:
        Per sample: `log_prob` nats, `prior` and `divergence` (its first two terms), `discretisation`, the difference to half as
        many steps over 2^order - 1, an estimate of its error (NaN without `check`); `probe_std`, of a single probe (NaN for one
        probe, 0 when exact). `log_prob_by_probe` (sample, probe). `code` (sample, ...), x_T / sigma(T). With `width`,
        `bits_per_dim` (sample).
        Summary: `mean_log_prob`, `mean_log_prob_se` over samples, `mean_log_prob_probe_se` (the share of it that more probes
        would remove, NaN for one probe); likewise `mean_bits_per_dim`. Attributes n, n_probes, divergence, sigma_min, sigma_max,
        dim, width, nfe (evaluations of the fine walk per sample; each costs P backward passes more, D when exact).
    Raises: BadValue for a solver that asks for more than velocities, shapes that do not fit, or a bad setting.
    """
    shape = tuple(model.shape)
    if data.shape[1:] != shape or not len(data):
        raise BadValue(
            f"{model.name or 'the model'} needs data (samples, {', '.join(map(str, shape))}), got {tuple(data.shape)}."
        )
    if divergence not in DIVERGENCES:
        raise UnknownName("divergence", divergence, DIVERGENCES)
    if n_probes < 1:
        raise BadValue(f"at least one probe is needed, got {n_probes}.")
    if width is not None and not width > 0:
        raise BadValue(f"the distance between grey levels must be positive, got {width}.")
    n, d = len(data), math.prod(shape)
    if divergence == "auto":
        divergence = "exact" if d <= EXACT_UP_TO else "rademacher"
    n_probes = 1 if divergence == "exact" else n_probes
    seeds = seeds if isinstance(seeds, Seeds) else Seeds(range(n) if seeds is None else seeds)
    if len(seeds) != n:
        raise BadValue(f"one seed per data point is needed, {n}, got {len(seeds)}.")
    solver = solver or RK4()
    grid = grid or TimeGrid.karras(n_steps, *model.sigma_range, to_zero=False)
    path = model.path
    times = [t for t in grid.on(path) if t > 0][::-1]
    if len(times) < 2:
        raise BadValue("a likelihood needs a grid with at least two positive times.")
    device = device_of(model)
    walks, rows = {"fine": times}, {"fine": [], "half": []}
    if check and len(times) > 2:
        walks["half"] = [*times[:-1:2], times[-1]]
    for lo in range(0, n, batch):
        some = seeds[lo : lo + batch]
        x = data[lo : lo + batch].to(device).double()
        labels = None if cond is None else cond[lo : lo + batch].to(device)
        probes = None if divergence == "exact" else _probes(some, shape, n_probes, divergence, device)
        for name, walk in walks.items():
            rows[name].append(_walk(model, solver, walk, x, labels, probes))
    end, integral = (torch.cat(parts) for parts in zip(*rows["fine"], strict=True))  # (S, D), (S, P)
    alpha, sigma = path.at(times[-1])[:2]
    prior = _normal(end, sigma**2 + (alpha * data_std) ** 2)
    shift = d * math.log(path.at(times[0])[0])
    by_probe = prior[:, None] + integral + shift
    log_prob = by_probe.mean(dim=1)
    if "half" in walks:
        end_half, integral_half = (torch.cat(parts) for parts in zip(*rows["half"], strict=True))
        coarse = _normal(end_half, sigma**2 + (alpha * data_std) ** 2) + integral_half.mean(dim=1) + shift
        step_error = (log_prob - coarse) / (2**solver.order - 1)
    else:
        step_error = torch.full_like(log_prob, math.nan)
    if divergence == "exact":
        probe_std = torch.zeros_like(log_prob)
    else:
        probe_std = by_probe.std(dim=1) if n_probes > 1 else torch.full_like(log_prob, math.nan)
    nats = {"units": "nats"}
    variables = {
        "log_prob": ("sample", log_prob, {"long_name": "ln p(x)", **nats}),
        "prior": ("sample", prior, nats),
        "divergence": ("sample", integral.mean(dim=1), nats),
        "discretisation": ("sample", step_error, nats),
        "probe_std": ("sample", probe_std, nats),
        "log_prob_by_probe": (("sample", "probe"), by_probe, nats),
        "code": (("sample", *feature_dims(shape)), end.reshape(n, *shape) / sigma),
        **_summary("mean_log_prob", log_prob, probe_std, n_probes, nats),
    }
    if width is not None:
        scale, unit = 1 / (d * math.log(2)), {"long_name": "bits per dimension", "units": "bits / dimension"}
        bits = -log_prob * scale - math.log2(width)
        variables["bits_per_dim"] = ("sample", bits, unit)
        variables |= _summary("mean_bits_per_dim", bits, probe_std * scale, n_probes, unit)
    on = model.on(path)
    attrs = {
        "n": n,
        "dim": d,
        "n_probes": n_probes,
        "nfe": sum(on.calls_at(t) for t in solver.eval_times(times, path)),
        "n_steps": len(times) - 1,
        "divergence": divergence,
        "solver": type(solver).__name__,
        "sigma_min": path.ratio_at(times[0]),
        "sigma_max": path.ratio_at(times[-1]),
        "width": math.nan if width is None else width,
        "model": model.name,
    }
    variables = {
        k: (v[0], v[1].numpy(force=True) if isinstance(v[1], Tensor) else v[1], *v[2:]) for k, v in variables.items()
    }
    return xr.Dataset(variables, {"seed": ("sample", np.array(seeds.ids))}, attrs)


def likelihood_by_steps(
    model: Denoiser, data: Tensor, cond: Cond = None, *, steps: Sequence[int] = (4, 8, 16, 32, 64), **settings
) -> xr.Dataset:
    """The mean log-likelihood of one set of points and probes against the cost of the solver: (n_steps).

    Args: settings: of `log_likelihood`; the same probes serve every grid, so differences are the solver's alone.
    Returns: `mean_log_prob` (and `mean_bits_per_dim` with a width), each with `_se` and `_probe_se`, `change`, the mean absolute
        change of ln p per sample from the row before (NaN first), coordinate `nfe`; attributes n, ...
    """
    found = [log_likelihood(model, data, cond, n_steps=k, check=False, **settings) for k in steps]
    names = [name for name in found[0].data_vars if not found[0][name].dims]
    logs = np.stack([f.log_prob.values for f in found])
    change = np.concatenate([[math.nan], np.abs(np.diff(logs, axis=0)).mean(axis=1)])
    variables = {name: ("n_steps", [float(f[name]) for f in found], found[0][name].attrs) for name in names}
    variables["change"] = ("n_steps", change, {"units": "nats"})
    coords = {"n_steps": list(steps), "nfe": ("n_steps", [f.attrs["nfe"] for f in found])}
    kept = ("n", "dim", "n_probes", "divergence", "solver", "sigma_min", "width", "model")
    return xr.Dataset(variables, coords, {k: found[0].attrs[k] for k in kept})


def dequantise(images: Tensor, width: float, seeds: Seeds | Iterable[int] | None = None) -> Tensor:
    """Images with uniform noise of the width of a grey level added, centred: (S, ...) float64 in [x - width/2, x + width/2).

    The density of these is what a model of real numbers can give a discrete image: E ln p(x + u) - D ln(1/width) bounds its log
    probability from below (Jensen).

    Args:
        images: (S, ...) on a lattice of that spacing; width: 2/255 for 8 bits scaled to [-1, 1], 1/8 for the digits.
        seeds: one per image; by default 0, 1, ...
    Source: Theis, van den Oord & Bethge 2016, arXiv 1511.01844.
    """
    if not width > 0:
        raise BadValue(f"the distance between grey levels must be positive, got {width}.")
    seeds = seeds if isinstance(seeds, Seeds) else Seeds(range(len(images)) if seeds is None else seeds)
    if len(seeds) != len(images):
        raise BadValue(f"one seed per image is needed, {len(images)}, got {len(seeds)}.")
    normal = seeds.normal(tuple(images.shape[1:]), images.device)
    uniform = torch.special.ndtr(normal)  # of the same per-sample streams
    return images.double() + width * (uniform - 0.5)


def tightened(log_probs: Tensor) -> Tensor:
    """A closer bound from several dequantisations of each image: the log of the mean probability, (K, S) -> (S,) nats.

    Source: Burda et al. 2016, arXiv 1509.00519, the importance-weighted bound; it rises with K towards the discrete log probability.
    """
    return torch.logsumexp(torch.as_tensor(log_probs).double(), dim=0) - math.log(len(log_probs))


def divergence_at(
    model: Denoiser, x: Tensor, t: float, cond: Cond = None, *, probes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The velocity at (x, t) and its divergence, by reverse-mode derivatives: one evaluation of the model and a backward pass per probe.

    Args:
        x: (B, ...); probes: (P, B, ...) vectors e, giving e . J e for each; None takes the whole trace, D passes.
    Returns: v (B, ...), and (B, P) or (B, 1). The derivative is taken in the network's own dtype.
    Variance of a Rademacher probe: 2 sum_{i != j} A_ij^2, of a Gaussian one 2 |A|_F^2, A the symmetric part of J.
    """

    d = x[0].numel()
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
    ):  # also for callers in inference mode, whose tensors carry no gradient
        y = x.detach().clone().requires_grad_(True)
        cond = None if cond is None else cond.clone()
        v = model.velocity(y, t, cond)
        columns, asked = [], d if probes is None else len(probes)
        for k in range(asked):
            if probes is None:
                direction = torch.zeros_like(v)
                direction.view(len(x), d)[:, k] = 1.0
            else:
                direction = probes[k].to(v.dtype).clone()
            [row] = torch.autograd.grad(v, y, direction, retain_graph=k < asked - 1, materialize_grads=True)
            columns.append((direction * row).flatten(1).sum(dim=1))
    found = torch.stack(columns, dim=1)
    return v.detach(), found.sum(dim=1, keepdim=True) if probes is None else found


class _Flow(Denoiser):
    """State and running integrals of the divergence as one vector (B, D + P), for any solver that asks for velocities."""

    def __init__(self, base: Denoiser, probes: Tensor | None):
        super().__init__()
        self.base, self.probes = base, probes
        self.dim = math.prod(base.shape)
        self.path, self.t_range = base.path, base.t_range
        self.shape = (self.dim + (1 if probes is None else len(probes)),)

    def predict(self, x_t, t, cond=None):
        x = x_t[:, : self.dim].reshape(-1, *self.base.shape).contiguous()
        v, divergence = divergence_at(self.base, x, t, cond, probes=self.probes)
        return torch.cat([v.flatten(1), divergence], dim=1), "velocity"

    def _as(self, kind, x_t, t, cond):
        if kind != "velocity":
            raise BadValue(
                f"this solver asks for {kind!r}, and a likelihood is an integral of velocities: choose a Runge-Kutta solver "
                "(euler, heun, midpoint, rk4)."
            )
        return self.predict(x_t, t, cond)[0]


def _walk(
    model: Denoiser, solver, times: list[float], x: Tensor, cond: Cond, probes: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The state at the last time (B, D) and the integral of the divergence (B, P)."""
    flow = _Flow(model, probes)
    start = torch.cat([model.path.at(times[0])[0] * x.flatten(1), x.new_zeros(len(x), flow.shape[0] - flow.dim)], dim=1)
    with torch.no_grad():
        end = solve(flow, solver, start, times, cond=cond)
    return end[:, : flow.dim], end[:, flow.dim :]


def _probes(seeds: Seeds, shape: tuple[int, ...], n: int, kind: str, device) -> Tensor:
    """(P, B, *shape) from the streams of the samples."""
    normal = torch.stack([seeds.normal(shape, device) for _ in range(n)])
    return normal if kind == "gaussian" else torch.where(normal < 0, -1.0, 1.0).to(normal.dtype)


def _normal(x: Tensor, variance: float) -> Tensor:
    d = x.shape[1]
    return -0.5 * x.square().sum(dim=1) / variance - 0.5 * d * math.log(2 * math.pi * variance)


def _summary(name: str, values: Tensor, probe_std: Tensor, n_probes: int, unit: dict) -> dict:
    """Mean, its standard error over samples, and the part of that error that is the probes'."""
    n = len(values)
    error = float(values.std()) / math.sqrt(n) if n > 1 else math.nan
    probe = math.sqrt(float(probe_std.square().sum()) / n_probes) / n
    return {
        name: ((), float(values.mean()), unit),
        f"{name}_se": ((), error, unit),
        f"{name}_probe_se": ((), probe, unit),
    }
