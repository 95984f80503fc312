"""What commands print, and for whom: JSON for machines, notes, bars and tables for people."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import typer


def emit(document: Any) -> None:
    """Print JSON to standard output; numbers that JSON has no word for become null."""
    typer.echo(json.dumps(plain(document), indent=2, allow_nan=False))


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if abs(value) < float("inf") else None
    return value if value is None or isinstance(value, str | bool | int) else str(value)


def note(text: str) -> None:
    typer.secho(f"note: {text}", fg="yellow", err=True)


@contextmanager
def progress(what: str, *, show: bool = True):
    """A bar with the time left on standard error, if it is to show; yields show(fraction, text="")."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    screen = Console(stderr=True)
    columns = (*columns, TextColumn("left"), TimeRemainingColumn())
    bar = Progress(*columns, console=screen, transient=True, disable=not (show and screen.is_terminal))
    with bar:
        task = bar.add_task(what, total=1.0)
        yield lambda fraction, text="": bar.update(task, completed=fraction, description=text or what)


def counted(show: Callable, steps: int) -> Callable:
    """An observer that shows which share of `steps` solver steps is done."""
    done = 0

    def observe(*_) -> None:
        nonlocal done
        done += 1
        show(done / steps)

    return observe


def table(rows: list[dict]) -> None:
    """Print rows as a table; the keys of the first are its head."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in rows[0]:
        shown.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        shown.add_row(*(cell(value) for value in row.values()))
    Console(highlight=False, markup=False).print(shown)


def cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return (" x " if all(isinstance(v, int) for v in value) else ", ").join(map(str, value))
    return "" if value is None else str(value)


def first_line(thing: object) -> str:
    return (inspect.getdoc(thing) or "").split("\n")[0].rstrip(".")


def measured(row: dict) -> str:
    """A card's row as "FD[digits-cnn] 0.42 ± 0.06 (n=500), 35 NFE"."""
    from explorer.metrics.base import Estimate

    text = str(Estimate(row["value"], row["std_error"], row["n"], row["metric"]))
    return f"{text}, {row['nfe']} NFE" if row.get("nfe") else text
