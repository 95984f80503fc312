"""Networks of one's own, as they come: noise, velocity and data predictions of pictures, and what is said of those that do not fit."""

import doctest
import traceback

import pytest
import torch
from torch import nn

import explorer.models.base
from explorer import viz
from explorer.errors import BadValue, UnknownName
from explorer.live import metric_for
from explorer.models import Oracle, as_denoiser
from explorer.process import EDM, VP, GaussianMixture, Linear
from explorer.sampling import Heun, OdeSampler, TimeGrid, sample
from explorer.trajectory import record
from explorer.tuning import Budget, Coordinate, Nodes, Setting, Study, TruncationError

SHAPE = (3, 16, 16)
MEAN, STD = 0.3, 0.5
GAUSSIAN = GaussianMixture(torch.full((1, *SHAPE), MEAN), STD)


class Affine(nn.Module):
    """The exact prediction of a Gaussian, of parameters in single precision: what a network of one's own would have learnt."""

    def __init__(self, kind, path):
        super().__init__()
        self.kind, self.path, self.mean = kind, path, nn.Parameter(torch.tensor(MEAN))
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x.dtype, t.dtype, tuple(t.shape)))
        alpha, sigma = (f(t)[:, None, None, None] for f in (self.path.alpha, self.path.sigma))
        x0 = self.mean + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (x - alpha * self.mean)
        eps = (x - alpha * x0) / sigma
        return {"x0": x0, "eps": eps, "velocity": eps - x0}[self.kind]  # the straight path's


@pytest.mark.parametrize(
    ("kind", "path"), [("eps", VP()), ("velocity", Linear()), ("x0", EDM())], ids=lambda v: str(v)[:8]
)
def test_a_network_in_single_precision_is_taken_as_it_is(kind, path):
    net = Affine(kind, path)
    sampler = OdeSampler(Heun(), TimeGrid.karras(6, 0.01, 20.0, to_zero=False))
    got, exact = (sample(m, sampler, range(3)) for m in (as_denoiser(net, kind, path, SHAPE), Oracle(GAUSSIAN, path)))
    # float32 rounds each of eleven predictions to 1e-7 of values up to 20; between predictions at small sigma that grows tenfold
    torch.testing.assert_close(got, exact, rtol=0, atol=2e-4)
    assert got.dtype == torch.float64 and set(net.seen) == {(torch.float32, torch.float32, (3,))}


def test_labels_go_to_networks_that_have_classes_only():
    class Classes(nn.Module):
        def forward(self, x, t, y=None):
            return x * 0 if y is None else x * 0 + y[:, None]

    x, labels = torch.ones(2, 3), torch.tensor([1, 2])
    assert as_denoiser(Classes(), "x0", EDM(), (3,), n_classes=3).denoise(x, 1.0, labels)[:, 0].tolist() == [1, 2]
    assert as_denoiser(Classes(), "x0", EDM(), (3,)).denoise(x, torch.ones(2)).sum() == 0
    with pytest.raises(BadValue, match="n_classes is 3, but Affine.forward.* has no argument for the class"):
        as_denoiser(Affine("x0", EDM()), "x0", EDM(), SHAPE, n_classes=3)


@pytest.mark.parametrize(
    ("given", "error", "says"),
    [
        ({"kind": "epsilon"}, UnknownName, "Did you mean 'eps'"),
        ({"path": VP}, BadValue, r"expected VP\(\)"),
        ({"path": "vp"}, BadValue, r"path is 'vp', expected one of"),
        ({"shape": 16}, BadValue, r"shape is 16, expected that of one sample"),
        ({"shape": (3, 0)}, BadValue, "expected that of one sample"),
        ({"t_range": (0, 1000)}, BadValue, r"net\(x, 999 \* t\)"),
        ({"t_range": (1.0, 0.5)}, BadValue, "lowest, highest"),
        ({"function": lambda x, t: x}, BadValue, r"cannot be called as \(x, t, class\): wrap it"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_is_refused_at_the_door(given, error, says):
    with pytest.raises(error, match=says):
        as_denoiser(**{"function": lambda x, t, c: x, "kind": "eps", "path": VP(), "shape": SHAPE, **given})


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (lambda x, t, c: x[:, :1], r"returned a tensor \(2, 1, 16, 16\).* for x of shape \(2, 3, 16, 16\)"),
        (lambda x, t, c: torch.cat([x, x], 1), "learnt variance, return the first"),
        (lambda x, t, c: type("Output", (), {"sample": x})(), r"returned a Output .*: return its \.sample"),
        (lambda x, t, c: (x,), "returned a tuple"),
    ],
    ids=["fewer channels", "variance", "diffusers", "tuple"],
)
def test_a_result_that_is_no_prediction_is_refused(function, says):
    with pytest.raises(BadValue, match=says):
        as_denoiser(function, "eps", VP(), SHAPE).denoise(torch.zeros(2, *SHAPE), 0.5)


def test_an_error_inside_says_what_was_given_and_what_helps():
    net = nn.Conv2d(3, 3, 1)
    model = as_denoiser(lambda x, t, c: net(x), "eps", VP(), SHAPE, name="mine")
    with pytest.raises(RuntimeError) as caught:
        model.denoise(torch.zeros(2, *SHAPE, dtype=torch.float64), 0.5)
    said = "".join(traceback.format_exception(caught.value))
    assert (
        "mine(x (2, 3, 16, 16) torch.float64, t 0.5, class None)" in said
        and "a network passed to as_denoiser as it is" in said
    )


def test_the_example_runs():
    assert doctest.testmod(explorer.models.base).failed == 0


@pytest.mark.parametrize("path", [VP(), Linear(), EDM()], ids=str)
def test_without_a_range_given_grids_knobs_and_searches_have_one(path):
    model = as_denoiser(Affine("x0", path), "x0", path, SHAPE)
    low, high = model.sigma_range
    assert low == pytest.approx(2e-3) and 80 <= high < 1001
    assert TimeGrid.karras(5, low, high).n_steps == 5
    start = Setting(OdeSampler(Heun(), TimeGrid.karras(3, low, high)))
    study = Study(model, start, TruncationError(model, range(4)), Coordinate(Nodes()), Budget(trials=2))
    assert all(trial.value > 0 for trial in study)
    unnamed = as_denoiser(
        lambda x, t, c: x, "x0", Linear(), SHAPE, t_range=(0.0, 1.0)
    )  # also where the range begins with the data
    assert Nodes().box(unnamed, start).dims[0].low > 0


def test_a_metric_asks_for_the_data_of_a_model_that_has_none():
    with pytest.raises(
        BadValue, match=r"mine does not say which data .* metric_for\(model, data=\.\.\.\).*\(3, 16, 16\)"
    ):
        metric_for(as_denoiser(Affine("x0", EDM()), "x0", EDM(), SHAPE, name="mine"))


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"start": OdeSampler(Heun(), TimeGrid((1.0, 0.0)))}, "start is a OdeSampler, expected a Setting"),
        ({"tuner": Nodes()}, "tuner is a Nodes, expected a Tuner"),
        ({"budget": 5}, "budget is a int, expected a Budget"),
        ({"objective": None}, "objective is a NoneType, expected a Objective"),
    ],
    ids=["start", "tuner", "budget", "objective"],
)
def test_a_search_says_which_of_its_parts_is_another(given, says):
    model = Oracle(GAUSSIAN)
    start = Setting(OdeSampler(Heun(), TimeGrid((1.0, 0.0))))
    whole = {
        "start": start,
        "objective": TruncationError(model, range(2)),
        "tuner": Coordinate(Nodes()),
        "budget": Budget(trials=2),
    }
    with pytest.raises(BadValue, match=says):
        Study(model, **{**whole, **given})


def test_a_filmstrip_says_which_samples_are_not_there():
    run = record(Oracle(GAUSSIAN), OdeSampler(Heun(), TimeGrid((1.0, 0.1))), range(2), keep=("x", "x0_hat"))
    with pytest.raises(BadValue, match=r"samples \[7\] are not in this recording of 2"):
        viz.filmstrip(run, samples=(0, 7))
