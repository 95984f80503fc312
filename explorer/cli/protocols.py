"""`explorer eval --protocol`: blocks of seeds measured as a published implementation measures them, on any number of processes."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli.options import device_named, starting
from explorer.cli.output import emit, note, progress
from explorer.errors import BadValue

if TYPE_CHECKING:
    from explorer.data import Dataset
    from explorer.metrics import FeatureSpace, Reference
    from explorer.metrics.protocols import Protocol

NAMES = ("edm", "torch-fidelity", "pytorch-fid", "clean-fid", "guided-diffusion")  # told apart from the list by a test
INCEPTION = "inception"

ProtocolName = Annotated[
    str | None,
    typer.Option(
        help=f"Measure as a published implementation does, in blocks of seeds: {', '.join(NAMES)}. See explorer list protocols.",
        autocompletion=starting(NAMES),
        rich_help_panel="Protocol",
    ),
]
InceptionFile = Annotated[
    str | None,
    typer.Option(
        help="Weights of Inception-v3: a file, or the word fetch. Default: $EXPLORER_INCEPTION, then the cache.",
        rich_help_panel="Protocol",
    ),
]
ReferenceFile = Annotated[
    Path | None,
    typer.Option(
        help="Statistics to compare with (.npz with mu and sigma, or arr_0). Default: those of --data.",
        rich_help_panel="Protocol",
    ),
]
StateFolder = Annotated[
    Path | None,
    typer.Option(
        help="Where an interrupted run goes on and a finished one is kept. Default: a folder of its own in runs/eval.",
        rich_help_panel="Protocol",
    ),
]


def eval_protocol(
    model: str,
    n: int,
    protocol: str,
    *,
    data: str | None,
    features: str | None,
    inception: str | None,
    reference: Path | None,
    state: Path | None,
    sampler_file: Path | None,
    batch: int,
    device: str,
    as_json: bool,
    given: dict,
) -> None:
    """Measure and print; called by `eval`."""
    from explorer.cli.sampling import cost, prepare, settings_of
    from explorer.live import data_of
    from explorer.metrics.protocols import protocol as find
    from explorer.models.bundled import card
    from explorer.reproduction.blocks import BlockPlan, seed_blocks
    from explorer.sampling.samplers import labels_of
    from explorer.training import distributed

    of = find(protocol)
    with distributed.from_env(device_named(device)) as where:
        speaks = distributed.rank() == 0
        _, built, sampler, knobs = prepare(model, where.type, given, sampler_file)
        built = built.to(where)
        if len(built.shape) != 3:
            raise BadValue(f"--protocol measures pictures, and {model} makes samples of shape {tuple(built.shape)}.")
        space = _space(of, features or INCEPTION, tuple(built.shape), inception, where)
        source = data or card(model).get("data") or data_of(model)
        plan = BlockPlan(n, of.n_blocks, knobs.seed, min(batch, 64), max(8, distributed.world()))
        about = {"name": model, "knobs": knobs.to_dict()}
        folder = state or _folder(
            model, of.name, {**about, "plan": repr(plan), "space": space.name, "sampler": sampler.to_dict()}
        )
        with progress(f"{model}: reference", show=speaks) as show:
            real = _reference(reference, source, space, tuple(built.shape), folder, speaks)
            labels = labels_of(knobs.label)
            scores = seed_blocks(
                built, sampler, space, real, plan, folder, labels=labels, protocol=of.name, about=about, show=show
            )
    if not speaks:
        return
    if n != of.n:
        note(f"n = {n}, and {of.name} is {of.n}: these numbers are not those that papers print.")
    if not as_json:
        for i, estimate in enumerate(scores.estimates):
            first = plan.first_seed + i * n
            typer.echo(f"seeds {first} to {first + n - 1}: {estimate}")
        if len(scores.estimates) > 1:
            typer.echo(f"least of {len(scores.estimates)}: {scores.least.value:.4g}, mean: {scores.mean}")
        typer.echo(f"corrected for finite n: {scores.corrected}")
        typer.echo(f"{cost(sampler.nfe(built))}, against {real.data}, kept in {folder}, {scores.seconds:.1f} s")
        typer.echo(scores.note)
        return
    settings = settings_of(model, knobs, sampler, n * of.n_blocks, where, sampler_file)
    found = {"metric": scores.least.name, "value": scores.least.value, "std_error": scores.least.std_error, "n": n}
    emit({**found, **scores.to_dict(), "nfe": sampler.nfe(built), "folder": str(folder), **settings})


def _space(of: Protocol, features: str, shape: tuple[int, ...], inception: str | None, device: Any) -> FeatureSpace:
    from explorer.metrics.features import feature_space

    if features != INCEPTION:
        return of.seen(feature_space(features, shape))
    from explorer.metrics.inception import fetch_weights, load_inception

    weights = load_inception(fetch_weights() if inception == "fetch" else inception, device)
    if not weights.published:
        note("these are not the published weights of Inception-v3: the number is a distance, and no FID.")
    return weights.space(of)


def _reference(
    file: Path | None, source: str, space: FeatureSpace, shape: tuple[int, ...], folder: Path, writes: bool
) -> Reference:
    """The statistics given, or those of a data set; the latter are kept in the folder for the next time."""
    from explorer.data import load_dataset
    from explorer.metrics.statistics import read_statistics, write_statistics
    from explorer.training import distributed

    if file is not None:
        return read_statistics(file, space, data=file.name)
    kept = folder / "reference.npz"
    real = load_dataset(source)
    if writes and not kept.exists():
        write_statistics(kept, _measured(real, space, shape))
    distributed.barrier()
    found = read_statistics(kept, space)
    if found.data != _label(real):
        raise BadValue(f"{kept} is of {found.data}, not of {_label(real)}: choose another --state, or delete it.")
    return found


def _measured(data: Dataset, space: FeatureSpace, shape: tuple[int, ...]) -> Reference:
    from explorer.metrics import Reference

    if data.shape != shape:
        raise BadValue(
            f"the model makes pictures {shape}, and {data.name} has {data.shape}: name its data with --data."
        )
    return Reference.of(space, data.x, data=_label(data), batch=64)


def _label(data: Dataset) -> str:
    return f"{data.name}/train, {len(data)} pictures, checksum {data.checksum[:8]}"


def _folder(model: str, protocol: str, identity: dict) -> Path:
    """A folder that only the same measurement finds again."""
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:10]
    return Path("runs") / "eval" / f"{Path(model).stem}-{protocol}-{digest}"
