"""Data back to noise: codes by the probability-flow ODE run upwards, what a round trip loses, and how normal the codes are.

The flow is one to one, so every data point has a code; a fine deterministic run finds it up to its discretisation error. For a
perfect model the codes of real data are N(0, I), and each way in which they are not says something about the model (or the solver).

Start of the path: a data point is taken as a sample at the smallest positive noise level of the grid, x_t = alpha x0, without noise
being added (Song et al. 2021, arXiv 2011.13456, do the same), so that it can be decoded again. Where data lie on a surface (pixels that
are always black) such points sit in the very middle of the model's thin density and their codes are too short: give `seeds` to start
from x_t = alpha x0 + sigma eps, whose codes are normal for a perfect model. The code is x_T / sigma(T), in units of the noise.

Legend: S samples, `...` feature dimensions, D their number.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from explorer.errors import BadValue
from explorer.models.base import Cond, Denoiser
from explorer.process.couplings import Pairs, pairs_of
from explorer.sampling import RK4, OdeSampler, Seeds, TimeGrid, solve
from explorer.trajectory import geometry
from explorer.trajectory.dataset import feature_dims


def inverter(model: Denoiser, n_steps: int = 64, *, sigma_min: float | None = None, solver=None) -> OdeSampler:
    """A fine deterministic sampler to invert with: RK4 on Karras' grid over the model's own range of sigma.

    Args: sigma_min: where the path starts; by default the model's smallest. solver: another deterministic one.
    """
    low, high = model.sigma_range
    return OdeSampler(solver or RK4(), TimeGrid.karras(n_steps, sigma_min or low, high, to_zero=False))


def encode(
    model: Denoiser,
    data: Tensor,
    sampler: OdeSampler | None = None,
    cond: Cond = None,
    *,
    seeds: Seeds | Iterable[int] | None = None,
    batch: int = 256,
) -> Tensor:
    """The code of each data point, the noise that the ODE connects with it: (S, ...) float64, in units of sigma(T).

    Args:
        data: (S, ...) in data units.
        sampler: its solver walks its own grid backwards, from the smallest positive time to the largest (a last time of 0 is left
            out: the velocity does not exist there); by default `inverter(model)`.
        cond: (S,) classes, or None.
        seeds: one per point, to add the noise of the smallest level; None starts from the points as they are.
    Raises: BadValue for a stochastic solver, which has no inverse, or shapes that do not fit.
    Accuracy: the global order of the solver.
    """
    sampler = _made_of_steps(sampler or inverter(model))
    path = sampler.path_on(model)
    times = _positive_times(sampler, path)[::-1]
    start, end = path.at(times[0])[0], path.at(times[-1])[1]
    if seeds is not None:
        seeds = seeds if isinstance(seeds, Seeds) else Seeds(seeds)
        if len(seeds) != len(data):
            raise BadValue(f"one seed per data point is needed, {len(data)}, got {len(seeds)}.")
        data = data.double() + path.ratio_at(times[0]) * seeds.normal(tuple(data.shape[1:]), data.device)
    return _walk(model.on(path), sampler, times, data, start, end, cond, batch)


def decode(
    model: Denoiser, code: Tensor, sampler: OdeSampler | None = None, cond: Cond = None, *, batch: int = 256
) -> Tensor:
    """Data from codes: (S, ...) float64, down the same grid as `encode` and no further than its smallest positive time.

    A sample as usual but for a last step to t = 0, which would add what `encode` cannot take back.
    """
    sampler = _made_of_steps(sampler or inverter(model))
    path = sampler.path_on(model)
    times = _positive_times(sampler, path)
    start, end = path.at(times[0])[1], path.at(times[-1])[0]
    return _walk(model.on(path), sampler, times, code, start, end, cond, batch)


def round_trip(
    model: Denoiser,
    points: Tensor,
    sampler: OdeSampler | None = None,
    cond: Cond = None,
    *,
    start: Literal["data", "noise"] = "data",
    batch: int = 256,
) -> xr.Dataset:
    """What is lost on the way out and back by the same solver and grid.

    Args:
        points: (S, ...) data points (encoded, then decoded), or with start="noise" codes (sampled, then re-encoded).
    Returns: `points`, `other` (the far end) and `returned` (sample, ...), `error` (sample) |returned - points|, and
        `rmse`, `rmse_se` per dimension; attributes n, nfe (both ways, per sample), n_steps, start. Zero only for the exact flow:
        it falls with the solver's order in the number of steps.
    """
    sampler = _made_of_steps(sampler or inverter(model))
    there, back = (encode, decode) if start == "data" else (decode, encode)
    if start not in ("data", "noise"):
        raise BadValue(f"a round trip starts at 'data' or 'noise', not {start!r}.")
    points = points.double()
    other = there(model, points, sampler, cond, batch=batch)
    returned = back(model, other, sampler, cond, batch=batch)
    gap = geometry.flat(returned - points, 1)
    square = gap.square().mean(dim=1)
    rmse = math.sqrt(float(square.mean()))
    n = len(points)
    spread = float(square.std()) / math.sqrt(n) if n > 1 else math.nan
    dims = ("sample", *feature_dims(points.shape[1:]))
    unit = {"units": "data unit" if start == "data" else "1"}
    path = sampler.path_on(model)
    times = _positive_times(sampler, path)
    on = model.on(path)
    nfe = sum(on.calls_at(t) for way in (times, times[::-1]) for t in sampler.solver.eval_times(way, path))
    return xr.Dataset(
        {
            "points": (dims, points.numpy(force=True), unit),
            "other": (dims, other.numpy(force=True)),
            "returned": (dims, returned.numpy(force=True), unit),
            "error": ("sample", gap.norm(dim=1).numpy(force=True), {"long_name": "round-trip error", **unit}),
            "rmse": ((), rmse, unit),
            "rmse_se": ((), spread / (2 * rmse) if rmse else 0.0, unit),
        },
        attrs={"n": n, "nfe": nfe, "n_steps": len(times) - 1, "start": start, "model": model.name},
    )


def round_trip_by_steps(
    model: Denoiser,
    points: Tensor,
    steps: tuple[int, ...] = (8, 16, 32, 64, 128),
    cond: Cond = None,
    *,
    solver=None,
    start: Literal["data", "noise"] = "data",
    grid: Callable[[int], TimeGrid] | None = None,
) -> xr.Dataset:
    """`rmse`, `rmse_se` of the round trip against the number of steps: (n_steps), with `nfe`; attribute n.

    Args: grid: n_steps -> TimeGrid ending above 0; by default Karras' over the model's range.
    """
    rows = []
    for n in steps:
        sampler = inverter(model, n, solver=solver)
        if grid is not None:
            sampler = OdeSampler(sampler.solver, grid(n))
        rows.append(round_trip(model, points, sampler, cond, start=start))
    unit = rows[0].rmse.attrs
    return xr.Dataset(
        {name: ("n_steps", [float(r[name]) for r in rows], unit) for name in ("rmse", "rmse_se")},
        {"n_steps": list(steps), "nfe": ("n_steps", [r.attrs["nfe"] for r in rows])},
        {"n": len(points), "start": start, "solver": type(sampler.solver).__name__, "model": model.name},
    )


def forward_pairs(
    model: Denoiser,
    data: Tensor,
    sampler: OdeSampler | None = None,
    cond: Cond = None,
    *,
    seeds: Seeds | Iterable[int] | None = None,
    batch: int = 256,
) -> Pairs:
    """Real data with its own codes: a coupling whose data side is exactly the data and whose noise side is as normal as the codes; `seeds`
    as in `encode`.

    Train on it through `Given(*pairs[:3])`. Reflow pairs run the other way and replace the data by samples.
    """
    code = encode(model, data, sampler, cond, seeds=seeds, batch=batch)
    return pairs_of(code.to(data.device), data.double(), cond)


def normality(codes: Tensor, *, n_quantiles: int = 99) -> xr.Dataset:
    """How far codes are from N(0, I): moments, shape, dependence and distances, with errors or p-values.

    Args: codes: (S, ...), S at least 8.
    Returns:
        By dimension: `mean` (error 1/sqrt(S) under N(0, I)), `std` (error 1/sqrt(2S)), `ks` and `ks_p`, the
        Kolmogorov-Smirnov distance to N(0, 1). Over all: `ks_p_min`, the smallest p-value times D (Bonferroni).
        `skewness`, `skewness_p` and `kurtosis`, `kurtosis_p`: Mardia's of the whitened codes, blind to mean and covariance,
        kurtosis relative to D(D + 2) = 1; NaN unless S > D + 1. Their p-values use the moments at finite S; that of
        skewness is rough where D is large (at 5 % it rejects 13 % of normal samples at S = 400, D = 64).
        `covariance_gap` |Cov - I|_F / sqrt(D) and `covariance_floor`, what N(0, I) codes would show.
        `norm2`, `norm2_se`: E|z|^2 / D; `norm_ks`, `norm_p`: of |z|^2 against chi-squared of D degrees of freedom.
        `energy`, `energy_se`: energy distance to N(0, I), unbiased (may be negative), one expectation in closed form; error by
        the jackknife, conservative when the codes are normal.
        For images: `pixel_correlation`, `_se` of neighbouring pixels.
        For a quantile plot: `expected` and `observed` (quantile) of all entries pooled, `norm_expected`, `norm_observed` of |z|.
        Attributes n, dim.
    Sources: Mardia 1970, Biometrika 57, and 1974, Sankhya B 36; energy test of normality: Szekely & Rizzo 2005, J. Multivariate
        Analysis 93.
    """
    from scipy import stats

    z = geometry.flat(codes.detach().cpu(), 1)
    n, d = z.shape
    if n < 8:
        raise BadValue(f"the law of codes cannot be judged from {n} of them: give at least 8.")
    if not bool(z.isfinite().all()):
        raise BadValue("codes are not finite: encode with more steps, or look at which data points fail.")
    shape, dims = tuple(codes.shape[1:]), feature_dims(codes.shape[1:])
    ordered = z.sort(dim=0).values.numpy()
    below = stats.norm.cdf(ordered)
    rank = np.arange(n)[:, None]
    ks = np.maximum((rank + 1) / n - below, below - rank / n).max(axis=0)
    ks_p = stats.kstwo.sf(ks, n)
    norm2 = z.square().sum(dim=1).numpy()
    radial = stats.kstest(norm2, stats.chi2(d).cdf)
    skew, skew_p, kurt, kurt_p = _mardia(z)
    energy, energy_se = energy_to_normal(z)
    cov = torch.cov(z.T).reshape(d, d)
    gap = float((cov - torch.eye(d, dtype=z.dtype)).norm()) / math.sqrt(d)
    level = (np.arange(n_quantiles) + 0.5) / n_quantiles
    scalars = {
        "ks_p_min": min(1.0, d * float(ks_p.min())),
        "skewness": skew,
        "skewness_p": skew_p,
        "kurtosis": kurt,
        "kurtosis_p": kurt_p,
        "covariance_gap": gap,
        "covariance_floor": math.sqrt((d + 1) / (n - 1)),
        "norm2": float(norm2.mean()) / d,
        "norm2_se": float(norm2.std(ddof=1)) / math.sqrt(n) / d,
        "norm_ks": float(radial.statistic),
        "norm_p": float(radial.pvalue),
        "energy": energy,
        "energy_se": energy_se,
    }
    if len(shape) == 3 and shape[1] > 1 and shape[2] > 1:
        scalars["pixel_correlation"], scalars["pixel_correlation_se"] = _pixel_correlation(z.reshape(n, *shape))
    return xr.Dataset(
        {
            "mean": (dims, z.mean(dim=0).reshape(shape).numpy()),
            "std": (dims, z.std(dim=0).reshape(shape).numpy()),
            "ks": (dims, ks.reshape(shape)),
            "ks_p": (dims, ks_p.reshape(shape)),
            **{name: ((), value) for name, value in scalars.items()},
            "expected": ("quantile", stats.norm.ppf(level)),
            "observed": ("quantile", np.quantile(z.numpy(), level)),
            "norm_expected": ("quantile", np.sqrt(stats.chi2.ppf(level, d))),
            "norm_observed": ("quantile", np.quantile(np.sqrt(norm2), level)),
        },
        {"quantile": level},
        {"n": n, "dim": d, "mean_se": 1 / math.sqrt(n), "std_se": 1 / math.sqrt(2 * n)},
    )


def normality_verdict(found: xr.Dataset, level: float = 0.01) -> str:
    """One sentence on codes, from `normality`: which tests reject N(0, I) at this level after Bonferroni over the tests."""
    tests = {
        "marginals (KS)": "ks_p_min",
        "norms (KS)": "norm_p",
        "Mardia's skewness": "skewness_p",
        "Mardia's kurtosis": "kurtosis_p",
    }
    p = {label: float(found[name]) for label, name in tests.items() if math.isfinite(float(found[name]))}
    rejected = [f"{label} p = {value:.1g}" for label, value in p.items() if value * len(p) < level]
    n, d = found.attrs["n"], found.attrs["dim"]
    tail = (
        f"E|z|²/D = {float(found.norm2):.3f} ± {float(found.norm2_se):.3f}, energy distance "
        f"{float(found.energy):.2g} ± {float(found.energy_se):.1g} (n = {n}, D = {d})"
    )
    if rejected:
        return f"the codes are not N(0, I): {', '.join(rejected)}; {tail}"
    return f"no test tells the codes from N(0, I) at {level:.0%}; {tail}"


def energy_to_normal(z: Tensor) -> tuple[float, float]:
    """Energy distance 2 E|Z - N| - E|Z - Z'| - E|N - N'| between codes (S, D) and N(0, I), unbiased, and its jackknife error."""
    n, d = z.shape
    to_normal = torch.from_numpy(mean_distance_to_normal(z.square().sum(dim=1).numpy(), d))
    rows = torch.cat([torch.cdist(part, z).sum(dim=1) for part in z.split(512)])  # each pair twice in the total
    among = math.exp(math.lgamma((d + 1) / 2) - math.lgamma(d / 2)) * 2
    total = float(rows.sum())
    value = 2 * float(to_normal.mean()) - total / (n * (n - 1)) - among
    left_out = 2 * (to_normal.sum() - to_normal) / (n - 1) - (total - 2 * rows) / ((n - 1) * (n - 2)) - among
    spread = (left_out - left_out.mean()).square().sum() * (n - 1) / n
    return value, math.sqrt(float(spread))


def mean_distance_to_normal(square_norm: np.ndarray, dim: int) -> np.ndarray:
    """E|x - N| for N ~ N(0, I) in `dim` dimensions and |x|^2 given: sqrt(2) G((d+1)/2)/G(d/2) 1F1(-1/2; d/2; -|x|^2/2).

    Accuracy: 1e-12 relative. Computed as the mean of a noncentral chi distribution: a Poisson mixture of central ones, summed around
    its mode, which unlike the hypergeometric function does not lose digits in many dimensions.
    """
    from scipy.special import gammaln

    rate = np.asarray(square_norm, dtype=np.float64)[:, None] / 2
    reach = 12 * np.sqrt(rate.max() + 1) + 40
    low = max(0, math.floor(rate.min() - 12 * math.sqrt(rate.min() + 1) - 40))
    k = np.arange(low, math.ceil(rate.max() + reach) + 1)
    log_poisson = k * np.log(np.maximum(rate, 1e-300)) - rate - gammaln(k + 1)
    central = 0.5 * math.log(2) + gammaln((dim + 1) / 2 + k) - gammaln(dim / 2 + k)
    return np.exp(log_poisson + central).sum(axis=1)


def _mardia(z: Tensor) -> tuple[float, float, float, float]:
    """Mardia's multivariate skewness and kurtosis (relative to a normal's) with two-sided asymptotic p-values."""
    from scipy import stats

    n, d = z.shape
    if n <= d + 1:
        return (math.nan,) * 4
    centred = z - z.mean(dim=0)
    cov = centred.T @ centred / n
    try:
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(cov), centred.T, upper=False).T
    except torch.linalg.LinAlgError:  # codes on a plane
        return (math.nan,) * 4
    skew = sum(float((part @ white.T).pow(3).sum()) for part in white.split(512)) / n**2
    kurt = float(white.square().sum(dim=1).square().mean())
    # the exact mean of the skewness, and the exact mean and variance of the kurtosis, of n normal points (Mardia 1974, Sankhya B 36)
    dof = d * (d + 1) * (d + 2) / 6
    small = (d + 1) * (n + 1) * (n + 3) / (n * ((n + 1) * (d + 1) - 6))
    skew_p = float(stats.chi2.sf(n * skew / 6 * small, dof))
    expected = d * (d + 2) * (n - 1) / (n + 1)
    variance = 8 * d * (d + 2) * (n - 3) * (n - d - 1) * (n - d + 1) / ((n + 1) ** 2 * (n + 3) * (n + 5))
    z_kurt = (kurt - expected) / math.sqrt(variance) if variance > 0 else math.nan
    return skew, skew_p, kurt / (d * (d + 2)), float(2 * stats.norm.sf(abs(z_kurt)))


def _pixel_correlation(z: Tensor) -> tuple[float, float]:
    """Mean product of neighbouring pixels over the mean square, and its error over samples: (S, C, H, W)."""
    right = (z[..., 1:] * z[..., :-1]).flatten(1).mean(dim=1)
    down = (z[..., 1:, :] * z[..., :-1, :]).flatten(1).mean(dim=1)
    power = float(z.square().mean())
    per_sample = (right + down) / 2 / power
    return float(per_sample.mean()), float(per_sample.std() / math.sqrt(len(z)))


def _made_of_steps(sampler) -> OdeSampler:
    if not isinstance(sampler, OdeSampler):
        raise BadValue(
            f"inversion needs a sampler made of a solver and a grid (OdeSampler), got {type(sampler).__name__}; others have no inverse."
        )
    return sampler


def _positive_times(sampler: OdeSampler, path) -> list[float]:
    """The grid without a last 0, noise first."""
    times = [t for t in sampler.grid.on(path) if t > 0]
    if len(times) < 2:
        raise BadValue(
            "a grid with a single positive time has no step to invert: take more steps, or a grid that ends above 0."
        )
    if path.at(times[0])[1] == 0 or path.at(times[-1])[0] == 0:
        raise BadValue(f"the grid leaves no noise or no data at its ends on {path}.")
    return times


@torch.no_grad()
def _walk(model: Denoiser, sampler: OdeSampler, times, points: Tensor, start: float, end: float, cond, batch: int):
    """start * points taken along the times, divided by `end`."""
    if points.shape[1:] != tuple(model.shape):
        raise BadValue(
            f"{model.name or 'the model'} takes points (samples, {', '.join(map(str, model.shape))}), got {tuple(points.shape)}."
        )
    if _draws(sampler.solver):
        raise BadValue(
            f"{type(sampler.solver).__name__} adds noise on the way, so its runs have no inverse: choose a deterministic solver."
        )
    out = []
    for lo in range(0, len(points), batch):
        part = None if cond is None else cond[lo : lo + batch]
        out.append(solve(model, sampler.solver, start * points[lo : lo + batch].double(), times, cond=part))
    return torch.cat(out) / end


def _draws(solver) -> bool:
    """Whether a solver adds noise: its steps ask for random numbers when some can be had."""
    asked = []

    class Probe(Seeds):
        def normal(self, shape, device=None, dtype=torch.float64):
            asked.append(shape)
            return super().normal(shape, device, dtype)

    from explorer.models.base import as_denoiser
    from explorer.process.paths import EDM

    flat = as_denoiser(lambda x, t, cond: torch.zeros_like(x), "x0", EDM(), (1,), t_range=(0.01, 80.0))
    with torch.no_grad():
        solve(flat, solver, torch.ones(1, 1, dtype=torch.float64), [80.0, 20.0, 5.0, 1.0, 0.2, 0.1], rng=Probe([0]))
    return bool(asked)
