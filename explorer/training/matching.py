"""Distribution matching: generators of one or few steps, moved by the difference of two noisy score fields.

The teacher's score says where data are, an online denoiser of the generator's own samples (the fake score) says where
samples are; their difference is the gradient of a divergence between the two diffused laws (`explorer.process.divergences`).
Methods of this family differ in the divergence, in the states at which the generator is asked, in further losses and in the
order of updates. What they share is `DistributionMatching`: the networks and what they mean, the noise levels, the
generator's samples, each loss per sample. A paper's file adds its own losses and writes `updates`, so that the order stays
readable there.

Sources: Luo et al. 2023, arXiv 2305.18455 (Diff-Instruct); Yin et al. 2023, arXiv 2311.18828 (DMD); Yin et al. 2024,
arXiv 2405.14867 (DMD2).

B batch; samples (B, *shape); sigma and losses (B,). All states are EDM's, x + sigma n.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from explorer.data import Batch
from explorer.errors import BadValue
from explorer.models.base import Denoiser, Model, Preconditioned
from explorer.models.flow_maps import ConsistencyModel
from explorer.models.wrappers import Guided
from explorer.process.broadcast import like
from explorer.process.divergences import Divergence, ReverseKL, direction, distance_scale, pushed
from explorer.process.paths import EDM
from explorer.process.precondition import EDMPrecondition
from explorer.process.times import KarrasUniform, TimeDistribution
from explorer.training.method import Method, Progress

RATIO_LIMIT = 10.0
"""Estimated log-ratios are clamped to this: a weight exp(l) of one sample must not outweigh the batch."""

Law = Callable[[Model], Denoiser]
"""From the generator as it is now to the exact denoiser of its samples."""


class Fakes(NamedTuple):
    """Samples of the generator and the labels it was given, (B,) or None."""

    x: Tensor
    labels: Tensor | None

    def detach(self) -> Fakes:
        return Fakes(self.x.detach(), self.labels)


class Matched(NamedTuple):
    """What a matching loss is made of: loss (B,), the level it was measured at (B,), the direction subtracted from x."""

    loss: Tensor
    sigma: Tensor
    delta: Tensor


class DistributionMatching(Method):
    """The networks of distribution matching and what each loss is; a paper adds `updates`.

    `nets` holds "student", with a learnt fake score "fake_score", and with a head "disc". The teacher is frozen and never stepped.

    Args:
        student: raw network F, asked as a denoiser at its level(s), or a `Model` taken as it is (a closed-form generator).
        fake_score: raw network for the score of generated samples; or a `Law`, the exact denoiser of the generator's
            samples (then nothing is learnt about them, and every gradient can be checked); `own_law` asks the generator.
        teacher: the real score, on any path.
        sigma_data: of the preconditioning of both networks; the teacher's, when they are copies of it.
        head: logits from the fake score's features, see `explorer.nets.discriminators`.
        divergence: which divergence the direction descends.
        times: noise levels of the generator's loss.
        fake_times: noise levels of the fake score's loss.
        levels: sigma at which the student is asked, descending; the first is reached by pure noise. Several make a few-step student.
        simulate: a few-step student is trained on states that it makes itself (backward simulation), as it meets them
            when sampling; else on noised data.
        ratio: updates of the fake score for each of the student.
        normalise: divide each sample's direction by mean |x - D_p| (DMD) instead of sigma^2.
        guidance: scale of classifier-free guidance of the real score; the fake score has none.
    """

    def __init__(
        self,
        student: nn.Module,
        fake_score: nn.Module | Law,
        teacher: Denoiser,
        *,
        sigma_data: float,
        head: nn.Module | None = None,
        divergence: Divergence | None = None,
        times: TimeDistribution | None = None,
        fake_times: TimeDistribution | None = None,
        levels: Sequence[float] = (80.0,),
        simulate: bool = True,
        ratio: int = 5,
        normalise: bool = True,
        guidance: float = 1.0,
        name: str = "",
    ):
        super().__init__()
        self.nets = nn.ModuleDict({"student": student})
        self.law = None if isinstance(fake_score, nn.Module) else fake_score
        if self.law is None:
            self.nets["fake_score"] = fake_score
        if head is not None:
            if self.law is not None:
                raise BadValue("a discriminator head reads the features of a learnt fake score, and this one is exact.")
            self.nets["disc"] = head
        self.divergence = divergence or ReverseKL()
        exact = self.law is not None and hasattr(teacher, "log_prob")
        if self.divergence.needs_ratio and head is None and not exact:
            raise BadValue(
                f"{self.divergence} weighs by the density ratio: give a head that learns it, or an exact teacher and law; "
                "ReverseKL needs none."
            )
        levels = tuple(float(s) for s in levels)
        if not levels or any(a <= b for a, b in zip(levels, levels[1:], strict=False)) or levels[-1] <= 0:
            raise BadValue(f"levels must be positive and descending, the first pure noise; got {levels}.")
        if ratio < 1:
            raise BadValue(f"ratio is {ratio}; the fake score moves at least once for each update of the student.")
        teacher = teacher.on(EDM())
        self.teacher = (teacher if guidance == 1 else Guided(teacher, guidance)).eval().requires_grad_(False)
        self.shape, self.n_classes = tuple(teacher.shape), int(getattr(student, "n_classes", 0))
        self.sigma_data, self.levels, self.simulate = float(sigma_data), levels, simulate
        self.times = times or KarrasUniform(start=0.02, stop=0.98)
        self.fake_times = fake_times or KarrasUniform()
        self.ratio, self.normalise, self.name = ratio, normalise, name

    # What the networks mean

    def denoiser(self, net: nn.Module) -> Model:
        """The network as a model of states x + sigma n."""
        if isinstance(net, Model):
            return net
        about = {"shape": self.shape, "n_classes": self.n_classes, "name": self.name}
        return Preconditioned(net, EDM(), EDMPrecondition(self.sigma_data), t_range=(0.002, self.levels[0]), **about)

    def export(self, nets) -> Model:
        model = self.denoiser(nets["student"])
        return ConsistencyModel(model) if isinstance(model, Denoiser) else model

    @property
    def fake(self) -> Denoiser:
        """The denoiser of generated samples: the learnt one, or the exact one of the student as it is now."""
        return self.denoiser(self.nets["fake_score"]) if self.law is None else self.law(self.nets["student"])

    def is_students_turn(self, progress: Progress) -> bool:
        """The two-time-scale rule: every `ratio`-th step. Published step counts are those of the fake score."""
        return progress.step % self.ratio == 0

    # Samples

    def generate(self, batch: Batch, generator: torch.Generator | None) -> Fakes:
        """As many samples of the student as the batch has, at one of its levels; labels uniform over the classes.

        With several levels one is drawn for the whole batch, and the student is asked there: after its own steps from
        pure noise, each with fresh noise and without gradient, or (`simulate=False`) on the noised batch and its labels.
        """
        real, n = batch.x0, len(batch.x0)
        draw = {"generator": generator, "device": real.device}
        labels = torch.randint(self.n_classes, (n,), **draw) if self.n_classes else None
        step = int(torch.randint(len(self.levels), (), **draw)) if len(self.levels) > 1 else 0
        student = self.denoiser(self.nets["student"])

        def noise() -> Tensor:
            return torch.randn(real.shape, dtype=real.dtype, **draw)

        if step and not self.simulate:
            labels = batch.labels if self.n_classes else None
            x = real + self.levels[step] * noise()
        else:
            x = self.levels[0] * noise()
            with torch.no_grad():
                for sigma, lower in zip(self.levels[:step], self.levels[1:], strict=False):
                    x = student.denoise(x, sigma, labels) + lower * noise()
        return Fakes(student.denoise(x, self.levels[step], labels), labels)

    def noised(self, x: Tensor, times: TimeDistribution, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(x + sigma n, sigma) with a fresh level and fresh noise for each sample."""
        draw = {"generator": generator, "device": x.device, "dtype": x.dtype}
        sigma = times.sample(len(x), **draw)
        return x + like(sigma, x) * torch.randn(x.shape, **draw), sigma

    # Losses, per sample

    def matching_loss(self, fakes: Fakes, generator: torch.Generator | None) -> Matched:
        """1/2 mean (x - sg[x - delta])^2 at fresh noise: autograd gives delta to the student. No gradient enters either score."""
        x, labels = fakes
        with torch.no_grad():
            x_t, sigma = self.noised(x, self.times, generator)
            delta = self.direction(x, x_t, sigma, labels)
        return Matched(pushed(x, delta), sigma, delta)

    def direction(self, x: Tensor, x_t: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """What is subtracted from x, (B, *shape): h (D_q - D_p) at x_t, divided by mean |x - D_p| or sigma^2."""
        p, q = self.teacher.denoise(x_t, sigma, labels), self.fake.denoise(x_t, sigma, labels)
        weight = None
        if self.divergence.needs_ratio:
            weight = self.divergence.weight(self.log_ratio(x_t, sigma, labels).clamp(-RATIO_LIMIT, RATIO_LIMIT))
        return direction(p, q, weight=weight, scale=distance_scale(x, p) if self.normalise else sigma**2)

    def log_ratio(self, x_t: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """ln p/q of the diffused laws at x_t: exact where both are known, else the discriminator's logit."""
        if self.law is not None:
            return self.teacher.log_prob(x_t, sigma, labels) - self.fake.log_prob(x_t, sigma)
        return self.logits(x_t, sigma, labels)

    def fake_loss(self, fakes: Fakes, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """(1/sigma^2 + 1/sigma_data^2) mean (D_q(x_t) - x)^2 and sigma: denoising of detached samples."""
        x, labels = fakes.x.detach(), fakes.labels
        x_t, sigma = self.noised(x, self.fake_times, generator)
        weight = 1 / sigma**2 + 1 / self.sigma_data**2
        return weight * (self.fake.denoise(x_t, sigma, labels) - x).square().flatten(1).mean(1), sigma

    def logits(self, x_t: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The head on the fake score's features at x_t, (B,); its optimum is ln p/q of the diffused laws."""
        net = self.nets["fake_score"]
        _, _, c_in, c_noise = EDMPrecondition(self.sigma_data).coefficients(sigma, EDM())
        return self.nets["disc"](net.features(like(c_in, x_t) * x_t, c_noise, labels))

    def realism_loss(self, fakes: Fakes, times: TimeDistribution, generator: torch.Generator | None) -> Tensor:
        """softplus(-C(x_t)) of generated samples: the generator's side of a diffusion GAN. Gradient flows through the trunk to x."""
        return F.softplus(-self.logits(*self.noised(fakes.x, times, generator), fakes.labels))

    def discrimination_loss(
        self, fakes: Fakes, batch: Batch, times: TimeDistribution, generator: torch.Generator | None
    ) -> Tensor:
        """softplus(C(fake_t)) + softplus(-C(real_t)), levels and noise drawn apart, (B,)."""
        fake = self.logits(*self.noised(fakes.x.detach(), times, generator), fakes.labels)
        real = self.logits(*self.noised(batch.x0, times, generator), batch.labels if self.n_classes else None)
        return F.softplus(fake) + F.softplus(-real)


def copy_of(net: nn.Module) -> nn.Module:
    """A trainable copy without dropout, for a student or a fake score that starts as its teacher."""
    net = copy.deepcopy(net).requires_grad_(True)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    if isinstance(getattr(net, "config", None), dict) and "dropout" in net.config:
        net.config = {**net.config, "dropout": 0.0}
    return net.train()


def own_law(student: Model) -> Denoiser:
    """The exact denoiser of a generator that knows its law, see `explorer.training.generators`."""
    return student.law()


def aside(generator: torch.Generator | None) -> torch.Generator | None:
    """A generator seeded from one draw of another: what is drawn from it leaves the first one's stream where it was."""
    if generator is None:
        return None
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return torch.Generator(generator.device).manual_seed(seed)
