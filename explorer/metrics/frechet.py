"""Fréchet distance with its bias and its error: streaming moments, fast kernels, closed-form correction, jackknife.

    FD = |m1 - m2|^2 + tr S1 + tr S2 - 2 sum_i s_i,    s_i^2 = eigenvalues of S2^(1/2) S1 S2^(1/2)

For any factor S2 = L L^T those are also the eigenvalues of L^T S1 L, so one symmetric eigenvalue problem is enough; the
factor of the reference (Cholesky, or eigenvectors when it is singular) is computed once. No general matrix square root.

The plug-in value is too high for few samples: E[FD_n] - FD = O(1/n) > 0. `Frechet.compute` removes that bias (in closed
form for n >= 15 D, by the jackknife for n >= 5 D) and gives no number below 5 D.

1 generated samples, 2 the reference. N samples, D features, R rank of the reference factor, K blocks.
Sources: Heusel et al. 2017, arXiv 1706.08500 (FID); Chong & Forsyth 2020, arXiv 1911.07023 (bias in 1/n).
"""

from __future__ import annotations

import hashlib
import math
import os
import zipfile
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import scipy.linalg
import torch
from torch import Tensor

from explorer.errors import BadFile, BadValue
from explorer.files import write_atomic
from explorer.metrics.base import Estimate, Jackknife, Metric, Replicates, block_of, jackknife
from explorer.metrics.features import FeatureSpace

Correction = Literal["auto", "none", "closed-form", "jackknife", "extrapolate"]
EPS = float(np.finfo(np.float64).eps)
JACKKNIFE_FROM, CLOSED_FORM_FROM = 5, 15  # samples per feature


# numpy's small matrices have the lower overhead, torch's LAPACK is 4x faster on large ones
LARGE = 256


def _eigvalsh(a: np.ndarray) -> np.ndarray:
    return np.linalg.eigvalsh(a) if a.shape[-1] <= LARGE else torch.linalg.eigvalsh(torch.from_numpy(a)).numpy()


def _eigh(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if a.shape[-1] <= LARGE:
        return np.linalg.eigh(a)
    w, v = torch.linalg.eigh(torch.from_numpy(a))
    return w.numpy(), v.numpy()


def _cholesky(a: np.ndarray) -> np.ndarray | None:
    """Lower factor, or None when `a` is not positive definite."""
    if len(a) <= LARGE:
        try:
            return np.linalg.cholesky(a)
        except np.linalg.LinAlgError:
            return None
    factor, info = torch.linalg.cholesky_ex(torch.from_numpy(a))
    return None if int(info) else factor.numpy()


def _svdvals(a: np.ndarray) -> np.ndarray:
    return scipy.linalg.svdvals(a) if max(a.shape) <= LARGE else torch.linalg.svdvals(torch.from_numpy(a)).numpy()


def _matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.shape[-1] <= LARGE:
        return a @ b
    return torch.matmul(torch.from_numpy(np.asarray(a)), torch.from_numpy(np.asarray(b))).numpy()


def _times_lower(a: np.ndarray, lower: np.ndarray, block: int = 256) -> np.ndarray:
    """a L for lower triangular L, half the work of a full product."""
    if len(lower) <= LARGE:
        return a @ lower
    a, lower, out = torch.from_numpy(a), torch.from_numpy(lower), torch.empty(a.shape, dtype=torch.float64)
    for j in range(0, len(lower), block):
        out[:, j : j + block] = a[:, j:] @ lower[j:, j : j + block]
    return out.numpy()


def _congruence(root: Factor, cov: np.ndarray, block: int = 256) -> np.ndarray:
    """L^T S L, of which only the lower triangle is promised (the eigenvalue routines read no more)."""
    lower = root.matrix
    if len(cov) <= LARGE or not root.triangular:
        return _matmul(np.ascontiguousarray(lower.T), _matmul(cov, lower))
    half, lower = torch.from_numpy(_times_lower(cov, lower)), torch.from_numpy(lower)
    out = torch.zeros_like(half)
    for i in range(0, len(cov), block):
        out[i : i + block, : i + block] = lower[i:, i : i + block].T @ half[i:, : i + block]
    return out.numpy()


def _features(x: np.ndarray | Tensor, dim: int | None = None) -> np.ndarray:
    x = x.detach().cpu().numpy() if isinstance(x, Tensor) else np.asarray(x)
    if x.ndim != 2 or (dim is not None and x.shape[1] != dim):
        raise BadValue(f"features must be a matrix (N, {dim or 'D'}), got shape {x.shape}.")
    return np.asarray(x, dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Moments:
    """Count, mean and centred scatter of a set of features, in float64; `a + b` is the union, `a - b` removes a subset.

    Attributes: n; mean (D,); scatter (D, D) = sum (x - mean)(x - mean)^T.
    Source: Chan, Golub, LeVeque 1979 (pairwise update, stable where sums of squares are not).
    """

    n: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def zero(cls, dim: int) -> Moments:
        return cls(0, np.zeros(dim), np.zeros((dim, dim)))

    @classmethod
    def of(cls, x: np.ndarray | Tensor) -> Moments:
        """Moments of features (N, D)."""
        x = _features(x)
        if len(x) == 0:
            return cls.zero(x.shape[1])
        mean = x.mean(0)
        c = x - mean
        return cls(len(x), mean, c.T @ c)

    @property
    def cov(self) -> np.ndarray:
        """(D, D), denominator n - 1."""
        return self.scatter / (self.n - 1)

    def __add__(self, other: Moments) -> Moments:
        if self.n == 0 or other.n == 0:
            return other if self.n == 0 else self
        n = self.n + other.n
        gap = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(gap * (self.n * other.n / n), gap)
        return Moments(n, self.mean + gap * (other.n / n), scatter)

    def __sub__(self, part: Moments) -> Moments:
        if part.n == 0:
            return self
        if part.n >= self.n:
            return Moments.zero(len(self.mean))
        n = self.n - part.n
        gap = part.mean - self.mean
        mean = self.mean - gap * (part.n / n)
        return Moments(n, mean, self.scatter - part.scatter - np.outer(gap * (self.n * part.n / n), gap))


class Factor(NamedTuple):
    """S = L L^T."""

    matrix: np.ndarray  # (D, R)
    trace: float  # of S
    clipped: float  # negative mass of S that was set to zero
    triangular: bool  # L is lower triangular


def factor(cov: np.ndarray) -> Factor:
    """L with cov = L L^T: Cholesky when positive definite, else eigenvectors without the null space.

    Raises:
        BadValue: cov is not symmetric or not finite.
    """
    cov = _symmetric(cov)
    trace = float(np.trace(cov))
    lower = _cholesky(cov)
    if lower is not None:
        return Factor(lower, trace, 0.0, True)
    w, v = _eigh(cov)
    kept = w > 4 * math.sqrt(len(w)) * EPS * max(float(w[-1]), 0.0)
    return Factor(np.ascontiguousarray(v[:, kept] * np.sqrt(w[kept])), trace, float(-w[w < 0].sum()), False)


def _symmetric(cov: np.ndarray) -> np.ndarray:
    cov = np.ascontiguousarray(cov, dtype=np.float64)
    if cov.ndim != 2 or cov.shape[0] != cov.shape[1]:
        raise BadValue(f"a covariance is a square matrix, got shape {cov.shape}.")
    probe = np.cos(np.arange(1.0, len(cov) + 1))  # S v = S^T v for one generic v: two passes, no copies
    right, left = cov @ probe, probe @ cov
    if not np.isfinite(right).all():
        raise BadValue("the covariance holds NaN or infinity.")
    if np.abs(right - left).max(initial=0.0) > 1e-6 * max(np.abs(right).max(initial=0.0), abs(np.trace(cov))):
        raise BadValue("the covariance is not symmetric.")
    return cov


class Spectrum(NamedTuple):
    """s (R,): square roots of the eigenvalues of S2^(1/2) S1 S2^(1/2); clipped: negative mass set to zero (round-off: 1e-8)."""

    s: np.ndarray
    clipped: float


def spectrum(cov1: np.ndarray, root2: Factor) -> Spectrum:
    """Coupling spectrum of a covariance with a factored reference.

    Accuracy: the square root turns round-off in eigenvalues near zero into errors of about 1e-8; when those could add
    up to 1e-9 of the traces (both covariances nearly singular), the singular values of L1^T L2 are taken instead,
    which do not lose digits.
    """
    return _spectrum_from(_eigvalsh(_congruence(root2, cov1)), cov1, root2)


def _spectrum_from(eigenvalues: np.ndarray, cov1: np.ndarray, root2: Factor) -> Spectrum:
    if eigenvalues.size == 0:
        return Spectrum(eigenvalues, root2.clipped)
    noise = 4 * EPS * max(float(eigenvalues[-1]), 0.0)
    s = np.sqrt(np.maximum(eigenvalues, 0.0))
    clipped = float(np.sqrt(np.maximum(-eigenvalues, 0.0)).sum()) + root2.clipped
    uncertain = float((noise / (2 * np.maximum(s, math.sqrt(noise) + 1e-300))).sum())
    if uncertain > 1e-9 * (np.trace(cov1) + root2.trace):
        root1 = factor(cov1)
        s = _svdvals(_matmul(np.ascontiguousarray(root1.matrix.T), root2.matrix))
        return Spectrum(s[::-1], clipped)
    return Spectrum(s, clipped)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray | Factor) -> float:
    """Fréchet distance of two Gaussians (2-Wasserstein distance, squared), never negative.

    Args:
        mean1, mean2: (D,).
        cov1, cov2: (D, D), positive semi-definite; the second may be given as a `factor`, which saves its cost.
    Raises:
        BadValue: shapes disagree, or a covariance is not symmetric or not finite.
    """
    root = cov2 if isinstance(cov2, Factor) else factor(cov2)
    cov1 = _symmetric(cov1)
    mean1, mean2 = np.asarray(mean1, np.float64), np.asarray(mean2, np.float64)
    dim = len(root.matrix)
    if not len(cov1) == dim == mean1.size == mean2.size:
        raise BadValue(f"means {mean1.shape}, {mean2.shape} and covariances {cov1.shape}, {(dim, dim)} do not match.")
    return _distance(mean1 - mean2, float(np.trace(cov1)), root.trace, spectrum(cov1, root).s)


def frechet_from_samples(x: np.ndarray | Tensor, y: np.ndarray | Tensor | Reference) -> float:
    """Plug-in Fréchet distance of features x (N, D) and y (M, D), or y a `Reference`, by the cheapest exact route.

    N, M < D: nuclear norm of the centred Gram block, min(N, M) x max(N, M); no D x D matrix is formed.
    N < D against a reference: eigenvalues of the N x N matrix (XL)(XL)^T. Otherwise the covariance route.
    Plug-in value, biased upwards: with fewer samples than features it says little, and `Frechet` shows no number there.
    """
    x = _features(x)
    dim = x.shape[1]
    if isinstance(y, Reference):
        reference = y
    else:
        y = _features(y, dim)
        if max(len(x), len(y)) < dim:
            return _from_gram(x, y)
        if len(x) >= len(y):  # the smaller set takes the place of the generated one: the distance is symmetric
            x, y = y, x
        moments = Moments.of(y)
        reference = Reference("", "", moments.n, moments.mean, moments.cov)
    if len(x) < 2:
        raise BadValue(f"a covariance needs at least 2 samples, got {len(x)}.")
    if len(x) >= dim:
        moments = Moments.of(x)
        return frechet_distance(moments.mean, moments.cov, reference.mean, reference.root)
    mean = x.mean(0)
    c = (x - mean) / math.sqrt(len(x) - 1)
    root = reference.root
    half = _times_lower(c, root.matrix) if root.triangular else _matmul(c, root.matrix)
    s = np.sqrt(np.maximum(_eigvalsh(_matmul(half, np.ascontiguousarray(half.T))), 0.0))
    return _distance(mean - reference.mean, float((c**2).sum()), root.trace, s)


def _from_gram(x: np.ndarray, y: np.ndarray) -> float:
    if min(len(x), len(y)) < 2:
        raise BadValue(f"a covariance needs at least 2 samples, got {len(x)} and {len(y)}.")
    a = (x - x.mean(0)) / math.sqrt(len(x) - 1)
    b = (y - y.mean(0)) / math.sqrt(len(y) - 1)
    s = _svdvals(_matmul(a, np.ascontiguousarray(b.T)))
    return _distance(x.mean(0) - y.mean(0), float((a**2).sum()), float((b**2).sum()), s)


def _distance(gap: np.ndarray, trace1: float, trace2: float, s: np.ndarray) -> float:
    return max(float(gap @ gap) + trace1 + trace2 - 2 * float(s.sum()), 0.0)


def finite_sample_bias(s: np.ndarray, trace: float, n: int) -> float:
    """Expected excess of the plug-in FD when one side is n Gaussian samples: leading order, error O(1/n^2).

    tr S / n  +  1 / (2 (n - 1)) * sum_ij (1 + delta_ij) s_i s_j / (s_i + s_j)

    Args:
        s: (R,) coupling spectrum. trace: of the covariance of the sampled side. n: its number of samples.
    About 6 % of the bias is left at n = 5 D and less than 2 % from 15 D when s and the trace are themselves estimates.
    """
    s = s[s > 0]
    double = float((s[:, None] * s / (s[:, None] + s)).sum()) + float(s.sum()) / 2
    return trace / n + double / (2 * (n - 1))


def influence(x: np.ndarray, moments: Moments, reference: Reference) -> np.ndarray:
    """First-order effect of each generated sample on the FD, (N,), of mean about zero; sd / sqrt(n) is an error.

    psi(x) = 2 (m1 - m2).(x - m1) + (x - m1)^T (I - A) (x - m1) - tr((I - A) S1),    A = L (L^T S1 L)^(-1/2) L^T,
    with A the Gaussian transport map from S1 to S2. As FD -> 0 psi vanishes and the error becomes conservative.
    """
    c = _features(x) - moments.mean
    root = reference.root.matrix
    w, v = _eigh(_congruence(reference.root, moments.cov))
    kept = w > 4 * EPS * max(float(w[-1]), 0.0) * math.sqrt(len(w)) if len(w) else w > 0
    mapped = _matmul(c, _matmul(root, v[:, kept] * w[kept] ** -0.25))
    centre = float(np.trace(moments.cov)) - float(np.sqrt(w[kept]).sum())  # tr(A S1) = sum of s
    return 2 * c @ (moments.mean - reference.mean) + (c**2).sum(1) - (mapped**2).sum(1) - centre


@dataclass(frozen=True, eq=False)
class Reference:
    """Moments of the real data in one feature space: what generated samples are compared with.

    Attributes:
        features: name of the feature space. hash: of its weights.
        n: number of real samples behind the moments; 0 where their file does not say. mean: (D,). cov: (D, D), denominator n - 1.
        data: what the samples are, e.g. "digits/train".
    The reference is taken as given: distances are to these moments, not to the population they were drawn from.
    `finite_sample_bias(s, reference.root.trace, reference.n)` is what its own finite n adds to a distance.
    """

    features: str
    hash: str
    n: int
    mean: np.ndarray
    cov: np.ndarray
    data: str = ""

    def __post_init__(self):
        mean, cov = np.asarray(self.mean, np.float64), _symmetric(self.cov)
        if mean.shape != (len(cov),) or not np.isfinite(mean).all() or self.n < 0 or self.n == 1:
            raise BadValue(f"reference of n={self.n} samples: mean {mean.shape} and covariance {cov.shape} do not fit.")
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "cov", cov)

    @classmethod
    def of(
        cls, features: FeatureSpace, samples: Tensor | Iterable[Tensor], *, data: str = "", batch: int = 1024
    ) -> Reference:
        """Reference from samples (N, *shape), or from an iterable of batches."""
        batches = samples.split(batch) if isinstance(samples, Tensor) else samples
        moments = Moments.zero(features.dim)
        for piece in batches:
            moments = moments + Moments.of(features(piece))
        if moments.n < 2:
            raise BadValue(f"a reference needs at least 2 samples, got {moments.n}.")
        return cls(features.name, features.hash, moments.n, moments.mean, moments.cov, data)

    @property
    def dim(self) -> int:
        return len(self.mean)

    @cached_property
    def root(self) -> Factor:
        return factor(self.cov)

    @cached_property
    def digest(self) -> str:
        """First 16 hex digits of the SHA-256 of name, hash, n and moments."""
        digest = hashlib.sha256(f"{self.features}|{self.hash}|{self.n}".encode())
        digest.update(self.mean.tobytes())
        digest.update(self.cov.tobytes())
        return digest.hexdigest()[:16]

    def check(self, features: FeatureSpace) -> None:
        """Raises BadValue unless this reference was made in the given feature space (name, size and weights)."""
        if (self.features, self.hash, self.dim) != (features.name, features.hash, features.dim):
            raise BadValue(
                f"the reference was made with features {self.features!r} (D={self.dim}, hash {self.hash or 'none'}), "
                f"but the metric uses {features.name!r} (D={features.dim}, hash {features.hash or 'none'}): "
                "distances would mean nothing. Rebuild the reference with Reference.of(features, samples)."
            )

    def save(self, file: str | os.PathLike) -> None:
        """Write an .npz without pickled objects; a file of that name is replaced at once or not at all."""
        content = {
            "format": np.array("explorer-reference-1"),
            "features": np.array(self.features),
            "hash": np.array(self.hash),
            "n": np.array(self.n),
            "mean": self.mean,
            "cov": self.cov,
            "data": np.array(self.data),
        }

        def write(part: Path) -> None:
            with open(part, "wb") as out:  # by its name, numpy would append .npz to it
                np.savez(out, **content)

        write_atomic(file, write)

    @classmethod
    def load(cls, file: str | os.PathLike) -> Reference:
        """Read what `save` wrote; nothing in the file is executed.

        Raises:
            BadFile: missing, truncated, or not a reference.
        """
        try:
            with np.load(file, allow_pickle=False) as z:
                if str(z["format"]) != "explorer-reference-1":
                    raise ValueError(f"format {str(z['format'])!r}")
                fields = (str(z["features"]), str(z["hash"]), int(z["n"]), z["mean"], z["cov"], str(z["data"]))
            return cls(*fields)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise BadFile(f"{file} is not a reference saved by Reference.save: {error}") from error


def distance_name(features: str) -> str:
    """How a distance in this feature space is called: "FID" in that of Inception-v3 with the published weights, else "FD"."""
    return f"{'FID' if features.startswith('inception-v3/') else 'FD'}[{features}]"


class Frechet(Metric):
    """Streaming Fréchet distance of generated samples to a fixed reference, corrected for few samples.

    Args:
        features: the feature space; must be the one of the reference.
        reference: moments of the real data.
        n_blocks: jackknife groups; see `block_of` for which sample belongs where.
        n_keep: how many feature vectors (the first) are kept for the influence-function error.
    Cost of `compute`: one symmetric eigenproblem of size D from n = 15 D on, n_blocks + 1 below.
    """

    def __init__(self, features: FeatureSpace, reference: Reference, n_blocks: int = 10, n_keep: int = 2000):
        reference.check(features)
        if n_blocks < 2 or n_keep < 2:
            raise BadValue(f"Frechet(n_blocks={n_blocks}, n_keep={n_keep}): both must be at least 2.")
        self.features, self.reference, self.n_blocks, self.n_keep = features, reference, n_blocks, n_keep
        self._blocks = [Moments.zero(features.dim)] * n_blocks
        self._kept: list[np.ndarray] = []
        self._n = 0
        self._left_out: tuple[int, np.ndarray] | None = None

    @property
    def name(self) -> str:
        return distance_name(self.features.name)

    @property
    def n(self) -> int:
        return self._n

    @property
    def key(self) -> tuple:
        return ("FD", self.features.name, self.features.hash, self.reference.digest, self.n_blocks)

    def empty(self) -> Frechet:
        return Frechet(self.features, self.reference, self.n_blocks, self.n_keep)

    def update(self, samples: Tensor, labels: Tensor | None = None) -> None:
        x = self.features(samples).numpy()
        block = block_of(self._n + np.arange(len(x)), self.n_blocks)
        for k in range(self.n_blocks):
            rows = x[block == k]
            if len(rows):
                self._blocks[k] = self._blocks[k] + Moments.of(rows)
        room = self.n_keep - min(self._n, self.n_keep)
        if room:
            self._kept.append(x[:room].copy())
        self._n += len(x)

    def merge(self, other: Metric) -> None:
        self.check_comparable(other)
        for k, block in enumerate(other._blocks):
            self._blocks[k] = self._blocks[k] + block
        if self._n < self.n_keep:
            self._kept = [np.concatenate(self._kept + other._kept)[: self.n_keep]] if self._n + other.n else []
        self._n += other.n

    @property
    def n_min(self) -> int:
        """Fewest samples for which `compute` gives a number: 5 per feature, and two per block."""
        return max(JACKKNIFE_FROM * self.features.dim, 2 * self.n_blocks)

    @property
    def moments(self) -> Moments:
        """Of all samples so far."""
        return sum(self._blocks, Moments.zero(self.features.dim))

    def compute(self, correction: Correction = "auto") -> Estimate:
        """FD now. Correction "auto" takes the best one for this n; the others are for comparison.

        "closed-form": `finite_sample_bias` is subtracted, error from the influence function. "jackknife": both from the
        blocks. "extrapolate": the intercept of FD against 1/n over subsets of blocks (about n_blocks^3 / 2
        eigenproblems). "none": the plug-in value. The corrected value may be slightly negative when FD is about zero.
        Below `n_min` samples the value is NaN, whatever the correction, and `raw` is the plug-in value.
        """
        if correction not in ("auto", "none", "closed-form", "jackknife", "extrapolate"):
            raise BadValue(f"correction {correction!r}: expected auto, none, closed-form, jackknife or extrapolate.")
        n, dim = self._n, self.features.dim
        if n < 2:
            return Estimate(math.nan, math.nan, n, self.name, note=self._too_few())
        total = self.moments
        shape, raw = self._plug_in(total)
        if n < self.n_min:
            return Estimate(math.nan, math.nan, n, self.name, raw, note=self._too_few())
        if correction == "auto":
            correction = "jackknife" if n < CLOSED_FORM_FROM * dim else "closed-form"

        if correction in ("none", "closed-form"):
            bias = finite_sample_bias(shape.s, float(np.trace(total.cov)), n)
            spread = float(influence(np.concatenate(self._kept), total, self.reference).std(ddof=1))
            value, error, dof = raw - bias, spread / math.sqrt(n), math.inf
        elif correction == "jackknife":
            value, error, dof = jackknife(raw, self._leave_out(total))
        else:
            value, error, dof = self._extrapolated()
        note = f"bias correction: {correction}"
        if shape.clipped > 1e-6 * (np.trace(total.cov) + self.reference.root.trace):
            note += f"; clipped negative mass {shape.clipped:.2g}"
        if correction == "none":
            return Estimate(raw, error, n, self.name, raw, bias, dof, note)
        return Estimate(value, error, n, self.name, raw, raw - value, dof, note)

    def replicates(self) -> Replicates:
        """Plug-in values with one block left out. The bias they carry is common to two settings at equal n."""
        total = self.moments
        return Replicates(self._plug_in(total)[1], [self._leave_out(total)])

    def _too_few(self) -> str:
        return f"not enough samples: {self._n} of at least {self.n_min} ({JACKKNIFE_FROM} per feature)"

    def _plug_in(self, moments: Moments) -> tuple[Spectrum, float]:
        cov = moments.cov
        shape = spectrum(cov, self.reference.root)
        gap = moments.mean - self.reference.mean
        return shape, _distance(gap, float(np.trace(cov)), self.reference.root.trace, shape.s)

    def _leave_out(self, total: Moments) -> np.ndarray:
        if self._left_out is None or self._left_out[0] != self._n:
            self._left_out = (self._n, self._distances([total - b for b in self._blocks if b.n]))
        return self._left_out[1]

    def _distances(self, sets: list[Moments]) -> np.ndarray:
        """Plug-in distance of each set; small ones as one stack."""
        if self.features.dim > LARGE:
            return np.array([self._plug_in(m)[1] for m in sets])
        root = self.reference.root
        covs = np.stack([m.cov for m in sets])
        stack = np.linalg.eigvalsh(root.matrix.T @ covs @ root.matrix)
        gaps = [m.mean - self.reference.mean for m in sets]
        shapes = [_spectrum_from(w, cov, root) for w, cov in zip(stack, covs, strict=True)]
        parts = zip(gaps, covs, shapes, strict=True)
        return np.array([_distance(gap, float(np.trace(cov)), root.trace, shape.s) for gap, cov, shape in parts])

    def _extrapolated(self) -> Jackknife:
        full = self._intercept(self._blocks)
        left_out = np.array([self._intercept(self._blocks[:k] + self._blocks[k + 1 :]) for k in range(self.n_blocks)])
        return jackknife(full, left_out)._replace(value=full)

    def _intercept(self, blocks: list[Moments]) -> float:
        """Value at 1/n = 0 of a line through FD of all cyclic runs of j blocks, j from half of them to all."""
        blocks = [b for b in blocks if b.n]
        k = len(blocks)
        start = next(j for j in range(max(2, (k + 1) // 2), k + 1) if sum(b.n for b in blocks[:j]) > self.features.dim)
        inverse, value = [], []
        for j in range(start, k + 1):
            runs = [sum((blocks[(i + o) % k] for o in range(j)), Moments.zero(self.features.dim)) for i in range(k)]
            runs = runs[:1] if j == k else runs
            inverse.append(np.mean([1 / r.n for r in runs]))
            value.append(self._distances(runs).mean())
        if len(value) < 2:
            return math.nan
        return float(np.polyfit(inverse, value, 1)[1])
