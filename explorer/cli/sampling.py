"""Commands that sample: eval, sample, record."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli.options import (
    Batch,
    Count,
    DataName,
    Device,
    FeatureName,
    Json,
    MetricName,
    Model,
    SamplerFile,
    device_named,
)
from explorer.cli.output import counted, emit, note, progress
from explorer.cli.protocols import InceptionFile, ProtocolName, ReferenceFile, StateFolder, eval_protocol
from explorer.errors import BadFile, BadValue

if TYPE_CHECKING:
    from explorer.models.base import Denoiser
    from explorer.sampling.samplers import Sampler


def prepare(model: str, device: str, given: dict, file: Path | None = None) -> tuple[Denoiser, Denoiser, Sampler, Any]:
    """The bare model on its device, the model and sampler that the knobs make of it, and the knobs.

    A knob that was given but cannot act on this model with this solver is named in a note.

    Args:
        file: where the sampler comes from instead, with the skip factors and guidance of a tuned one; then only the seed and the class
            are left to the knobs.
    """
    if file is not None:
        extra = [f"--{name.replace('_', '-')}" for name in given if name not in ("seed", "label")]
        if extra:
            raise BadValue(f"--sampler-file brings the whole sampler: leave out {', '.join(extra)}, or the file.")
    bare, built, sampler, knobs = build(model, device, given)
    for name, reason in knobs.inapplicable(bare).items():
        if name in given:
            note(f"{name.replace('_', '-')} has no effect. {reason}")
    if file is None:
        return bare, built, sampler, knobs
    if json_in(file).get("format") == "explorer.tuned":
        from explorer.tuning import Tuned

        return bare, *Tuned.load(file).on(bare), knobs
    return bare, built, stored_sampler(file), knobs


def stored_sampler(file: Path) -> Sampler:
    """What `Sampler.to_json` wrote, alone or as "sampler" in another document, as eval --json prints it."""
    from explorer.sampling.samplers import sampler_from_dict

    about = json_in(file)
    inner = about.get("sampler")
    if not isinstance(inner, dict | str):
        raise BadFile(
            f'{file} describes no sampler: it needs what Sampler.to_json writes, or a document with a "sampler".'
        )
    return sampler_from_dict(inner if isinstance(inner, dict) else about)


def build(model: str, device: str, values: dict) -> tuple[Denoiser, Denoiser, Sampler, Any]:
    """`prepare` without the notes."""
    from explorer.knobs import SamplerKnobs
    from explorer.models.bundled import load

    bare = load(model).to(device_named(device))
    knobs = SamplerKnobs.for_model(bare, **values)
    return bare, *knobs.build(bare), knobs


def settings_of(model: str, knobs: Any, sampler: Sampler, n: int, device: Any, stored: Path | None = None) -> dict:
    """What a JSON document says about how its numbers or files were made; `stored`: where the sampler is from, if not from the knobs."""
    import platform

    import numpy as np
    import torch

    from explorer import __version__

    versions = {"explorer": __version__, "torch": torch.__version__, "numpy": np.__version__}
    return {
        "model": model,
        **({"seed": knobs.seed, "label": knobs.label} if stored else {"knobs": knobs.to_dict()}),
        "sampler": sampler.to_dict(),
        **({"sampler_file": str(stored)} if stored else {}),
        "seeds": [knobs.seed, knobs.seed + n],
        "device": str(device),
        "versions": {**versions, "python": platform.python_version()},
    }


def eval_(
    model: Model,
    n: Count = 2000,
    metric: MetricName = None,
    data: DataName = None,
    features: FeatureName = None,
    sampler_file: SamplerFile = None,
    protocol: ProtocolName = None,
    inception: InceptionFile = None,
    reference: ReferenceFile = None,
    state: StateFolder = None,
    batch: Batch = 256,
    device: Device = "auto",
    as_json: Json = False,
    *,
    given: dict,
) -> None:
    """Measure a sampler: a metric of n samples, with its standard error; or FID as a published implementation has it.

    Examples:
      explorer eval digits --sampler heun --steps 18 --n 2000
      explorer eval digits --steps 5 --guidance 2 --json
      explorer eval digits --tuned tuned.json
      explorer eval shapes32 --guide shapes32-early --guide-weight 1.5
      explorer eval digits --protocol edm --features digits-cnn --n 2000
      torchrun --nproc-per-node 8 -m explorer eval MODEL --protocol edm --n 50000 --reference cifar10-32x32.npz
    """
    if protocol is not None:
        if metric is not None:
            raise BadValue("--protocol is a Fréchet distance: leave out --metric.")
        files = dict(inception=inception, reference=reference, state=state, sampler_file=sampler_file)
        options = dict(data=data, features=features, batch=batch, device=device, as_json=as_json, given=given)
        eval_protocol(model, n, protocol, **files, **options)
        return
    for name, value in (("inception", inception), ("reference", reference), ("state", state)):
        if value is not None:
            raise BadValue(f"--{name} belongs to --protocol: name one, such as --protocol edm.")
    from explorer.live import metric_for, quality
    from explorer.models.bundled import card

    bare, built, sampler, knobs = prepare(model, device, given, sampler_file)
    measure = metric_for(bare, metric, data=data or card(model).get("data"), features=features)
    live = None
    with progress(model) as show:
        runs = quality(built, sampler, measure, n, batch, knobs.seed, label=knobs.label, geometry=False, between=show)
        for live in runs:
            show(live.n_done / n, str(live.estimate))
    estimate = live.estimate
    if not as_json:
        raw = "" if estimate.raw is None else f", uncorrected {estimate.raw:.4g}"
        typer.echo(f"{estimate}{raw}, {cost(live.nfe)}, {live.seconds:.1f} s")
        return
    settings = settings_of(model, knobs, sampler, n, device_named(device), sampler_file)
    found = {"metric": estimate.name, "raw": None, **estimate.to_dict(), "nfe": live.nfe, "seconds": live.seconds}
    found.pop("name", None)
    emit({**found, **settings})


def sample(
    model: Model,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", "-o", help="A .png picture, or .npz or .safetensors with the numbers. Default: MODEL.png."
        ),
    ] = None,
    n: Count = 64,
    sampler_file: SamplerFile = None,
    batch: Batch = 256,
    device: Device = "auto",
    as_json: Json = False,
    *,
    given: dict,
) -> None:
    """Draw samples and write them to a file.

    Examples:
      explorer sample digits --n 64 --out grid.png
      explorer sample digits --steps 4 --class 7 --n 1000 --out sevens.npz
      explorer sample digits --tuned tuned.json
      explorer sample shapes32 --guide shapes32-small --guide-weight 2
    """
    from explorer.sampling.samplers import labels_for
    from explorer.sampling.samplers import sample as draw

    out = out or Path(f"{Path(model).stem}.png")
    writer = WRITERS.get(out.suffix)
    if writer is None:
        raise BadValue(f"{out.name} must end in one of {', '.join(WRITERS)}.")
    job = Drawing.of(model, n, batch, device, given, sampler_file)
    with progress(f"{n} samples") as show:
        watch = counted(show, job.n_steps)
        x = draw(job.model, job.sampler, job.seeds, job.labels, batch=batch, observe=watch).cpu()
    arrays = {"x": x.numpy(), "seed": list(job.seeds.ids)}
    classes = labels_for(job.model, job.seeds, job.labels)
    if classes is not None:
        arrays["label"] = classes.tolist()
    out.parent.mkdir(parents=True, exist_ok=True)
    writer(out, arrays)
    job.report(out, as_json, f"{n} samples of {model}", shape=list(x.shape[1:]))


def record(
    model: Model,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="A .nc file (netCDF) or a .zarr folder. Default: MODEL.nc.")
    ] = None,
    n: Count = 64,
    keep: Annotated[str, typer.Option(help="What to store besides the states: slope, x0_hat, error.")] = "slope",
    limit: Annotated[float, typer.Option(help="Refuse a recording above this many GiB.")] = 2.0,
    sampler_file: SamplerFile = None,
    batch: Batch = 256,
    device: Device = "auto",
    as_json: Json = False,
    *,
    given: dict,
) -> None:
    """Record trajectories: every state of every sample, as a labelled dataset. Interrupted, the same command goes on from there.

    Examples:
      explorer record digits --n 64 --out trajectories.nc
      explorer record oracle-8gaussians --steps 30 --keep slope,x0_hat --out paths.zarr
    """
    from explorer.trajectory import storage
    from explorer.trajectory.record import GIB, bytes_needed
    from explorer.trajectory.record import record as run

    out = out or Path(f"{Path(model).stem}.nc")
    if out.suffix not in storage.NETCDF + storage.ZARR:
        raise BadValue(f"{out.name} must end in {storage.NETCDF[0]} or {storage.ZARR[0]}.")
    job = Drawing.of(model, n, batch, device, given, sampler_file)
    variables = ("x", *(word.strip() for word in keep.split(",") if word.strip()))
    needed = bytes_needed(n, job.sampler.n_steps(job.model), job.model.shape, variables)
    if needed > limit * GIB:
        raise BadValue(
            f"recording {n} samples needs {needed / GIB:.3g} GiB, more than --limit {limit:g}: take fewer samples (--n), keep less "
            "(--keep), or raise --limit."
        )
    with progress(f"recording {n} samples") as show:
        options = dict(keep=variables, batch=batch, observe=counted(show, job.n_steps))
        ds = run(job.model, job.sampler, job.seeds, job.labels, to=out, **options)
    size = sum(f.stat().st_size for f in [out, *out.rglob("*")] if f.is_file())
    sizes = {str(k): int(v) for k, v in ds.sizes.items()}
    shape = " x ".join(f"{k} {v}" for k, v in sizes.items())
    job.report(out, as_json, f"{shape}, {size / 2**20:.1f} MiB", sizes=sizes, bytes=size)


@dataclass(frozen=True)
class Drawing:
    """What `sample` and `record` have in common: who draws which seeds, and what is said about it afterwards."""

    name: str
    model: Denoiser
    sampler: Sampler
    knobs: Any
    seeds: Any
    n_steps: int  # of all batches together
    device: str
    began: float
    stored: Path | None

    @classmethod
    def of(cls, name: str, n: int, batch: int, device: str, given: dict, file: Path | None) -> Drawing:
        from explorer.sampling.seeds import Seeds

        _, model, sampler, knobs = prepare(name, device, given, file)
        seeds = Seeds(range(knobs.seed, knobs.seed + n))
        n_steps = sampler.n_steps(model) * -(-n // batch)
        return cls(name, model, sampler, knobs, seeds, n_steps, device, time.perf_counter(), file)

    @property
    def labels(self):
        return self.knobs.labels

    @property
    def nfe(self) -> int | None:
        return self.sampler.nfe(self.model)

    def report(self, file: Path, as_json: bool, words: str, **facts) -> None:
        seconds, n = time.perf_counter() - self.began, len(self.seeds)
        if not as_json:
            typer.echo(f"{file}: {words}, {cost(self.nfe)}, {seconds:.1f} s")
            return
        settings = settings_of(self.name, self.knobs, self.sampler, n, device_named(self.device), self.stored)
        emit({"file": str(file), "n": n, "nfe": self.nfe, "seconds": seconds, **facts, **settings})


def cost(nfe: int | None) -> str:
    return "adaptive steps" if nfe is None else f"{nfe} NFE"


def json_in(file: Path) -> dict:
    """Raises BadFile when the file cannot be read or is not a JSON object."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadFile(f"{file} cannot be read: {error.strerror or error}.") from None
    except ValueError as error:
        raise BadFile(f"{file} is not JSON: {error}.") from None
    return about if isinstance(about, dict) else {}


def write_png(file: Path, arrays: dict) -> None:
    """Images in rows, every pixel an equal square; points of the plane, or the first two coordinates of others, as marks."""
    from explorer.viz import OKABE_ITO, grid, png
    from explorer.viz.canvas import canvas

    x = arrays["x"]
    if x.ndim == 4:
        columns = -(-(len(x) ** 0.5) // 1)
        file.write_bytes(png(grid(x, int(columns), scale=max(1, int(480 // (columns * x.shape[3]))))))
        return
    board = canvas("matplotlib", size=(520, 560))
    colors = [OKABE_ITO[label % len(OKABE_ITO)] for label in arrays.get("label", [0] * len(x))]
    board.panel().points(x[:, 0], x[:, 1], colors, size=3.0)
    board.panel().axes("x", "y", equal=True)
    board.finish(f"n = {len(x)}").savefig(file, dpi=120, format="png")


def write_npz(file: Path, arrays: dict) -> None:
    import numpy as np

    np.savez(file, **arrays)


def write_safetensors(file: Path, arrays: dict) -> None:
    import numpy as np
    from safetensors.numpy import save_file

    save_file({name: np.ascontiguousarray(value) for name, value in arrays.items()}, file)


WRITERS = {".png": write_png, ".npz": write_npz, ".safetensors": write_safetensors}
