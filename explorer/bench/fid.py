"""frechet-*: moments of features and the distance between two Gaussians at the sizes of real feature spaces, beside others' forms."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import scipy.linalg
import torch

from explorer.bench.clock import Effort, Work, installed, rounds
from explorer.bench.rows import Row
from explorer.metrics.accumulate import Accumulator
from explorer.metrics.frechet import Moments, frechet_distance, frechet_from_samples

Gaussians = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""mean (D,), covariance (D, D); the same of the other set."""


def full_rank(name: str, effort: Effort, *, dim: int) -> Row:
    """Means and covariances of 2 D samples each. Nothing is cached: both covariances are new in every call."""
    dim = min(dim, 256) if effort.quick else dim
    x, y = _features(2 * dim, dim)
    moments = _moments(x, y)
    symmetric = torch.from_numpy(moments[1])
    return _row(
        name,
        lambda: frechet_distance(*moments),
        lambda: torch.linalg.eigvalsh(symmetric),
        "one symmetric eigenvalue problem of that size",
        moments,
        effort,
        f"d = {dim}, two sets of {2 * dim} samples, float64, given as means and covariances.",
    )


def rank_deficient(name: str, effort: Effort, *, dim: int, n: int) -> Row:
    """Two sets of far fewer samples than features: the covariances are singular."""
    dim, n = (256, 32) if effort.quick else (dim, n)
    x, y = _features(n, dim)
    u, v = torch.from_numpy(x), torch.from_numpy(y)
    return _row(
        name,
        lambda: frechet_from_samples(x, y),
        lambda: torch.linalg.svdvals(u @ v.T),
        "one product X Y^T and its singular values",
        _moments(x, y),
        effort,
        f"d = {dim}, two sets of {n} samples, float64. The peers start from the covariances, ours from the samples; "
        "on singular matrices theirs add up square roots of rounding errors, which is the difference under checks.",
    )


def accumulation(name: str, effort: Effort, *, dim: int) -> Row:
    """Features a second into mean and covariance, from float32 batches of 64 as a network gives them."""
    dim, n, batch = (256, 1024, 64) if effort.quick else (dim, 4096, 64)
    x = np.random.default_rng(dim).normal(size=(n, dim)).astype(np.float32)
    batches = [x[i : i + batch] for i in range(0, n, batch)]
    sums, lower = Accumulator(dim), np.zeros((dim, dim), order="F")
    wide = [x[i : i + sums.rows].astype(np.float64) for i in range(0, n, sums.rows)]

    def ours() -> np.ndarray:
        fresh = Accumulator(dim)
        for piece in batches:
            fresh.update(piece)
        return fresh.moments().cov

    def limit() -> None:
        for piece in wide:
            scipy.linalg.blas.dsyrk(1.0, piece.T, beta=1.0, c=lower, lower=1, overwrite_c=1)

    def raw_sums() -> Callable[[], np.ndarray]:
        given = [torch.from_numpy(piece) for piece in batches]

        def add() -> np.ndarray:
            total, square = torch.zeros(dim, dtype=torch.float64), torch.zeros(dim, dim, dtype=torch.float64)
            for piece in given:
                f = piece.double()
                total += f.sum(0)
                square += f.T @ f
            return ((square - torch.outer(total, total) / n) / (n - 1)).numpy()

        return add

    peers, absent = installed({"sums of squares by batch": raw_sums})
    times, values = rounds({"ours": ours, "limit": limit, **peers}, effort)
    gap = np.abs(values["ours"] - values["sums of squares by batch"]).max() / np.abs(values["ours"]).max()
    note = f"d = {dim}, {n} features in batches of {batch}, float64 sums; the peer is what EDM, torchmetrics and StyleGAN do."
    limit_is = "the products alone, one triangle, on float64 rows that lie ready"
    row = Row.of(
        name,
        times,
        unit="s",
        limit_is=limit_is,
        absent=absent,
        checks={"sums of squares by batch": float(gap)},
        note=note,
    )
    return row.as_rate(n, "features/s")


def _row(name: str, ours: Work, limit: Work, limit_is: str, moments: Gaussians, effort: Effort, note: str) -> Row:
    peers, absent = installed({peer: lambda build=build: build(*moments) for peer, build in PEERS.items()})
    times, values = rounds({"ours": ours, "limit": limit, **peers}, effort)
    checks = {peer: abs(values["ours"] - values[peer]) / abs(values[peer]) for peer in peers}
    return Row.of(name, times, unit="ms", limit_is=limit_is, absent=absent, checks=checks, note=note)


def _features(n: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Two sets (n, dim) of correlated features, their standard deviations spread over a factor of ten."""
    rng = np.random.default_rng(dim)
    spread = np.geomspace(3.0, 0.3, dim)
    mix = np.eye(dim) + rng.normal(size=(dim, dim)) / np.sqrt(dim)
    return (rng.normal(size=(n, dim)) * spread) @ mix, (rng.normal(size=(n, dim)) * spread[::-1] + 0.1) @ mix


def _moments(x: np.ndarray, y: np.ndarray) -> Gaussians:
    a, b = Moments.of(x), Moments.of(y)
    return a.mean, a.cov, b.mean, b.cov


def _torchmetrics(*moments: np.ndarray) -> Work:
    from torchmetrics.image.fid import _compute_fid

    given = [torch.from_numpy(m) for m in moments]
    return lambda: float(_compute_fid(*given))


def _sqrtm(mean1, cov1, mean2, cov2) -> Work:
    """General matrix square root: the form of the first FID code and its many copies."""

    def distance() -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that the matrix is singular is the point
            root = np.trace(scipy.linalg.sqrtm(cov1 @ cov2)).real
        return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * root)

    return distance


def _eigvals(mean1, cov1, mean2, cov2) -> Work:
    """Eigenvalues of the product as a general matrix: the form of torch-fidelity."""

    def distance() -> float:
        root = np.sqrt(np.linalg.eigvals(cov1 @ cov2) + 0j).real.sum()
        return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * root)

    return distance


PEERS: dict[str, Callable[..., Work]] = {
    "torchmetrics": _torchmetrics,
    "scipy sqrtm": _sqrtm,
    "numpy eigvals": _eigvals,
}
