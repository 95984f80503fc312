"""`explorer runs`: trainings in the folder of runs, what they do, and telling them to do otherwise."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from explorer.cli.options import Json
from explorer.cli.output import emit, table
from explorer.errors import BadValue

ACTS = ("pause", "resume", "stop", "keep", "remove")


def runs(
    name: Annotated[str | None, typer.Argument(help="One run; all of them without it.")] = None,
    act: Annotated[str | None, typer.Argument(metavar="|".join(ACTS), help="What the run is to do.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--folder", "-f", help="Folder of runs. Default: EXPLORER_RUNS, or runs.")
    ] = None,
    model: Annotated[str | None, typer.Option("--as", help="keep: name of the model. Default: the run's.")] = None,
    as_json: Json = False,
) -> None:
    """List trainings with state, time left and last quality; pause, resume or stop one, keep its model, or remove it.

    A removed run is moved to the folder .removed among the runs; delete it there, or move it back.

    Examples:
      explorer runs
      explorer runs edm-toy-moons pause
      explorer runs edm-toy-moons keep --as my-moons
    """
    from explorer.apps.training.folder import RunFiles, root
    from explorer.apps.training.reading import Reader

    folder = folder or root()
    if act is not None:
        if act not in ACTS:
            raise BadValue(f"a run can be told to {', '.join(ACTS)}; got {act!r}.")
        typer.echo(_tell(RunFiles.named(str(name), folder), act, model))
        return
    if name is not None:
        RunFiles.named(name, folder)
    rows = [row_of(card) for card in Reader(folder).cards() if name in (None, card.name)]
    if as_json:
        emit(rows)
    elif rows:
        shown = ("name", "state", "done", "left", "step", "measured", "kept")
        table([{key: row[key] for key in shown} for row in rows])
    else:
        typer.echo(f"no runs in {folder}")


def row_of(card) -> dict:
    """A run as `explorer runs --json` prints it."""
    from explorer.metrics.base import Estimate

    status, found = card.status, card.measured
    eta = status.get("eta") if card.state == "running" else None
    error = status.get("error") if isinstance(status.get("error"), dict) else {}
    return {
        "name": card.name,
        "state": card.state,
        "done": f"{card.fraction:.0%}",
        "left": "" if eta is None else f"{eta:.0f} s" if eta < 90 else f"{eta / 60:.0f} min",
        "step": status.get("step", 0),
        "measured": "" if found is None else str(Estimate.from_dict(found["estimate"])),
        "kept": list(card.kept),
        "paper": card.request.get("paper", ""),
        "recipe": card.request.get("recipe", ""),
        "changes": card.request.get("changes") or {},
        "n_steps": status.get("n_steps", 0),
        "n_images": status.get("n_images", 0),
        "seconds": status.get("seconds", 0.0),
        "eta_seconds": eta,
        "estimate": None if found is None else found["estimate"],
        "error": error.get("text", ""),
    }


def _tell(files, act: str, model: str | None) -> str:
    """Does it, and says what was done."""
    from explorer.apps.training.folder import remove
    from explorer.apps.training.kept import free_name, keep
    from explorer.apps.training.launch import Launcher, halt

    if act == "keep":
        file = keep(files, model or free_name(files.name))
        return f"{file}: every page and command finds it as {file.stem}"
    if act == "remove":
        return f"{files.name} lies in {remove(files)} now; delete it there, or move it back"
    if act != "resume":
        halt(files, act)
        return f"{files.name}: told to {act}"
    if files.alive:
        files.want("run")
        return f"{files.name}: told to go on"
    launcher = Launcher()
    launcher.start(files)
    launcher.close()
    return f"{files.name}: goes on in the background; explorer runs {files.name} says how far it is"
