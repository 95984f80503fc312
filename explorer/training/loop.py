"""The training loop: the one place where gradients are computed and optimizers step."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from explorer.data.loader import mix
from explorer.errors import BadValue, ExplorerError, NonFinite
from explorer.metrics.base import Estimate
from explorer.training import distributed, sharding
from explorer.training.ema import Ema
from explorer.training.folder import RunFolder
from explorer.training.levels import LevelLoss, LevelSums
from explorer.training.method import Method, Progress, Update
from explorer.training.plan import Plan
from explorer.training.precision import LossScale, autocast, tf32
from explorer.training.resume import captured, restore


class Tick(NamedTuple):
    """What `train` yields every few steps.

    Attributes:
        step, n_images, fraction: how far the run is, after the last step; `fraction` is 1 at its planned end.
        logs: means since the last tick: "loss/NET", "grad_norm/NET", "lr/NET", the method's own; a count "skipped".
        method: with the raw networks.
        emas: EMA name -> network name -> averaged network, e.g. `method.export(tick.emas["ema"])`.
        seconds: training time so far, resumed parts included.
        levels: mean loss by noise level since the last tick, by the update's networks, e.g. `tick.levels["net"].mean`;
            empty unless the method's updates carry `levels`.
        estimate: what `evaluate` measured at this step; None where it was not asked.
        notices: what a user should be told: updates that were skipped, a damaged checkpoint that was passed over.
        stopped: why this is the last tick; empty on all others.
    """

    step: int
    n_images: int
    fraction: float
    logs: Mapping[str, float]
    method: Method
    emas: Mapping[str, nn.ModuleDict]
    seconds: float
    levels: Mapping[str, LevelLoss] = MappingProxyType({})
    estimate: Estimate | None = None
    notices: tuple[str, ...] = ()
    stopped: str = ""


Evaluate = Callable[[Method, Mapping[str, nn.ModuleDict]], Estimate]


def train(
    method: Method,
    data: Iterable[Any],
    plan: Plan,
    run_dir: Path | str | None = None,
    *,
    evaluate: Evaluate | None = None,
) -> Iterator[Tick]:
    """Train `method` and yield a `Tick` every `plan.tick_steps` steps, after each evaluation, and at the end.

    Each batch is cut into K = `plan.accumulate` micro-batches whose generators run in lockstep. For every update they
    yield, loss/K is differentiated with respect to the named networks only; after the last micro-batch gradients are
    averaged over processes (when torch.distributed is initialised), checked, clipped and applied, and only then the
    generators resume. A non-finite loss or gradient skips that update and is counted. Averages follow once a step, for the
    networks that moved in it.

    A tick lies between two steps, so a caller who wants a pause just does not ask for the next one, and one who closes or
    drops the iterator ends the run there; it resumes from its last checkpoint.

    Args:
        method: its networks' device is where training happens.
        data: batches with `len`, `.to(device)` and `.chunk(n)`; a stream with `.start(i)` resumes without replaying, one
            with `.state_dict()` is asked on resuming whether it is the same data.
        plan: see `Plan`.
        run_dir: where checkpoints, snapshots and the log go; an existing checkpoint there is resumed, bit for bit on CPU.
            If the newest one is damaged, the one before is taken, with a warning that says so.
        evaluate: (method, averages) -> Estimate, lower is better; called every `plan.evaluate_steps` steps and at the
            end, in process 0 only (in all with `plan.shard`). The weights with the lowest value are kept in the folder, see `best`.
    Raises:
        NonFinite: more than `plan.max_skips` updates of a network in a row were not finite; it names the noise level.
        BadFile: the disk is full, or no checkpoint in the folder is whole.
        ExplorerError: a network named by an update received no gradient, or micro-batches yielded different updates.
    """
    if evaluate is None and (plan.evaluate_steps or plan.patience):
        raise BadValue("the plan asks for evaluation; pass train(..., evaluate=...), which returns an Estimate.")
    run, folder = Run(method, plan), RunFolder(run_dir, plan)
    if folder.saved is not None:
        restore(run, folder.saved, data)
    begun = run.step
    folder.begin()
    for module in (method, *run.averages.values()):
        distributed.agree_(module)
    if plan.compile:
        for net in method.nets.values():
            net.compile()
    batches, clock = iter(_from(data, run.step)), _Clock(run.seconds)

    def due(every: int) -> bool:
        """Whether something is to be done now, and was not done before the run was resumed here."""
        return run.step > begun and (bool(run.ended()) or (every > 0 and run.step % every == 0))

    try:
        while True:
            estimate = None
            if evaluate is not None and due(plan.evaluate_steps):
                with clock.paused():
                    here = run.sharded or distributed.rank() == 0
                    measured = evaluate(method, run.averages) if here else None
                    estimate = distributed.shared(measured)
                run.training = False  # the caller may have changed it
                if run.judge(estimate):
                    folder.best({**run.about(), "estimate": estimate.to_dict()}, run.weights())
            if plan.snapshot_steps and due(plan.snapshot_steps):
                folder.snapshot(run.about(), run.weights())
            stopped, tick = run.ended(), None
            if stopped or due(plan.tick_steps) or estimate is not None:
                tick = run.tick(estimate)
                if run.step > begun:
                    folder.row(_row(tick))
            if due(plan.checkpoint_steps):
                folder.checkpoint(*captured(run, data))
            if tick is not None:
                with clock.paused():  # what the caller does with a tick is not training time
                    yield tick
                run.training = False
            if stopped:
                return
            try:
                batch = next(batches)
            except StopIteration:
                raise BadValue(
                    f"the data ended at step {run.step} of {plan.n_steps}; give an endless stream."
                ) from None
            run.one_step(batch)
            run.seconds = clock.seconds if plan.minutes is None else distributed.shared(clock.seconds)
    except GeneratorExit:
        if plan.checkpoint_at_close and folder.saved_step != run.step > begun:
            folder.checkpoint(*captured(run, data))
        raise
    finally:
        folder.close()


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Pin torch's global random state inside the block (initialisation of layers, dropout) and restore it afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        if device.type == "cpu":  # torch.manual_seed also writes down a stack trace, a millisecond, for GPUs not in use
            torch.default_generator.manual_seed(seed)
        else:
            torch.manual_seed(seed)
        yield


class _Clock:
    """Seconds of training, resumed ones included, pauses left out."""

    def __init__(self, already: float):
        self.started = time.monotonic() - already

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        since = time.monotonic()
        yield
        self.started += time.monotonic() - since


class Run:
    """State of one run: networks, optimizers, averages, counters."""

    def __init__(self, method: Method, plan: Plan):
        if unknown := set(plan.optimizers) - set(method.nets):
            raise BadValue(f"Plan.optimizers names {sorted(unknown)}; the method has {sorted(method.nets)}.")
        self.method, self.plan, self.sharded = method, plan, plan.shard and distributed.active()
        if self.sharded:
            distributed.agree_(method)
            self._bones = sharding.skeleton(method.nets)
        self.emas = {ema.name: Ema(ema, method.nets) for ema in plan.emas}
        if self.sharded:
            for nets in (method.nets, *self.averages.values()):
                sharding.shard_(nets)
            method.to(distributed.place())
        self.params = {name: [p for p in net.parameters() if p.requires_grad] for name, net in method.nets.items()}
        self.device = next((p.device for ps in self.params.values() for p in ps), torch.device("cpu"))
        self.optimizers = {name: plan.optimizer_of(name).build(ps) for name, ps in self.params.items()}
        self.step = self.n_images = 0
        self.seconds = 0.0
        self.skips = dict.fromkeys(method.nets, 0)
        self.averaged = dict.fromkeys(method.nets, (0, 0))  # steps and images at the last averaging
        self.scales: dict[str, LossScale] = {}
        self.best: tuple[int, Estimate] | None = None
        self.stale = 0  # evaluations since the best one
        self.training = False  # whether all modules are known to be in training mode
        self.levels = LevelSums()
        self.sums: dict[str, Any] = defaultdict(float)
        self.counts: dict[str, int] = defaultdict(int)
        self.skipped = 0
        self.notices: list[str] = []
        self._moved: dict[str, None] = {}  # networks that stepped in this step, in order
        self._faults: list[tuple[Tensor, Tensor]] = []  # levels of the update in progress

    @property
    def averages(self) -> dict[str, nn.ModuleDict]:
        return {name: ema.nets for name, ema in self.emas.items()}

    @property
    def fraction(self) -> float:
        spent = 0.0 if self.plan.minutes is None else self.seconds / (60 * self.plan.minutes)
        return min(max(self.step / self.plan.n_steps, spent), 1.0)

    def ended(self) -> str:
        """Why the run is over, in words; empty while it is not."""
        if self.step >= self.plan.n_steps:
            return f"all {self.plan.n_steps} steps are done"
        if self.fraction >= 1:
            return f"the {self.plan.minutes:g} minutes are spent"
        if self.plan.patience is not None and self.stale >= self.plan.patience:
            step, estimate = self.best or (0, "no finite value")
            return f"{self.stale} evaluations brought nothing better than {estimate} at step {step}"
        return ""

    def judge(self, estimate: Estimate) -> bool:
        """Whether an evaluation is the best so far."""
        if not isinstance(estimate, Estimate):
            raise BadValue(f"evaluate returned {type(estimate).__name__}; it must return an Estimate, lower is better.")
        better = math.isfinite(estimate.value) and (self.best is None or estimate.value < self.best[1].value)
        if better:
            self.best = self.step, estimate
        self.stale = 0 if better else self.stale + 1
        return better

    def log(self, name: str, value: Tensor | float) -> None:
        self.sums[name] = self.sums[name] + (value.detach() if isinstance(value, Tensor) else value)
        self.counts[name] += 1

    def tick(self, estimate: Estimate | None) -> Tick:
        """A tick of this moment; means and notices start anew."""
        logs = {name: float(total) / self.counts[name] for name, total in self.sums.items()}
        logs["skipped"] = self.skipped
        notices, levels = tuple(self.notices), self.levels.take()
        self.sums, self.counts, self.skipped, self.notices = defaultdict(float), defaultdict(int), 0, []
        at, averages, stopped = (self.step, self.n_images, self.fraction), self.averages, self.ended()
        if self.sharded and stopped:
            averages = {name: sharding.together(self._bones, nets) for name, nets in averages.items()}
        return Tick(*at, logs, self.method, averages, self.seconds, levels, estimate, notices, stopped=stopped)

    def one_step(self, batch: Any) -> None:
        if not self.training or not all(net.training for net in self.method.nets.values()):
            self.method.nets.train()  # a walk through every module, up to a hundredth of a small network's step
            self.training = True
        n = len(batch) * distributed.world()
        parts = batch.to(self.device).chunk(self.plan.accumulate)
        generators = [torch.Generator(self.device) for _ in parts]
        for i, generator in enumerate(generators):
            generator.manual_seed(mix(self.plan.seed, self.step, i, distributed.rank()))
        progress = [Progress(self.step, self.n_images, self.fraction, generator) for generator in generators]
        # Dropout draws from the global state.
        with seeded(mix(self.plan.seed, self.step, distributed.rank(), -1), self.device), tf32(self.plan.tf32):
            runs = [self.method.updates(part, now) for part, now in zip(parts, progress, strict=True)]
            while (update := self._backward(runs)) is not None:
                self._apply(*update, progress[0], n)
        for name in self._moved:
            for ema in self.emas.values():
                ema.update(name, step=self.step, n_images=self.n_images, batch=n, previous=self.averaged[name])
            self.averaged[name] = self.step + 1, self.n_images + n
        self._moved.clear()
        self.step += 1
        self.n_images += n

    def _backward(self, runs: list[Iterator[Update]]) -> tuple[tuple[str, ...], Tensor] | None:
        """Advance every micro-batch by one update and accumulate its gradients; None when all have ended."""
        first, total = None, None
        self._faults.clear()
        for i, updates in enumerate(runs):
            with autocast(self.device, self.plan.autocast):
                update = next(updates, None)
            on = None if update is None else tuple(update.on)
            if i == 0:
                first = on
                self._check(on)
            elif on != first:
                raise ExplorerError(
                    f"micro-batches must yield alike: at step {self.step} the first yielded {first}, number {i} "
                    f"yielded {on}. Let the choice of update depend on progress, not on data."
                )
            if update is None:
                continue
            if not update.loss.requires_grad:
                raise self._no_gradient(on)
            name = "+".join(on)
            inputs = [p for net in on for p in self.params[net]]
            scaled = update.loss / len(runs)
            if self.plan.autocast == "float16":
                scaled = scaled.float() * self.scales.setdefault(name, LossScale()).value
            if self.sharded:  # what layers compute with are no leaves to name; `_apply` drops the others' gradients
                scaled.backward()
            else:
                scaled.backward(inputs=inputs)
            loss = update.loss.detach() / len(runs)
            total = loss if total is None else total + loss
            for key, value in update.logs.items():
                self.log(key, value)
            if update.levels is not None:
                self.levels.add(name, *update.levels)
                self._faults.append(update.levels)
        return None if first is None else (first, total)

    def _check(self, on: tuple[str, ...] | None) -> None:
        if on is not None and (not on or (set(on) - set(self.params))):
            raise BadValue(f"an update names the networks {on}; the method has {sorted(self.params)}.")

    def _no_gradient(self, names: Iterable[str]) -> ExplorerError:
        return ExplorerError(
            f"at step {self.step} the network(s) {', '.join(names)} received no gradient: the loss does not depend on "
            "them. Check the names in Update.on, a forgotten detach, or no_grad."
        )

    def _apply(self, on: tuple[str, ...], loss: Tensor, progress: Progress, n: int) -> None:
        silent = [net for net in on if all(p.grad is None for p in self.params[net])]
        if silent:
            raise self._no_gradient(silent)
        name, params = "+".join(on), [p for net in on for p in self.params[net]]
        loss = distributed.average_(loss, params)
        scale = self.scales.get(name)
        if scale is not None:
            torch._foreach_mul_(sharding.parts(p.grad for p in params if p.grad is not None), 1 / scale.value)
        norms = {}
        for net in on:
            norms[net] = sharding.norm([p.grad for p in self.params[net] if p.grad is not None])
        finite = bool(torch.isfinite(torch.stack([loss, *(v.to(loss.dtype) for v in norms.values())])).all())
        overflow = not finite and scale is not None and scale.value > 1 and bool(torch.isfinite(loss))
        if scale is not None:
            self.log(f"loss_scale/{name}", scale.value)
            scale.update(finite)
        if finite:
            self.log(f"loss/{name}", loss)
            for net in on:
                plan = self.plan.optimizer_of(net)
                if plan.clip is not None:
                    sharding.clip_(self.params[net], plan.clip, norms[net])
                rate = plan.rate(progress, progress.n_images + n)
                for group in self.optimizers[net].param_groups:
                    group["lr"] = rate
                self.optimizers[net].step()
                self._moved[net] = None
                self.skips[net] = 0
                self.log(f"grad_norm/{net}", norms[net])
                self.log(f"lr/{net}", rate)
        for p in itertools.chain(*self.params.values()) if self.sharded else params:
            p.grad = None
        if not finite:
            self.skipped += 1
        if not finite and not overflow:
            self._skip(on, loss, norms)

    def _skip(self, on: tuple[str, ...], loss: Tensor, norms: Mapping[str, Tensor]) -> None:
        """Count an update that was not applied; too many in a row of one network end the run."""
        for net in on:
            self.skips[net] += 1
        broken = [net for net in on if not torch.isfinite(norms[net])] or list(on)
        worst = max(broken, key=self.skips.__getitem__)
        samples, what = [], f"loss {float(loss):.3g}"
        if torch.isfinite(loss):
            what += f", but the gradient of {' and '.join(map(repr, broken))} is not finite"
        elif self._faults:
            sigma, each = (torch.cat([pair[i].detach().reshape(-1) for pair in self._faults]) for i in (0, 1))
            bad = ~torch.isfinite(each)
            samples = bad.nonzero()[:, 0].tolist()
            if samples:
                low, high = float(sigma[bad].min()), float(sigma[bad].max())
                what += f" at sigma {low:.3g}" + (f" to {high:.3g}" if high > low else "")
                what += f", {len(samples)} of {len(each)} samples"
        if self.skips[worst] > self.plan.max_skips:
            raise NonFinite(
                f"network {worst!r}: {self.skips[worst]} updates in a row had a non-finite loss or gradient, the last "
                f"at step {self.step} ({what}). Lower the learning rate or clip the gradient.",
                step=self.step,
                samples=samples,
            )
        if len(self.notices) < MOST_NOTICES:
            self.notices.append(f"step {self.step}: the update of {'+'.join(on)} was skipped: {what}.")

    def about(self) -> dict[str, Any]:
        """What a file of weights says of itself."""
        return {
            "step": self.step,
            "n_images": self.n_images,
            "averaged": {name: steps for name, (steps, _) in self.averaged.items()},
            "sigma_rel": {name: ema.plan.sigma_rel for name, ema in self.emas.items()},
        }

    def weights(self) -> dict[str, Tensor]:
        weights = {f"method.{key}": value for key, value in self.method.state_dict().items()}
        for name, ema in self.emas.items():
            weights |= {f"ema.{name}.{key}": value for key, value in ema.nets.state_dict().items()}
        return sharding.whole(weights) if self.sharded else weights


MOST_NOTICES = 5
"""Notices between two ticks; a run that skips more says so by its count."""


def _row(tick: Tick) -> dict[str, Any]:
    """A tick as a line of the log."""
    row = {"step": tick.step, "n_images": tick.n_images, "seconds": round(tick.seconds, 3), **tick.logs}
    if tick.levels:
        row["levels"] = {name: levels.to_dict() for name, levels in tick.levels.items()}
    if tick.estimate is not None:
        row["estimate"] = tick.estimate.to_dict()
    if tick.notices:
        row["notices"] = list(tick.notices)
    if tick.stopped:
        row["stopped"] = tick.stopped
    return row


def _from(data: Iterable[Any], i: int) -> Iterable[Any]:
    return data.start(i) if hasattr(data, "start") else itertools.islice(iter(data), i, None)
