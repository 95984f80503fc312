"""How neighbours of a path come together or part: strain rates at its points, and Lyapunov exponents along it.

Everything is said in the direction of the run, noise to data: positive is parting, negative is coming together. Rates
are d ln(distance) per unit of the path's own time; exponents are ln(distance after / distance before), plain numbers
that add up along a path. Rates belong to the clock of the path (EDM's time is sigma); exponents of a whole run depend on
the path only through its scale, and a run moved to another path (`path=`) has those of that path's states.

Gaussian data N(m, s^2 I) is the closed form: states scale as sqrt(q), q(t) = alpha^2 s^2 + sigma^2, so that every rate
is -q'(t) / 2q(t) (the run goes against t) and every exponent ln sqrt(q(end) / q(start)).

The finite-time exponents are ln of the singular values of the derivative of the exact flow, taken at the recorded
states: k = D directions give all of them; fewer give the leading ones, by subspace iteration with products of the
derivative (forward) and of its transpose (backward). Nothing of size D^2 is formed unless all are asked for.
Source: Benettin et al. 1980, Meccanica 15 (exponents from QR along an orbit); Halko, Martinsson & Tropp 2011,
arXiv 0909.4061 (leading singular values by randomised subspace iteration); logarithmic norms: Soderlind 2006, BIT 46.

B batch, S samples, D features, K directions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Cond, Denoiser
from explorer.nets.attention import plain_attention
from explorer.process.paths import Path
from explorer.trajectory.dataset import By, mean_and_error, merged, on_path, on_steps
from explorer.trajectory.replay import Progress, parts_of, path_model, reference_step, times_of

Step = Callable[[Tensor, Cond], Tensor]
"""A map of states (B, *shape) with their labels to states."""

ALL_UP_TO = 16
"""Dimensions up to which all directions are followed by default."""


def push(step: Step, x: Tensor, tangents: Tensor, cond: Cond = None) -> Tensor:
    """Derivative of a map at x applied to K tangents: x (B, *shape), tangents (B, K, *shape) -> (B, K, *shape).

    By differentiating the transposed product, which is linear: reverse mode twice asks nothing of a network but that it
    can be trained, and is quicker here than forward mode. The K directions travel as one batch.
    """
    with torch.inference_mode(False), torch.enable_grad(), plain_attention():
        many, out = _traced(step, x, tangents.shape[1], cond)
        weights = torch.zeros_like(out, requires_grad=True)
        (back,) = torch.autograd.grad(out, many, weights, create_graph=True)
        (image,) = torch.autograd.grad(back, weights, tangents.flatten(0, 1).clone())
    return image.reshape(tangents.shape)


def pull(step: Step, x: Tensor, weights: Tensor, cond: Cond = None) -> Tensor:
    """Transpose of the derivative of a map at x applied to K vectors: (B, *shape), (B, K, *shape) -> (B, K, *shape)."""
    with torch.inference_mode(False), torch.enable_grad():
        many, out = _traced(step, x, weights.shape[1], cond)
        (back,) = torch.autograd.grad(out, many, weights.flatten(0, 1).clone())
    return back.reshape(weights.shape)


def jacobian_of(step: Step, x: Tensor, cond: Cond = None) -> Tensor:
    """All of the derivative of a map at each point: (B, D, D) from (B, *shape), row i that of output i, by D pulls."""
    d = math.prod(x.shape[1:])
    rows = torch.eye(d, dtype=x.dtype, device=x.device).reshape(1, d, *x.shape[1:]).expand(len(x), -1, *x.shape[1:])
    return pull(step, x, rows, cond).flatten(2)


def _traced(step: Step, x: Tensor, k: int, cond: Cond) -> tuple[Tensor, Tensor]:
    """Each point k times over, and its image with the way back to it."""
    labels = None if cond is None else cond.repeat_interleave(k)
    many = x.repeat_interleave(k, dim=0).clone().requires_grad_()
    return many, step(many, labels) + 0.0 * many  # a map that does not depend on x has derivative 0, not none


def velocity_jacobian(model: Denoiser, x: Tensor, t: float, cond: Cond = None) -> Tensor:
    """d velocity / dx at each point: (B, D, D) from (B, *shape), exact."""
    return jacobian_of(lambda y, c: model.velocity(y, t, c), x, cond)


def strain_rates(jacobian: Tensor) -> Tensor:
    """Rates at which distances grow against t: (B, D), falling, from d velocity / dx (B, D, D).

    Eigenvalues of minus its symmetric part: the first is the fastest parting of any two neighbours, the last the
    fastest approach, their sum minus the divergence.
    """
    return -torch.linalg.eigvalsh((jacobian + jacobian.mT) / 2)


def contraction(
    ds: xr.Dataset,
    model: Denoiser,
    by: By = None,
    *,
    path: Path | None = None,
    n_probes: int = 8,
    batch: int = 256,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Rates at which neighbours part (positive) or come together (negative) at the start of each step.

    Args:
        path: measure on this path instead of the recorded one.
        n_probes: random directions per point where D is above 16: the mean rate and the norm are then estimates over
            them (Hutchinson), and the extremes are not given.
    Returns:
        (sample, step) or by step, per unit of the path's time: `mean_rate` (minus the divergence over D); where D is at
        most 16, `fastest_parting` and `fastest_approach`; `jacobian_norm` |d velocity / dx|_F.
    Raises: BadValue where the recording is not of the model's shape.
    Source of the norm as a measure of complexity: Xu et al. 2024 (DisCo-Diff), arXiv 2407.03300, Fig. 4 (its square).
    """
    ds = on_path(ds, path)
    model, times = path_model(ds, model), times_of(ds)
    d = math.prod(ds.x.shape[2:])
    whole = d <= ALL_UP_TO
    n, n_steps = ds.sizes["sample"], len(times) - 1
    keys = ("mean_rate", "fastest_parting", "fastest_approach", "jacobian_norm")
    out = {key: torch.full((n, n_steps), torch.nan, dtype=torch.float64) for key in (keys if whole else keys[::3])}
    generator = torch.Generator().manual_seed(0)
    products, done = d if whole else n_probes, 0
    for rows, x, cond in parts_of(ds, model, batch):
        for i, t in enumerate(times[:-1]):
            if whole:
                jacobian = velocity_jacobian(model, x[:, i], t, cond)
                rates = strain_rates(jacobian).cpu()
                out["mean_rate"][rows, i] = rates.mean(dim=1)
                out["fastest_parting"][rows, i], out["fastest_approach"][rows, i] = rates[:, 0], rates[:, -1]
                out["jacobian_norm"][rows, i] = torch.linalg.matrix_norm(jacobian).cpu()
            else:
                probes = torch.randn(len(x), n_probes, *x.shape[2:], generator=generator, dtype=x.dtype).sign().to(x)
                image = push(lambda y, c, t=t: model.velocity(y, t, c), x[:, i], probes, cond)
                out["mean_rate"][rows, i] = -(probes * image).flatten(2).sum(dim=2).mean(dim=1).cpu() / d
                out["jacobian_norm"][rows, i] = image.flatten(2).square().sum(dim=2).mean(dim=1).sqrt().cpu()
            done += len(x) * products
            if progress is not None:
                progress(done, n * n_steps * products)
    names = {
        "mean_rate": "mean rate",
        "fastest_parting": "fastest parting",
        "fastest_approach": "fastest approach",
        "jacobian_norm": "norm of the velocity's derivative",
    }
    arrays = [on_steps(ds, key, value, names[key], "1 / time", None) for key, value in out.items()]
    if by not in (None, "step"):
        raise UnknownName("grouping", by, ("step",))
    made = merged(arrays if by is None else [mean_and_error(array) for array in arrays])
    return made.assign_attrs(n=n, n_probes=0 if whole else n_probes, model=ds.attrs["model"])


def lyapunov(
    ds: xr.Dataset,
    model: Denoiser,
    by: By = None,
    *,
    n_exponents: int | None = None,
    n_iter: int = 2,
    substeps: int = 4,
    path: Path | None = None,
    batch: int = 64,
    progress: Progress | None = None,
) -> xr.Dataset:
    """Finite-time Lyapunov exponents of the exact flow along each recorded path, from its start to each time.

    Args:
        n_exponents: K; None is all where D is at most 16, else the 3 leading ones.
        n_iter: sweeps forward and back that find the leading directions; unused where all are followed.
        substeps: RK4 steps of the flow in each interval.
        path: measure on this path instead of the recorded one.
    Returns:
        per sample `exponent` (sample, step, direction), falling along direction: ln of the stretch from the start to
        the end of that step, and `mean_exponent` (sample, step) their mean where all are followed: ln |det| / D. By
        step the means with `<name>_se`. Coordinates `t`, `sigma` are those of the end of the step, the last of it 0
        where the run ends at data; the total over the run is at the last step.
    Cost: per sample 4 substeps N K evaluations with one backward pass for all exponents; for the leading ones that for
        every sweep back (n_iter of them) and with two passes for every sweep forward (n_iter + 1).
    """
    ds = on_path(ds, path)
    model, times = path_model(ds, model), times_of(ds)
    shape, d, n = tuple(ds.x.shape[2:]), math.prod(ds.x.shape[2:]), ds.sizes["sample"]
    k = n_exponents or (d if d <= ALL_UP_TO else 3)
    if not 1 <= k <= d:
        raise BadValue(f"{d} dimensions have 1 to {d} exponents, got n_exponents={n_exponents}.")
    n_steps, sweeps = len(times) - 1, 1 if k == d else 1 + 2 * n_iter
    out = torch.empty(n, n_steps, k, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    done = 0

    def told(rows: int) -> None:
        nonlocal done
        done += rows
        if progress is not None:
            progress(done, n * n_steps * sweeps)

    for rows, x, cond in parts_of(ds, model, batch):
        steps = [_flow(model, t, t_next, substeps) for t, t_next in zip(times[:-1], times[1:], strict=True)]
        if k == d:
            start = torch.eye(d, dtype=x.dtype, device=x.device).expand(len(x), d, d)
        else:
            start = torch.randn(len(x), d, k, generator=generator, dtype=x.dtype).to(x.device)
            start = torch.linalg.qr(start).Q
            for _ in range(n_iter):
                q, _ = _forward(steps, x, start, shape, cond, told)
                start = _backward(steps, x, q, shape, cond, told)
        _, grown = _forward(steps, x, start, shape, cond, told)
        out[rows] = grown.cpu()
    end = slice(1, None)
    numbers = [
        on_steps(ds, "mean_exponent", out.mean(dim=2), "mean exponent", "nat", None, 0, end),
        *(on_steps(ds, "exponent", out[:, :, i], "Lyapunov exponent", "nat", None, 0, end) for i in range(k)),
    ]
    if by not in (None, "step"):
        raise UnknownName("grouping", by, ("step",))
    mean, exponents = numbers[0], xr.concat(numbers[1:], "direction").transpose("sample", "step", "direction")
    if by == "step":
        parts = [mean_and_error(exponents)] + ([mean_and_error(mean)] if k == d else [])
    else:
        parts = [exponents.to_dataset()] + ([mean.to_dataset()] if k == d else [])
    return merged(parts).assign_attrs(n=n, n_dims=d, n_exponents=k, substeps=substeps, model=ds.attrs["model"])


def total_exponents(exponents: xr.Dataset) -> xr.DataArray:
    """The exponents of whole runs, (sample, direction), from `lyapunov(ds, model)`."""
    return exponents.exponent.isel(step=-1, drop=True)


def _flow(model: Denoiser, t: float, t_next: float, substeps: int) -> Step:
    return lambda y, cond: reference_step(model, y, t, t_next, cond, substeps=substeps)


def _forward(steps, x: Tensor, q: Tensor, shape, cond: Cond, told) -> tuple[Tensor, Tensor]:
    """Orthonormal directions (B, D, K) through the whole run: where they end, and ln of the singular values of the
    derivative from the start to each time on their span (B, N, K).
    """
    k = q.shape[2]

    def image(step: Step, start: Tensor, q: Tensor) -> Tensor:
        if k == math.prod(shape):
            return jacobian_of(step, start, cond) @ q
        return push(step, start, q.mT.reshape(len(x), k, *shape), cond).flatten(2).mT

    product = torch.eye(k, dtype=q.dtype, device=q.device).expand(len(x), k, k)
    scale, grown = torch.zeros(len(x), 1, dtype=q.dtype, device=q.device), []
    for i, step in enumerate(steps):
        q, r = torch.linalg.qr(image(step, x[:, i], q))
        product = r @ product
        size = torch.linalg.matrix_norm(product)[:, None, None]  # kept near one: exponents of long runs would overflow
        product, scale = product / size, scale + size[:, :, 0].log()
        grown.append(torch.linalg.svdvals(product).clamp_min(torch.finfo(q.dtype).tiny).log() + scale)
        told(len(x))
    return q, torch.stack(grown, dim=1)


def _backward(steps, x: Tensor, q: Tensor, shape, cond: Cond, told) -> Tensor:
    """Orthonormal directions (B, D, K) at the end, pulled back to the start."""
    for i in reversed(range(len(steps))):
        image = pull(steps[i], x[:, i], q.mT.reshape(len(x), q.shape[2], *shape), cond).flatten(2).mT
        q = torch.linalg.qr(image).Q
        told(len(x))
    return q
