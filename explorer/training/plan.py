"""How long, how fast, and what to average: the numbers of a training run, as frozen values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import nn

from explorer.errors import BadValue, UnknownName
from explorer.training.distributed import in_shards
from explorer.training.method import Progress

KINDS = ("adamw", "adam", "radam", "sgd")


@dataclass(frozen=True)
class OptimizerPlan:
    """An optimizer with a learning rate that is a function of progress.

    Args:
        lr: peak learning rate.
        kind: as torch names them; "sgd" takes its momentum from `betas[0]`.
        betas, eps: of the Adam family.
        weight_decay: decoupled from the gradient with "adamw", added to it as 2-norm penalty with the others.
        warmup_images: linear rise from 0 over this many images.
        decay: shape of the fall over the whole run, from 1 to `final`; "inverse_sqrt" is instead
            1/sqrt(max(n_images / decay_images, 1)).
        final: factor left at the end of a cosine or linear decay.
        decay_images: reference of "inverse_sqrt".
        clip: largest gradient norm per network; None for no clipping.
    """

    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    warmup_images: int = 0
    decay: Literal["none", "cosine", "linear", "inverse_sqrt"] = "none"
    final: float = 0.0
    decay_images: int = 0
    clip: float | None = None
    kind: Literal["adamw", "adam", "radam", "sgd"] = "adamw"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise UnknownName("optimizer", self.kind, KINDS)
        if not self.lr > 0 or (self.clip is not None and not self.clip > 0):
            raise BadValue(f"lr and clip must be positive; got lr={self.lr}, clip={self.clip}.")
        if self.decay not in ("none", "cosine", "linear", "inverse_sqrt"):
            raise BadValue(f"decay is {self.decay!r}; use 'none', 'cosine', 'linear' or 'inverse_sqrt'.")
        if self.decay == "inverse_sqrt" and self.decay_images < 1:
            raise BadValue("inverse_sqrt decay needs decay_images >= 1.")

    def build(self, params: list[nn.Parameter]) -> torch.optim.Optimizer:
        """The torch optimizer of these parameters; one fused kernel per step where torch has one."""
        common = {"lr": self.lr, "weight_decay": self.weight_decay}
        if self.kind == "sgd":
            kernel = {"foreach": True} if any(map(in_shards, params)) else {"fused": True}
            return torch.optim.SGD(params, momentum=self.betas[0], **kernel, **common)
        common |= {"betas": self.betas, "eps": self.eps}
        if self.kind == "radam":
            return torch.optim.RAdam(params, foreach=True, **common)
        return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[self.kind](params, fused=True, **common)

    def rate(self, progress: Progress, n_after: int | None = None) -> float:
        """Learning rate of a step; `n_after` counts the images with that step, so that warm-up does not begin at 0."""
        seen = progress.n_images if n_after is None else n_after
        factor = min(seen / self.warmup_images, 1.0) if self.warmup_images else 1.0
        if self.decay == "cosine":
            factor *= self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * progress.fraction))
        elif self.decay == "linear":
            factor *= self.final + (1 - self.final) * (1 - progress.fraction)
        elif self.decay == "inverse_sqrt":
            factor /= math.sqrt(max(seen / self.decay_images, 1.0))
        return self.lr * factor


@dataclass(frozen=True)
class EmaPlan:
    """One running average of the weights: exponential, or the power function of EDM2 when `sigma_rel` is set.

    Args:
        name: key under which ticks and checkpoints carry the average.
        half_life: images after which a weight's share has halved.
        ramp_up: the half-life is at most this share of the images seen; None for no ramp-up.
        sigma_rel: relative width of the power-function profile, e.g. 0.10; the profile then grows with the run.
    Source: Karras et al. 2022, arXiv 2206.00364 (exponential with ramp-up); Karras et al. 2023, arXiv 2312.02696.
    """

    name: str = "ema"
    half_life: float = 500_000
    ramp_up: float | None = 0.05
    sigma_rel: float | None = None

    def __post_init__(self):
        if not self.half_life > 0:
            raise BadValue(f"EMA half_life is {self.half_life} images; it must be positive.")
        if self.sigma_rel is not None and not 0 < self.sigma_rel < 0.28:
            raise BadValue(f"sigma_rel is {self.sigma_rel}; a power-function profile needs 0 < sigma_rel < 0.28.")

    @classmethod
    def per_step(cls, beta: float, batch_size: int, name: str = "ema") -> EmaPlan:
        """The average that keeps a share `beta` of itself in every step of `batch_size` images, as many papers state it."""
        if not 0 < beta < 1:
            raise BadValue(f"the rate of an average per step is {beta}; it must lie between 0 and 1.")
        return cls(name, half_life=batch_size * math.log(0.5) / math.log(beta), ramp_up=None)


@dataclass(frozen=True)
class Plan:
    """Everything `train` needs besides the method and the data.

    Args:
        n_steps: length of the run in optimizer steps (iterations of `Method.updates`).
        batch_size: images per step over all processes; recipes hand it to their data stream.
        accumulate: micro-batches per step.
        optimizer: for every network not named in `optimizers`.
        emas: averages kept of every trained network.
        seed: of everything random in training.
        minutes: optional wall-clock budget; progress is then the larger of the two fractions, so the learning rate
            still completes its decay. Evaluation is not counted. A run cut by time is not reproducible bit for bit.
        tick_steps: steps between two ticks (and log lines).
        checkpoint_steps: steps between two checkpoints; 0 for one at the end only.
        keep: newest checkpoints to keep, two so that a damaged one costs little; None keeps all.
        checkpoint_at_close: also write one when the caller closes the iterator (or drops it) at a tick.
        snapshot_steps: steps between two snapshots of the averages, which stay; 0 for none. See `snapshots`.
        snapshot_raw: put the raw networks in the snapshots too.
        evaluate_steps: steps between two calls of `train`'s `evaluate`; 0 for one at the end only.
        patience: evaluations in a row without a new lowest value after which the run ends; None for no early stop.
        tensorboard: write the log as TensorBoard events too.
        max_skips: non-finite updates of a network in a row that are skipped before `NonFinite` is raised; 0 stops at
            the first. Overflows that the float16 loss scale can still answer are skipped without being counted here.
        autocast: "bfloat16" or "float16" runs the losses under autocast, float16 with dynamic loss scaling. Weights,
            optimizers and averages stay in float32.
        tf32: float32 matrix products on a GPU may round their factors to TF32.
        compile: compile the networks (slow to start; meant for long runs on a GPU).
        shard: of several processes each keeps its part of the weights, gradients, averages and optimizer states, for networks that
            do not fit one GPU; for methods that only call their networks. `evaluate` is then called in every process, and the
            averages of a tick are whole in the last one only, in process 0, on the CPU. Files are the same as without.
    """

    n_steps: int
    batch_size: int = 128
    accumulate: int = 1
    optimizer: OptimizerPlan = OptimizerPlan()
    optimizers: Mapping[str, OptimizerPlan] = field(default_factory=lambda: MappingProxyType({}))
    emas: tuple[EmaPlan, ...] = (EmaPlan(),)
    seed: int = 0
    minutes: float | None = None
    tick_steps: int = 100
    checkpoint_steps: int = 500
    keep: int | None = 2
    max_skips: int = 20
    autocast: Literal["bfloat16", "float16"] | None = None
    compile: bool = False
    checkpoint_at_close: bool = False
    snapshot_steps: int = 0
    snapshot_raw: bool = False
    evaluate_steps: int = 0
    patience: int | None = None
    tensorboard: bool = False
    tf32: bool = False
    shard: bool = False

    def __post_init__(self):
        for name in ("n_steps", "batch_size", "accumulate", "tick_steps"):
            if getattr(self, name) < 1:
                raise BadValue(f"Plan.{name} is {getattr(self, name)}; it must be at least 1.")
        for name in ("checkpoint_steps", "snapshot_steps", "evaluate_steps", "max_skips"):
            if getattr(self, name) < 0:
                raise BadValue(f"Plan.{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.patience is not None and self.patience < 1:
            raise BadValue(f"Plan.patience is {self.patience}; it must be at least 1 evaluation, or None.")
        if self.keep is not None and self.keep < 1:
            raise BadValue(f"Plan.keep is {self.keep}; keep at least one checkpoint, or None for all.")
        if len({ema.name for ema in self.emas}) < len(self.emas):
            raise BadValue("two EMAs of a plan share a name; give each its own.")
        if self.minutes is not None and not self.minutes > 0:
            raise BadValue(f"Plan.minutes is {self.minutes}; it must be positive or None.")
        if self.autocast not in (None, "bfloat16", "float16"):
            raise BadValue(f"Plan.autocast is {self.autocast!r}; use 'bfloat16', 'float16' or None.")

    def optimizer_of(self, net: str) -> OptimizerPlan:
        return self.optimizers.get(net, self.optimizer)

    def to_dict(self) -> dict[str, Any]:
        values = {
            name: getattr(self, name) for name in self.__dataclass_fields__ if name != "shard"
        }  # changes no number
        return values | {
            "optimizer": asdict(self.optimizer),
            "optimizers": {name: asdict(plan) for name, plan in self.optimizers.items()},
            "emas": [asdict(ema) for ema in self.emas],
        }
