"""Files of what is on screen: figures through viz, recordings as netCDF or zarr."""

from __future__ import annotations

import io
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xarray as xr

from explorer import viz
from explorer.apps.trajectory.state import Trajectories
from explorer.apps.trajectory.tracks import Download, Run, Track
from explorer.apps.worker import Failure
from explorer.errors import BadValue, UnknownName
from explorer.process.paths import Linear
from explorer.trajectory import moved, save

MIME = {
    "png": "image/png",
    "svg": "image/svg+xml",
    "html": "text/html",
    "nc": "application/x-netcdf",
    "zip": "application/zip",
}
FIGURES = ("paths", "couplings", "curves", "errors", "budget", "film")


def build(store: Trajectories, what: str, form: str, theme: str) -> Download:
    """One file of the page: a figure as png, svg or html, or the recordings as nc or zarr (several of them zipped).

    Raises:
        BadValue: nothing of the kind has been measured yet.
        UnknownName: no such figure or format.
    """
    tracks = [t for t in store.tracks if t.shown is not None]
    if not tracks:
        raise BadValue("nothing has been drawn yet: wait for the first particles, then export.")
    if what == "data":
        return _recordings(tracks, form)
    if what not in FIGURES:
        raise UnknownName("figure", what, FIGURES)
    if form not in ("png", "svg", "html"):
        raise UnknownName("format", form, ("png", "svg", "html"))
    backend = "plotly" if form == "html" else "matplotlib"
    figures = _figures(store, tracks, what, {"theme": theme, "backend": backend})
    return _file(f"{what}-{store.tracks[0].model}", figures, form)


def _figures(store: Trajectories, tracks: list[Track], what: str, options: dict[str, Any]) -> list[tuple[str, Any]]:
    """Figures with a name each; one for all samplers where the kind of figure can."""
    names = {t.letter: f"{t.letter}: {t.knobs.describe(None)}" for t in tracks}
    if what == "paths":
        draw: Callable = viz.trajectories if store.kind == "points" else viz.projected
        return [(t.letter, draw(t.shown.ds, title=names[t.letter], **options)) for t in tracks]
    if what == "couplings":
        return [(t.letter, viz.couplings(t.shown.ds, title=names[t.letter], **options)) for t in tracks]
    if what == "film":
        return [(t.letter, viz.filmstrip(t.shown.ds, (store.pick or 0,), **options)) for t in tracks]
    if what == "budget":
        return [(t.letter, viz.budget(_known(t, "budget"), **options)) for t in tracks]
    if what == "errors":
        return [("", viz.by_step({names[t.letter]: _known(t, "errors") for t in tracks}, ("step_cost",), **options))]
    merged = {}
    for t in tracks:
        by_step = _known(t, "curves").by_step
        steps = t.shown.ds.sizes["step"]
        merged[names[t.letter]] = _on_all_steps(by_step, t.shown, steps)
    return [("", viz.by_step(merged, **options))]


def _on_all_steps(by_step: dict[str, xr.Dataset], run: Run, steps: int) -> xr.Dataset:
    """Curves that begin at step 0 or 1 on the steps they share, NaN where one is not defined."""
    line = moved(run.ds, Linear())
    out = xr.Dataset(
        coords={"step": range(steps), "sigma": ("step", line.sigma.values[:-1]), "t": ("step", line.t.values[:-1])}
    )
    for name, ds in by_step.items():
        for key in (name, f"{name}_se"):
            out[key] = ds[key].drop_vars(["sigma", "t"], errors="ignore").reindex(step=range(steps))
    return out.assign_attrs(n=run.n_done)


def _known(track: Track, stage: str) -> Any:
    found = getattr(track.shown, stage)
    if found is None:
        raise BadValue(f"{track.letter} has not been measured so far: wait for its {stage}, then export.")
    if isinstance(found, Failure):
        raise BadValue(f"{track.letter}: {found.text}")
    return found


def _file(stem: str, figures: list[tuple[str, Any]], form: str) -> Download:
    parts = [(f"{stem}{'-' + name if name else ''}.{form}", _drawn(figure, form)) for name, figure in figures]
    if len(parts) == 1:
        return Download(parts[0][0], MIME[form], parts[0][1])
    if form == "html":
        return Download(f"{stem}.html", MIME["html"], _one_page([figure for _, figure in figures]))
    return _zipped(stem, parts)


def _drawn(figure: Any, form: str) -> bytes:
    if form == "html":
        return figure.to_html(include_plotlyjs=True, full_html=True).encode()  # whole: opens without a network
    out = io.BytesIO()
    figure.savefig(out, format=form, dpi=200)
    return out.getvalue()


def _one_page(figures: list[Any]) -> bytes:
    """Several plotly figures in one file that carries the library once."""
    parts = [f.to_html(include_plotlyjs=i == 0, full_html=False) for i, f in enumerate(figures)]
    return ('<!doctype html><meta charset="utf-8">' + "\n".join(parts)).encode()


def _recordings(tracks: list[Track], form: str) -> Download:
    if form not in ("nc", "zarr"):
        raise UnknownName("format", form, ("nc", "zarr"))
    stem, parts = f"runs-{tracks[0].model}", []
    with tempfile.TemporaryDirectory() as folder:
        for track in tracks:
            file = save(track.shown.ds, Path(folder) / f"{track.letter}.{form}")
            for one in [file] if file.is_file() else sorted(f for f in file.rglob("*") if f.is_file()):
                parts.append((one.relative_to(folder).as_posix(), one.read_bytes()))
    if form == "nc" and len(parts) == 1:
        return Download(f"{stem}.nc", MIME["nc"], parts[0][1])
    return _zipped(stem, parts)


def _zipped(stem: str, parts: list[tuple[str, bytes]]) -> Download:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in parts:
            archive.writestr(name, content)
    return Download(f"{stem}.zip", MIME["zip"], out.getvalue())
