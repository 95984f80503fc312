"""jvp-digits: the forward-mode derivative of the digits U-Net against its forward pass."""

from __future__ import annotations

import time

import torch

from explorer.bench.clock import Effort, rounds, waiter
from explorer.bench.rows import Row
from explorer.nets import DIGITS_UNET, UNet, jvp


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
