"""Options that several commands share, and those generated from the sampler's knobs."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import typer

from explorer.errors import BadValue

ALIASES = {"solver": "--sampler", "n_steps": "--steps", "label": "--class"}

Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on standard output.")]
Device = Annotated[
    Literal["auto", "cpu", "cuda"], typer.Option(help="Where to compute; auto takes a GPU when there is one.")
]
Batch = Annotated[int, typer.Option(min=1, help="Samples per pass through the network. Does not change the result.")]
Count = Annotated[int, typer.Option("--n", "-n", min=1, help="Number of samples.")]
MetricName = Annotated[str | None, typer.Option(help="Default: what suits the model. See explorer list metrics.")]
DataName = Annotated[
    str | None,
    typer.Option(help="What to compare with, a name or a file. Default: what the (first) model was made from."),
]
FeatureName = Annotated[str | None, typer.Option(help="Feature space of the comparison. Default: what suits the data.")]
SamplerFile = Annotated[
    Path | None,
    typer.Option(
        "--sampler-file",
        "--tuned",
        help="Take the sampler from a JSON file: what explorer tune or Sampler.to_json wrote, or eval --json printed.",
    ),
]
Model = Annotated[
    str, typer.Argument(help="A bundled model, toy or oracle: see explorer list models.", metavar="MODEL")
]


def with_knobs(name: str, function: Callable):
    """The command `name`: the options of `function` and one for every knob of `SamplerKnobs`.

    `function` receives the knobs that were given on the command line as the dict `given`.
    """
    own = inspect.signature(function, eval_str=True)
    knobs = {p.name: p for p in knob_parameters()}

    def command(**values):
        given = {k: v for k in knobs if (v := values.pop(k)) is not None}
        for name in ("skip_bank", "nodes"):
            if name in given:
                given[name] = numbers(name, given[name])
        if "own" in given:
            given["own"] = own_sampler(given["own"])
        function(**values, given=given)

    command.__doc__ = function.__doc__
    parameters = [p for p in own.parameters.values() if p.name != "given"]
    keyword = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
    command.__signature__ = inspect.Signature([*keyword, *knobs.values()])
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    alone.command(name)(command)
    return typer.main.get_command(alone)


def knob_parameters() -> Iterator[inspect.Parameter]:
    """A keyword parameter with typer's annotation for every knob: type, range, meaning and group come from the knob."""
    import param

    from explorer.knobs import GROUPS, SamplerKnobs, names

    group_of = {name: group for group, members in GROUPS.items() for name in members}
    for name in names():
        knob = SamplerKnobs.param[name]
        kind, say, complete = str, "", None
        if isinstance(knob, param.Selector):
            choices = [str(o) for o in knob.objects]
            say, complete = f"One of {', '.join(choices)}.", starting(choices)
        elif isinstance(knob, param.List):
            say = "Numbers separated by commas."
        elif isinstance(knob, param.String):
            complete = {"guide": denoisers, "own": kept_samplers}.get(name)
            say = "Or the name of a kept one: explorer list samplers." if name == "own" else ""
        else:
            kind = int if isinstance(knob, param.Integer) else float
            low, high = knob.bounds
            say = f"From {low:g} to {high:g}." if high < 1e4 else ""
        if name in ("sigma_min", "sigma_max"):
            say += " Default: the end of the model's own range."
        elif knob.default not in (None, ""):
            say += f" Default: {knob.default:.4g}." if isinstance(knob.default, float) else f" Default: {knob.default}."
        flags = ["--" + name.replace("_", "-"), *([ALIASES[name]] if name in ALIASES else [])]
        option = typer.Option(
            *flags,
            help=f"{knob.doc} {say}".strip(),
            rich_help_panel=group_of.get(name, "Randomness"),
            autocompletion=complete,
            show_default=False,
        )
        yield inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
        )


def denoisers(incomplete: str) -> list[str]:
    """Shell completion with the names of trained denoisers."""
    from explorer.models.bundled import names

    return [name for name in names("denoiser") if name.startswith(incomplete)]


def kept_samplers(incomplete: str) -> list[str]:
    """Shell completion with the names of samplers that a search has kept."""
    from explorer.apps.tuning.kept import kept

    return [one.name for one in kept() if one.name.startswith(incomplete)]


def own_sampler(text: str) -> str:
    """JSON of a sampler, from JSON or from the name of a kept one."""
    from explorer.apps.tuning.kept import sampler_json

    return text if not text.strip() or text.lstrip().startswith(("{", "[", '"')) else sampler_json(text.strip())


def starting(choices: Iterable[str]) -> Callable:
    """Shell completion from a fixed set of words."""

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in choices if choice.startswith(incomplete)]

    return complete


def numbers(name: str, text: str) -> list[float]:
    try:
        return [float(word) for word in text.split(",")]
    except ValueError:
        raise BadValue(f"{name} must be numbers separated by commas, such as 0.8,0.9,1; got {text!r}.") from None


def device_named(name: str):
    """The torch device of --device.

    Raises:
        BadValue: a GPU was asked for and torch sees none.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    elif name == "cuda" and not torch.cuda.is_available():
        why = "is a CPU build" if torch.version.cuda is None else "sees no NVIDIA GPU"
        raise BadValue(f"device cuda is not available, because torch {torch.__version__} {why}: use cpu or auto.")
    return torch.device(name)
