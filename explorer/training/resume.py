"""A run's state as a checkpoint holds it, and back.

Everything random is a function of (plan.seed, step, micro-batch, process) and every batch one of its index, so generators
and data need no state of their own beyond the step.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from explorer.errors import BadValue
from explorer.metrics.base import Estimate
from explorer.training import sharding
from explorer.training.checkpoint import Checkpoint
from explorer.training.precision import LossScale

if TYPE_CHECKING:
    from explorer.training.loop import Run


def captured(run: Run, data: Any) -> tuple[dict[str, Any], dict[str, Tensor], dict[str, Any]]:
    """Facts, weights and optimizer states of a checkpoint."""
    info = {
        "step": run.step,
        "n_images": run.n_images,
        "seconds": run.seconds,
        "stopped": run.ended(),
        "skips": run.skips,
        "averaged": run.averaged,
        "scales": {name: [scale.value, scale.finite] for name, scale in run.scales.items()},
        "best": None if run.best is None else [run.best[0], run.best[1].to_dict()],
        "stale": run.stale,
        "method": type(run.method).__name__,
        "plan": run.plan.to_dict(),
        "random": "every generator is a function of (plan.seed, step, micro-batch, process)",
        "data": _identity(data, run.step),
        "pending": {
            "logs": {name: [float(total), run.counts[name]] for name, total in run.sums.items()},
            "levels": run.levels.state(),
            "skipped": run.skipped,
            "notices": run.notices,
        },
    }
    return info, run.weights(), {name: sharding.whole(opt.state_dict()) for name, opt in run.optimizers.items()}


def restore(run: Run, saved: Checkpoint, data: Any) -> None:
    """Put a saved run's state into a new one.

    Raises:
        BadValue: it was started with another plan, other data or other networks.
    """
    info, weights = saved.info, saved.weights
    theirs, ours = info["plan"], json.loads(json.dumps(run.plan.to_dict()))
    for key in ("batch_size", "accumulate", "optimizer", "optimizers", "emas", "seed"):
        if not _same(theirs.get(key), ours[key]):
            raise BadValue(
                f"the run to resume was started with {key}={theirs.get(key)!r}, not {ours[key]!r}; "
                "use the same plan or another folder."
            )
    if info.get("data") is not None and _identity(data, 0) is not None:
        data.load_state_dict(info["data"])
    try:
        load = sharding.load_ if run.sharded else nn.Module.load_state_dict
        load(run.method, {k[7:]: v for k, v in weights.items() if k.startswith("method.")})
        for name, ema in run.emas.items():
            prefix = f"ema.{name}."
            load(ema.nets, {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)})
    except RuntimeError as problem:
        raise BadValue(f"the run to resume has other networks than this method: {problem}") from problem
    for name, optimizer in run.optimizers.items():
        optimizer.load_state_dict(sharding.optimizer_state(saved.optimizers[name], run.params[name]))
    run.step, run.n_images, run.seconds = info["step"], info["n_images"], info["seconds"]
    run.skips = dict(info["skips"])
    everywhere = dict.fromkeys(run.averaged, (run.step, run.n_images))  # runs saved before this was
    run.averaged = {name: tuple(at) for name, at in info.get("averaged", everywhere).items()}
    run.scales = {name: LossScale(*values) for name, values in info.get("scales", {}).items()}
    if info.get("best") is not None:
        run.best = info["best"][0], Estimate.from_dict(info["best"][1])
    run.stale = info.get("stale", 0)
    pending = info.get("pending", {})
    for name, (total, count) in pending.get("logs", {}).items():
        run.sums[name], run.counts[name] = total, count
    run.levels.load(pending.get("levels", {}))
    run.skipped = pending.get("skipped", 0)
    run.notices = [*pending.get("notices", ()), *filter(None, [saved.notice])]


NEW = {"kind": "adamw"}
"""Fields added to plans since runs were first saved, with the value that those runs had."""


def _same(saved: Any, now: Any) -> bool:
    """Whether two settings agree; a field that the saved one has not heard of counts as in `NEW`."""
    if isinstance(saved, Mapping) and isinstance(now, Mapping):
        keys = saved.keys() | now.keys()
        return all(_same(saved.get(k, NEW.get(k)), now.get(k)) for k in keys)
    return saved == now


def _identity(data: Any, position: int) -> dict[str, Any] | None:
    """What a stream says of itself (JSON-able) and where it stands; None for one that says nothing."""
    if not (hasattr(data, "start") and hasattr(data, "state_dict") and hasattr(data, "load_state_dict")):
        return None
    return {**data.state_dict(), "position": position}
