"""The `explorer` command: serve, sample, eval, compare, record, tune, train, claims, list, bench.

Torch takes seconds to import, so no module of this package imports anything heavy: each command imports what it needs when
it runs, and the options of the sampler's knobs, which are generated from `SamplerKnobs`, are made when a command that has
them is called. With --json only JSON goes to standard output; progress, notes and errors go to standard error.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer
from typer.core import TyperGroup

from explorer.cli import claims, comparing, importing, jobs, lists, runs, sampling, tuning
from explorer.cli.lists import LISTED
from explorer.cli.options import with_knobs
from explorer.errors import ExplorerError

__all__ = ["LISTED", "app", "main"]

KNOBBED = {"eval": sampling.eval_, "sample": sampling.sample, "record": sampling.record}
PLAIN = {
    "compare": comparing.compare,
    "serve": jobs.serve,
    "tune": tuning.tune,
    "train": jobs.train,
    "import": importing.import_,
    "runs": runs.runs,
    "claims": claims.claims,
    "list": lists.list_,
    "bench": jobs.bench,
}


class Commands(TyperGroup):
    """The group of all commands: adds the knob options to those that sample, and prints our errors as one sentence."""

    def resolve_command(self, ctx, args):
        name, command, rest = super().resolve_command(ctx, args)
        if name in KNOBBED:
            command = with_knobs(name, KNOBBED[name])
        return name, command, rest

    def invoke(self, ctx):
        try:
            return super().invoke(ctx)
        except ExplorerError as error:
            typer.secho(f"error: {error}", fg="red", err=True)
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            typer.secho("interrupted", fg="yellow", err=True)
            raise typer.Exit(130) from None


app = typer.Typer(cls=Commands, no_args_is_help=True, rich_markup_mode="rich", pretty_exceptions_enable=False)


def show_version(asked: bool) -> None:
    if asked:
        from explorer import __version__

        typer.echo(f"explorer {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=show_version, is_eager=True)
    ] = False,
) -> None:
    """See, measure and tune the sampling trajectories of few-step generative models."""


def listed(function):
    """Stands for a command in the list of commands; `resolve_command` puts the one with the knobs in its place."""

    def command():
        pass

    command.__doc__ = function.__doc__
    return command


for _name, _function in KNOBBED.items():
    app.command(_name)(listed(_function))
for _name, _function in PLAIN.items():
    app.command(_name)(_function)


def main() -> None:
    # Threads that spin while they wait make torch 20 times slower on a machine that has other work; threads that sleep at once make
    # small networks 1.3 times slower on one that has none. GNU's spin for some 50 us, others sleep. Read when torch loads.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    app(prog_name="explorer")
