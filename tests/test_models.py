"""Denoisers and wrappers against the exact oracle: conversions, moving, guidance, skips, counting."""

import math

import pytest
import torch
from problems import PATHS, oracle, ring, times_of
from torch import nn

from explorer.errors import BadValue
from explorer.models import Guided, Moved, Oracle, Preconditioned, SkipTuned, as_denoiser, skip_schedule
from explorer.process import EDM, EDMPrecondition, FlowPrecondition, Linear, Trig, TrigFlowPrecondition

ASK = ("denoise", "eps", "velocity", "score")


class Affine(nn.Module):
    """A tiny float32 'network' that shows what it was given; skips are a plain factor."""

    n_skips = 3

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.3))

    def forward(self, x, noise, cond=None, skip_scale=None):
        out = self.scale * x + noise.reshape(-1, 1)
        if cond is not None:
            out = out + cond[:, None]
        if skip_scale is not None:
            out = out * skip_scale.reshape(-1, self.n_skips).prod(1, keepdim=True)
        return out


def affine_model(n_classes=0, precondition=None, path=None, t_range=(0.002, 80.0)):
    return Preconditioned(
        Affine(),
        path or EDM(),
        precondition or EDMPrecondition(),
        shape=(2,),
        n_classes=n_classes,
        t_range=t_range,
        name="affine",
    )


@pytest.fixture
def x():
    return torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_oracle_answers_agree_with_the_density(path, x):
    model, t = Oracle(ring(), path), path.time_at(0.5)
    x = x.requires_grad_()
    score = torch.autograd.grad(model.log_prob(x, t).sum(), x)[0]
    x = x.detach()
    alpha, sigma, alpha_dot, sigma_dot = path.at(t)
    torch.testing.assert_close(model.score(x, t), score)
    torch.testing.assert_close(model.eps(x, t), -sigma * score)
    torch.testing.assert_close(model.velocity(x, t), alpha_dot * model.denoise(x, t) - sigma_dot * sigma * score)


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_moving_a_model_is_asking_the_same_mixture_on_the_other_path(path, x):
    moved, native = oracle(EDM()).on(path), Oracle(ring(), path)
    for t in times_of(path, 5).tolist():
        for ask in ASK:
            torch.testing.assert_close(getattr(moved, ask)(x, t), getattr(native, ask)(x, t), rtol=1e-8, atol=1e-8)
    assert native.on(path) is native


@pytest.mark.parametrize("ask", ASK)
@pytest.mark.parametrize(
    "model",
    [
        oracle(EDM()), oracle(Linear()), Moved(oracle(EDM()), Linear()),
        Guided(Oracle(ring(labels=True)), 2.0, interval=(0.1, 3.0)), affine_model(),
        SkipTuned(affine_model(), rho_bottom=0.5), affine_model(precondition=FlowPrecondition(), path=Linear(), t_range=(0.0, 1.0)),
        affine_model(precondition=TrigFlowPrecondition(), path=Trig(0.5), t_range=(0.0, 1.5)),
    ],
    ids=lambda m: type(m).__name__ + type(m.path).__name__,
)  # fmt: skip
def test_a_number_and_a_tensor_of_times_give_the_same(model, ask, x):
    cond = torch.arange(6) % 2 if isinstance(model, Guided) else None
    t = model.path.time_at(0.6)
    one = getattr(model, ask)(x, t, cond)
    many = getattr(model, ask)(x, torch.full((6,), t, dtype=torch.float64), cond)
    assert one.dtype == torch.float64
    # affine models run in float32 inside
    torch.testing.assert_close(one, many, rtol=2e-6, atol=2e-6)


def test_preconditioned_is_the_edm_formula(x):
    model, sigma, sd = affine_model(), 0.7, 0.5
    c_skip, c_out = sd**2 / (sigma**2 + sd**2), sigma * sd / math.sqrt(sigma**2 + sd**2)
    raw = model.net((x / math.sqrt(sigma**2 + sd**2)).float(), torch.tensor([math.log(sigma) / 4])).double()
    denoised = c_skip * x + c_out * raw
    torch.testing.assert_close(model.denoise(x, sigma), denoised, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(model.velocity(x, sigma), (x - denoised) / sigma, rtol=1e-6, atol=1e-6)
    assert model.net.scale.dtype == torch.float32 and model.denoise(x, sigma).dtype == torch.float64


def test_as_denoiser_makes_a_function_a_model(x):
    model = as_denoiser(lambda x_t, t, cond: torch.zeros_like(x_t), "eps", Linear(), (2,))
    torch.testing.assert_close(model.denoise(x, 0.5), 2 * x)


def test_guidance_is_the_extrapolation_and_costs_two_calls_inside_its_interval_only(x):
    base = Oracle(ring(labels=True))
    guided, cond = Guided(base, 3.0, interval=(0.2, 2.0)), torch.arange(6)
    plain, null = base.denoise(x, 1.0, cond), base.denoise(x, 1.0)
    base.reset_calls()
    torch.testing.assert_close(guided.denoise(x, 1.0, cond), null + 3.0 * (plain - null))
    assert guided.n_calls == guided.calls_at(1.0) == 2
    guided.reset_calls()
    torch.testing.assert_close(guided.denoise(x, 5.0, cond), base.denoise(x, 5.0, cond))
    assert guided.calls_at(5.0) == 1 and guided.n_calls == 2  # one of them ours, on the shared base
    assert Guided(base, 1.0).calls_at(1.0) == 1


def test_a_guide_model_shared_with_the_base_is_counted_once(x):
    base = Oracle(ring(labels=True))
    guided = Guided(base, 2.0, guide=base.on(Linear()))
    guided.denoise(x, 1.0)
    assert guided.n_calls == 2


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Guided(oracle(), 2.0), "unconditional"),
        (lambda: Guided(Oracle(ring(labels=True)), 2.0).denoise(torch.zeros(1, 2), 1.0), "needs class labels"),
        (lambda: Guided(Oracle(ring(labels=True)), 2.0, interval=(3, 1)), "low <= high"),
        (lambda: SkipTuned(oracle(), rho_bottom=0.5), "skip connections"),
        (lambda: SkipTuned(affine_model(), [1.0, 0.5]), "3 skip connections, got 2"),
        (lambda: affine_model().denoise(torch.zeros(1, 2), 1.0, torch.zeros(1, dtype=torch.int64)), "unconditional"),
        (lambda: oracle().denoise(torch.zeros(1, 2), 1.0, torch.zeros(1, dtype=torch.int64)), "unconditional"),
        (lambda: oracle().denoise(torch.zeros(1, 3), 1.0), "expected states"),
        (lambda: oracle().on(Linear()).denoise(torch.zeros(1, 2), 1.0), "pure noise"),
    ],
)
def test_what_cannot_be_is_said_in_one_sentence(make, says):
    with pytest.raises(BadValue, match=says):
        make()


def test_skip_schedule_is_the_linear_formula():
    rho = skip_schedule(5, 0.5, 1.0)
    assert rho == pytest.approx([0.6, 0.7, 0.8, 0.9, 1.0]) and skip_schedule(5, 1.0, 0.5) != rho


def test_skip_scales_act_only_in_their_interval_and_one_is_the_identity(x):
    base = affine_model()
    assert torch.equal(SkipTuned(base, [1.0] * 3).denoise(x, 1.0), base.denoise(x, 1.0))
    tuned = SkipTuned(base, [0.5, 1.0, 1.0], interval=(0.1, 2.0))
    assert not torch.equal(tuned.denoise(x, 1.0), base.denoise(x, 1.0))
    assert torch.equal(tuned.denoise(x, 5.0), base.denoise(x, 5.0))
    per_sample = torch.tensor([1.0, 5.0, 1.0, 5.0, 5.0, 1.0], dtype=torch.float64)
    got = tuned.denoise(x, per_sample)
    for i, t in enumerate(per_sample.tolist()):
        torch.testing.assert_close(got[i : i + 1], tuned.denoise(x[i : i + 1], t), rtol=1e-6, atol=1e-6)


def test_sigma_range_is_the_same_on_every_path():
    model = affine_model()
    for path in PATHS:
        low, high = model.on(path).sigma_range
        assert low == pytest.approx(0.002, rel=1e-6) and high == pytest.approx(80.0, rel=1e-6)


def test_a_model_moved_to_another_dtype_keeps_answering(x):
    model = affine_model()
    before = model.denoise(x, 1.0)
    model.double()
    torch.testing.assert_close(model.denoise(x, 1.0), before, rtol=1e-6, atol=1e-6)
