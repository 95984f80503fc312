"""What the panes of the Trajectory Lab show, from its store: plain dicts and packed arrays; no drawing, no measuring."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import asdict
from functools import lru_cache

import numpy as np

from explorer.apps import catalogue
from explorer.apps.trajectory import compute
from explorer.apps.trajectory.compute import HELD, Scene
from explorer.apps.trajectory.state import MOST, N_CHOICES, Trajectories
from explorer.apps.trajectory.tracks import Download, Run, Track
from explorer.apps.tuning.kept import offered
from explorer.apps.worker import Failure
from explorer.data import load_dataset
from explorer.knobs import GROUPS, SamplerKnobs
from explorer.live import data_of
from explorer.metrics.base import plus_minus
from explorer.sampling import SOLVERS
from explorer.viz.images import data_uri, grid
from explorer.viz.theme import angle_colors

N_HUES = 24
OPEN_GROUPS = ("Solver", "Schedule", "Guidance")
CURVES = {
    "velocity_gap": ("straightness", "gap to the chord |D − ẋ|², data unit²", True, "a single step has no gap"),
    "curvature": ("curvature", "1 / data unit", True, "needs two steps or more"),
    "turning_angle": ("turning", "rad per step", False, "needs two steps or more"),
}
PARTS = {
    "chord": "E|D|²: what straight, even paths between the same ends would cost",
    "straightness": "S: what bending and uneven speed add; 0 for a rectified flow",
    "conflict": "V: what pairs that cross waste; the irreducible loss of flow matching",
}
FORMS = {
    "paths": ("Paths", ("png", "svg", "html")),
    "couplings": ("Couplings", ("png", "svg", "html")),
    "curves": ("Curves along σ", ("png", "svg", "html")),
    "errors": ("Error by step", ("png", "svg", "html")),
    "budget": ("Budget", ("png", "svg", "html")),
    "film": ("Filmstrips", ("png", "svg", "html")),
    "data": ("Recordings", ("nc", "zarr")),
}


def color(track: Track) -> str:
    return f"var(--c{track.slot})"


# Binary blocks


def pack(header: dict, **arrays: np.ndarray) -> bytes:
    """Header and arrays in one block: length of the header (uint32), the header as JSON, the arrays, each on 4 bytes.

    The header's `parts` say name, kind, place and length of every array.
    """
    kinds = {"uint8": "u1", "uint16": "u2", "float32": "f4"}
    parts = [{"name": k, "kind": kinds[v.dtype.name], "count": v.size, "at": 0} for k, v in arrays.items()]
    size = len(json.dumps(header | {"parts": parts})) + 16 * (len(parts) + 1)  # room for the places
    size += -(size + 4) % 4
    at = 4 + size
    for part, array in zip(parts, arrays.values(), strict=True):
        part["at"] = at
        at += array.nbytes + -array.nbytes % 4
    text = json.dumps(header | {"parts": parts}).encode().ljust(size)
    body = b"".join(a.tobytes() + b"\0" * (-a.nbytes % 4) for a in map(np.ascontiguousarray, arrays.values()))
    return struct.pack("<I", size) + text + body


def frames_block(run: Run) -> bytes:
    """All positions of all particles, 2 bytes a number: 500 kB for 2 000 particles over 60 steps.

    At every time the largest coordinate is 32767.5 units, so positions are exact to 1.5e-5 of it: a hundredth of a pixel.
    (One scale for all times would not do: coarse steps may throw particles far out and back.)
    """
    x = run.frames
    span = np.maximum(np.abs(x).max(axis=(1, 2)), 1e-9) * 1.0001
    quantised = np.rint((x / span[:, None, None] + 1) * 32767.5).astype("<u2")
    header = {
        "key": f"{run.setting.key}.{run.n}.{run.n_done}",
        "n": x.shape[1],
        "sigma": [float(v) for v in run.sigma],
        "range": [float(v) for v in span],
    }
    return pack(header, x=quantised, hue=hues(run))


def hues(run: Run) -> np.ndarray:
    """One of N_HUES colours per particle: direction of its noise on the plane, or its class where it has one: (S,) uint8."""
    labels = run.ds.label.values
    if compute.kind_of(run.ds.x.shape[2:]) == "images" and (labels >= 0).all():
        return ((labels * N_HUES) // max(int(labels.max()) + 1, 2) % N_HUES).astype(np.uint8)
    start = run.frames[0]
    turn = np.arctan2(start[:, 1], start[:, 0]) / (2 * np.pi) % 1.0
    return (np.floor(turn * N_HUES).astype(int) % N_HUES).astype(np.uint8)


def scene_block(scene: Scene) -> bytes:
    """Density and velocity around the paths, one byte a number."""
    peak = scene.density.max(axis=(1, 2))
    density = np.rint(scene.density / np.maximum(peak, 1e-300)[:, None, None] * 255).astype(np.uint8)
    arrays = {"density": density}
    header = {
        "sigma": [float(v) for v in scene.sigma],
        "side": scene.density.shape[1],
        "peak": [float(v) / 255 for v in peak],
        "levels": [float(v) for v in scene.levels.ravel()],
        "shares": list(HELD),
    }
    if scene.field is not None:
        top = np.quantile(np.linalg.norm(scene.field, axis=-1), 0.95, axis=(1, 2))
        scaled = np.clip(scene.field / np.maximum(top, 1e-9)[:, None, None, None], -1, 1)
        arrays["field"] = np.rint(scaled * 127 + 128).astype(np.uint8)
        header["cells"] = scene.field.shape[1]
    return pack(header, **arrays)


def download_block(saved: Download, count: int) -> bytes:
    """A file for the browser, with its name; `count` tells one download from the next."""
    return pack(
        {"name": saved.name, "mime": saved.mime, "count": count}, content=np.frombuffer(saved.content, np.uint8)
    )


@lru_cache(maxsize=2)
def palette() -> dict[str, list[str]]:
    """The hues of directions on light and dark paper."""
    turns = (np.arange(N_HUES) + 0.5) / N_HUES * 2 * np.pi
    return {name: angle_colors(turns, name, N_HUES) for name in ("light", "dark")}


# Panes


def top_data(store: Trajectories) -> dict:
    models = {track.model for track in store.tracks}
    exports = [
        {"name": name, "title": title, "forms": list(forms)}
        for name, (title, forms) in FORMS.items()
        if name not in (("film",) if store.kind == "points" else ("couplings",))
    ]
    return {
        "models": store.models,
        "model": models.pop() if len(models) == 1 else None,
        "n": store.n,
        "n_choices": list(N_CHOICES[store.kind]),
        "seed": store.seed,
        "notice": store.notice,
        "error": None if store.error is None else {"text": store.error.text, "details": store.error.details},
        "exports": exports,
    }


def job_data(store: Trajectories) -> dict:
    """The job strip: what runs, how far it is, and how long it will take when that is more than two seconds."""
    working = [t for t in store.tracks if t.job is not None]
    if working:
        words = {
            "paths": "paths",
            "first": "paths",
            "scene": "paths",
            "curves": "curves",
            "budget": "budget",
            "errors": "error by step",
        }
        left = [t.eta for t in working if t.eta is not None]
        eta = f" · {clock(max(left))} left" if left and max(left) > 2 else ""
        doing = ", ".join(f"{t.letter} {words.get(t.stage, t.stage)}" for t in working)
        return {"running": True, "fraction": sum(t.fraction for t in working) / len(working), "text": f"{doing}{eta}"}
    stopped = [t.letter for t in store.tracks if t.error is None and t.run is not None and t.run.todo(store.extent)]
    if stopped:
        return {"stopped": True, "text": f"{', '.join(stopped)} stopped early; what was found is kept"}
    return {"running": False, "text": ""}


def stage_data(store: Trajectories) -> dict:
    looks = store.looks
    selection = None
    if store.selection is not None and store.ids is not None:
        s = store.selection
        selection = {"ids": store.ids.tolist(), "slot": s.slot, "sigma": s.sigma, "loop": [list(p) for p in s.loop]}
    shown = [t.shown for t in store.tracks if t.shown is not None]
    return {
        "tracks": [_track(store, track) for track in store.tracks],
        "most": MOST,
        "kind": store.kind,
        "extent": store.extent,
        "scale": store.scale,
        "sigma_max": max((float(run.sigma[0]) for run in shown), default=80.0),
        "palette": palette(),
        "models": store.models,
        "solvers": list(SOLVERS),
        "view": {
            "u": looks.u,
            "trail": looks.trail,
            "speed": looks.speed,
            "field": looks.field,
            "density": looks.density,
            "lines": looks.lines,
            "pick": store.pick,
        },
        "selection": selection,
        "caption": caption_of(store),
        "opened": store.opened,
    }


def _track(store: Trajectories, track: Track) -> dict:
    about = track.about if track.error is None else None
    title = about.title if about is not None else track.knobs.describe(catalogue.model(track.model))
    return {
        "slot": track.slot,
        "letter": track.letter,
        "color": color(track),
        "model": track.model,
        "title": title,
        "meta": "" if about is None else f"NFE {about.nfe}",
        "solver": track.knobs.solver,
        "steps": track.knobs.n_steps if track.knobs.nodes is None else len(track.knobs.nodes),
        "sigmas": [] if about is None else list(about.sigmas),
        "active": store.active == track.slot,
        "running": track.stage if track.job is not None else "",
        "fraction": track.fraction,
        "waiting": track.shown is not None and track.shown is not track.run,
        "drawn": track.shown is not None,
        "error": None if track.error is None else {"text": track.error.text, "details": track.error.details},
    }


def curves_data(store: Trajectories) -> dict:
    lines: dict[str, list] = {name: [] for name in CURVES}
    facts, sigmas, few = [], [], []
    for track in store.tracks:
        run = track.shown
        if run is None:
            continue
        sigmas += [float(v) for v in run.sigma]
        found = run.curves
        if isinstance(found, Failure) or found is None:
            continue
        for name, ds in found.by_step.items():
            lines[name].append(
                {
                    "slot": track.slot,
                    "letter": track.letter,
                    "color": color(track),
                    "sigma": numbers(ds.sigma.values),
                    "mean": numbers(ds[name].values),
                    "se": numbers(ds[f"{name}_se"].values),
                }
            )
        if run.ds.sizes["step"] < 20:
            few.append(track.letter)
        facts.append({"letter": track.letter, "color": color(track), "items": _facts(found.totals)})
    said = [f"n = {thousands(store.n)}; bands ± 1 standard error; measured on the linear path"]
    if few:
        said.append(f"the few steps of {' and '.join(few)} make its S a rough number")
    return {
        "curves": [
            {"name": name, "title": title, "unit": unit, "log": log, "missing": missing, "lines": lines[name]}
            for name, (title, unit, log, missing) in CURVES.items()
        ],
        "facts": facts,
        "sigmas": sigmas,
        "caption": "; ".join(said),
        "waiting": store.busy,
        "opened": store.opened,
        "space": f"{store.kind}{store.extent:.4g}",
    }


TOTALS = {
    "straightness": ("S", "straightness: int |D − dx/dt|² dt over unit time, data unit²"),
    "arc_chord": ("arc / chord", "length of the path over the distance between its ends"),
    "total_turning": ("turning", "sum of the angles between successive steps, rad"),
    "coupling_cost": ("cost", "|ε − x₀|² between noise and sample, data unit²"),
}


def _facts(totals: dict[str, tuple[float, float]]) -> list[dict]:
    out = []
    for name, (words, about) in TOTALS.items():
        value, error = pair(*totals[name])
        out.append({"name": words, "title": about, "value": value, "error": error})
    return out


def side_data(store: Trajectories) -> dict:
    runs = [t.shown for t in store.tracks if t.shown is not None]
    split = [run.errors for run in runs if not isinstance(run.errors, Failure | None)]
    paid = [run.budget for run in runs if not isinstance(run.budget, Failure | None)]
    n = max((ds.attrs["n"] for ds in split), default=0)
    n_budget = max((ds.attrs["n"] for ds in paid), default=0)
    first = " (to first order)" if any(ds.attrs["method"] == "adjoint" for ds in split) else ""
    return {
        "errors": [_errors(t, t.shown) for t in store.tracks],
        "errors_note": f"Each step's miss, carried to the end by the exact flow{first}; data units, n = {n}."
        if n
        else "",
        "budget": [_budget(t, t.shown) for t in store.tracks],
        "budget_note": [
            "chord",
            "straightness",
            "conflict",
            f"mark: cost of the pairs; n = {n_budget}" if n_budget else "",
        ],
        "sight": sight_data(store),
        "opened": store.opened,
        "sigma_max": max((float(t.shown.sigma[0]) for t in store.tracks if t.shown is not None), default=80.0),
        "space": f"{store.kind}{store.extent:.4g}",
    }


def _errors(track: Track, run: Run | None) -> dict:
    out = {
        "slot": track.slot,
        "letter": track.letter,
        "color": color(track),
        "words": "measuring…" if track.job else "",
    }
    found = None if run is None else run.errors
    if isinstance(found, Failure):
        return out | {"failed": found.text, "words": "not defined"}
    if found is None:
        return out
    value, error = pair(float(found.final_error), float(found.final_error_se))
    return out | {
        "sigmas": numbers(run.sigma),
        "cost": [v or 0.0 for v in numbers(found.step_cost.values)],
        "se": [v or 0.0 for v in numbers(found.step_cost_se.values)],
        "local": numbers(found.local_error.values),
        "total": f"off by {value} ± {error} in all",
    }


def _budget(track: Track, run: Run | None) -> dict:
    out = {"slot": track.slot, "letter": track.letter, "color": color(track)}
    found = None if run is None else run.budget
    if isinstance(found, Failure):
        return out | {"failed": found.text}
    if found is None:
        return out
    parts = []
    for name, about in PARTS.items():
        value, error = pair(float(found[name]), float(found[f"{name}_se"]))
        parts.append({"name": name, "value": float(found[name]), "text": f"{value} ± {error}", "about": about})
    cost, residual = (pair(float(found[k]), float(found[f"{k}_se"])) for k in ("cost", "residual"))
    return out | {
        "parts": parts,
        "cost": float(found.cost),
        "cost_text": f"{cost[0]} ± {cost[1]}",
        "text": f"cost {cost[0]}, unaccounted {residual[0]} ± {residual[1]}",
    }


def sight_data(store: Trajectories) -> dict:
    """The microscope's card: the selected noise under every sampler, or all of it while nothing is selected."""
    lines = {k: f"{thousands(c)} crossings among {m} lines" for k, (c, m) in store.crossed.items()}
    note = "; ".join(f"{store.track(k).letter}: {words}" for k, words in lines.items())
    if store.ids is not None and not len(store.ids):
        return {"empty": "The loop holds no particle. Draw it around some, or choose a region:"}
    out = {"total": thousands(store.n), "note": note, "all": store.ids is None}
    if store.ids is not None:
        out["count"] = thousands(len(store.ids))
    found = store.sight
    if isinstance(found, Failure):
        return out | {"note": found.text}
    if found is None:
        return out
    first = str(found.of.run.values[0])
    columns = [
        {"name": "", "title": ""},
        {"name": "spread", "title": "root mean square distance of the ends from their mean, data units"},
        {"name": "cost", "title": "mean |ε − x₀|² of the selected pairs, data unit²"},
        {
            "name": f"from {first}",
            "title": f"mean distance between the ends under this sampler and under {first}, data units",
        },
        {
            "name": "swapped",
            "title": f"share that ends in another of the {found.regions} of the data than under {first}",
        },
    ]
    rows = []
    for i, letter in enumerate(str(v) for v in found.of.run.values):
        track = next((t for t in store.tracks if t.letter == letter), None)
        if track is None:
            continue
        one = found.of.isel(run=i)
        cost = pair(float(one.mean_cost), float(one.mean_cost_se))
        cells = [{"text": f"{float(one.spread):.3g}"}, {"text": cost[0], "error": cost[1]}]
        if i == 0:
            cells += [{"text": "–"}, {"text": "–"}]
        else:
            gap = pair(float(one.mean_distance), float(one.mean_distance_se))
            share, error = found.swaps[letter]
            cells += [
                {"text": gap[0], "error": gap[1]},
                {
                    "text": f"{100 * share:.0f} %",
                    "error": f"{max(100 * error, 0.1):.1g}",
                    "title": "± one standard error",
                },
            ]
        rows.append({"letter": letter, "color": color(track), "cells": cells})
    if store.ids is not None:
        note = f"The noise itself has spread {float(found.of.attrs['noise_spread']):.3g}. {note}".strip()
    return out | {"columns": columns, "rows": rows, "note": note}


def film_data(store: Trajectories) -> dict:
    """x_t and denoised predictions of the followed sample, as one sheet of pictures per sampler and row."""
    if store.kind == "points" or store.pick is None:
        return {"strips": None}
    strips = []
    for track in store.tracks:
        run = track.shown
        if run is None or store.pick >= run.n_done:
            continue
        one = run.ds.isel(sample=store.pick)
        sigma, alpha = run.sigma, one.alpha.values
        noisy = one.x.values / (alpha * np.sqrt(1 + sigma**2))[:, None, None, None]  # of about unit size everywhere
        clean = np.concatenate((one.x0_hat.values, one.x.values[-1:] / alpha[-1]))
        strips.append(
            {
                "letter": track.letter,
                "color": color(track),
                "count": len(noisy),
                "sigmas": numbers(sigma),
                "noisy": data_uri(grid(noisy, len(noisy), gap=0)),
                "clean": data_uri(grid(clean, len(clean), gap=0)),
            }
        )
    if not strips:
        return {"strips": None}
    first = next(t for t in store.tracks if t.shown is not None)
    label = int(first.shown.ds.label.values[store.pick])
    known = f", class {catalogue.class_names(first.model, [label])[0]}" if label >= 0 else ""
    return {
        "strips": strips,
        "caption": f"seed {store.seed + store.pick}{known}; click a particle for another one, a frame to go to its σ",
    }


def knobs_data(store: Trajectories) -> dict:
    """All knobs of the opened sampler, as the knobs pane takes them; {} when none is open."""
    if store.active is None:
        return {}
    track = store.track(store.active)
    model, knobs = catalogue.model(track.model), track.knobs
    defaults, active = catalogue.defaults(track.model), knobs.active()
    controls = []
    for c in knobs.controls(model):
        item = {k: (list(v) if isinstance(v, tuple) else v) for k, v in asdict(c).items()}
        item["differs"] = getattr(knobs, c.name) != defaults.get(c.name) and not c.reason
        item["set"] = c.name == "skip_bank" and knobs.skip_bank is not None
        controls.append(item)
    by_name = {c["name"]: c for c in controls}
    gists = {}
    for group, members in GROUPS.items():
        if all(by_name[m]["reason"] for m in members):
            gists[group] = "at rest"
        else:
            used = [
                m
                for m in members
                if m in active and not by_name[m]["reason"] and by_name[m]["kind"] not in ("bank", "nodes")
            ]
            gists[group] = " · ".join(_gist(by_name[m]) for m in used)
    tuned = offered(model, knobs, falling=True)
    return {"groups": list(GROUPS), "controls": controls, "open": list(OPEN_GROUPS), "gists": gists, "kept": tuned}


def _gist(control: dict) -> str:
    value = control["value"]
    if control["kind"] == "choice":
        return str(control["names"][control["choices"].index(value)])
    return f"{control['title']} {value:.3g}" if isinstance(value, int | float) else str(control["title"])


def texts(store: Trajectories) -> dict:
    """What the export menu copies."""
    return {"python": to_python(store), "cli": to_cli(store)}


def to_python(store: Trajectories) -> str:
    """Script that records the same runs and prints the straightness on screen."""
    lines = ["import explorer as ex", "from explorer.trajectory import mean_and_error", ""]
    tracks = [t for t in store.tracks if t.error is None]
    for track in tracks:
        base = SamplerKnobs().to_dict()
        given = {k: v for k, v in track.knobs.changed(base).items() if k != "seed"}
        spelled = ", ".join(f"{k}={v!r}" for k, v in given.items())
        name = track.letter.lower()
        lines += [
            f'{name}_model, {name}_sampler = ex.SamplerKnobs({spelled}).build(ex.load("{track.model}"))',
            f"{name} = ex.record({name}_model, {name}_sampler, range({store.seed}, {store.seed + store.n}), {track.knobs.labels!r})",
        ]
    letters = ", ".join(f"{t.letter}={t.letter.lower()}" for t in tracks)
    lines += [
        "",
        f"for name, run in dict({letters}).items():",
        "    s = mean_and_error(ex.straightness(run, path=ex.Linear()))",
        "    print(name, f\"S = {float(s.straightness):.6g} ± {float(s.straightness_se):.2g}, NFE {run.attrs['nfe']}\")",
    ]
    return "\n".join(lines) + "\n"


def to_cli(store: Trajectories) -> str:
    """Commands that record the same runs to files."""
    out = []
    for track in store.tracks:
        if track.error is None:
            command = track.knobs.to_cli(track.model, store.n).replace("explorer eval", "explorer record", 1)
            keep = " --keep x0_hat" if store.kind == "images" else ""
            out.append(f"{command}{keep} --out {track.letter.lower()}.nc")
    return "\n".join(out)


def pair(value: float, error: float) -> tuple[str, str]:
    """Value and error as text, to the same place; a dash where there is none."""
    if not math.isfinite(value):
        return "–", "–"
    if not math.isfinite(error):
        return f"{value:.3g}".replace("-", "−"), "?"
    text, _, spread = plus_minus(value, error).partition(" ± ")
    return text.replace("-", "−"), spread


def numbers(values: np.ndarray) -> list[float | None]:
    """Floats for JSON; None where they are not finite."""
    return [float(v) if math.isfinite(v) else None for v in np.asarray(values, dtype=float)]


def thousands(n: int) -> str:
    return f"{n:,}".replace(",", "\u2009")


def clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def caption_of(store: Trajectories) -> str:
    """Under the squares: what is drawn, and how faithfully."""
    plane = compute.plane_of(store.tracks[0].model)
    drawn = f"noise drawn at {store.scale:.2f} of its size"
    if store.kind == "points":
        return drawn
    data = load_dataset(data_of(store.tracks[0].model)).name
    return f"plane of the two largest variations of {data} ({100 * plane.share:.0f} % of its variance); {drawn}"
