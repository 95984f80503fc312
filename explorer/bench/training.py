"""train-*: what the training loop costs over a step written by hand, and images per second of the papers' digits recipes."""

from __future__ import annotations

import copy
import dataclasses
import tempfile

import torch

from explorer.bench import fastgen
from explorer.bench.clock import Effort, Work, clock_of, rounds, threads, waiter
from explorer.bench.rows import Row
from explorer.data import Loader, load_dataset
from explorer.models.bundled import load
from explorer.papers import paper
from explorer.reproduction.bench import Bench
from explorer.reproduction.run import batches_of, method_of
from explorer.training import EmaPlan, seeded, train

SLACK, SLACK_WITH_ALL = 1.03, 1.06


def digits(name: str, effort: Effort, device: torch.device, *, slug: str = "edm") -> Row:
    """A paper's digits recipe: draw, corrupt, forward, backward, clip, Adam, EMA, log. On a GPU under bfloat16 autocast and compiled.

    What it needs first (teacher, pairs) is stood in for by untrained ones of the same architecture.
    """
    recipe, steps = paper(slug).recipe("digits"), 5 if effort.quick else 10  # whole turns of DMD2's two time scales
    fast = {"autocast": "bfloat16", "compile": True} if device.type == "cuda" else {}
    endless = dataclasses.replace(recipe.plan, n_steps=10**9, tick_steps=steps, checkpoint_steps=0, **fast)
    bench = Bench(seed=recipe.plan.seed, device=device, rehearse=True)
    needs = {need: bench.need(recipe.needs[need]) for need in recipe.needs}
    data = load_dataset(recipe.data)
    method = method_of(recipe, data, needs, recipe.plan.seed).to(device)
    net = copy.deepcopy(next(iter(method.nets.values()))).train()
    ticks = train(method, batches_of(recipe, data, endless, needs), endless)
    batch = recipe.plan.batch_size
    work = {"ours": lambda: next(ticks), "limit": _bare(net, data.shape, batch, steps, device, fast)}
    how = "bfloat16, compiled" if fast else "float32"
    note = f"{recipe.name}: batches of {batch}, {how}; {steps} steps a round."
    absent = []
    if slug in fastgen.CLASSES and not fast:
        peer = f"NVlabs/FastGen {fastgen.CLASSES[slug]}"
        try:
            images = next(iter(Loader(data, batch, seed=recipe.plan.seed))).to(device)
            work[peer] = fastgen.steps_of(slug, load("digits", device), recipe.plan, images, steps)
            note += f" FastGen: {fastgen.NOTES[slug]} Theirs is without loader, clipping, average and log."
        except ImportError as problem:
            absent.append(peer)
            note += f" FastGen absent: {problem}."
    times, _ = rounds(work, effort, wait=waiter(device))
    limit_is = "one forward and backward of the bare network"
    row = Row.of(name, times, unit="s", limit_is=limit_is, absent=absent, note=note)
    return row.as_rate(steps * batch, "images/s")


def loop(name: str, effort: Effort, device: torch.device, *, everything: bool = False) -> Row:
    """A step of the loop against the same step written by hand: same batches, loss, clipping, schedule and optimizer.

    Args:
        everything: with the recipe's EMA, the loss by noise level and a tick with its log line at every step; the step
            by hand has none of these. On a GPU the finite check, which waits for the device, is part of it.
    """
    recipe = paper("edm").recipe("digits")
    emas = (EmaPlan(half_life=18_000),) if everything else ()
    plan = dataclasses.replace(recipe.plan, n_steps=10**9, tick_steps=1, emas=emas, checkpoint_steps=0)
    with threads(1), tempfile.TemporaryDirectory() as folder:
        ticks = train(*_setting(recipe, device), plan, folder if everything else None)
        hand = _by_hand(*_setting(recipe, device), plan)
        work = {"ours": lambda: next(ticks), "limit": hand}
        times, _ = rounds(work, effort, best_of=3, clock=clock_of(device), wait=waiter(device))
        ticks.close()
    what = "EMA, loss by noise level, and a log line at every step" if everything else "no EMA, no log"
    note = f"Digits U-Net, batches of {plan.batch_size}, one thread; {what}."
    target = SLACK_WITH_ALL if everything else SLACK
    return Row.of(name, times, unit="ms", limit_is="the step written by hand", target=target, note=note)


def _setting(recipe, device: torch.device):
    data = load_dataset(recipe.data)
    with seeded(recipe.plan.seed):
        method = recipe.method(data)
    return method.to(device), Loader(data, recipe.plan.batch_size, seed=recipe.plan.seed)


def _by_hand(method, loader: Loader, plan) -> Work:
    net, o = method.nets["net"].train(), plan.optimizer
    device = next(net.parameters()).device
    parameters, batches, generator = list(net.parameters()), iter(loader), torch.Generator(device).manual_seed(0)
    adam = torch.optim.AdamW(parameters, lr=o.lr, betas=o.betas, eps=o.eps, weight_decay=o.weight_decay, fused=True)

    def call() -> None:
        loss, _ = method.loss(next(batches).to(device), generator)
        for p, grad in zip(parameters, torch.autograd.grad(loss.mean(), parameters), strict=True):
            p.grad = grad
        torch.nn.utils.clip_grad_norm_(parameters, o.clip)
        adam.step()

    return call


def _bare(net, shape: tuple[int, ...], batch: int, steps: int, device: torch.device, fast: dict):
    """Forward and backward of the network on one batch: no noise drawn, no loss weight, no optimizer."""
    x = torch.zeros(batch, *shape, device=device)
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
