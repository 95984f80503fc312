"""The sampler's knobs: what they build, what they refuse, and that what is copied out of the page reproduces it."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import subprocess
import sys

import param
import pytest
import torch

from explorer.errors import BadFile, BadValue, UnknownName
from explorer.knobs import GROUPS, SamplerKnobs, guides_for, names
from explorer.live import metric_for, quality
from explorer.models import Guided, LayersLeftOut, Oracle, Preconditioned, SkipTuned
from explorer.models.bundled import asset_folders, load
from explorer.nets.unet import UNet
from explorer.process import EDM, EDMPrecondition, GaussianMixture
from explorer.sampling import GRIDS, SOLVERS, Restart, RestartSampler, ScaleTimeSampler, Seeds, TimeGrid, sample


@pytest.fixture(scope="module")
def unet() -> Preconditioned:
    """A class-conditional U-Net with every weight alive, untrained."""
    torch.manual_seed(0)
    net = UNet(shape=(1, 8, 8), channels=8, mult=(1, 2), blocks=1, n_classes=3)
    for p in net.parameters():
        p.data = 0.2 * torch.randn_like(p)
    return Preconditioned(
        net.eval(), EDM(), EDMPrecondition(0.5), shape=(1, 8, 8), t_range=(0.01, 60.0), n_classes=3, name="unet"
    )


@pytest.fixture(scope="module")
def plain() -> Oracle:
    """A model of points without classes and without skips."""
    return Oracle(GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), 0.1), name="plain", t_range=(0.002, 80.0))


def test_every_knob_is_declared_in_full():
    assert [name for members in GROUPS.values() for name in members] + ["seed"] == names()
    for name in names():
        p = SamplerKnobs.param[name]
        assert len(p.doc) > 20, name
        if isinstance(p, param.Number):
            assert None not in p.bounds, name
            assert p.default is None or p.bounds[0] <= p.default <= p.bounds[1], name


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("grid", GRIDS)
def test_every_solver_and_grid_builds_and_costs_what_it_says(solver, grid, plain):
    model, sampler = SamplerKnobs.for_model(plain, solver=solver, grid=grid, n_steps=3).build(plain)
    assert model is plain
    assert type(sampler.solver) is SOLVERS[solver]
    assert sampler.grid.n_steps == 3 and sampler.grid.times[-1] == 0
    plain.reset_calls()
    assert torch.isfinite(sample(model, sampler, Seeds(range(4)))).all()
    assert plain.n_calls == sampler.nfe(model)


def test_knobs_reach_the_solver_the_grid_and_the_wrappers(unet):
    knobs = SamplerKnobs(
        solver="edm-stochastic", s_churn=7, s_min=0.2, s_max=30, s_noise=1.01, rho=3, sigma_min=0.05, sigma_max=40,
        n_steps=6, guidance=2.5, guidance_lo=0.3, guidance_hi=5, rho_bottom=0.6,
    )  # fmt: skip
    model, sampler = knobs.build(unet)
    assert sampler.grid == TimeGrid.karras(6, 0.05, 40.0, 3.0)
    assert (sampler.solver.s_churn, sampler.solver.s_min, sampler.solver.s_max, sampler.solver.s_noise) == (
        7,
        0.2,
        30,
        1.01,
    )
    assert isinstance(model, Guided) and model.scale == 2.5 and model.interval == (0.3, 5.0)
    assert isinstance(model.base, SkipTuned) and model.base.scales[-1] == 1.0 and model.base.scales[0] < 1
    assert SamplerKnobs(guidance=2).build(unet)[0].interval == (0.0, float("inf"))
    assert SamplerKnobs(solver="alpha2", alpha=0.5).build(unet)[1].solver.alpha == 0.5


@pytest.mark.parametrize(
    ("values", "repr_"),
    [
        ({"solver": "unipc", "order": 2, "variant": "bh1"}, "UniPC(order_max=2, variant='bh1', corrector=True)"),
        ({"solver": "unipc"}, "UniPC(order_max=3, variant='bh2', corrector=True)"),
        ({"solver": "deis", "order": 4, "variant": "log-rho"}, "DEIS(order_max=4, variant='log-rho')"),
        ({"solver": "ab", "order": 1}, "AdamsBashforth(order_max=1)"),
        ({"solver": "ipndm"}, "IPNDM(order_max=3)"),
        ({"solver": "dpmpp-3m", "variant": "released"}, "DPMpp3M(variant='released')"),
        (
            {"solver": "dpmpp-3m-sde", "eta": 0.5, "s_noise": 1.01},
            "DPMpp3MSDE(eta=0.5, s_noise=1.01, variant='exact')",
        ),
        ({"solver": "dpmpp-sde", "eta": 0.25, "s_noise": 1.0}, "DPMppSDE(eta=0.25, s_noise=1.0, r=0.5)"),
        ({"solver": "dpmpp-2m", "order": 4, "eta": 0.2}, "DPMpp2M()"),
        ({"solver": "dpm-solver-3", "order": 1}, "DPMSolver3()"),
    ],
)
def test_knobs_of_a_method_reach_its_fields(values, repr_, plain):
    knobs = SamplerKnobs.for_model(plain, **values)
    assert repr(knobs.build(plain)[1].solver) == repr_
    assert f"ex.{repr_}" in knobs.to_python("oracle-8gaussians")


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_knob_acts_exactly_where_the_solver_has_the_field(solver, plain):
    """Turned, an active knob makes another solver and another key; one at rest neither."""
    base = SamplerKnobs.for_model(plain, solver=solver)
    at_rest = base.inapplicable(plain)
    turned = {"order": 2, "alpha": 0.3, "eta": 0.4, "s_churn": 7, "s_min": 0.3, "s_max": 33, "s_noise": 1.02}
    if variants := getattr(SOLVERS[solver], "variants", ()):
        turned["variant"] = variants[-1]
    for knob, value in turned.items():
        other = SamplerKnobs.for_model(plain, solver=solver, **{knob: value})
        acts = other.build(plain)[1] != base.build(plain)[1]
        assert acts == (knob not in at_rest) == (knob in base.active()) == (other.key() != base.key()), knob
        assert acts or solver in at_rest[knob]
        assert (other.describe(plain) != base.describe(plain)) == acts
        assert (f"--{knob.replace('_', '-')}" in other.to_cli("m")) == acts
    assert ("variant" in at_rest) == (not variants)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_model_that_no_list_names_guides_by_its_file_or_run_folder(what, tmp_path):
    [here] = [f for folder in asset_folders("models") if (f := folder / "digits-uncond.safetensors").is_file()]
    for file in (here, here.with_suffix(".json")):
        shutil.copy(file, tmp_path)
    name = str(tmp_path / here.name if what == "file" else tmp_path)
    model, named = load("digits"), SamplerKnobs(guide="digits-uncond", guide_weight=1.5, n_steps=3)
    knobs = SamplerKnobs(guide=name, guide_weight=1.5, n_steps=3)
    assert knobs.fitted(model)[0].guide == name
    noise = Seeds(range(2)).normal(model.shape)
    one, other = (sampler.sample(made, noise) for made, sampler in (k.build(model) for k in (named, knobs)))
    assert torch.equal(one, other)
    with pytest.raises(BadValue, match="cannot guide"):
        knobs.build(load("toy-moons"))
    with pytest.raises(UnknownName, match="guide"):
        SamplerKnobs(guide=str(tmp_path / "nothing"))


def test_a_worse_model_guides_alone_or_beside_the_missing_class():
    """The wrapped model is main + (w - 1)(main - worse), and the same with the class left out added."""
    model, worse = load("digits"), load("digits-uncond")
    assert "digits-uncond" in guides_for(model) and "digits" not in guides_for(model)
    assert "digits" not in guides_for(worse), "a guide that needs classes cannot guide what has none"
    assert "toy-8gaussians-1rf" in guides_for(load("toy-8gaussians")) and "toy-moons" not in guides_for(
        load("toy-8gaussians")
    )
    x, t, cond = torch.randn(3, *model.shape, dtype=torch.float64), 0.7, torch.tensor([1, 2, 3])
    main, free = model.denoise(x, t, cond), model.denoise(x, t)
    away = main - worse.denoise(x, t)
    alone, _ = SamplerKnobs(guide="digits-uncond", guide_weight=1.5).build(model)
    assert torch.allclose(alone.denoise(x, t, cond), main + 0.5 * away, atol=1e-6)  # float32 networks
    both, sampler = SamplerKnobs(guidance=2.0, guide="digits-uncond", guide_weight=1.5, n_steps=3).build(model)
    assert torch.allclose(both.denoise(x, t, cond), main + (main - free) + 0.5 * away, atol=1e-6)
    assert sampler.nfe(both) == 3 * sampler.nfe(model)
    off, _ = SamplerKnobs(guide="digits-uncond", guide_weight=1.0).build(model)
    assert off is model and "guide" not in SamplerKnobs(guide="digits-uncond", guide_weight=1.0).active()


def test_knobs_at_rest_leave_the_model_alone(unet):
    knobs = SamplerKnobs.for_model(unet)
    model, sampler = knobs.build(unet)
    assert model is unet
    assert (sampler.grid.times[0], sampler.grid.times[-2]) == (60.0, 0.01)
    ones = SamplerKnobs.for_model(unet, skip_bank=[1.0] * unet.n_skips)
    assert ones.build(unet)[0] is unet


def test_restarts_make_the_papers_sampler(unet):
    """NFE (2 N - 1) + K 2 (points - 1), Xu et al. 2023; off they leave no trace."""
    knobs = SamplerKnobs.for_model(unet, n_steps=18, restarts=10, restart_points=3)
    model, sampler = knobs.build(unet)
    assert sampler == RestartSampler(knobs.time_grid(), (Restart(3, 10, 0.06, 0.3),))
    assert sampler.nfe(model) == 35 + 40 and "restart 10 × 0.06 to 0.3" in knobs.describe(unet)
    assert not {"restarts", "restart_lo"} & set(SamplerKnobs(restart_lo=0.1).active())
    assert "off" in SamplerKnobs().inapplicable(unet)["restart_lo"]
    assert "adds noise" in SamplerKnobs(solver="dpmpp-sde").inapplicable(unet)["restarts"]


def test_bank_takes_the_place_of_the_line(unet):
    bank = [0.5 + 0.1 * i for i in range(unet.n_skips)]
    model, _ = SamplerKnobs(skip_bank=bank, rho_bottom=0.4).build(unet)
    assert model.scales == pytest.approx(bank)


def test_round_trips_and_keys():
    knobs = SamplerKnobs(solver="rk4", rho=5, guidance=1.5, skip_bank=[1, 0.5], label=3, seed=12)
    again = SamplerKnobs.from_json(knobs.to_json())
    assert again.to_dict() == knobs.to_dict() and again.key() == knobs.key()
    assert SamplerKnobs(rho=5).key() == SamplerKnobs(rho=5.0).key() != SamplerKnobs(rho=5.5).key()
    # what a solver, a grid or a guidance of 1 ignores does not make another setting
    assert SamplerKnobs(alpha=0.3, s_churn=3, guidance_lo=2).key() == SamplerKnobs().key()
    assert SamplerKnobs(grid="log-snr", rho=3).key() == SamplerKnobs(grid="log-snr").key()
    assert SamplerKnobs(seed=1).key() != SamplerKnobs().key()


def test_key_is_the_same_in_another_process():
    code = "from explorer.knobs import SamplerKnobs; print(SamplerKnobs(rho=3, n_steps=4).key())"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=240)
    assert out.stdout.strip() == SamplerKnobs(rho=3, n_steps=4).key()


@pytest.mark.parametrize(
    ("values", "error", "words"),
    [
        ({"n_steps": 0}, BadValue, "n_steps = 0: expected a whole number from 1 to 64"),
        ({"n_steps": 2.5}, BadValue, "whole number"),
        ({"rho": float("nan")}, BadValue, "rho = nan: expected a number"),
        ({"sigma_max": True}, BadValue, "expected a number"),
        ({"guidance": "2"}, BadValue, "expected a number"),
        ({"skip_bank": [0.5, 9]}, BadValue, "factors from 0 to 1.5"),
        ({"order": 5}, BadValue, "order = 5: expected a whole number from 1 to 4"),
        ({"eta": -1}, BadValue, "eta = -1: expected a number from 0 to 2"),
        ({"variant": "bh3"}, UnknownName, "Did you mean 'bh"),
        ({"solver": "huen"}, UnknownName, "Did you mean 'heun'"),
        ({"grid": "karas"}, UnknownName, "Did you mean 'karras'"),
        ({"roh": 7}, UnknownName, "Did you mean 'rho'"),
    ],
)
def test_values_out_of_range_get_one_sentence(values, error, words):
    with pytest.raises(error, match=words.replace("(", "\\(")) as caught:
        SamplerKnobs(**values)
    assert "\n" not in str(caught.value)
    if error is BadValue:  # and the same when set on an object, which then keeps its value
        knobs = SamplerKnobs()
        before = knobs.to_dict()
        with pytest.raises(BadValue):
            setattr(knobs, *next(iter(values.items())))
        with pytest.raises(BadValue):
            knobs.param.update(**values)
        assert knobs.to_dict() == before


@pytest.mark.parametrize(
    ("values", "which", "words"),
    [
        ({"sigma_min": 2.0, "sigma_max": 1.0}, "unet", "sigma_min .2. must be below sigma_max .1."),
        ({"sigma_min": 1.0, "sigma_max": 1.0}, "unet", "must be below"),
        ({"guidance": 2}, "plain", "class-conditional.*plain has no classes"),
        ({"label": 1}, "plain", "no classes"),
        ({"label": 3}, "unet", "classes 0 to 2"),
        ({"label": -1, "guidance": 2}, "unet", "needs a class"),
        ({"rho_bottom": 0.5}, "plain", "skip-tuning needs a network with skip connections"),
        ({"skip_bank": [0.5]}, "unet", "skip_bank has 1 factors"),
        ({"solver": "edm-stochastic", "s_min": 5, "s_max": 1}, "unet", "s_min"),
        ({"solver": "deis", "variant": "bh1"}, "unet", "deis has no variant bh1: choose t, rho, log-rho, or default"),
        ({"guidance": 2, "guidance_lo": 5, "guidance_hi": 1}, "unet", "guidance_lo"),
        ({"guide": "shapes32-early"}, "unet", "shapes32-early cannot guide unet"),
        ({"restarts": 1, "restart_lo": 2.0, "restart_hi": 1.0}, "unet", "a restart goes up"),
        ({"restarts": 1, "solver": "euler-maruyama"}, "unet", "deterministic"),
        ({"guide": "toy-moons", "guidance_lo": 5, "guidance_hi": 1}, "plain", "guidance_lo"),
    ],
)
def test_contradictions_get_one_sentence(values, which, words, unet, plain):
    with pytest.raises(BadValue, match=words) as caught:
        SamplerKnobs(**values).build({"unet": unet, "plain": plain}[which])
    assert "\n" not in str(caught.value)


def test_inapplicable_knobs_say_why(unet, plain):
    reasons = SamplerKnobs().inapplicable(plain)
    assert {"guidance", "label", "rho_bottom", "skip_bank", "s_churn", "alpha", "order", "variant", "eta"} <= set(
        reasons
    )
    assert "unipc" in reasons["order"] and "deis" in reasons["variant"] and "dpmpp-2m-sde" in reasons["eta"]
    assert "no classes" in reasons["guidance"] and "no skip" in reasons["rho_bottom"]
    assert "guidance" not in SamplerKnobs().inapplicable(unet)
    assert "s_churn" not in SamplerKnobs(solver="edm-stochastic").inapplicable(unet)
    assert "rho" in SamplerKnobs(grid="log-snr").inapplicable(unet)
    # a contradiction is told by `check`; the front ends can draw the knobs meanwhile
    assert SamplerKnobs(solver="deis", variant="bh1").controls(unet)
    # whatever is said to be inapplicable may be set and changes nothing
    quiet = SamplerKnobs(alpha=0.4, s_churn=50, rho=7, order=4, variant="rho", eta=0.5)
    assert quiet.build(plain)[1] == SamplerKnobs().build(plain)[1]


def test_fitting_to_another_model_says_what_was_reset(unet, plain):
    knobs = SamplerKnobs(guidance=2, label=1, skip_bank=[0.5] * unet.n_skips, rho=4)
    fitted, notes = knobs.fitted(plain)
    assert (fitted.guidance, fitted.label, fitted.skip_bank, fitted.rho) == (1.0, None, None, 4.0)
    assert len(notes) == 2 and all(note.endswith(".") for note in notes)
    fitted.build(plain)
    assert SamplerKnobs().fitted(plain)[1] == []
    fitted, (note,) = SamplerKnobs(guide="toy-moons").fitted(unet)
    assert fitted.guide == "" and "toy-moons cannot guide unet" in note


def test_controls_describe_every_knob(unet):
    controls = SamplerKnobs().controls(unet)
    assert [c.name for c in controls] == [name for members in GROUPS.values() for name in members]
    for c in controls:
        assert c.doc and (c.kind == "choice") == bool(c.choices)
        if c.kind in ("integer", "number"):
            assert c.low <= c.value <= c.high
    bank = controls[[c.name for c in controls].index("skip_bank")]
    assert len(bank.names) == len(bank.value) == unet.n_skips


def test_a_grid_of_ones_own_takes_the_place_of_the_named_one(unet, plain):
    knobs = SamplerKnobs(nodes=[50, 3.5, 0.25], solver="euler", n_steps=40, sigma_min=2.0, sigma_max=0.5)
    _, sampler = knobs.build(plain)
    assert sampler.grid.times == (50.0, 3.5, 0.25, 0.0) and sampler.nfe(plain) == 3
    same = SamplerKnobs(nodes=[50, 3.5, 0.25], solver="euler")
    assert knobs.key() == same.key()  # what the grid replaces does not count
    assert set(knobs.inapplicable(plain)) >= {"n_steps", "grid", "rho", "sigma_min", "sigma_max"}
    assert "nodes" not in knobs.inapplicable(plain) and knobs.describe().startswith("euler 3 · own σ")
    assert SamplerKnobs.from_json(knobs.to_json()).nodes == [50.0, 3.5, 0.25] and SamplerKnobs(nodes=[]).nodes is None
    wide, notes = SamplerKnobs(nodes=[1e6, 1.0]).fitted(plain)
    assert wide.nodes is None and "knows σ from" in notes[0]
    for bad, words in (([1.0, 2.0], "fall"), ([1.0, 0.0], "positive"), ([1.0, "x"], "positive"), ("ab", "positive")):
        with pytest.raises(BadValue, match=words):
            SamplerKnobs(nodes=bad)


def test_bad_files_are_refused():
    with pytest.raises(BadFile):
        SamplerKnobs.from_json("{")
    with pytest.raises(BadFile):
        SamplerKnobs.from_json("[1]")


SETTINGS = [
    {},
    {"solver": "dpmpp-2m", "grid": "cosine", "n_steps": 5, "seed": 3},
    {"solver": "ipndm", "nodes": [20.0, 2.123456789, 0.4, 0.0123], "seed": 3},
    {"solver": "edm-stochastic", "s_churn": 30.0, "rho": 5.0, "n_steps": 4, "label": 2},
    {"guidance": 1.7, "guidance_lo": 0.1, "guidance_hi": 3.0, "n_steps": 4},
    {"guide": "toy-8gaussians", "guide_weight": 1.5, "guidance_lo": 0.1, "guidance_hi": 3.0, "n_steps": 4},
    {"guidance": 1.7, "guide": "toy-8gaussians", "n_steps": 3},
    {"restarts": 2, "restart_lo": 0.1, "restart_hi": 1.5, "restart_points": 4, "n_steps": 6, "seed": 3},
    {"solver": "unipc", "order": 2, "variant": "bh1", "n_steps": 5},
    {"solver": "dpmpp-2m-sde", "eta": 0.5, "variant": "heun", "s_noise": 1.0, "n_steps": 5},
    {"own": ScaleTimeSampler.plain([0.98, 0.4, 0.0]).to_json(), "seed": 3, "guidance": 1.7},
]


@pytest.mark.parametrize("values", SETTINGS)
def test_copied_python_prints_the_same_number(values):
    model = load("oracle-8gaussians")
    knobs = SamplerKnobs.for_model(model, **values)
    built, sampler = knobs.build(model)
    *_, live = quality(built, sampler, metric_for(model), n=100, start_seed=knobs.seed, label=knobs.label)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(knobs.to_python("oracle-8gaussians", 100), {})
    assert printed.getvalue().splitlines()[-1].startswith(f"{live.estimate}  {live.nfe} NFE")


@pytest.mark.parametrize("values", SETTINGS)
def test_copied_command_prints_the_same_number(values):
    from typer.testing import CliRunner

    from explorer import cli

    model = load("oracle-8gaussians")
    knobs = SamplerKnobs.for_model(model, **values)
    built, sampler = knobs.build(model)
    *_, live = quality(built, sampler, metric_for(model), n=100, start_seed=knobs.seed, label=knobs.label)
    command = shlex.split(knobs.to_cli("oracle-8gaussians", 100))
    assert command[0] == "explorer"
    result = CliRunner().invoke(cli.app, [*command[1:], "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["value"] == live.estimate.value and found["nfe"] == live.nfe and found["n"] == 100


def test_copied_python_of_a_tuned_unet_rebuilds_the_sampler(unet):
    """The text names every part: run it with `load` and the measuring replaced, and compare what was built."""
    knobs = SamplerKnobs.for_model(unet, guidance=2.0, rho_bottom=0.7, rho_top=0.9, solver="alpha2", alpha=0.4)
    code = knobs.to_python("digits", 10)
    seen = {}
    lines = [line for line in code.splitlines() if not line.startswith(("for live", "    print"))]
    text = "\n".join(lines).replace('ex.load("digits")', "given")
    exec(text, seen | {"given": unet}, seen)
    model, sampler = knobs.build(unet)
    assert seen["sampler"] == sampler
    assert seen["model"].scale == model.scale and seen["model"].base.scales == model.base.scales


def test_a_sampler_of_ones_own_takes_the_place_of_its_knobs(plain):
    own = ScaleTimeSampler.plain([0.98, 0.4, 0.0])
    knobs = SamplerKnobs.for_model(
        plain, own=own.to_json(), solver="edm-stochastic", sigma_min=2.0, sigma_max=1.0, restarts=2
    )
    assert knobs.build(plain) == (plain, own), "and what those contradict does not matter"
    other = SamplerKnobs.for_model(plain, own=f"  {own.to_json()} ", n_steps=3)
    assert knobs.key() == other.key() and "scale-time rk2" in knobs.describe(plain)
    at_rest = knobs.inapplicable(plain)
    assert {"solver", "n_steps", "nodes", "restarts", "s_churn"} <= set(at_rest) and "own" not in at_rest
    assert "scale-time rk2" in at_rest["solver"]
    (text,) = (c for c in knobs.controls(plain) if c.name == "own")
    assert text.kind == "text" and text.value == own.to_json()
    for bad in ("{", "{}", 3):
        with pytest.raises((BadValue, UnknownName)):
            SamplerKnobs(own=bad)
    jump = load("toy-8gaussians-cd")
    with pytest.raises(BadValue, match="no ODE for the sampler of your own"):
        knobs.build(jump)
    fitted, notes = SamplerKnobs.for_model(jump, own=own.to_json()).fitted(jump)
    assert fitted.own == "" and "put aside" in " ".join(notes)


def test_layers_are_left_out_inside_guidance_and_over_skips(unet):
    knobs = SamplerKnobs.for_model(unet, layers="0.5: 1;9: 0 2", guidance=2.0, rho_bottom=0.8)
    assert knobs.layers == "9.0: 0 2; 0.5: 1"
    model, _ = knobs.build(unet)
    assert (
        isinstance(model, Guided) and isinstance(model.base, LayersLeftOut) and isinstance(model.base.base, SkipTuned)
    )
    assert model.base.left_out_at(9.0) == {0, 2} and model.base.left_out_at(0.1) == {1}
    assert knobs.key() != SamplerKnobs.for_model(unet, guidance=2.0, rho_bottom=0.8).key()
    assert SamplerKnobs(layers="9: ; 0.5:").layers == "", "nothing left out is nothing said"
    for bad in ("9 0 2", "9: x", "-1: 2", "9: -2", 4):
        with pytest.raises(BadValue, match="layers"):
            SamplerKnobs(layers=bad)
    with pytest.raises(BadValue, match="99 is none of them"):
        SamplerKnobs.for_model(unet, layers="9: 99").build(unet)
    fitted, notes = SamplerKnobs.for_model(unet, layers="9: 99").fitted(unet)
    assert fitted.layers == "" and "All layers act again" in " ".join(notes)


def test_a_model_without_blocks_leaves_none_out(plain):
    assert "no blocks" in SamplerKnobs().inapplicable(plain)["layers"]
    with pytest.raises(BadValue, match="layers can be left out of"):
        SamplerKnobs.for_model(plain, layers="1: 0").build(plain)
