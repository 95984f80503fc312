"""jvp-digits: the forward-mode derivative of the digits U-Net against its forward pass. unet-*: CIFAR-10's DDPM++ beside others'."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor, nn

from explorer.bench.clock import Effort, Work, installed, rounds, waiter
from explorer.bench.peers import edm
from explorer.bench.rows import Row
from explorer.models.published.edm import wanted_of
from explorer.models.published.mapping import fill
from explorer.nets import CIFAR10_DDPMPP, DIGITS_UNET, EDMUNet, UNet, jvp

Network = Callable[[Tensor, Tensor], Tensor]


def jvp_digits(name: str, effort: Effort, device: torch.device) -> Row:
    """Value and derivative along a direction of state and time, float32, without gradients; CPU time of one thread."""
    n = 16 if effort.quick else 128
    draw = torch.Generator().manual_seed(0)
    net = UNet(**DIGITS_UNET, n_classes=10).requires_grad_(False).to(device)
    for p in net.parameters():  # the last layers start at zero
        p.copy_(0.05 * torch.randn(p.shape, generator=draw))
    x, dx = torch.randn(2, n, *net.shape, generator=draw).to(device)
    t, dt = torch.rand(2, n, generator=draw).to(device)
    labels = torch.randint(10, (n,), generator=draw).to(device)

    def function(x, t):
        return net(x, t, labels)

    work = {
        "ours": lambda: jvp(function, (x, t), (dx, dt)),
        "limit": lambda: function(x, t),
        "torch.func.jvp": lambda: torch.func.jvp(function, (x, t), (dx, dt)),
    }
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    with torch.no_grad():
        times, first = rounds(work, effort, best_of=3, clock=clock, wait=waiter(device))
    ours, theirs = first["ours"][1], first["torch.func.jvp"][1]
    checks = {"torch.func.jvp": float((ours - theirs).norm() / theirs.norm())}
    note = f"{n} images. Two forward passes are the floor; own rules for layers, see explorer.nets.forward_mode."
    return Row.of(name, times, unit="ms", limit_is="a forward pass", target=3.0, checks=checks, note=note)


def unet(name: str, effort: Effort, device: torch.device, *, train: bool, low: bool = False) -> Row:
    """DDPM++ as for CIFAR-10 (55.7 M parameters), images a second in training or in sampling.

    Args:
        train: forward, backward and a fused step of AdamW; else forward passes alone, which sampling consists of.
        low: under bfloat16 autocast. Ours holds its weights channels-last; the others are as they come.
    """
    size = {"channels": 32, "blocks": 1} if effort.quick else {}
    batch = (2 if train else 16) if device.type == "cpu" else 256
    x = torch.randn(batch, 3, 32, 32, device=device)
    t, classes = torch.rand(batch, device=device), torch.arange(batch, device=device) % 10

    mine = EDMUNet(**{**CIFAR10_DDPMPP, **size, "n_augment": 0}, n_classes=10).to(device)

    def diffusers() -> Work:
        from diffusers import UNet2DModel

        n = 2 * size.get("channels", 128)
        kinds = ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"), ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")
        net = UNet2DModel(
            32, 3, 3, layers_per_block=size.get("blocks", 4), block_out_channels=(n, n, n), down_block_types=kinds[0],
            up_block_types=kinds[1], num_class_embeds=10, attention_head_dim=n,
        ).to(device)  # fmt: skip
        return _steps(net, lambda x, t: net(x, 1000 * t, classes).sample, x, t, train, low)

    def edms() -> Work:
        net = edm("training.networks").SongUNet(
            32, 3, 3, label_dim=10, model_channels=size.get("channels", 128), channel_mult=[2, 2, 2],
            num_blocks=size.get("blocks", 4), attn_resolutions=[16], dropout=0.13,
        ).to(device)  # fmt: skip
        _share_weights(mine, net)
        hot = torch.nn.functional.one_hot(classes, 10).float()
        return _steps(net, lambda x, t: net(x, t, hot), x, t, train, low)

    peers, absent = installed({"diffusers UNet2DModel": diffusers, SHARED: edms})
    ours = _steps(mine, lambda x, t: mine(x, t, classes), x, t, train, low)
    times, first = rounds({"ours": ours, **peers}, effort, wait=waiter(device))
    checks = {}
    if not train and SHARED in peers:
        checks[SHARED] = float((first["ours"] - first[SHARED]).norm() / first[SHARED].norm())
    what = "training steps" if train else "forward passes"
    how = "bfloat16 autocast" if low else "float32"
    note = f"{what} of {batch} images of 32x32, {how}, {torch.get_num_threads()} threads; networks of equal widths and depth."
    row = Row.of(name, times, unit="s", limit_is="", absent=absent, checks=checks, note=note)
    return row.as_rate(batch, "images/s")


SHARED = "NVlabs/edm SongUNet"
"""The peer whose weights ours has, so that both must give the same numbers."""


def _share_weights(ours: EDMUNet, theirs: nn.Module) -> None:
    """Random weights for both, no layer left at zero."""
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(torch.randn(p.shape, generator=draw) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
    wanted = wanted_of(ours, ours.config, learnt=False)
    used = {name for _, names in wanted.values() for name in names}
    fill(ours, wanted, {k: v for n, v in theirs.state_dict().items() if (k := f"model.{n}") in used})
    ours.to(memory_format=torch.channels_last)


def _steps(net: nn.Module, call: Network, x: Tensor, t: Tensor, train: bool, low: bool) -> Work:
    def forward() -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=low):
            return call(x, t)

    if not train:
        net.eval().requires_grad_(False)

        def sampling() -> Tensor:
            with torch.inference_mode():
                return forward()

        return sampling
    parameters = [p for p in net.train().parameters() if p.requires_grad]
    adam = torch.optim.AdamW(parameters, lr=1e-4, fused=True)

    def training() -> None:
        grads = torch.autograd.grad(forward().float().square().mean(), parameters, allow_unused=True)
        for p, grad in zip(parameters, grads, strict=True):
            p.grad = grad
        adam.step()

    return training
