"""Samplers as values, the stochastic solvers against exact recursions, the ablation of EDM against its algorithm written out."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from problems import Watcher, oracle, ring

from explorer.errors import BadValue, UnknownName
from explorer.models import Oracle
from explorer.process import (
    EDM,
    PATHS,
    VE,
    VP,
    Factored,
    GaussianMixture,
    IDDPMPrecondition,
    Linear,
)
from explorer.sampling import (
    SAMPLERS,
    SOLVERS,
    AdaptiveSampler,
    EulerMaruyama,
    Heun,
    OdeSampler,
    PredictorCorrector,
    Restart,
    RestartSampler,
    Seeds,
    TimeGrid,
    sample,
    sampler_from_dict,
    sampler_from_json,
)
from explorer.sampling.ablation import (
    COLUMNS,
    EPSILON,
    ablation_grid,
    ablation_path,
    ablation_sampler,
    default_range,
    fitted_vp,
)
from explorer.sampling.solvers import DDIM, Euler

GRID = TimeGrid.karras(8, 0.02, 20.0)
NEW_PATHS = [VE(), *(Factored(a, b) for a in ("linear", "ve", "vp") for b in ("none", "vp"))]
RANGE = torch.logspace(-2, 2, 60, dtype=torch.float64)


# Samplers as values

EXAMPLES = [
    OdeSampler(Heun(), GRID, VE()),
    OdeSampler(PredictorCorrector(0.1, 2, 0.5), GRID, Factored("ve", "vp")),
    RestartSampler(GRID, (Restart(3, 2, 0.3, 2.0), Restart(2, 1, 4.0, 9.0, 5.0)), DDIM(), 1.003, Linear()),
    AdaptiveSampler(TimeGrid.explicit((0.9, 0.3, 0.0), "t"), "bosh3", 1e-3, 1e-4, "batch", 99, Linear()),
]


@pytest.mark.parametrize("sampler", EXAMPLES, ids=lambda s: type(s).__name__)
def test_a_sampler_survives_json_and_says_what_it_is(sampler):
    data = json.loads(sampler.to_json())
    assert sampler_from_dict(data) == sampler and hash(sampler_from_dict(data)) == hash(sampler)
    assert SAMPLERS[data["sampler"]] is type(sampler)


@given(st.sampled_from(EXAMPLES), st.data())
def test_a_text_with_a_field_missing_or_too_many_is_refused_in_words(sampler, data):
    fields = json.loads(sampler.to_json())
    name = data.draw(st.sampled_from(sorted(set(fields) - {"path", "sampler", "s_noise"})))
    if data.draw(st.booleans()) and name in ("grid", "solver", "intervals"):
        with pytest.raises(BadValue, match="does not describe a sampler"):
            sampler_from_dict({k: v for k, v in fields.items() if k != name})
    else:
        for wrong in ({"name": "heun", "x": 1}, "seven", None):
            with pytest.raises((BadValue, UnknownName)):
                sampler_from_dict({**fields, name: wrong})


def test_unknown_samplers_and_other_texts_are_refused():
    with pytest.raises(UnknownName, match="Did you mean 'restart'.*adaptive.*ode, restart, scale-time"):
        sampler_from_dict({"sampler": "restrat"})
    with pytest.raises(UnknownName, match="unknown sampler None"):
        sampler_from_dict({})
    with pytest.raises(BadValue, match="got list"):
        sampler_from_json("[1]")


# Paths


@pytest.mark.parametrize("path", NEW_PATHS, ids=str)
def test_the_new_paths_keep_the_rules_of_a_path(path):
    """Derivatives against autodiff, time the inverse of sigma / alpha, data at t = 0."""
    t = path.time(RANGE).requires_grad_()
    for f, f_dot in ((path.alpha, path.alpha_dot), (path.sigma, path.sigma_dot)):
        y = f(t)
        auto = torch.autograd.grad(y.sum(), t)[0] if y.requires_grad else torch.zeros_like(t)
        torch.testing.assert_close(f_dot(t.detach()), auto, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(path.ratio(t.detach()), RANGE, rtol=1e-9, atol=0)
    torch.testing.assert_close(path.sigma(t.detach()) / path.alpha(t.detach()), RANGE, rtol=1e-9, atol=0)
    assert path.at(0.0)[:2] == (1.0, 0.0) and path.time_at(0.0) == 0.0
    assert PATHS["ve" if path == VE() else "factored"] is type(path)


def test_factored_paths_are_the_named_ones_where_those_exist():
    for path, same in (
        (Factored("linear", "none"), EDM()),
        (Factored("ve", "none"), VE()),
        (Factored("vp", "vp"), VP()),
    ):
        t = same.time(RANGE)
        for name in ("alpha", "sigma", "alpha_dot", "sigma_dot", "ratio"):
            torch.testing.assert_close(getattr(path, name)(t), getattr(same, name)(t), rtol=1e-11, atol=1e-14)
        torch.testing.assert_close(path.time(RANGE), t, rtol=1e-12, atol=0)
        assert path.t_max == same.t_max
    scaled = Factored("linear", "vp")
    t = scaled.time(RANGE)
    torch.testing.assert_close(scaled.alpha(t) ** 2 + scaled.sigma(t) ** 2, torch.ones_like(t), rtol=1e-12, atol=0)
    with pytest.raises(UnknownName, match="linear, ve, vp"):
        Factored("cosine")
    with pytest.raises(UnknownName, match="none, vp"):
        Factored("ve", "ve")


# Stochastic solvers

STD = 0.5


class OneAtATime(Seeds):
    """Row k + 1 is 1 in the k-th draw; all else is 0."""

    def __init__(self, n: int):
        super().__init__(range(n))
        self.drawn = 0

    def normal(self, shape, device=None, dtype=torch.float64):
        out = torch.zeros(len(self), *shape, dtype=dtype)
        self.drawn += 1
        out[self.drawn] = 1
        return out


def gain_and_noise(solver, model, t: float, t_next: float) -> tuple[float, float]:
    """(A, B) of one step x_next = A x + B z on Gaussian data, where every solver is linear; B adds its draws in quadrature."""
    x = torch.zeros(8, 1, dtype=torch.float64)
    x[0] = 1
    out = solver.step(model, x, t, t_next, None, rng=OneAtATime(8)).x[:, 0]
    return float(out[0]), float(out[1:].square().sum().sqrt())


def end_variance(solver, path, n: int, low=0.2, high=10.0) -> tuple[float, float]:
    """(variance that a run of n steps ends with, exact) for data N(0, STD^2), started from the true marginal: no sampling error."""
    model = Oracle(GaussianMixture(torch.zeros(1, 1), STD), path)
    times = TimeGrid.karras(n, low, high, 3.0, to_zero=False).on(path)
    marginal = lambda t: (path.at(t)[0] * STD) ** 2 + path.at(t)[1] ** 2  # noqa: E731
    variance = marginal(times[0])
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        a, b = gain_and_noise(solver, model, t, t_next)
        variance = a * a * variance + b * b
    return variance, marginal(times[-1])


@pytest.mark.parametrize("path", [EDM(), VP(), Linear(), VE()], ids=str)
@pytest.mark.parametrize("strength", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("make", [EulerMaruyama, lambda s: PredictorCorrector(0.16, 0, s)], ids=["em", "pc"])
def test_weak_order_one_in_the_variance(make, strength, path):
    errors = [abs(got - exact) / exact for got, exact in (end_variance(make(strength), path, n) for n in (100, 200))]
    slopes = [math.log2(a / b) for a, b in zip(errors[:-1], errors[1:], strict=True)]
    assert errors[-1] < 0.1 and all(0.75 < s < 1.3 for s in slopes), (errors, slopes)


@pytest.mark.parametrize("path", [EDM(), VP(), Linear()], ids=str)
@pytest.mark.parametrize("strength", [0.0, 1.0, 4.0])
def test_one_step_is_the_written_out_formula(strength, path):
    """Coefficients from f and g^2 by finite differences of alpha and sigma, the score of the marginal in closed form."""
    model = Oracle(GaussianMixture(torch.zeros(1, 1), STD), path)
    t, t_next = path.time_at(1.3), path.time_at(1.1)
    a, b = gain_and_noise(EulerMaruyama(strength), model, t, t_next)
    h = 1e-5
    f = (math.log(path.at(t + h)[0]) - math.log(path.at(t - h)[0])) / (2 * h)
    g2 = path.at(t)[0] ** 2 * (path.ratio_at(t + h) ** 2 - path.ratio_at(t - h) ** 2) / (2 * h)
    score = -1 / ((path.at(t)[0] * STD) ** 2 + path.at(t)[1] ** 2)
    dt = t_next - t
    assert a == pytest.approx(1 + dt * (f - 0.5 * (1 + strength) * g2 * score), rel=1e-7)
    assert b == pytest.approx(math.sqrt(strength * g2 * -dt), rel=1e-7)


def test_the_corrector_pulls_towards_the_true_marginal():
    """A coarse predictor leaves too little variance on EDM's path; Langevin steps give some of it back, exact as their size goes to 0."""
    errors = {}
    for n in (0, 1, 4):
        got, exact = end_variance(PredictorCorrector(0.16, n, 1.0), EDM(), 24)
        errors[n] = abs(got - exact) / exact
    assert errors[4] < errors[1] < errors[0]
    model, t = Oracle(GaussianMixture(torch.zeros(1, 1), STD)), 0.7
    # x += 2 snr^2 (D - x) + 2 snr sigma z: stationary variance marginal / (1 - e / (2 marginal)), e = 2 (snr sigma)^2
    for snr in (0.3, 0.1):
        predictor = gain_and_noise(PredictorCorrector(snr, 0, 0.0), model, t * (1 + 1e-12), t)[0]
        a, b = gain_and_noise(PredictorCorrector(snr, 1, 0.0), model, t * (1 + 1e-12), t)
        marginal, e = STD**2 + t**2, 2 * (snr * t) ** 2
        assert predictor == pytest.approx(1.0) and b * b == pytest.approx(2 * e)
        assert b * b / (1 - a * a) == pytest.approx(marginal / (1 - e / (2 * marginal)))


@pytest.mark.parametrize(
    "solver", [EulerMaruyama(), EulerMaruyama(0.3), PredictorCorrector(), PredictorCorrector(0.1, 2, 0.0)], ids=str
)
def test_a_stochastic_run_keeps_a_mixture(solver):
    """Mean square radius and mode shares of whole runs against the data, within sampling error and the bias of 96 first-order steps."""
    model, n = oracle(), 1200
    x = sample(model, OdeSampler(solver, TimeGrid.karras(96, 0.01, 20.0)), range(n), batch=n)
    radius = x.square().sum(1)
    want, spread = 0.66**2 + 2 * 0.06**2, 2 * 0.66 * 0.06
    assert radius.mean().item() == pytest.approx(want, abs=4.5 * spread / math.sqrt(n) + 0.02)
    share = torch.cdist(x, model.mixture.means).argmin(1).bincount(minlength=8).double() / n
    assert (share - 1 / 8).abs().max() < 4.5 * math.sqrt(7 / 64 / n)


def test_without_noise_they_are_the_ode():
    x = Seeds(range(6)).normal((2,))
    run = lambda solver, path=None: OdeSampler(solver, GRID, path).sample(oracle(), x)  # noqa: E731
    torch.testing.assert_close(run(EulerMaruyama(0.0)), run(Euler()), rtol=0, atol=1e-12)
    grid = TimeGrid.karras(8, 0.02, 20.0, to_zero=False)
    vp = lambda solver: OdeSampler(solver, grid, VP()).sample(oracle(), x)  # noqa: E731
    assert torch.equal(vp(EulerMaruyama(0.0)), vp(Euler()))
    assert not EulerMaruyama(0.0).stochastic and EulerMaruyama().stochastic
    assert not PredictorCorrector(0.1, 0, 0.0).stochastic and PredictorCorrector(0.1, 1, 0.0).stochastic


@pytest.mark.parametrize("correct", [0, 1, 3])
@pytest.mark.parametrize("to_zero", [True, False])
def test_corrector_steps_are_counted(correct, to_zero):
    model, grid = Watcher(oracle()), TimeGrid.karras(5, 0.1, 10.0, to_zero=to_zero)
    sampler = OdeSampler(PredictorCorrector(0.16, correct), grid)
    sampler.sample(model, Seeds(range(2)).normal((2,)), rng=Seeds(range(2)))
    assert len(model.asked) == sampler.nfe(model) == 5 + correct * (4 if to_zero else 5)


def test_noise_comes_from_the_seeds_and_differs_between_steps():
    model, sampler = oracle(), OdeSampler(EulerMaruyama(), GRID)
    noise = Seeds(range(4)).normal((2,))
    run = lambda ids: sampler.sample(model, noise, rng=Seeds(ids))  # noqa: E731
    assert torch.equal(run([1, 2, 3, 4]), run([1, 2, 3, 4]))
    other = run([1, 2, 9, 4])
    assert torch.equal(other[[0, 1, 3]], run([1, 2, 3, 4])[[0, 1, 3]]) and not torch.equal(
        other[2], run([1, 2, 3, 4])[2]
    )


@pytest.mark.parity
def test_the_predictor_is_that_of_diffusers():
    """The mean of ScoreSdeVeScheduler's predictor, on its own sigmas; its clock and float32 tables allow 1e-4."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.ScoreSdeVeScheduler(num_train_timesteps=50, sigma_min=0.1, sigma_max=20.0)
    scheduler.set_timesteps(50)
    scheduler.set_sigmas(50)
    model, x = oracle(), 5 * Seeds(range(4)).normal((2,)).float()[:, :, None, None]
    for k in (5, 20, 40):
        t = scheduler.timesteps[k]
        at = int(t * 49)
        sigma, below = float(scheduler.discrete_sigmas[at]), float(scheduler.discrete_sigmas[at - 1])
        score = model.score(x[:, :, 0, 0].double(), sigma).float()[:, :, None, None]
        theirs = scheduler.step_pred(score, t, x, generator=torch.Generator().manual_seed(0)).prev_sample_mean
        solver = PredictorCorrector(0.16, 0, 1.0)
        ours = solver.step(model, x[:, :, 0, 0].double(), sigma, below, None, rng=Silent(range(4))).x
        torch.testing.assert_close(ours.float(), theirs[:, :, 0, 0], rtol=1e-4, atol=1e-4)


class Silent(Seeds):
    def normal(self, shape, device=None, dtype=torch.float64):
        return torch.zeros(len(self), *shape, dtype=dtype)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: EulerMaruyama(-1.0), "strength of the noise"),
        (lambda: EulerMaruyama(math.nan), "strength of the noise"),
        (lambda: PredictorCorrector(strength=math.inf), "strength of the noise"),
        (lambda: PredictorCorrector(snr=0.0), "signal-to-noise ratio"),
        (lambda: PredictorCorrector(snr=1.0), "signal-to-noise ratio"),
        (lambda: PredictorCorrector(n_corrector=1.5), "whole number"),
        (lambda: OdeSampler(EulerMaruyama(), GRID).sample(oracle(), torch.zeros(1, 2)), "seeds of its samples"),
        (lambda: OdeSampler(PredictorCorrector(), GRID).sample(oracle(), torch.zeros(1, 2)), "seeds of its samples"),
    ],
)
def test_impossible_noise_is_refused(make, says):
    with pytest.raises(BadValue, match=says):
        make()


@pytest.mark.parametrize("solver", [EulerMaruyama(), PredictorCorrector()], ids=str)
def test_pure_noise_has_no_reverse_sde(solver):
    with pytest.raises(BadValue, match="start the grid at a finite sigma"):
        OdeSampler(solver, TimeGrid((1.0, 0.5, 0.1), "t")).sample(
            oracle(Linear()), torch.zeros(1, 2, dtype=torch.float64), rng=Seeds([0])
        )


# The ablation of EDM


def algorithm_1(denoise, x, n: int, solver: str, steps: str, schedule: str, scaling: str) -> np.ndarray:
    """Karras et al. 2022, Alg. 1 in numpy with the formulas of Table 1, written without anything of the package; denoise(x, sigma)."""
    i = np.arange(n)
    vp = lambda t: np.sqrt(np.exp(19.9 * t**2 / 2 + 0.1 * t) - 1)  # noqa: E731
    if steps == "vp":
        sigmas = vp(1 + i / (n - 1) * (1e-3 - 1))
    elif steps == "ve":
        sigmas = np.sqrt(100.0**2 * (0.02**2 / 100.0**2) ** (i / (n - 1)))
    elif steps == "iddpm":
        abar = lambda j: np.sin(0.5 * np.pi * j / (1000 * 1.008)) ** 2  # noqa: E731
        u = np.zeros(1001)
        for j in range(1000, 0, -1):
            u[j - 1] = np.sqrt((u[j] ** 2 + 1) / max(abar(j - 1) / abar(j), 0.001) - 1)
        sigmas = u[np.floor(8 + (999 - 8) / (n - 1) * i + 0.5).astype(int)]
    else:
        sigmas = (80 ** (1 / 7) + i / (n - 1) * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigma, sigma_dot, inverse = {
        "linear": (lambda t: t, lambda t: 1.0, lambda s: s),
        "ve": (np.sqrt, lambda t: 0.5 / np.sqrt(t), lambda s: s**2),
        "vp": (
            vp,
            lambda t: 0.5 * (19.9 * t + 0.1) * (vp(t) + 1 / vp(t)),
            lambda s: (np.sqrt(0.1**2 + 2 * 19.9 * np.log(s**2 + 1)) - 0.1) / 19.9,
        ),
    }[schedule]
    if scaling == "none":
        s, s_dot = lambda t: 1.0, lambda t: 0.0
    else:
        s, s_dot = lambda t: 1 / np.sqrt(1 + sigma(t) ** 2), lambda t: -sigma(t) * sigma_dot(t) * s(t) ** 3
    t = np.append(inverse(sigmas), 0.0)
    x = x * sigma(t[0]) * s(t[0])
    slope = lambda x, t: (  # noqa: E731
        (sigma_dot(t) / sigma(t) + s_dot(t) / s(t)) * x - sigma_dot(t) * s(t) / sigma(t) * denoise(x / s(t), sigma(t))
    )
    for a, b in zip(t[:-1], t[1:], strict=True):
        d = slope(x, a)
        x_next = x + (b - a) * d
        if solver == "heun" and b > 0:
            x_next = x + (b - a) * (d + slope(x_next, b)) / 2
        x = x_next
    return x


def mixture_denoiser(mixture):
    """E[x0 | x0 + sigma eps] of an isotropic mixture in numpy."""
    means, var = mixture.means.numpy(), float(mixture.variances[0])

    def denoise(x, sigma):
        log = -((x[:, None] - means) ** 2).sum(-1) / (2 * (var + sigma**2))
        r = np.exp(log - log.max(1, keepdims=True))
        r /= r.sum(1, keepdims=True)
        return (var * x + sigma**2 * (r @ means)) / (var + sigma**2)

    return denoise


@pytest.mark.parametrize("solver", ["euler", "heun"])
@pytest.mark.parametrize("steps", ["vp", "ve", "iddpm", "edm"])
@pytest.mark.parametrize("schedule", ["vp", "ve", "linear"])
@pytest.mark.parametrize("scaling", ["vp", "none"])
def test_every_combination_is_algorithm_1(solver, steps, schedule, scaling):
    mixture, noise = ring(), Seeds(range(5)).normal((2,))
    sampler = ablation_sampler(9, solver=solver, steps=steps, schedule=schedule, scaling=scaling)
    got = sampler.sample(Oracle(mixture), noise).numpy()
    want = algorithm_1(mixture_denoiser(mixture), noise.numpy(), 9, solver, steps, schedule, scaling)
    # rounding only, but the softmax of a ring of narrow modes and the differences of large states amplify it
    np.testing.assert_allclose(got, want, rtol=1e-7, atol=1e-7)
    assert sampler.nfe(oracle()) == (9 if solver == "euler" else 17)
    assert sampler_from_json(sampler.to_json()) == sampler


def test_the_edm_column_is_the_edm_sampler_bit_for_bit():
    noise = Seeds(range(20)).normal((2,))
    plain = OdeSampler(Heun(), TimeGrid.karras(18, 0.002, 80.0))
    column = ablation_sampler(18, **COLUMNS["edm"])
    assert torch.equal(column.sample(oracle(), noise), plain.sample(oracle(), noise))
    explicit = OdeSampler(Heun(), TimeGrid.karras(18, 0.002, 80.0), EDM())
    assert column == explicit


def test_columns_of_table_1_and_their_ranges():
    for name, column in COLUMNS.items():
        sampler = ablation_sampler(12, **column)
        assert sampler.grid.n_steps == 12
        low, high = default_range(name)
        assert sampler.grid.times[0] == pytest.approx(high) and sampler.grid.times[-2] == pytest.approx(low)
        assert type(sampler.path) is {"vp": VP, "ve": VE}.get(name, EDM)
        assert type(sampler.solver) is (Heun if name == "edm" else Euler)
    assert default_range("vp") == pytest.approx((0.01048, 152.2), rel=1e-3)
    levels = IDDPMPrecondition().levels().tolist()
    assert default_range("iddpm") == pytest.approx((levels[999], levels[8]))
    assert set(ablation_grid(60, "iddpm").times) <= set(levels)
    assert ablation_sampler(6, solver="heun", alpha=0.5).solver.alpha == 0.5
    assert ablation_sampler(6, solver=DDIM()).solver == DDIM()


def test_schedules_end_at_the_same_points_as_steps_shrink():
    """Second order in all: from 48 to 96 steps the distance to EDM's fine run falls by about 4, to rounding of the start at sigma = 80."""
    noise, model = Seeds(range(16)).normal((2,)), Oracle(GaussianMixture([[0.5, 0.0], [-0.4, 0.3], [0.0, -0.6]], 0.4))
    fine = ablation_sampler(768, steps="edm").sample(model, noise)
    for schedule, scaling in (("vp", "vp"), ("linear", "vp"), ("vp", "none"), ("ve", "none"), ("ve", "vp")):
        errors = []
        for n in (48, 96):
            x = ablation_sampler(n, schedule=schedule, scaling=scaling).sample(model, noise)
            errors.append((x - fine).square().mean().sqrt().item())
        assert errors[1] < 0.02 and errors[1] < errors[0] / 2.5, (schedule, scaling, errors)


@given(st.floats(0.005, 0.05), st.floats(5.0, 200.0))
def test_fitted_betas_lead_from_end_to_end(low, high):
    try:
        path = VP(*fitted_vp(low, high))
    except BadValue as refused:
        assert "no linear beta" in str(refused)
        return
    assert path.ratio_at(EPSILON) == pytest.approx(low, rel=1e-6) and path.ratio_at(1.0) == pytest.approx(
        high, rel=1e-6
    )
    grid = ablation_grid(10, "vp", sigma_min=low, sigma_max=high)
    assert grid.times[0] == pytest.approx(high, rel=1e-6) and grid.times[-2] == pytest.approx(low, rel=1e-6)


def test_fitting_the_default_range_gives_the_betas_of_the_table():
    assert fitted_vp(*default_range("vp")) == pytest.approx((0.1, 19.9), rel=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: ablation_sampler(5, solver="rk4"), UnknownName, "euler, heun"),
        (lambda: ablation_sampler(5, steps="karras"), UnknownName, "edm, iddpm, ve, vp"),
        (lambda: ablation_sampler(5, schedule="cosine"), UnknownName, "linear, ve, vp"),
        (lambda: ablation_sampler(5, scaling="edm"), UnknownName, "none, vp"),
        (lambda: ablation_grid(0, "vp"), BadValue, "at least 1"),
        (lambda: ablation_grid(993, "iddpm"), BadValue, "more than the 992 levels"),
        (lambda: ablation_grid(5, "iddpm", sigma_min=90.0), BadValue, "below sigma_max"),
        (lambda: ablation_grid(5, "ve", sigma_min=200.0), BadValue, "below sigma_max"),
        (lambda: ablation_sampler(5, schedule="vp", sigma_min=1e-6), BadValue, "no linear beta"),
    ],
)
def test_impossible_ablations_are_refused(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize("steps", ["vp", "ve", "iddpm", "edm"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_very_few_steps_are_fine(steps, n):
    x = ablation_sampler(n, steps=steps, schedule="ve").sample(oracle(), Seeds(range(3)).normal((2,)))
    assert torch.isfinite(x).all()


def test_names_of_solvers_are_unique_and_every_solver_can_be_stored():
    assert len(set(SOLVERS.values())) == len(SOLVERS)
    for cls in SOLVERS.values():
        sampler = OdeSampler(cls(), GRID)
        assert sampler_from_json(sampler.to_json()) == sampler


def test_ablation_path_of_an_unnamed_pair_is_factored():
    assert ablation_path("vp", "none") == Factored("vp", "none") and ablation_path("vp", "vp", beta_d=9.0) == VP(
        0.1, 9.0
    )
