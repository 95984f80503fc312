"""Distributions whose diffusion is known exactly: density, score, denoiser, posterior and moments in closed form.

A Gaussian mixture stays one under x_t = alpha x0 + sigma eps, so everything a network would have to learn is a formula. With zero
component width the mixture is a finite data set and the denoiser is the ideal one of Karras et al. 2022 (arXiv 2206.00364, App. B.3).

B batch, K components, D features. States are (B, *shape); alpha and sigma are numbers or (B,).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from explorer.errors import BadValue
from explorer.process.broadcast import like

Number = float | Tensor


class GaussianMixture(nn.Module):
    """Mixture of K Gaussians in any dimension, diffused exactly.

    Args:
        means: (K, *shape).
        stds: one isotropic standard deviation, or (K,); 0 gives point masses. Give either `stds` or `covs`.
        covs: (K, D, D) full covariances of the flattened components, positive semi-definite.
        weights: (K,) positive, normalised here; equal by default.
        labels: (K,) int64 class of each component, for conditional denoising.
    Raises:
        BadValue: shapes that do not match, negative weights or widths, covariances that are not positive semi-definite.
    """

    def __init__(
        self, means: Tensor, stds: Number | None = None, *, covs: Tensor | None = None, weights=None, labels=None
    ):
        super().__init__()
        means = torch.as_tensor(means, dtype=torch.float64)
        if means.ndim < 2:
            raise BadValue(f"means must be (components, features...), got shape {tuple(means.shape)}")
        if (stds is None) == (covs is None):
            raise BadValue("give either stds (isotropic components) or covs (full covariances), not both or neither")
        self.shape = tuple(means.shape[1:])
        n = len(means)
        weights = torch.ones(n) if weights is None else torch.as_tensor(weights)
        weights = weights.to(torch.float64)
        if weights.shape != (n,) or not (weights > 0).all():
            raise BadValue(f"weights must be {n} positive numbers, got shape {tuple(weights.shape)}")
        self.register_buffer("log_weights", (weights / weights.sum()).log())
        self.register_buffer("means", means.reshape(n, -1))
        if covs is None:
            variances = torch.as_tensor(stds, dtype=torch.float64).expand(n) ** 2
            if not (torch.as_tensor(stds) >= 0).all():
                raise BadValue("standard deviations must not be negative")
            self.register_buffer("variances", variances.clone())  # (K,)
            self.register_buffer("axes", None)
        else:
            covs = torch.as_tensor(covs, dtype=torch.float64)
            if covs.shape != (n, self.dim, self.dim):
                raise BadValue(f"covs must be {(n, self.dim, self.dim)}, got {tuple(covs.shape)}")
            values, vectors = torch.linalg.eigh(covs)
            if (values < -1e-10 * values.abs().amax(dim=1, keepdim=True)).any():
                raise BadValue("covs must be positive semi-definite")
            self.register_buffer("variances", values.clamp_min(0.0))  # (K, D)
            self.register_buffer("axes", vectors)  # (K, D, D), columns
        self.register_buffer("labels", None if labels is None else torch.as_tensor(labels, dtype=torch.int64))
        if self.labels is not None and self.labels.shape != (n,):
            raise BadValue(f"labels must be ({n},), got {tuple(self.labels.shape)}")

    @classmethod
    def finite(cls, data: Tensor, labels: Tensor | None = None) -> GaussianMixture:
        """The empirical distribution of `data` (K, *shape): its denoiser is the ideal one for that training set."""
        return cls(data, 0.0, labels=labels)

    @property
    def dim(self) -> int:
        return math.prod(self.shape)

    @property
    def n_components(self) -> int:
        return len(self.log_weights)

    @property
    def n_classes(self) -> int:
        return 0 if self.labels is None else int(self.labels.max()) + 1

    def mean(self) -> Tensor:
        """Exact mean, (D,)."""
        return self.log_weights.exp() @ self.means

    def cov(self) -> Tensor:
        """Exact covariance, (D, D)."""
        w, centred = self.log_weights.exp(), self.means - self.mean()
        between = torch.einsum("k,ki,kj->ij", w, centred, centred)
        if self.axes is None:
            return between + (w @ self.variances) * torch.eye(self.dim, dtype=w.dtype, device=w.device)
        return between + torch.einsum("k,kid,kd,kjd->ij", w, self.axes, self.variances, self.axes)

    def sample(self, n: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """n draws (n, *shape) and the index of the component each came from (n,)."""
        k = torch.multinomial(self.log_weights.exp(), n, replacement=True, generator=generator)
        z = torch.randn(n, self.dim, dtype=torch.float64, generator=generator, device=self.means.device)
        return (self.means[k] + self._spread(z, self.variances[k], k)).reshape(n, *self.shape), k

    def log_prob(self, x: Tensor, alpha: Number = 1.0, sigma: Number = 0.0, cond: Tensor | None = None) -> Tensor:
        """ln p_t(x), (B,), of x_t = alpha x0 + sigma eps."""
        joint, _, _ = self._joint(x, alpha, sigma, cond)
        return torch.logsumexp(joint, dim=1)

    def score(self, x: Tensor, alpha: Number = 1.0, sigma: Number = 0.0, cond: Tensor | None = None) -> Tensor:
        """Gradient of `log_prob` with respect to x, (B, *shape)."""
        joint, offset, var = self._joint(x, alpha, sigma, cond)
        r = joint.softmax(dim=1)
        if self.axes is None:  # sum_k r_k (alpha mu_k - x) / var_k
            s = r / var
            out = like(alpha, x.flatten(1)) * (s @ self.means.to(x.dtype)) - s.sum(1, keepdim=True) * x.flatten(1)
        else:
            out = -(r[:, None] * offset / var).flatten(1) @ self._turned(x.dtype).T
        return out.reshape(x.shape)

    def denoise(self, x: Tensor, alpha: Number, sigma: Number, cond: Tensor | None = None) -> Tensor:
        """E[x0 | x_t = x], (B, *shape). At sigma = 0 it is x / alpha; at alpha = 0 the mean of the (conditional) data."""
        if isinstance(sigma, float | int) and sigma == 0:
            return x / like(alpha, x)
        alpha, sigma = (v.to(x.dtype) if isinstance(v, Tensor) else v for v in (alpha, sigma))
        joint, offset, var = self._joint(x, alpha, sigma, cond)
        r = joint.softmax(dim=1)  # (B, K) responsibilities
        a = like(alpha, r)
        means, v = self.means.to(x.dtype), self.variances.to(x.dtype)
        if self.axes is None:
            gain = a * v / var  # (B, K): alpha C (alpha^2 C + sigma^2)^-1
            rg = r * gain
            out = r @ means - like(alpha, x.flatten(1)) * (rg @ means) + rg.sum(1, keepdim=True) * x.flatten(1)
        else:
            gain = like(alpha, var) * v.T.contiguous() / var  # (B, D, K)
            out = r @ means + (r[:, None] * gain * offset).flatten(1) @ self._turned(x.dtype).T
        return out.reshape(x.shape)

    def posterior_trace(self, x: Tensor, alpha: Number, sigma: Number, cond: Tensor | None = None) -> Tensor:
        """tr Cov[x0 | x_t = x], (B,): the irreducible squared error of the denoiser at x."""
        joint, offset, var = self._joint(x, alpha, sigma, cond)
        r = joint.softmax(dim=1)
        means, v = self.means.to(x.dtype), self.variances.to(x.dtype)
        s2 = like(sigma, var) ** 2 if isinstance(sigma, Tensor) else sigma**2
        gain = (like(alpha, var) if isinstance(alpha, Tensor) else alpha) * (v if self.axes is None else v.T) / var
        if self.axes is None:
            flat = x.flatten(1)
            centre = means + gain[:, :, None] * (flat[:, None] - like(alpha, flat[:, None]) * means)  # (B, K, D)
            within = self.dim * (v * s2 / var)
        else:
            centre = means + torch.einsum("kid,bdk->bki", self.axes.to(x.dtype), gain * offset)
            within = (v.T * s2 / var).sum(1)
        mean = torch.einsum("bk,bkd->bd", r, centre)
        return (r * (within + ((centre - mean[:, None]) ** 2).sum(-1))).sum(1)

    def posterior_sample(
        self, x: Tensor, alpha: Number, sigma: Number, generator: torch.Generator | None = None
    ) -> Tensor:
        """One draw of x0 given x_t = x for each row, (B, *shape)."""
        joint, _, _ = self._joint(x, alpha, sigma, None)
        k = torch.multinomial(joint.softmax(dim=1), 1, generator=generator)[:, 0]
        flat, mu = x.flatten(1), self.means[k].to(x.dtype)
        v = self.variances[k].to(x.dtype)
        a, s = like(alpha, flat), like(sigma, flat)
        v = v[:, None] if self.axes is None else v
        var = a**2 * v + s**2
        offset = flat - a * mu
        if self.axes is not None:
            offset = torch.einsum("bid,bi->bd", self.axes[k].to(x.dtype), offset)
        z = torch.randn(flat.shape, dtype=x.dtype, device=x.device, generator=generator)
        local = a * v / var * offset + (v / var).sqrt() * s * z
        if self.axes is not None:
            local = torch.einsum("bid,bd->bi", self.axes[k].to(x.dtype), local)
        return (mu + local).reshape(x.shape)

    def of_class(self, labels: Sequence[int] | int) -> GaussianMixture:
        """The sub-mixture of the given classes, weights renormalised."""
        wanted = torch.as_tensor([labels] if isinstance(labels, int) else list(labels), device=self.means.device)
        if self.labels is None:
            raise BadValue("this mixture has no labels")
        keep = torch.isin(self.labels, wanted)
        shaped = self.means[keep].reshape(-1, *self.shape)
        if self.axes is None:
            return GaussianMixture(
                shaped, self.variances[keep].sqrt(), weights=self.log_weights[keep].exp(), labels=self.labels[keep]
            )
        covs = torch.einsum("kid,kd,kjd->kij", self.axes[keep], self.variances[keep], self.axes[keep])
        return GaussianMixture(shaped, covs=covs, weights=self.log_weights[keep].exp(), labels=self.labels[keep])

    def _spread(self, z: Tensor, variances: Tensor, k: Tensor) -> Tensor:
        if self.axes is None:
            return variances.sqrt()[:, None] * z
        return torch.einsum("nid,nd->ni", self.axes[k], variances.sqrt() * z)

    def _turned(self, dtype: torch.dtype) -> Tensor:
        """The axes of all components side by side, (D, D K): one product turns states into every component's coordinates, and back."""
        return self.axes.to(dtype).permute(1, 2, 0).flatten(1)

    def _joint(self, x: Tensor, alpha: Number, sigma: Number, cond: Tensor | None):
        """ln w_k N(x; alpha mu_k, alpha^2 C_k + sigma^2 I) (B, K); x - alpha mu_k in component axes; variances along them.

        The latter two are (B, D, K), so that sums over the few D run along memory; with isotropic components None and (B, K).
        """
        if x.shape[1:] != self.shape:
            raise BadValue(f"expected states of shape (batch, {', '.join(map(str, self.shape))}), got {tuple(x.shape)}")
        flat, means, v = x.flatten(1), self.means.to(x.dtype), self.variances.to(x.dtype)
        a, s = like(alpha, flat), like(sigma, flat)  # numbers or (B, 1)
        if self.axes is None:
            var = (a**2 * v + s**2) if isinstance(a, Tensor) or isinstance(s, Tensor) else (a * a * v + s * s)
            var = var.expand(len(flat), -1) if var.ndim == 2 else var.expand(len(flat), self.n_components)
            squared = (flat**2).sum(1, keepdim=True) - 2 * a * (flat @ means.T) + a**2 * (means**2).sum(1)
            log = -0.5 * squared.clamp_min(0.0) / var - 0.5 * self.dim * (2 * math.pi * var).log()
            offset = None
        else:
            a3, s3 = like(alpha, flat[:, None]), like(sigma, flat[:, None])
            v, centres = v.T.contiguous(), torch.einsum("kid,ki->dk", self.axes.to(x.dtype), means).contiguous()
            offset = (flat @ self._turned(x.dtype)).unflatten(1, centres.shape) - a3 * centres
            var = a3 * a3 * v + s3 * s3
            var = var if isinstance(a3 * s3, Tensor) else var[None]
            var = var.expand(len(flat), self.dim, self.n_components)
            log = -0.5 * (offset.square() / var).sum(1) - 0.5 * (2 * math.pi * var).log().sum(1)
        log = log + self.log_weights.to(x.dtype)
        if cond is not None:
            if self.labels is None:
                raise BadValue("a class was given, but this mixture has no labels")
            allowed = (cond[:, None] < 0) | (self.labels == cond[:, None])
            if not allowed.any(1).all():
                raise BadValue(f"classes must be among 0..{self.n_classes - 1}, got {cond.tolist()[:8]}")
            log = log.masked_fill(~allowed, -math.inf)  # unnormalised over the class: fine for the softmax
            if (cond >= 0).any():
                mass = torch.logsumexp(
                    self.log_weights.to(x.dtype).expand_as(log).masked_fill(~allowed, -math.inf), 1, keepdim=True
                )
                log = log - mass
        return log, offset, var
