"""Claims of combined snapshots: algebra, a linear denoiser whose best combination is known, and eight Gaussians.

Searches lower the energy distance of 600 samples, eight steps of Heun, to 1500 true points; what is claimed is measured on other noise
and against other true points. Of the averages the one that is best there counts: they are given the choice that a search is not.
"""

from __future__ import annotations

import functools
import math
import tempfile
from pathlib import Path

import numpy as np
import torch

from explorer.data import points as draw
from explorer.metrics.base import Estimate
from explorer.metrics.features import points_space
from explorer.metrics.kernel import energy_distance
from explorer.papers.lcsc import LinearRun, ring, snapshots_of
from explorer.reproduction import Bench, Claim, Verdict
from explorer.sampling import Heun, OdeSampler, TimeGrid
from explorer.tuning import (
    Basis,
    Budget,
    Evolution,
    FunctionObjective,
    Measurement,
    MetricObjective,
    Setting,
    Study,
    ema_coefficients,
    landscape,
)
from explorer.tuning.landscape import slice_coefficients
from explorer.tuning.weights import RATES, settings_of

N, TRIALS, HELD = 600, 300, 3000
START = OdeSampler(Heun(), TimeGrid.karras(8, 0.002, 80.0))


def objective(bench: Bench, held: bool = False) -> MetricObjective:
    """The energy distance to fixed true points, on the search's noise or on other noise to other points."""
    real = draw("8gaussians", HELD if held else 1500, bench.generator(1 + held))
    first = 50_000_000 * (bench.seed + 1) + (10_000_000 if held else 0)
    return MetricObjective(energy_distance(points_space(2), real), range(first, first + (HELD if held else N)))


@functools.cache
def searched(bench: Bench, negative: bool = True) -> Study:
    model, basis = snapshots_of(ring(), bench)
    start = basis.setting(Setting(START), ema_coefficients(len(basis), 0.0))
    study = Study(
        model, start, objective(bench), Evolution(basis, negative=negative), Budget(trials=TRIALS), bench.seed
    )
    list(study)
    return study


@functools.cache
def chosen(bench: Bench, negative: bool = True) -> Setting:
    """The best of a search's five leaders on noise of its own."""
    study = searched(bench, negative)
    first = study.objective.seeds.start + 5_000_000
    again = study.objective.on(range(first, first + 2 * N))
    return min(study.leaders(5), key=lambda t: again(*t.setting.on(study.model)).value).setting


@functools.cache
def held(bench: Bench, setting: Setting) -> Measurement:
    return objective(bench, held=True).measure(*setting.on(snapshots_of(ring(), bench)[0]))


def tracked(bench: Bench) -> dict[str, Setting]:
    """The averages that the run tracked at every step, as they were at its end."""
    model, basis = snapshots_of(ring(), bench)
    out = {}
    for name in basis.snapshots()[-1].emas:
        own = Basis.of(basis.folder, model, 2, ema=name)
        out[name] = own.setting(Setting(START), (0.0, 1.0))
    return out


@functools.cache
def averages(bench: Bench) -> dict[str, Setting]:
    _, basis = snapshots_of(ring(), bench)
    found = {f"rate {rate:g}": s for rate, s in settings_of(basis, Setting(START)).items()}
    return {**found, **tracked(bench)}


def best_average(bench: Bench) -> str:
    """The name of the average that is best on the held-out noise."""
    return min(averages(bench), key=lambda name: held(bench, averages(bench)[name]).estimate.value)


def algebra(bench: Bench) -> Verdict:
    model, basis = snapshots_of(ring(), bench)
    kept, k, g = basis.snapshots(), len(basis), np.random.default_rng(bench.seed)
    state = lambda a: basis.combine(model, a).net.state_dict()  # noqa: E731
    own = [snapshot.state("net", None) for snapshot in kept]
    exact = all(torch.equal(v, own[i][key]) for i in (0, 7, k - 1) for key, v in state(np.eye(k)[i].tolist()).items())
    one, two = (a + (1 - a.sum()) / k for a in g.normal(size=(2, k)))
    left, right, both = state(one), state(two), state(0.3 * one + 0.7 * two)
    gap = max(float((both[key] - (0.3 * left[key] + 0.7 * right[key])).abs().max()) for key in both)
    size = max(float(v.abs().max()) for v in both.values())
    sums = max(abs(math.fsum(t.setting.wrappers[0].coefficients) - 1) for t in searched(bench).trials)
    text = f"one-hot to the bit: {exact}; sums within {sums:.0e} of 1 over {len(searched(bench).trials)} candidates"
    measured = Estimate(gap / size, 0.0, len(own), "largest deviation from linearity over the largest weight")
    return Verdict(exact and gap / size < 1e-6 and sums < 1e-6, measured, 1e-6, text)


def averages_within(bench: Bench) -> Verdict:
    """The recursion num <- g num + theta, den <- g den + 1 against the coefficients; then what the first generation held."""
    model, basis = snapshots_of(ring(), bench)
    own, worst = [s.state("net", None) for s in basis.snapshots()], 0.0
    for rate in (0.5, 0.9, 0.98):
        total, count = {key: torch.zeros_like(v, dtype=torch.float64) for key, v in own[0].items()}, 0.0
        for state in own:
            total = {key: rate * v + state[key].double() for key, v in total.items()}
            count = rate * count + 1
        combined = basis.combine(model, ema_coefficients(len(basis), rate)).net.state_dict()
        worst = max(worst, *(float((total[key] / count - combined[key]).abs().max()) for key in total))
    study = searched(bench)
    first = {t.setting for t in study.trials[: Evolution(basis).population + 1]}
    there = set(settings_of(basis, Setting(START)).values()) <= first
    among = min(t.value for t in study.trials if t.setting in set(settings_of(basis, Setting(START)).values()))
    text = f"all {len(RATES)} averages in the first generation: {there}; best found {study.best.value:.4f}, best average {among:.4f}"
    measured = Estimate(worst, 0.0, len(own), "largest difference of the recursive average from the combination")
    return Verdict(worst < 1e-6 and there and study.best.value <= among, measured, 1e-6, text)


def improvement(bench: Bench) -> Verdict:
    study, name = searched(bench), best_average(bench)
    found, average, last = (held(bench, s) for s in (chosen(bench), averages(bench)[name], study.start))
    gap = found.minus(average)
    ratio = found.estimate.value / last.estimate.value
    a = np.array(chosen(bench).wrappers[0].coefficients)
    text = (
        f"{found.estimate.value:.4f} found, {average.estimate.value:.4f} {name}, {last.estimate.value:.4f} last, {ratio:.2f} of it; the "
        f"search believed {study.best.value:.4f}; {(a < 0).sum()} of {len(a)} negative, largest {np.abs(a).max():.2f}"
    )
    measured = Estimate(
        gap.value, gap.std_error, gap.n, "energy distance of the combination minus the best average's, held out"
    )
    return Verdict(gap.value <= 0 and ratio <= 0.8, measured, 0.0, text)


def negative(bench: Bench) -> Verdict:
    free, cut = searched(bench), searched(bench, False)
    a = np.array(cut.best.setting.wrappers[0].coefficients)
    out = held(bench, chosen(bench)).minus(held(bench, chosen(bench, False)))
    gap = cut.best.value - free.best.value
    text = (
        f"fitness {free.best.value:.4f} free, {cut.best.value:.4f} without negative ones (least {a.min():.2g}); held out the free one is "
        f"{out.value:+.4f} ± {out.std_error:.4f} from the other"
    )
    measured = Estimate(
        gap, free.best.estimate.std_error, N, "best fitness without negative coefficients minus that with them"
    )
    return Verdict(gap >= 0 and a.min() >= 0, measured, 0.0, text)


def slice_(bench: Bench) -> Verdict:
    """The best node of a slice, chosen on the search's noise, measured on other noise beside the corners and the best average.

    The plane is the paper's, the range ours: [-2, 3] in both coordinates, 11 nodes each. It was 7 nodes each over [-0.4, 1.4] at first,
    where the best node lay on the border at every one of five seeds and the claim failed at two. What that narrower window gives stands in
    the text beside the wide one's number, and so does whether the best node is inside.
    """
    model, basis = snapshots_of(ring(), bench)
    corners, name = (0, len(basis) // 2, len(basis) - 1), best_average(bench)
    others = {f"step {basis.steps[c]}": basis.setting(Setting(START), np.eye(len(basis))[c]) for c in corners}
    others[name] = averages(bench)[name]
    found = {}
    for window, n in (((-0.4, 1.4), 7), ((-2.0, 3.0), 11)):
        at = tuple(np.linspace(*window, n))
        value = landscape(model, basis, Setting(START), objective(bench), corners, x=at, y=at).value.values
        j, i = np.unravel_index(np.nanargmin(value), value.shape)
        node = basis.setting(Setting(START), slice_coefficients(len(basis), corners, at[i], at[j]))
        gaps = {k: held(bench, node).minus(held(bench, s)) for k, s in others.items()}
        place = "on the border" if {i, j} & {0, n - 1} else "inside"
        found[window] = gaps, f"({at[i]:.1f}, {at[j]:.1f}), {place} of [{window[0]:g}, {window[1]:g}]"
    (narrow, before), (gaps, where) = found.values()
    worst, least = (max(g.values(), key=lambda e: e.value) for g in (gaps, narrow))
    said = ", ".join(f"{e.value:+.4f} ± {e.std_error:.4f} from {k}" for k, e in gaps.items())
    text = f"at {where}; {said}; in the narrow window {least.value:+.4f} ± {least.std_error:.4f} at {before}"
    measured = Estimate(
        worst.value,
        worst.std_error,
        worst.n,
        "energy distance of the slice's best node minus the best of corners and average",
    )
    return Verdict(worst.value < 0, measured, 0.0, text)


def linear(bench: Bench) -> Verdict:
    """Also asked: at most a quarter of the way from the best average to the optimum is left, since the loss has a floor of its own."""
    with tempfile.TemporaryDirectory() as folder:
        run = LinearRun(Path(folder), seed=bench.seed)
        model = run.model()
        basis = Basis.of(folder, model, 10)
        goal = FunctionObjective(lambda m, sampler, seeds: run.loss(m.net.weight), range(2), "loss")
        grid = TimeGrid((0.5, 0.25))
        start = basis.setting(Setting(OdeSampler(Heun(), grid)), ema_coefficients(10, 0.0))
        study = Study(model, start, goal, Evolution(basis), Budget(trials=1000), bench.seed)
        list(study)
        _, optimum = run.best_combination([s.state("net", None)["weight"] for s in basis.snapshots()])
        mean = min(run.loss(s.on(model)[0].net.weight) for s in settings_of(basis, start).values())
    over = study.best.value / optimum - 1
    left = (study.best.value - optimum) / (mean - optimum)
    text = (
        f"loss {study.best.value:.5f} found, {optimum:.5f} at best, {mean:.5f} of the best average, {study.trials[0].value:.5f} last; "
        f"{run.least():.5f} of any linear denoiser; {100 * left:.1f} % of the way from the average is left"
    )
    measured = Estimate(
        over, 0.0, len(study.trials), "relative excess of the evolved combination's loss over the exact optimum"
    )
    return Verdict(-1e-9 <= over < 0.05 and left < 0.25, measured, 0.05, text)


def counted(bench: Bench) -> Verdict:
    study = searched(bench)
    keys = [t.setting.key() for t in study.trials]
    values = np.minimum.accumulate([t.value for t in study.trials])
    falling = bool((np.diff(values) <= 0).all())
    want = len(study.trials) * N * START.nfe(study.model)
    text = f"{len(study.trials) - 1} trials of {TRIALS} allowed, {study.n_evals} evaluations counted, {want} by the formula"
    measured = Estimate(float(len(keys) - len(set(keys))), 0.0, len(keys), "candidates that were measured twice")
    holds = len(set(keys)) == len(keys) == TRIALS + 1 and falling and study.n_evals == want
    return Verdict(holds, measured, 0.0, text)


METHOD, MAIN, WEIGHTS = "method", "main results", "search results"
CLAIMS = (
    Claim("combining is linear, and one coefficient of 1 gives that snapshot to the bit", METHOD, algebra, 1.0),
    Claim("averages are combinations, and the first generation holds them", METHOD, averages_within, 0.1),
    Claim(
        "on held-out noise the combination is no worse than the best average and well below the last weights",
        MAIN,
        improvement,
        0.5,
    ),
    Claim("without negative coefficients the same search finds no better", WEIGHTS, negative, 0.7),
    Claim(
        "a slice through three snapshots has a point better than they and than the best average",
        "landscapes",
        slice_,
        0.3,
    ),
    Claim("for a linear denoiser the search comes within 5 % of the exact optimum", "ours", linear, 0.5),
    Claim("candidates are measured once, the budget is kept, the best so far never rises", METHOD, counted, 0.1),
)
