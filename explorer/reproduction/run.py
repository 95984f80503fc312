"""From a recipe to a model on disk: train, evaluate, write weights and card."""

from __future__ import annotations

import dataclasses
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from explorer.data import Dataset, Loader, load_dataset, test_split
from explorer.errors import BadValue, ExplorerError, UnknownName
from explorer.models.base import Model
from explorer.models.bundled import save_model
from explorer.reproduction.bench import Bench
from explorer.reproduction.evaluate import evaluate
from explorer.reproduction.recipe import Recipe
from explorer.training import distributed
from explorer.training.log import read_log
from explorer.training.loop import Tick, seeded, train
from explorer.training.method import Method
from explorer.training.plan import Plan
from explorer.training.weights import Snapshot


def train_recipe(
    recipe: Recipe,
    run_dir: Path | str | None = None,
    *,
    seed: int | None = None,
    device: torch.device | str = "cpu",
    minutes: float | None = None,
    bench: Bench | None = None,
) -> Iterator[Tick]:
    """Train a recipe and yield its ticks; the last one is what `publish` takes.

    Args:
        run_dir: checkpoints and log; a run found there is resumed.
        seed: of initialisation, data order and noise; None for the recipe's own.
        minutes: wall-clock budget, see `Plan.minutes`.
        bench: makes what the recipe needs; None for one of its own, in `run_dir`/needs.
    """
    plan = recipe.plan
    changes = {"seed": plan.seed if seed is None else seed, "minutes": plan.minutes if minutes is None else minutes}
    plan = dataclasses.replace(plan, **changes)
    data = load_dataset(recipe.data)
    if bench is None:
        bench = Bench(None if run_dir is None else Path(run_dir) / "needs", seed=plan.seed, device=device)
    needs = {name: bench.need(need) for name, need in recipe.needs.items()}
    method = method_of(recipe, data, needs, plan.seed)
    if not (plan.shard and distributed.active()):  # else block by block, in `train`
        method.to(device)
    yield from train(method, batches_of(recipe, data, plan, needs), plan, run_dir)


def method_of(recipe: Recipe, data: Dataset, needs: Mapping[str, Any], seed: int) -> Method:
    """The recipe's method with the weights it starts from.

    Raises:
        BadValue: a model among the needs, or a network of the method, is for samples of another shape or with other classes; or the
            method cannot be built on these data.
    """
    for name, need in needs.items():
        if isinstance(need, Model) and tuple(need.shape) != data.shape:
            raise BadValue(
                f"recipe {recipe.name!r}: its {name} {need.name or type(need).__name__!r} is for samples of shape "
                f"{tuple(need.shape)}, but {data.name} has {data.shape}. Choose a {name} of the data's shape."
            )
    try:
        with seeded(seed):
            method = recipe.method(data, **needs)
    except ExplorerError:
        raise
    except (ValueError, TypeError, IndexError, AttributeError, RuntimeError) as problem:
        about = f"{data.name} (shape {data.shape}, {data.n_classes} classes)"
        raise BadValue(f"the method of recipe {recipe.name!r} cannot be built on {about}: {problem}") from problem
    shapes = {tuple(net.shape) for net in method.nets.values() if isinstance(getattr(net, "shape", None), tuple)}
    if shapes and data.shape not in shapes:
        raise BadValue(
            f"recipe {recipe.name!r} builds networks for samples of shape {shapes.pop()}; {data.name} has {data.shape}: choose "
            "another recipe."
        )
    classes = {net.n_classes for net in method.nets.values() if getattr(net, "n_classes", 0)}
    if classes and data.n_classes not in classes:
        raise BadValue(
            f"recipe {recipe.name!r} is for {classes.pop()} classes; {data.name} has {data.n_classes or 'none'}: choose another recipe."
        )
    return method


def batches_of(recipe: Recipe, data: Dataset, plan: Plan, needs: Mapping[str, Any]) -> Iterable[Any]:
    """The endless batches a recipe is trained on."""
    if recipe.stream is not None:
        return recipe.stream(data, plan, **needs)
    place = {"rank": distributed.rank(), "world": distributed.world()}
    return Loader(data, plan.batch_size, seed=plan.seed, fresh=data.draw is not None, **place)


def exported(recipe: Recipe, tick: Tick) -> nn.Module:
    """The recipe's model as of a tick: averaged weights, in evaluation mode."""
    return tick.method.export(tick.emas[recipe.ema]).eval()


def publish(
    recipe: Recipe,
    tick: Tick,
    folder: Path | str,
    *,
    seed: int | None = None,
    draws: int = 20,
    half: bool = False,
    show: Callable[[float], None] | None = None,
) -> Path:
    """Evaluate the model of a finished run, write it as NAME.safetensors with its card NAME.json, and return the former.

    Args:
        tick: the last one of `train_recipe`.
        seed: the one the run was given; None for the recipe's own.
        draws: disjoint sets of fresh samples the quality is measured on, each of the test split's size.
        half: round the weights to float16 first, which halves the file; what the card says is of the rounded ones.
        show: told the share of the samples that are drawn.
    """
    done = {"method": type(tick.method).__name__, "steps_done": tick.step, "images_done": tick.n_images}
    return _publish(recipe, exported(recipe, tick), folder, recipe.name, seed, draws, half, tick.seconds, done, show)


def publish_snapshot(
    recipe: Recipe,
    snapshot: Snapshot,
    folder: Path | str,
    *,
    name: str,
    seed: int | None = None,
    draws: int = 20,
    half: bool = False,
) -> Path:
    """The same for what a run was at an earlier step: a model stopped early, whose learning rate had not fallen yet.

    Args:
        snapshot: one of `explorer.training.snapshots(run_dir)`.
        name: of the model; the recipe's own is that of the finished run.
    """
    data = load_dataset(recipe.data)
    if recipe.needs:
        raise BadValue(f"recipe {recipe.name!r} needs {', '.join(recipe.needs)}, which a snapshot does not hold.")
    method = method_of(recipe, data, {}, recipe.plan.seed)
    model = method.export(snapshot.nets(method.nets, recipe.ema)).eval()
    rows = read_log(snapshot.file.parent)
    seconds = max((row["seconds"] for row in rows if row["step"] <= snapshot.step), default=0.0)
    done = {"method": type(method).__name__, "steps_done": snapshot.step, "images_done": snapshot.about["n_images"]}
    early = f"{recipe.name} as it was at step {snapshot.step}, before its learning rate had fallen."
    recipe = dataclasses.replace(recipe, notes=f"{early} {recipe.notes}".strip())
    return _publish(recipe, model, folder, name, seed, draws, half, seconds, done)


def _publish(
    recipe: Recipe,
    model: nn.Module,
    folder: Path | str,
    name: str,
    seed: int | None,
    draws: int,
    half: bool,
    seconds: float,
    done: Mapping[str, Any],
    show: Callable[[float], None] | None = None,
) -> Path:
    data = load_dataset(recipe.data)
    if half:
        with torch.no_grad():
            for weight in model.parameters():
                weight.copy_(weight.half())
    if recipe.measure is not None:
        measured = recipe.measure(model)
    else:
        measured = evaluate(
            model, data, test_split(recipe.data), recipe.sampler, more=recipe.more, draws=draws, show=show
        )
    card = {
        "data": recipe.data,
        **({"classes": data.card["classes"]} if "classes" in data.card else {}),
        "recipe": {**recipe.plan.to_dict(), "export": recipe.ema, **done, **recipe.settings},
        "seed": recipe.plan.seed if seed is None else seed,
        "minutes": round(seconds / 60, 1),
        "machine": machine(next(model.parameters()).device),
        **measured,
        **({"weights": "float16"} if half else {}),
        "notes": recipe.notes,
        **({"knobs": dict(recipe.knobs)} if recipe.knobs else {}),
    }
    return save_model(folder, name, model, card)


def machine(device: torch.device) -> str:
    """What computed, in words that name no host."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    threads = torch.get_num_threads()
    return f"{os.cpu_count()}-core {platform.machine().replace('_', '-')} CPU, {threads} thread{'s' * (threads > 1)}"


def override(value: Any, changes: Mapping[str, Any]) -> Any:
    """A frozen dataclass with some fields replaced, e.g. {"plan.optimizer.lr": 5e-4}.

    Text is read as the type of the value it replaces, so that command lines can pass it through.

    Raises:
        UnknownName: no such field; the message lists those there are.
        BadValue: the text does not read as the field's type.
    """
    for path, new in changes.items():
        name, _, rest = path.partition(".")
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        if name not in fields:
            raise UnknownName(f"field of {type(value).__name__}", name, fields)
        if rest:
            if not dataclasses.is_dataclass(fields[name]):
                raise BadValue(f"{name} of {type(value).__name__} has no fields, so {path!r} names nothing.")
            new = override(fields[name], {rest: new})
        elif isinstance(new, str):
            kind = str(next(f.type for f in dataclasses.fields(value) if f.name == name))
            new = _read(new, fields[name], path, kind)
        value = dataclasses.replace(value, **{name: new})
    return value


def _read(text: str, old: Any, path: str, kind: str) -> Any:
    words = isinstance(old, str) or kind.startswith("Literal") or kind == "str | None"
    if text.lower() in ("none", "null") and ("None" in kind or not words):
        return None
    if words:
        return text
    try:
        if isinstance(old, bool):
            return {"true": True, "false": False}[text.lower()]
        return int(text) if isinstance(old, int) else float(text)
    except (ValueError, KeyError):
        raise BadValue(f"{path}={text!r} does not read as {type(old).__name__}, like the recipe's {old!r}.") from None
