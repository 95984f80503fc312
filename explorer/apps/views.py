"""What the panes show, computed from the store: plain dicts in, no drawing and no measuring here."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import asdict, dataclass

import torch
from PIL import Image
from torch import Tensor

from explorer.apps import catalogue, choices
from explorer.apps.results import Film, Plane, Result
from explorer.apps.session import Session
from explorer.apps.settings import N_CHOICES, Setting
from explorer.apps.tuning.kept import offered
from explorer.knobs import GROUPS
from explorer.metrics.base import Estimate, plus_minus
from explorer.sampling import sigmas_of

N_COLORS = 6
COLUMNS = 8
OPEN_GROUPS = ("Solver", "Schedule", "Guidance", "Skip-tuning")
SETTLED_FROM = 15  # samples per feature from which a number counts as settled


@dataclass(frozen=True)
class Curve:
    """How a quantity by step is shown: on its chip, over its curve, with its unit, and in words."""

    short: str
    title: str
    unit: str
    log: bool
    doc: str


CURVES = {
    "step_error": Curve(
        "error",
        "step error",
        "data units, embedded estimate",
        True,
        "Gap between the step and the lower-order one that its slopes also give: no network call, and an upper bound in practice.",
    ),
    "velocity_gap": Curve(
        "straightness",
        "gap to the chord",
        "data units², linear path",
        True,
        "Squared distance of each step's velocity from the mean one, on the linear path; its mean over time is the straightness S. "
        "Liu 2022, arXiv 2209.14577.",
    ),
    "curvature": Curve(
        "curvature", "curvature", "1 / data unit", True, "Menger curvature of the three states around each step."
    ),
    "turning_angle": Curve("turning", "turning", "rad per step", False, "Angle between one step and the next."),
    "step_length": Curve("length", "step length", "data units", True, "How far each step moves a sample."),
}


def color(session: Session, setting: Setting) -> str:
    """One colour per setting everywhere; the pinned one is black on light and white on dark."""
    if session.pinned is not None and setting.key == session.pinned.key:
        return "var(--pinned)"
    return f"var(--c{session.colors.get(setting.on_seed(0).key, 0) % N_COLORS})"


def top_data(session: Session) -> dict:
    return {
        "models": catalogue.groups(),
        "model": session.model_name,
        "seed": session.knobs.seed,
        "n": session.n,
        "n_choices": list(N_CHOICES),
        "notice": session.notice,
        "error": None
        if session.error is None
        else {"text": session.error.text, "details": session.error.details, "fix": "undo" if session.error else ""},
    }


def job_data(session: Session) -> dict:
    result = session.result
    if session.running:
        eta = "" if session.eta is None else f" · {clock(session.eta)} left"
        return {"running": True, "fraction": session.fraction, "text": f"{session.running}{eta}"}
    if session.error is None and result is not None and result.live is not None and not result.complete:
        return {"stopped": True, "text": f"stopped at n = {thousands(result.live.n_done)}; what was measured is kept"}
    return {"running": False, "text": ""}


def hero_data(session: Session) -> dict:
    result, model = session.result, session.model
    name = catalogue.metric_name(session.model_name)
    if result is None or result.live is None:
        return {"name": name, "meta": _meta(session, None), "settled": False}
    live, e = result.live, result.live.estimate
    value, error = parts(e)
    return {
        "name": e.name,
        "value": value,
        "error": error,
        "raw": "" if e.raw is None or not math.isfinite(e.raw) else f"{e.raw:.3g}",
        "n": thousands(live.n_done) + ("" if live.done else f" of {thousands(live.n)}"),
        "n_total": live.n,
        "settled": settled(e, live.metric),
        "note": e.note,
        "caveat": _caveat(session),
        "stale": session.error is not None,
        "color": color(session, result.setting),
        "course": [[n, _number(e.value), _number(e.std_error), _finite(e)] for n, e in result.course.items()],
        "meta": _meta(session, live),
        "shape": list(model.shape),
    }


def knobs_data(session: Session) -> dict:
    model, knobs = session.model, session.knobs
    pinned = None if session.pinned is None else session.pinned.knobs.to_dict()
    reference = pinned or catalogue.defaults(session.model_name)
    active = knobs.active()
    controls = []
    for c in knobs.controls(model):
        item = {k: (list(v) if isinstance(v, tuple) else v) for k, v in asdict(c).items()}
        if c.kind == "choice":
            item["options"] = choices.options(c, knobs, model)
        item["differs"] = getattr(knobs, c.name) != reference[c.name] and not c.reason
        item["set"] = c.name == "skip_bank" and knobs.skip_bank is not None
        controls.append(item)
    by_name = {c["name"]: c for c in controls}
    gists = {}
    for group, members in GROUPS.items():
        if all(by_name[m]["reason"] for m in members):
            gists[group] = "not for this model" if group != "Churn" else f"not in {knobs.solver}"
        else:
            gists[group] = " · ".join(
                _gist(by_name[m])
                for m in members
                if m in active and not by_name[m]["reason"] and by_name[m]["kind"] not in ("bank", "nodes", "text")
            )
    if knobs.nodes is not None:
        gists["Schedule"] = f"own σ, {len(knobs.nodes)} steps"
    if knobs.own:
        gists |= {"Solver": knobs.said_own(), "Schedule": "in the own sampler", "Churn": "", "Restart": ""}
    if model.n_skips and knobs.skip_bank is not None:
        gists["Skip-tuning"] = "own bank"
    if knobs.layers:
        gists["Layers"] = "some left out"
    tuned = offered(model, knobs)
    return {"groups": list(GROUPS), "controls": controls, "open": list(OPEN_GROUPS), "gists": gists, "kept": tuned}


def texts(session: Session) -> dict:
    """What the copy menu hands out."""
    out = {"json": session.to_json(), "file": session.file_name(), "python": "", "cli": ""}
    if session.error is None:
        out["python"] = session.knobs.to_python(session.model_name, session.n)
        out["cli"] = session.knobs.to_cli(session.model_name, session.n)
    return out


def samples_data(session: Session) -> dict:
    b, a = session.result, session.baseline
    shown_b, shown_a = _pictures(session, b), _pictures(session, a)
    if shown_b is None and session.shown is not None and session.shown.setting.model == session.model_name:
        b = session.shown  # the last pictures stay, faint, until the first new ones are there
        shown_b = _pictures(session, b) | {"fresh": 0}
    ghost = session.ghost
    if ghost is not None and ghost.x is not None and shown_b is not None and "sprite" in shown_b:
        mixed = torch.cat([ghost.x.float().cpu(), b.live.x[len(ghost.x) :].float()]) if b.live is not None else ghost.x
        shown_b = {**shown_b, "sprite": sprite(mixed), "fresh": len(ghost.x), "title": "preview while you drag"}
    data = {
        "kind": "points" if len(session.model.shape) == 1 else "images",
        "a": shown_a,
        "b": shown_b,
        "seed": session.knobs.seed,
        "columns": COLUMNS,
        "count": len(b.live.x) if b is not None and b.live is not None else 0,
        "missing": _missing(session),
    }
    if data["kind"] == "points":
        data["extent"] = catalogue.extent(session.model_name)
        data["density"] = density(session.model_name)
    elif shown_a and shown_b and a.live is not None and b.live is not None:
        k = min(len(a.live.x), len(b.live.x))
        gap = (a.live.x[:k] - b.live.x[:k]).flatten(1).square().mean(1).sqrt()
        data["change"] = [f"A and B differ by {g:.2g} rms per pixel" for g in gap.tolist()] + [""] * (len(b.live.x) - k)
    return data


def steps_data(session: Session) -> dict:
    b, a = session.result, session.baseline
    if b is None and session.shown is not None and session.shown.setting.model == session.model_name:
        b = session.shown  # a setting that cannot run leaves the last one's steps in place
    return {
        "model": session.model_name,
        "b": _steps(session, b),
        "a": _steps(session, a) if a is not None and a.live is not None else None,
        "summary": _summary(b),
    }


def ghost_data(session: Session) -> dict | None:
    return None if session.ghost is None else {"sigmas": session.ghost.sigmas}


def film_data(session: Session) -> dict | None:
    films = session.film
    if not films or "b" not in films or len(session.model.shape) != 3:
        return None
    order = [(k, letter) for k, letter in (("b", "B"), ("a", "A")) if k in films]
    one = films["b"]
    strips = []
    for key, letter in order:
        film: Film = films[key]
        setting = session.setting if key == "b" else session.pinned
        strips.append(
            {
                "sprite": sprite(film.frames, columns=len(film.frames)),
                "count": len(film.frames),
                "letter": letter if len(order) > 1 else "",
                "color": color(session, setting),
                "sigmas": film.sigmas,
            }
        )
    return {
        "sigmas": one.sigmas,
        "strips": strips,
        "caption": f"seed {one.seed}: what the model believes at each step; hover for numbers",
    }


def history_data(session: Session) -> dict:
    here = catalogue.metric_name(session.model_name)
    rows = []
    keys = list(session.order)
    first = [session.pinned.key] if session.pinned is not None else []
    first += [session.setting.key] if session.setting.key not in first else []
    for key in [k for k in first if k in session.results] + [k for k in keys if k not in first]:
        result = session.results[key]
        live, current = result.live, key == session.setting.key
        is_pinned = session.pinned is not None and key == session.pinned.key
        if live is None and not current and not is_pinned:
            continue
        knobs = result.setting.knobs
        label = knobs.describe(catalogue.model(result.setting.model))
        if result.setting.model != session.model_name:
            label = f"{result.setting.model}: {label}"
        if knobs.seed != session.knobs.seed:
            label += f" · seeds {knobs.seed}+"
        row = {
            "key": key,
            "label": label,
            "title": f"{catalogue.title(result.setting.model)}: {knobs.describe(None)}; click to return",
            "letter": "A" if is_pinned else ("B" if current and session.pinned is not None else ""),
            "color": color(session, result.setting),
            "pinned": is_pinned,
            "current": current,
            "nfe": None,
            "value": None,
            "se": 0,
            "n": 0,
        }
        if live is not None:
            e = live.estimate
            row |= {"nfe": live.nfe, "n": live.n_done, "n_text": thousands(live.n_done), "comparable": e.name == here}
            if _finite(e):
                row |= {"value": e.value, "se": e.std_error, "text": list(parts(e)), "settled": settled(e, live.metric)}
        rows.append(row)
    return {"rows": rows, "metric": here, "short_metric": here.partition("[")[0], "verdict": _verdict(session)}


def _verdict(session: Session) -> dict:
    if session.pinned is None:
        return {"text": "Pin a setting as A, then turn a knob: A and B are compared on the same noise."}
    if session.pinned.key == session.setting.key:
        return {"text": "This is A. Turn a knob to compare another setting with it on the same noise."}
    if session.error is not None:
        return {"text": "B cannot run as it stands; see the message above."}
    compared = session.comparison()
    if compared is None:
        other = catalogue.metric_name(session.pinned.model)
        if other != catalogue.metric_name(session.model_name):
            return {"text": f"A was measured as {other}: the two models have nothing to subtract."}
        return {"text": "Comparing as soon as both have been measured…"}
    d = compared.difference
    if not (math.isfinite(d.value) and math.isfinite(d.std_error)):
        return {"text": "B − A: not enough samples yet.", "fine": d.note}
    shown = plus_minus(d.value, d.std_error)
    signed = shown if d.value < 0 else f"+{shown}"
    low, high = d.interval()
    fine = f"same noise, n = {thousands(compared.n)}; ± one standard error, 95 % band {low:+.2g} to {high:+.2g}"
    if not d.differs_from(0.0):
        return {"kind": "same", "text": f"B − A = {minus(signed)}: not distinguishable.", "fine": minus(fine)}
    kind, word = ("better", "better") if d.value < 0 else ("worse", "worse")
    return {
        "kind": kind,
        "text": f"B is {word} than A by {plus_minus(abs(d.value), d.std_error)}.",
        "fine": minus(fine),
    }


def _pictures(session: Session, result: Result | None) -> dict | None:
    if result is None or result.live is None and result.plane is None:
        return None
    setting = result.setting
    out = {
        "color": color(session, setting),
        "title": setting.knobs.describe(catalogue.model(setting.model)),
        "key": f"{setting.key}{result.n}",
    }
    if result.plane is not None:
        return out | _plane(result.plane)
    if result.live is None or len(result.live.x.shape) != 4:
        return None
    labels = result.live.labels
    return out | {
        "sprite": sprite(result.live.x),
        "fresh": len(result.live.x),
        "labels": None if labels is None else catalogue.class_names(setting.model, labels.tolist()),
    }


def _plane(plane: Plane) -> dict:
    start = plane.path[0]
    angle = torch.atan2(start[:, 1], start[:, 0]) / math.pi * 180 + 180
    n_steps, cells, _ = plane.field.shape
    return {
        "path": floats(plane.path),
        "field": floats(plane.field),
        "n": plane.path.shape[1],
        "grid": math.isqrt(cells),
        "sigmas": plane.sigmas,
        "angle": [round(v) for v in angle.tolist()],
        "top": plane.field.norm(dim=2).quantile(0.95, dim=1).clamp_min(1e-6).tolist(),
    }


def _steps(session: Session, result: Result | None) -> dict | None:
    if result is None:
        return None
    setting = result.setting
    model = catalogue.model(setting.model)
    try:
        sampler = setting.knobs.build(model)[1]
        sigmas = list(sigmas_of(sampler, model))
    except ValueError:
        return None
    geometry = None if result.live is None else result.live.geometry
    curves = [] if geometry is None else [_curve(geometry, name, sigmas[:-1]) for name in CURVES]
    if not sampler.monotone:
        curves = [_uncurved(name, "Restarts go up again: no curve along σ.") for name in CURVES]
    return {"sigmas": sigmas, "curves": curves, "color": color(session, setting)}


def _curve(geometry, name: str, sigmas: list[float]) -> dict:
    """A quantity by step with its errors, or the reason why this solver has none."""
    if name not in geometry:
        return _uncurved(name, f"Not here: {geometry.attrs.get(name, 'this sampler does not give it')}.")
    out = _uncurved(name, "") | {"sigma": sigmas}
    out["mean"] = [_number(v) for v in geometry[name].values.tolist()]
    out["se"] = [_number(v) or 0.0 for v in geometry[f"{name}_se"].values.tolist()]
    return out


def _uncurved(name: str, reason: str) -> dict:
    return {"name": name, **asdict(CURVES[name]), "sigma": [], "mean": [], "se": [], "reason": reason}


def _summary(result: Result | None) -> str:
    if result is None or result.live is None or result.live.geometry is None:
        return ""
    ds = result.live.geometry
    facts = []
    for name, words, unit in (
        ("arc_chord", "arc / chord", ""),
        ("total_turning", "turning", " rad"),
        ("straightness_linear", "straightness S", ""),
    ):
        if name in ds and math.isfinite(float(ds[f"{name}_se"])):
            facts.append(f"{words} {plus_minus(float(ds[name]), float(ds[f'{name}_se']))}{unit}")
    few = ds.attrs.get("n_curves", result.live.n_done)
    counted = f"n {thousands(result.live.n_done)}" + (
        f", error and straightness {few}" if few < result.live.n_done else ""
    )
    return " · ".join([*facts, counted])


def _caveat(session: Session) -> str:
    label = session.knobs.label
    if label is None or label < 0:
        return ""
    return f"class {catalogue.class_names(session.model_name, [label])[0]} against all classes"


def _meta(session: Session, live) -> str:
    where = f"{catalogue.dtype(session.model_name)} · {catalogue.device(session.model_name)}"
    if live is not None:
        return f"NFE {live.nfe} · {live.seconds:.1f} s · {where}"
    if session.error is not None:
        return where
    model, sampler = session.knobs.build(session.model)
    return f"NFE {sampler.nfe(model)} · {where}"


def _missing(session: Session) -> str:
    if session.error is not None:
        return "Nothing drawn: " + session.error.text
    return "Drawing the first samples…" if session.running else "Stopped before the first samples."


def _gist(control: dict) -> str:
    value = control["value"]
    if control["kind"] == "choice":
        return str(control["names"][control["choices"].index(value)])
    return f"{control['title']} {value:.3g}"


def settled(e: Estimate, metric) -> bool:
    """Whether n is at least 15 per feature; metrics without features are settled with their first number."""
    dim = getattr(getattr(metric, "features", None), "dim", 0)
    return _finite(e) and e.n >= SETTLED_FROM * dim


def parts(e: Estimate) -> tuple[str, str]:
    """Value and error as text, to the same place."""
    if not _finite(e):
        return "–", "–"
    value, _, error = plus_minus(e.value, e.std_error).partition(" ± ")
    return minus(value), error


def minus(text: str) -> str:
    return text.replace("-", "−")


def thousands(n: int) -> str:
    return f"{n:,}".replace(",", "\u2009")


def clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _finite(e: Estimate) -> bool:
    return math.isfinite(e.value) and math.isfinite(e.std_error)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def floats(x: Tensor) -> str:
    return base64.b64encode(x.contiguous().numpy().astype("<f4").tobytes()).decode()


def sprite(x: Tensor, columns: int = COLUMNS) -> str:
    """Images (n, C, H, W) in [-1, 1] as one PNG sheet, a data URL."""
    n, c, h, w = x.shape
    rows = -(-n // columns)
    pixels = ((x.float().nan_to_num(-1.0).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    sheet = torch.zeros(rows * columns, c, h, w, dtype=torch.uint8)
    sheet[:n] = pixels
    sheet = sheet.reshape(rows, columns, c, h, w).permute(0, 3, 1, 4, 2).reshape(rows * h, columns * w, c)
    return png(sheet)


def png(sheet: Tensor) -> str:
    """(H, W, 1, 3 or 4) uint8 as a data URL."""
    image = Image.fromarray(sheet.squeeze(-1).numpy() if sheet.shape[-1] == 1 else sheet.numpy())
    out = io.BytesIO()
    image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


_DENSITIES: dict[str, str] = {}


def density(name: str, side: int = 96) -> str:
    """The data's density on the canvas, as a transparent image: a smoothed histogram of many data points."""
    if name not in _DENSITIES:
        r = catalogue.extent(name)
        x = catalogue.points(name)
        at = ((x + r) / (2 * r) * side).long().clamp(0, side - 1)
        counts = torch.zeros(side, side)
        counts.index_put_((side - 1 - at[:, 1], at[:, 0]), torch.ones(len(x)), accumulate=True)
        kernel = torch.exp(-0.5 * (torch.arange(-4.0, 5.0) / 1.3) ** 2)
        kernel = (kernel / kernel.sum()).reshape(1, 1, 9, 1)
        smooth = torch.nn.functional.conv2d(counts[None, None], kernel, padding=(4, 0))
        smooth = torch.nn.functional.conv2d(smooth, kernel.transpose(2, 3), padding=(0, 4))[0, 0]
        alpha = (smooth / smooth.max()).sqrt() * 255
        grey = torch.full((side, side, 1), 128.0)
        _DENSITIES[name] = png(torch.cat([grey, grey, grey, alpha[..., None]], dim=-1).to(torch.uint8))
    return _DENSITIES[name]
