"""`explorer compare`: two settings on the same noise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from explorer.cli.options import Batch, Count, DataName, Device, FeatureName, Json, MetricName, device_named
from explorer.cli.output import emit, note, progress
from explorer.cli.sampling import build, json_in
from explorer.errors import BadFile, BadValue

if TYPE_CHECKING:
    from explorer.models.base import Denoiser
    from explorer.sampling.samplers import Sampler


def compare(
    a: Annotated[
        Path,
        typer.Argument(
            metavar="A.json",
            help="A state exported by the dashboard, what eval --json prints, or what tune writes.",
        ),
    ],
    b: Annotated[
        Path | None,
        typer.Argument(
            metavar="[B.json]", help="The other one. Default: what a tuned A was before.", show_default=False
        ),
    ] = None,
    n: Count = 2000,
    seed: Annotated[int | None, typer.Option(min=0, help="First seed, of both. Default: that of A.")] = None,
    metric: MetricName = None,
    data: DataName = None,
    features: FeatureName = None,
    batch: Batch = 256,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare two settings on the same noise: both numbers, their paired difference and one sentence.

    Examples:
      explorer eval digits --steps 9 --json > A.json
      explorer eval digits --sampler dpmpp-2m --steps 17 --json > B.json
      explorer compare A.json B.json --n 2000
      explorer compare tuned.json
      explorer compare tuned.json A.json
    """
    from explorer.live import metric_for
    from explorer.models.bundled import card
    from explorer.paired import Side
    from explorer.paired import compare as run

    where = device_named(device)
    settings = [Described.read(a, device), Described.before(a, device) if b is None else Described.read(b, device)]
    seed = settings[0].seed if seed is None else seed
    for setting in settings:
        if setting.searched is not None and range(max(seed, setting.searched[0]), min(seed + n, setting.searched[1])):
            first, end = setting.searched
            note(f"{setting.name} was chosen on seeds {first} to {end - 1} and looks better on them than it is.")
    if any(s.seed != seed for s in settings):
        note(f"both start at seed {seed}: samples are compared one by one, from the same noise.")
    first = settings[0].bare
    measure = metric_for(first, metric, data=data or card(settings[0].model).get("data"), features=features)
    sides = [Side(s.built, s.sampler, s.label, s.name) for s in settings]
    found = None
    with progress("comparing") as show:
        for found in run(*sides, measure, n, batch, seed, between=show):
            show(found.n_done / n, found.verdict)
    if not as_json:
        for side, estimate in zip(sides, (found.a, found.b), strict=True):
            typer.echo(f"{side.name}: {estimate}" + (f", {side.nfe} NFE" if side.nfe else ""))
        typer.echo(f"{found.distance}")
        typer.echo(found.verdict)
        return
    out = {}
    for key, setting, side, estimate in zip("ab", settings, sides, (found.a, found.b), strict=True):
        out[key] = {**estimate.to_dict(), "nfe": side.nfe, **setting.to_dict(where), "seeds": [seed, seed + n]}
    parts = {"difference": found.difference.to_dict(), "distance": found.distance.to_dict(), "verdict": found.verdict}
    emit({"metric": found.a.name, "n": n, **out, **parts, "seconds": sum(found.seconds)})


@dataclass(frozen=True)
class Described:
    """A model and a sampler as a JSON file names them: with "knobs" as the dashboard and eval write, any "sampler", or a tuned one.

    Attributes: searched: seeds [first, past the last] on which a tuned setting was chosen.
    """

    name: str
    model: str
    bare: Denoiser
    built: Denoiser
    sampler: Sampler
    seed: int
    label: int | None
    knobs: dict | None
    wrappers: tuple[dict, ...] = ()
    searched: tuple[int, int] | None = None

    @classmethod
    def before(cls, file: Path, device: str) -> Described:
        """What a tuned sampler was before. Raises BadValue where the file holds no tuned one."""
        if json_in(file).get("format") != "explorer.tuned":
            raise BadValue(
                f"{file} is no tuned sampler, which could be compared with what it was before: name a second file"
            )
        return cls.tuned(file, device, "start")

    @classmethod
    def tuned(cls, file: Path, device: str, which: str = "setting") -> Described:
        from explorer.models.bundled import load
        from explorer.tuning import Tuned

        found = Tuned.load(file)
        name, setting = found.model["name"], getattr(found, which)
        bare = load(name).to(device_named(device))
        found.on(bare)
        labels = found.objective.get("labels", "balanced")
        label = labels if isinstance(labels, int) else -1 if labels is None else None
        title = f"{file.stem}{'' if which == 'setting' else ' before'} ({setting.describe()})"
        wrappers = tuple(w.to_dict() for w in setting.wrappers)
        searched = found.seeds if which == "setting" else None
        return cls(title, name, bare, *setting.on(bare), 0, label, None, wrappers, searched)

    @classmethod
    def read(cls, file: Path, device: str) -> Described:
        """Raises BadFile when the file cannot be read, is not JSON, or names neither knobs nor a sampler."""
        from explorer.models.bundled import load
        from explorer.sampling.samplers import sampler_from_dict

        if json_in(file).get("format") == "explorer.tuned":
            return cls.tuned(file, device)
        about = document_in(file)
        model, knobs = about["model"], about.get("knobs")
        if knobs is not None:
            bare, built, sampler, knobs = build(model, device, knobs)
            name = f"{file.stem} ({knobs.describe(bare)})"
            return cls(name, model, bare, built, sampler, knobs.seed, knobs.label, knobs.to_dict())
        bare = load(model).to(device_named(device))
        sampler = sampler_from_dict(about["sampler"])
        return cls(file.stem, model, bare, bare, sampler, int(about.get("seed", 0)), about.get("label"), None)

    def to_dict(self, device: Any) -> dict:
        kept = {} if self.knobs is None else {"knobs": self.knobs}
        if self.wrappers:
            kept["wrappers"] = list(self.wrappers)
        return {"model": self.model, **kept, "sampler": self.sampler.to_dict(), "device": str(device)}


def document_in(file: Path) -> dict:
    about = json_in(file)
    how = "sampler" if about.get("knobs") is None else "knobs"
    if isinstance(about.get("model"), str) and isinstance(about.get(how), dict):
        return about
    raise BadFile(
        f'{file} must hold "model" and "knobs" (save the state in the dashboard, or the output of explorer eval --json), '
        '"model" and "sampler" (what Sampler.to_dict gives), or be what explorer tune writes.'
    )
