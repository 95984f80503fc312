"""train-digits: images per second of the digits recipe, as `explorer train edm --data digits` runs it."""

from __future__ import annotations

import dataclasses

import torch

from explorer.bench.clock import Effort, rounds, waiter
from explorer.bench.rows import Row
from explorer.data import load_dataset
from explorer.papers.edm import PAPER
from explorer.reproduction.run import train_recipe


def digits(name: str, effort: Effort, device: torch.device) -> Row:
    """Draw, corrupt, forward, backward, clip, Adam, EMA, log. On a GPU under bfloat16 autocast and compiled."""
    recipe, steps = PAPER.recipe("digits"), 2 if effort.quick else 10
    fast = {"autocast": "bfloat16", "compile": True} if device.type == "cuda" else {}
    endless = dataclasses.replace(recipe.plan, n_steps=10**9, tick_steps=steps, **fast)
    ticks = train_recipe(dataclasses.replace(recipe, plan=endless), device=device)
    net = recipe.method(load_dataset(recipe.data)).to(device).nets["net"].train()
    work = {"ours": lambda: next(ticks), "limit": _bare(net, recipe.plan.batch_size, steps, device, fast)}
    times, _ = rounds(work, effort, wait=waiter(device))
    how = "bfloat16, compiled" if fast else "float32"
    note = f"Batches of {recipe.plan.batch_size}, {how}; {steps} steps a round."
    row = Row.of(name, times, unit="s", limit_is="forward and backward of the bare network", note=note)
    return row.as_rate(steps * recipe.plan.batch_size, "images/s")


def _bare(net, batch: int, steps: int, device: torch.device, fast: dict):
    """Forward and backward of the network on one batch: no noise drawn, no loss weight, no optimizer."""
    x = torch.zeros(batch, *net.shape, device=device)
    noise, labels = torch.zeros(batch, device=device), torch.zeros(batch, dtype=torch.int64, device=device)
    parameters = list(net.parameters())
    if fast:
        net.compile()

    def call() -> None:
        for _ in range(steps):
            with torch.autocast(device.type, dtype=torch.bfloat16, enabled=bool(fast)):
                loss = net(x, noise, labels).square().mean()
            torch.autograd.grad(loss, parameters)

    return call
