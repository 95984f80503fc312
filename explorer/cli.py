"""The explorer command."""

from __future__ import annotations

import typer

app = typer.Typer(no_args_is_help=True)


@app.callback()
def root() -> None:
    """See, measure and tune the sampling trajectories of few-step generative models."""


def main() -> None:
    app(prog_name="explorer")
