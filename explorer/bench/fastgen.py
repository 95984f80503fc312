"""NVIDIA FastGen's losses on our digits network, to be timed beside our own: their class, their optimizer, our U-Net.

`EXPLORER_FASTGEN` names a checkout of NVlabs/FastGen (Apache-2.0), whose requirements the user installs; it is no part of this package.
What of it is used: `FastGenNetwork`, which wraps the U-Net, the classes of `fastgen.methods`, and the optimizers of `fastgen.configs.opt`.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from explorer.bench.clock import Work
from explorer.data import Batch
from explorer.models.base import Preconditioned
from explorer.nets.discriminators import head_for
from explorer.nets.weighting import LogWeight
from explorer.process.broadcast import like
from explorer.process.paths import EDM
from explorer.training import OptimizerPlan, Plan

FASTGEN_FOLDER = "EXPLORER_FASTGEN"
"""Environment variable that names a checkout of NVlabs/FastGen."""

CLASSES = {"ict": "CMModel", "scm": "SCMModel", "dmd2": "DMD2Model"}
"""Which of their classes does what a paper's digits recipe does."""

NOTES = {
    "ict": "Both: one pass with and one without gradient a step.",
    "scm": "Both: the teacher's velocity, a Jacobian-vector product and one pass with gradient a step.",
    "dmd2": "Ours trains the critic in every step, theirs in four of five; their GAN head reads the frozen teacher, ours the critic.",
}


def steps_of(slug: str, denoiser: Preconditioned, plan: Plan, batch: Batch, steps: int) -> Work:
    """Steps of FastGen's loss: its loss, backward and its optimizer, without what our loop does besides (data, clipping, average, log).

    Args:
        slug: one of `CLASSES`.
        denoiser: EDM model whose copies are student, teacher and critic.
        plan: whose optimizers theirs are set to.
        batch: images and labels, the same in every step.
        steps: of one call.
    Raises:
        ImportError: no checkout is named, or it lacks something it imports.
    """
    methods, opt, base = (
        _module(name) for name in ("fastgen.methods", "fastgen.configs.opt", "fastgen.networks.network")
    )
    config = _config(slug, denoiser, plan, opt, adapter(base.FastGenNetwork, denoiser))
    model = getattr(methods, CLASSES[slug])(config)
    model.on_train_begin()
    model.init_optimizers()
    data = {"real": batch.x0, "condition": batch.labels, "neg_condition": None}
    done = 0

    def work() -> float:
        nonlocal done
        for _ in range(steps):
            model.optimizers_zero_grad(done)
            losses, _ = model.single_train_step(data, done)
            moved = [p for o in model.get_optimizers(done) for group in o.param_groups for p in group["params"]]
            grads = torch.autograd.grad(losses["total_loss"], moved, allow_unused=True)
            for p, grad in zip(moved, grads, strict=True):
                p.grad = grad
            model.optimizers_schedulers_step(done)
            done += 1
        return float(losses["total_loss"].detach())

    return work


def _module(name: str) -> Any:
    folder = os.environ.get(FASTGEN_FOLDER)
    if not folder or not (Path(folder) / "fastgen" / "methods").is_dir():
        raise ImportError(f"{FASTGEN_FOLDER} names no checkout of NVlabs/FastGen")
    sys.path.insert(0, folder)
    try:
        found = importlib.import_module(name)
        importlib.import_module("loguru").logger.disable("fastgen")  # it would write to standard output
        return found
    finally:
        sys.path.remove(folder)


def adapter(base: type, denoiser: Preconditioned) -> type:
    """A class of FastGen networks, copies of the denoiser, with a learnt weight and the bottleneck that a GAN reads.

    Args:
        base: their `FastGenNetwork`.
    """

    class DigitsNetwork(base):
        def __init__(self):
            super().__init__(net_pred_type="x0", schedule_type="edm", t_precision="float32")
            self.model, self.weight = copy.deepcopy(denoiser).requires_grad_(True), LogWeight()

        def forward(
            self,
            x_t: Tensor,
            t: Tensor,
            condition: Tensor | None = None,
            return_features_early: bool = False,
            feature_indices=None,
            return_logvar: bool = False,
            fwd_pred_type: str | None = None,
            **others: Any,
        ):
            how, net = self.model.precondition, self.model.net
            c_skip, c_out, c_in, c_noise = how.coefficients(t, EDM())
            x, noise = like(c_in, x_t) * x_t, c_noise.to(x_t.dtype)
            if return_features_early:
                return [net.features(x, noise, condition)]
            seen: list[Tensor] = []
            hook = net.middle[-1].register_forward_hook(lambda *a: seen.append(a[-1])) if feature_indices else None
            raw = net(x, noise, condition)
            if hook is not None:
                hook.remove()
            out = like(c_skip, x_t) * x_t + like(c_out, x_t) * raw
            kinds = {"src_pred_type": "x0", "target_pred_type": fwd_pred_type or "x0"}
            out = self.noise_scheduler.convert_model_output(x_t, out, t, **kinds)
            if feature_indices:
                return [out, seen]
            return (out, -self.weight(noise)[:, None]) if return_logvar else out

    return DigitsNetwork


class _Head(nn.Module):
    """Our head in the place of one of theirs: it reads one map, the bottleneck."""

    feature_indices = frozenset({0})

    def __init__(self, net: nn.Module):
        super().__init__()
        self.head = head_for(net)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.head(features[0])[:, None]


def _config(slug: str, denoiser: Preconditioned, plan: Plan, opt: Any, network: type) -> SimpleNamespace:
    from omegaconf import DictConfig

    def optimizer(name: str) -> dict[str, Any]:
        asked: OptimizerPlan = plan.optimizer_of(name)
        like_it = opt.RAdamOptimizerConfig if asked.kind == "radam" else opt.BaseOptimizerConfig
        return {**like_it, "lr": asked.lr, "betas": asked.betas, "weight_decay": asked.weight_decay}

    device = next(denoiser.parameters()).device.type
    schedule = {**opt.BaseSchedulerConfig, "warm_up_steps": [0]}
    times: dict[str, Any] = {"time_dist_type": "lognormal", "min_t": 0.002, "max_t": 80.0, "t_list": None}
    first = "student" if slug == "dmd2" else "net"
    values: dict[str, Any] = {
        "device": device, "precision": "float32", "precision_amp": None, "precision_amp_infer": None,
        "precision_amp_enc": None, "precision_fsdp": None, "precision_amp_jvp": None,
        "input_shape": list(denoiser.shape), "net": {"_target_": network}, "teacher": None, "use_ema": False,
        "guidance_scale": None, "skip_layers": None, "pretrained_model_path": "", "pretrained_student_net_path": "",
        "load_student_weights": False, "enable_preprocessors": False, "fsdp_meta_init": False,
        "add_teacher_to_fsdp_dict": False, "grad_scaler_enabled": False, "grad_scaler_init_scale": 65536.0,
        "grad_scaler_growth_interval": 2000, "student_sample_steps": 1, "student_sample_type": "sde",
        "net_optimizer": optimizer(first), "net_scheduler": schedule,
    }  # fmt: skip
    match slug:
        case "ict":
            times |= {"train_p_mean": -1.1, "train_p_std": 2.0, "min_r": 0.002, "quantize": False}
            values["loss_config"] = SimpleNamespace(
                use_cd=False, huber_const=0.06, use_squared_l2=False, weighting_ct_loss="default"
            )
        case "scm":
            sd = denoiser.precondition.sigma_data
            times |= {"train_p_mean": -0.6, "train_p_std": 1.4, "sigma_data": sd, "quantize": False}
            values["loss_config"] = SimpleNamespace(
                use_cd=True, tangent_warmup_steps=200, tangent_warmup_const=0.1, prior_weighting_enabled=False,
                g_norm_spatial_invariance=False, divide_x_0_spatial_dim=False, use_jvp_finite_diff=False,
            )  # fmt: skip
        case "dmd2":
            times["time_dist_type"] = "polynomial"
            values |= {
                "student_update_freq": 5, "gan_loss_weight_gen": 3e-3, "gan_use_same_t_noise": False,
                "fake_score_pred_type": None, "gan_r1_reg_weight": 0.0,
                "fake_score_optimizer": optimizer("fake_score"), "fake_score_scheduler": schedule,
                "discriminator": {"_target_": _Head, "net": denoiser.net},
                "discriminator_optimizer": optimizer("disc"), "discriminator_scheduler": schedule,
            }  # fmt: skip
    return SimpleNamespace(**values, sample_t_cfg=DictConfig(times))
