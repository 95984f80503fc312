"""The training loop: the one place where gradients are computed and optimizers step."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from explorer.data.loader import mix
from explorer.errors import BadValue, ExplorerError, NonFinite
from explorer.training.checkpoint import load_checkpoint, save_checkpoint
from explorer.training.ema import Ema
from explorer.training.levels import LevelLoss, LevelSums
from explorer.training.log import RunLog
from explorer.training.method import Method, Progress, Update
from explorer.training.plan import Plan


class Tick(NamedTuple):
    """What `train` yields every few steps.

    Attributes:
        step, n_images, fraction: how far the run is, after the last step; `fraction` is 1 at its end.
        logs: means since the last tick: "loss/NET", "grad_norm/NET", "lr/NET", the method's own; a count "skipped".
        method: with the raw networks.
        emas: EMA name -> network name -> averaged network, e.g. `method.export(tick.emas["ema"])`.
        seconds: training time so far, resumed parts included.
        levels: mean loss by noise level since the last tick, by the update's networks, e.g. `tick.levels["net"].mean`;
            empty unless the method's updates carry `levels`.
    """

    step: int
    n_images: int
    fraction: float
    logs: Mapping[str, float]
    method: Method
    emas: Mapping[str, nn.ModuleDict]
    seconds: float
    levels: Mapping[str, LevelLoss] = MappingProxyType({})


def train(method: Method, data: Iterable[Any], plan: Plan, run_dir: Path | str | None = None) -> Iterator[Tick]:
    """Train `method` and yield a `Tick` every `plan.tick_steps` steps and at the end.

    Each batch is cut into K = `plan.accumulate` micro-batches whose generators run in lockstep. For every update they
    yield, loss/K is differentiated with respect to the named networks only; after the last micro-batch gradients are
    averaged over processes (when torch.distributed is initialised), checked, clipped and applied, EMAs follow, and only
    then the generators resume. A non-finite loss or gradient skips that update and is counted.

    Args:
        method: its networks' device is where training happens.
        data: batches with `len`, `.to(device)` and `.chunk(n)`; a stream with `.start(i)` resumes without replaying.
        plan: see `Plan`.
        run_dir: where checkpoints and the log go; an existing checkpoint there is resumed, bit for bit on CPU.
    Raises:
        NonFinite: more than `plan.max_skips` updates of a network in a row were not finite.
        ExplorerError: a network named by an update received no gradient, or micro-batches yielded different updates.
    """
    run = _Run(method, plan)
    saved = None if run_dir is None else load_checkpoint(Path(run_dir))
    if saved is not None:
        run.restore(saved.info, saved.weights, saved.optimizers)
    if run_dir is not None:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        log = RunLog(Path(run_dir), resume_step=run.step)
    if plan.compile:
        for net in method.nets.values():
            net.compile()
    batches = iter(_from(data, run.step))
    started = time.monotonic() - run.seconds
    saved_step = run.step if saved is not None else -1
    ticked = resumed = run.step

    def fraction() -> float:
        spent = 0.0 if plan.minutes is None else run.seconds / (60 * plan.minutes)
        return min(max(run.step / plan.n_steps, spent), 1.0)

    while True:
        done = fraction() >= 1
        if run_dir is not None and run.step != saved_step:
            due = plan.checkpoint_steps and run.step % plan.checkpoint_steps == 0
            if done or (due and run.step > 0):
                if _rank() == 0:
                    save_checkpoint(Path(run_dir), *run.state(), keep=plan.keep)
                saved_step = run.step
        if done or (run.step % plan.tick_steps == 0 and run.step != ticked):
            ticked = run.step
            logs = run.take_logs()
            at = run.step, run.n_images, fraction()
            tick = Tick(*at, logs, method, run.averages, run.seconds, run.levels.take())
            if run_dir is not None and _rank() == 0 and tick.step > resumed:
                spent = round(tick.seconds, 3)
                row = {"step": tick.step, "n_images": tick.n_images, "seconds": spent, **tick.logs}
                if tick.levels:
                    row["levels"] = {name: levels.to_dict() for name, levels in tick.levels.items()}
                log.write(row)
            paused = time.monotonic()
            yield tick
            started += time.monotonic() - paused  # the caller's evaluation is not training time
        if done:
            return
        try:
            batch = next(batches)
        except StopIteration:
            raise BadValue(f"the data ended at step {run.step} of {plan.n_steps}; give an endless stream.") from None
        run.one_step(batch, fraction())
        run.seconds = time.monotonic() - started


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | str = "cpu") -> Iterator[None]:
    """Pin torch's global random state inside the block (initialisation of layers, dropout) and restore it afterwards."""
    device = torch.device(device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Run:
    """State of one run: networks, optimizers, averages, counters."""

    def __init__(self, method: Method, plan: Plan):
        if unknown := set(plan.optimizers) - set(method.nets):
            raise BadValue(f"Plan.optimizers names {sorted(unknown)}; the method has {sorted(method.nets)}.")
        self.method, self.plan = method, plan
        self.params = {name: [p for p in net.parameters() if p.requires_grad] for name, net in method.nets.items()}
        self.device = next((p.device for ps in self.params.values() for p in ps), torch.device("cpu"))
        self.optimizers = {name: plan.optimizer_of(name).build(ps) for name, ps in self.params.items()}
        self.emas = {ema.name: Ema(ema, method.nets) for ema in plan.emas}
        self.step = self.n_images = 0
        self.seconds = 0.0
        self.skips = dict.fromkeys(method.nets, 0)
        self._sums: dict[str, Any] = {}
        self._skipped = 0
        self.levels = LevelSums()
        self.take_logs()

    @property
    def averages(self) -> dict[str, nn.ModuleDict]:
        return {name: ema.nets for name, ema in self.emas.items()}

    def log(self, name: str, value: Tensor | float) -> None:
        self._sums[name] = self._sums[name] + (value.detach() if isinstance(value, Tensor) else value)
        self._counts[name] += 1

    def take_logs(self) -> dict[str, float]:
        logs = {name: float(total) / self._counts[name] for name, total in self._sums.items()}
        logs["skipped"] = self._skipped
        self._sums, self._counts, self._skipped = defaultdict(float), defaultdict(int), 0
        return logs

    def one_step(self, batch: Any, fraction: float) -> None:
        self.method.nets.train()
        n = len(batch) * _world()
        parts = batch.to(self.device).chunk(self.plan.accumulate)
        generators = [torch.Generator(self.device) for _ in parts]
        for i, generator in enumerate(generators):
            generator.manual_seed(mix(self.plan.seed, self.step, i, _rank()))
        progress = [Progress(self.step, self.n_images, fraction, generator) for generator in generators]
        with seeded(mix(self.plan.seed, self.step, _rank(), -1), self.device):  # dropout draws from the global state
            runs = [self.method.updates(part, now) for part, now in zip(parts, progress, strict=True)]
            while (on := self._backward(runs)) is not None:
                self._apply(*on, progress[0], n)
        self.step += 1
        self.n_images += n

    def _backward(self, runs: list[Iterator[Update]]) -> tuple[tuple[str, ...], Tensor] | None:
        """Advance every micro-batch by one update and accumulate its gradients; None when all have ended."""
        first, total = None, None
        for i, updates in enumerate(runs):
            with self._precision():
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
            inputs = [p for name in on for p in self.params[name]]
            (update.loss / len(runs)).backward(inputs=inputs)
            loss = update.loss.detach() / len(runs)
            total = loss if total is None else total + loss
            for name, value in update.logs.items():
                self.log(name, value)
            if update.levels is not None:
                self.levels.add("+".join(on), *update.levels)
        return None if first is None else (first, total)

    def _precision(self) -> contextlib.AbstractContextManager:
        if self.plan.autocast is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=getattr(torch, self.plan.autocast))

    def _check(self, on: tuple[str, ...] | None) -> None:
        if on is not None and (not on or (set(on) - set(self.params))):
            raise BadValue(f"an update names the networks {on}; the method has {sorted(self.params)}.")

    def _no_gradient(self, names: Iterable[str]) -> ExplorerError:
        return ExplorerError(
            f"at step {self.step} the network(s) {', '.join(names)} received no gradient: the loss does not depend on "
            "them. Check the names in Update.on, a forgotten detach, or no_grad."
        )

    def _apply(self, on: tuple[str, ...], loss: Tensor, progress: Progress, n: int) -> None:
        silent = [name for name in on if all(p.grad is None for p in self.params[name])]
        if silent:
            raise self._no_gradient(silent)
        loss = _average(loss, [p for name in on for p in self.params[name]])
        norms = {}
        for name in on:
            grads = [p.grad for p in self.params[name] if p.grad is not None]
            norms[name] = torch.nn.utils.get_total_norm(grads)
        finite = bool(torch.isfinite(torch.stack([loss, *(v.to(loss.dtype) for v in norms.values())])).all())
        if finite:
            self.log(f"loss/{'+'.join(on)}", loss)
            for name in on:
                plan = self.plan.optimizer_of(name)
                if plan.clip is not None:
                    torch.nn.utils.clip_grads_with_norm_(self.params[name], plan.clip, norms[name])
                rate = plan.rate(progress, progress.n_images + n)
                for group in self.optimizers[name].param_groups:
                    group["lr"] = rate
                self.optimizers[name].step()
                for ema in self.emas.values():
                    ema.update(name, self.method.nets[name], step=self.step, n_images=progress.n_images, batch=n)
                self.skips[name] = 0
                self.log(f"grad_norm/{name}", norms[name])
                self.log(f"lr/{name}", rate)
        else:
            self._skipped += 1
            for name in on:
                self.skips[name] += 1
        for name in on:
            for p in self.params[name]:
                p.grad = None
        worst = max(on, key=self.skips.__getitem__)
        if self.skips[worst] > self.plan.max_skips:
            raise NonFinite(
                f"network {worst!r}: {self.skips[worst]} updates in a row had a non-finite loss or gradient, the last "
                f"at step {self.step} (loss {float(loss):.3g}). Lower the learning rate or clip the gradient.",
                step=self.step,
            )

    def state(self) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
        info = {
            "step": self.step,
            "n_images": self.n_images,
            "seconds": self.seconds,
            "skips": self.skips,
            "plan": self.plan.to_dict(),
        }
        weights = {f"method.{key}": value for key, value in self.method.state_dict().items()}
        for name, ema in self.emas.items():
            weights |= {f"ema.{name}.{key}": value for key, value in ema.nets.state_dict().items()}
        return info, weights, {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}

    def restore(self, info: Mapping[str, Any], weights: Mapping[str, Tensor], optimizers: Mapping[str, Any]) -> None:
        theirs, ours = info["plan"], json.loads(json.dumps(self.plan.to_dict()))
        for key in ("batch_size", "accumulate", "optimizer", "optimizers", "emas", "seed"):
            if not _same(theirs.get(key), ours[key]):
                raise BadValue(
                    f"the run to resume was started with {key}={theirs.get(key)!r}, not {ours[key]!r}; "
                    "use the same plan or another folder."
                )
        try:
            self.method.load_state_dict({k[7:]: v for k, v in weights.items() if k.startswith("method.")})
            for name, ema in self.emas.items():
                prefix = f"ema.{name}."
                ema.nets.load_state_dict({k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
        except RuntimeError as problem:
            raise BadValue(f"the run to resume has other networks than this method: {problem}") from problem
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(optimizers[name])
        self.step, self.n_images, self.seconds = info["step"], info["n_images"], info["seconds"]
        self.skips = dict(info["skips"])


def _same(saved: Any, now: Any) -> bool:
    """Whether two settings agree; a field that the saved one has not heard of must have its default, AdamW."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        keys = saved.keys() | now.keys()
        return all(_same(saved.get(k, NEW.get(k)), now.get(k)) for k in keys)
    return saved == now


NEW = {"kind": "adamw"}
"""Fields added to plans since runs were first saved, with the value that those runs had."""


def _from(data: Iterable[Any], i: int) -> Iterable[Any]:
    return data.start(i) if hasattr(data, "start") else itertools.islice(iter(data), i, None)


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _rank() -> int:
    return torch.distributed.get_rank() if _distributed() else 0


def _world() -> int:
    return torch.distributed.get_world_size() if _distributed() else 1


def _average(loss: Tensor, params: list[nn.Parameter]) -> Tensor:
    """Average loss and gradients over processes in one flat all-reduce; the identity in a single process."""
    if not _distributed():
        return loss
    # Parameters without a gradient here may have one elsewhere: every process sends the same layout.
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
    flat = torch.cat([loss.reshape(1).to(grads[0].dtype), *(g.reshape(-1) for g in grads)])
    torch.distributed.all_reduce(flat)
    flat /= _world()
    for p, piece in zip(params, flat[1:].split([g.numel() for g in grads]), strict=True):
        p.grad = piece.view_as(p)
    return flat[0].to(loss.dtype)
