"""What is on screen as text that prints the same number: a script, a command."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from explorer.knobs.table import levels_left_out
from explorer.sampling import GRIDS
from explorer.sampling.grids import WARPED

if TYPE_CHECKING:
    from explorer.knobs.sampler import SamplerKnobs

FLAGS = {"solver": "--sampler", "n_steps": "--steps"}


def python(knobs: SamplerKnobs, model_name: str, n: int) -> str:
    """Script that prints the number on screen: same model, sampler, seeds and batches, hence the same value."""
    lines = ["import explorer as ex", "", f'model = ex.load("{model_name}")']
    if knobs.skip_scales(2) is not None:
        ends = f"rho_bottom={knobs.rho_bottom!r}, rho_top={knobs.rho_top!r}"
        scales = ends if knobs.skip_bank is None else repr([float(s) for s in knobs.skip_bank])
        lines.append(f"model = ex.SkipTuned(model, {scales})")
    if knobs.layers:
        lines.append(f"model = ex.LayersLeftOut(model, {list(levels_left_out(knobs.layers))!r})")
    low, high = knobs.interval
    interval = f"interval=({low!r}, " + ('float("inf"))' if math.isinf(high) else f"{high!r})")
    worse = f'ex.load("{knobs.guide}")'
    if knobs.guidance != 1 and knobs.has_guide:
        both = f"[(None, {knobs.guidance!r}), ({worse}, {knobs.guide_weight!r})]"
        lines.append(f"model = ex.MultiGuided(model, {both}, {interval})")
    elif knobs.has_guide:
        lines.append(f"model = ex.Guided(model, {knobs.guide_weight!r}, {worse}, {interval})")
    elif knobs.guidance != 1:
        lines.append(f"model = ex.Guided(model, {knobs.guidance!r}, {interval})")
    lines += _sampler(knobs)
    label = "" if knobs.label is None else f", label={knobs.label}"
    lines += [
        f"for live in ex.quality(model, sampler, ex.metric_for(model), n={n}, start_seed={knobs.seed}{label}):",
        '    print(live.estimate, f" {live.nfe} NFE, {live.seconds:.1f} s")',
    ]
    return "\n".join(lines) + "\n"


def _sampler(knobs: SamplerKnobs) -> list[str]:
    """Lines that end with `sampler` bound."""
    if knobs.own:
        return [f"sampler = ex.sampler_from_json({knobs.own!r})"]
    if knobs.nodes is not None:
        grid = f"grid = ex.TimeGrid({tuple(knobs.time_grid().times)!r})"
    else:
        warp = f", rho={knobs.rho!r}" if knobs.grid in WARPED else ""
        ends = f"{knobs.n_steps}, {knobs.sigma_min!r}, {knobs.sigma_max!r}{warp}"
        grid = f"grid = ex.TimeGrid.{GRIDS[knobs.grid].__name__}({ends})"
    solver = f"ex.{knobs.built_solver()!r}"
    if knobs.restarts:
        return [grid, f"sampler = ex.RestartSampler(grid, (ex.{knobs.restart!r},), {solver})"]
    return [grid, f"sampler = ex.OdeSampler({solver}, grid)"]


def command(knobs: SamplerKnobs, model_name: str, n: int) -> str:
    """Command that prints the number on screen."""
    parts = ["explorer", "eval", model_name]
    for name, value in knobs.active().items():
        if name in ("solver", "n_steps", "sigma_min", "sigma_max", "seed") or value != knobs.param[name].default:
            text = ",".join(map(_short, value)) if isinstance(value, list) else _short(value)
            parts += [FLAGS.get(name, "--" + name.replace("_", "-")), shlex.quote(text)]
    return " ".join([*parts, "--n", str(n)])


def _short(value: Any) -> str:
    return f"{value:.12g}" if isinstance(value, float) else str(value)
