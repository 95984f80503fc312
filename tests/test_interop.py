"""Grids in other people's forms, proven by running diffusers' own schedulers on them."""

import itertools
import json
import math
import sys

import numpy as np
import pytest
import torch
from problems import oracle

from explorer.errors import BadFile, BadValue, MissingExtra, UnknownName
from explorer.process import EDM, VP, EDMPrecondition, Linear
from explorer.sampling import DDIM, DPMpp2M, Euler, Heun, OdeSampler, Seeds, TimeGrid, interop

NOISE = Seeds(range(16)).normal((2,))
GRIDS = {
    "karras": TimeGrid.karras(9, 0.05, 12.0),
    "cosine": TimeGrid.cosine(6, 0.05, 12.0),
    "by-hand": TimeGrid.explicit([10.0, 3.0, 2.9, 0.4, 0.0]),
    "one-step": TimeGrid.explicit([5.0, 0.0]),
}
FLOAT32 = (
    2e-5  # states up to 12 in float32, 6e-8 relative a step, at most 10 steps, then contracted towards data of size 1
)


@pytest.fixture(scope="module")
def diffusers():
    return pytest.importorskip("diffusers")


# Files and tensors


@pytest.mark.parametrize("name", GRIDS)
def test_a_file_keeps_every_digit(tmp_path, name):
    file = interop.save(GRIDS[name], tmp_path / "grid.json", {"method": "gits", "cost": 0.5})
    assert interop.load(file) == GRIDS[name]
    assert json.loads(file.read_text())["about"] == {"method": "gits", "cost": 0.5}
    moved = GRIDS[name].to("t", Linear())
    assert interop.load(interop.save(moved, tmp_path / "t.json")) == moved


def test_a_bare_list_is_a_grid(tmp_path):
    (tmp_path / "list.json").write_text("[3, 1.5, 0]")
    assert interop.load(tmp_path / "list.json") == TimeGrid((3.0, 1.5, 0.0))


@pytest.mark.parametrize(
    ("text", "error", "says"),
    [
        ("[3, 1.5", BadFile, "cannot be read"),
        ('"karras"', BadFile, "not a time grid"),
        ('{"sigmas": [1, 0]}', BadFile, "not a time grid"),
        ('{"format": "explorer.grid", "version": 9, "times": [1, 0]}', BadFile, "version 9"),
        ('{"format": "other", "times": [1, 0]}', BadFile, "'other'"),
        ("[3, 3, 0]", BadValue, "got 3 followed by 3"),
        ('{"times": ["x", 0]}', BadValue, "sequence of numbers"),
    ],
)
def test_broken_files_are_refused(tmp_path, text, error, says):
    (tmp_path / "grid.json").write_text(text)
    with pytest.raises(error, match=says):
        interop.load(tmp_path / "grid.json")


def test_missing_files_and_odd_notes_are_refused(tmp_path):
    with pytest.raises(BadFile, match="nowhere.json"):
        interop.load(tmp_path / "nowhere.json")
    with pytest.raises(BadValue, match="plain JSON"):
        interop.save(GRIDS["karras"], tmp_path / "grid.json", {"cost": math.nan})
    assert not (tmp_path / "grid.json").exists()


def test_sigma_tensors_walk_k_diffusions_loop():
    """The Euler loop over a sigma tensor as k-diffusion runs it: d = (x - D) / sigma, x += d (sigma_next - sigma)."""
    grid, model = GRIDS["karras"], oracle()
    sigmas = interop.to_k_diffusion(grid, dtype=torch.float64)
    assert sigmas.tolist() == list(grid.times) and sigmas[-1] == 0
    x = NOISE * sigmas[0]
    for a, b in itertools.pairwise(sigmas):
        x = x + (x - model.denoise(x, float(a))) / a * (b - a)
    torch.testing.assert_close(OdeSampler(Euler(), grid).sample(model, NOISE), x, rtol=0, atol=1e-12)


def test_sigma_tensors_come_back():
    grid = GRIDS["karras"]
    single = interop.to_k_diffusion(grid)
    assert single.dtype == torch.float32
    assert interop.from_k_diffusion(single).times == pytest.approx(grid.times, rel=1e-7)
    assert interop.from_k_diffusion(interop.to_k_diffusion(grid, dtype=torch.float64)) == grid
    moved = interop.to_k_diffusion(grid.to("t", VP()), VP(), dtype=torch.float64)
    np.testing.assert_allclose(moved, grid.times, rtol=1e-12)
    assert interop.from_k_diffusion([3.0, 3.0, 0.0], dedupe=True).n_steps == 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: interop.to_k_diffusion(TimeGrid((1 + 1e-9, 1.0, 0.0))), "float32 does not tell nodes 0 and 1"),
        (lambda: interop.to_k_diffusion(TimeGrid((0.9, 0.0), "t")), "needs the path"),
        (lambda: interop.from_k_diffusion(torch.ones(2, 2)), r"shape \(2, 2\)"),
        (lambda: interop.from_k_diffusion(torch.tensor([2.0, 2.0, 0.0])), "got 2 followed by 2"),
    ],
)
def test_impossible_tensors_are_refused(make, says):
    with pytest.raises(BadValue, match=says):
        make()


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingExtra, match=r"diffusers.*pip install 'trajectory-explorer\[peers\]'"):
        interop.make_scheduler("euler")
    with pytest.raises(UnknownName, match="Did you mean 'euler'"):
        interop.make_scheduler("eular")


# Running diffusers

TRAINED = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.mark.parity
@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("euler", TRAINED),
        ("heun", TRAINED),
        ("edm-euler", {}),
        ("flow-euler", {}),
        ("flow-euler", {"shift": 3.0}),
        ("unipc", {**FLOW, "flow_shift": 5.0}),
    ],
)
def test_schedulers_walk_our_sigmas(diffusers, kind, config, name):
    """`scheduler.sigmas`, with inner nodes said twice where the method needs it, is the grid to float32's last digits."""
    grid = GRIDS[name]
    scheduler = interop.make_scheduler(kind, grid, **config)
    flow = kind in ("flow-euler", "unipc")
    want = np.array(grid.on(Linear()) if flow else grid.times)
    got = scheduler.sigmas.numpy()
    np.testing.assert_allclose(got if kind != "heun" else np.r_[got[:1], got[1:-1:2], got[-1:]], want, rtol=5e-6)
    back = interop.from_diffusers(scheduler)
    assert back.coordinate == ("t" if flow else "sigma")
    np.testing.assert_allclose(back.times, want, rtol=5e-6)
    shown = scheduler.timesteps.double()
    if kind == "flow-euler":
        np.testing.assert_allclose(shown / 1000, want[:-1], rtol=1e-6)
    elif kind == "edm-euler":
        np.testing.assert_allclose(shown, np.log(want[:-1]) / 4, atol=1e-6)
    elif kind in ("euler", "heun"):  # the network is shown the time at which the model had this much noise
        levels = np.array(interop.model_levels(scheduler))[::-1]
        log = np.interp(shown[:1], np.arange(1000), np.log(levels))
        np.testing.assert_allclose(np.exp(log), want[:1], rtol=2e-3)


@pytest.mark.parity
@pytest.mark.parametrize("name", GRIDS)
def test_euler_is_their_euler(diffusers, name):
    grid, model = GRIDS[name], oracle()
    scheduler = interop.make_scheduler("euler", grid, **TRAINED)
    x = NOISE.float() * scheduler.sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        eps = model.eps(x.double(), float(scheduler.sigmas[i])).float()
        x = scheduler.step(eps, t, x).prev_sample
    want = OdeSampler(Euler(), grid).sample(model, NOISE)
    torch.testing.assert_close(x.double(), want, rtol=0, atol=FLOAT32)


@pytest.mark.parity
@pytest.mark.parametrize("name", GRIDS)
def test_heun_is_their_heun(diffusers, name):
    grid, model = GRIDS[name], oracle()
    scheduler = interop.make_scheduler("heun", grid, **TRAINED)
    x = NOISE.float() * scheduler.sigmas[0]
    asked = 0
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        x = scheduler.step(model.eps(x.double(), sigma).float(), t, x).prev_sample
        asked += 1
    want = OdeSampler(Heun(), grid)
    assert asked == want.nfe(model)
    torch.testing.assert_close(x.double(), want.sample(model, NOISE), rtol=0, atol=FLOAT32)


@pytest.mark.parity
@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("name", GRIDS)
def test_flow_euler_is_their_flow_euler(diffusers, name, shift):
    grid, model = GRIDS[name], oracle(Linear())
    scheduler = interop.make_scheduler("flow-euler", grid, shift=shift)
    x = NOISE.float() * scheduler.sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model.velocity(x.double(), float(scheduler.sigmas[i])).float(), t, x).prev_sample
    want = OdeSampler(Euler(), grid).sample(model, NOISE)
    torch.testing.assert_close(x.double(), want, rtol=0, atol=FLOAT32)


@pytest.mark.parity
def test_edm_euler_is_their_edm_euler(diffusers):
    """The scheduler is fed the raw network F = (D - c_skip x) / c_out and preconditions by itself."""
    grid, model = GRIDS["by-hand"], oracle()
    scheduler = interop.make_scheduler("edm-euler", grid, sigma_data=0.5)
    x = NOISE.float() * scheduler.sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        sigma = float(scheduler.sigmas[i])
        c_skip, c_out, _, _ = EDMPrecondition(0.5).at(sigma, EDM())
        raw = ((model.denoise(x.double(), sigma) - c_skip * x) / c_out).float()
        x = scheduler.step(raw, t, x).prev_sample
    want = OdeSampler(Euler(), grid).sample(model, NOISE)
    torch.testing.assert_close(x.double(), want, rtol=0, atol=FLOAT32)
    plain = interop.make_scheduler("edm-euler")
    plain.set_timesteps(sigmas=torch.tensor(grid.times[:-1]))  # what its name suggests, and why the ramp is needed
    assert not np.allclose(plain.sigmas, grid.times, rtol=0.1)


@pytest.mark.parity
@pytest.mark.parametrize(("order", "solver"), [(1, DDIM()), (2, DPMpp2M())], ids=["ddim", "2m"])
def test_dpm_solver_walks_snapped_grids(diffusers, order, solver):
    scheduler = interop.make_scheduler("dpmpp", **TRAINED, solver_order=order)
    levels = interop.model_levels(scheduler)
    grid = TimeGrid.karras(8, 0.05, 12.0).snapped(levels)
    interop.apply(grid, scheduler)
    np.testing.assert_allclose(scheduler.sigmas, grid.times, rtol=1e-6)
    model = oracle()
    scale = lambda sigma: 1 / math.sqrt(1 + sigma * sigma)  # noqa: E731  alpha of the variance-preserving path
    x = NOISE.float() * scheduler.sigmas[0] * scale(float(scheduler.sigmas[0]))
    for i, t in enumerate(scheduler.timesteps):
        sigma = float(scheduler.sigmas[i])
        x = scheduler.step(model.eps(x.double() / scale(sigma), sigma).float(), t, x).prev_sample
    want = OdeSampler(solver, grid).sample(model, NOISE)
    torch.testing.assert_close(x.double(), want, rtol=0, atol=FLOAT32)
    # the same by asking for the snap, and the refusal without it
    again = interop.make_scheduler("dpmpp", TimeGrid.karras(8, 0.05, 12.0), snap=True, **TRAINED)
    assert again.timesteps.tolist() == scheduler.timesteps.tolist()
    with pytest.raises(BadValue, match=r"none of them.*snap=True"):
        interop.make_scheduler("dpmpp", TimeGrid.karras(8, 0.05, 12.0), **TRAINED)


@pytest.mark.parity
def test_beta_grid_in_sigma_is_their_beta_sigmas(diffusers):
    scheduler = diffusers.EulerDiscreteScheduler(use_beta_sigmas=True, sigma_min=0.05, sigma_max=12.0)
    scheduler.set_timesteps(11)
    want = TimeGrid.beta(11, 0.05, 12.0, 0.6, 0.6, EDM())
    np.testing.assert_allclose(interop.from_diffusers(scheduler).times, want.times, rtol=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("flag", "make"),
    [("use_karras_sigmas", TimeGrid.karras), ("use_exponential_sigmas", TimeGrid.log_snr)],
)
def test_their_named_schedules_are_ours(diffusers, flag, make):
    scheduler = diffusers.EulerDiscreteScheduler(sigma_min=0.05, sigma_max=12.0, **{flag: True})
    scheduler.set_timesteps(9)
    np.testing.assert_allclose(interop.from_diffusers(scheduler).times, make(9, 0.05, 12.0).times, rtol=1e-6)
    with pytest.raises(BadValue, match=f"{flag}=True replaces"):
        interop.to_diffusers(GRIDS["karras"], scheduler)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "steps", "coordinate"),
    [
        ("EulerDiscreteScheduler", 10, "sigma"),
        ("HeunDiscreteScheduler", 10, "sigma"),
        ("KDPM2DiscreteScheduler", 7, "sigma"),
        ("LMSDiscreteScheduler", 10, "sigma"),
        ("DPMSolverMultistepScheduler", 10, "sigma"),
        ("UniPCMultistepScheduler", 10, "sigma"),
        ("EDMDPMSolverMultistepScheduler", 10, "sigma"),
        ("DDIMScheduler", 10, "sigma"),
        ("FlowMatchEulerDiscreteScheduler", 10, "t"),
        ("FlowMatchHeunDiscreteScheduler", 10, "t"),
    ],
)
def test_default_grids_can_be_read(diffusers, name, steps, coordinate):
    scheduler = getattr(diffusers, name)()
    if (
        getattr(scheduler, "num_inference_steps", None) is None and name[:3] != "EDM"
    ):  # some set themselves up when made
        with pytest.raises(BadValue, match="call its set_timesteps first"):
            interop.from_diffusers(scheduler)
    scheduler.set_timesteps(steps)
    grid = interop.from_diffusers(scheduler)
    assert grid.n_steps == steps and grid.coordinate == coordinate and grid.times[-1] == 0
    if coordinate == "t":
        assert grid.times[0] == 1.0  # pure noise: no sigma, but a time
    if name == "DDIMScheduler":
        a = scheduler.alphas_cumprod[scheduler.timesteps].double()
        np.testing.assert_allclose(grid.times[:-1], ((1 - a) / a).sqrt(), rtol=1e-12)
    out = OdeSampler(Heun(), grid).sample(oracle(Linear()), NOISE)
    assert torch.isfinite(out).all()


@pytest.mark.parity
def test_a_grid_read_from_a_scheduler_gives_its_samples(diffusers):
    """Heun on the linear path from pure noise, their default grid: read, then run by us."""
    scheduler = diffusers.FlowMatchHeunDiscreteScheduler()
    scheduler.set_timesteps(7)
    grid, model, x = interop.from_diffusers(scheduler), oracle(Linear()), NOISE.float()
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model.velocity(x.double(), float(scheduler.sigmas[i])).float(), t, x).prev_sample
    torch.testing.assert_close(x.double(), OdeSampler(Heun(), grid).sample(model, NOISE), rtol=0, atol=FLOAT32)


@pytest.mark.parity
def test_a_last_step_that_does_nothing_is_found(diffusers):
    """diffusers issue 6295: the last sigma repeated, so that the final network call is wasted."""
    scheduler = diffusers.EDMEulerScheduler(final_sigmas_type="sigma_min")
    scheduler.set_timesteps(6)
    with pytest.raises(BadValue, match=r"got 0.002 followed by 0.002 \(nodes 5 and 6\)"):
        interop.from_diffusers(scheduler)
    assert interop.from_diffusers(scheduler, dedupe=True).n_steps == 5
    with pytest.raises(BadValue, match="a step that does nothing"):
        interop.to_diffusers(GRIDS["karras"], scheduler)


@pytest.mark.parity
def test_duplicate_timesteps_are_found_before_they_crash(diffusers):
    """diffusers issue 12771: cosine betas and closely spaced sigmas round to one timestep, later an index out of range."""
    scheduler = interop.make_scheduler("dpmpp", beta_schedule="squaredcos_cap_v2")
    with pytest.raises(BadValue, match=r"sigma = .* and .* \(nodes \d+ and \d+\) are one timestep, \d+"):
        interop.to_diffusers(TimeGrid.karras(150, 0.01, 12.0), scheduler, snap=True)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "config", "grid", "says"),
    [
        ("euler", TRAINED, TimeGrid.karras(5, 0.05, 80.0), "sigma = 80 is beyond the model's noise levels"),
        ("heun", TRAINED, TimeGrid.karras(5, 0.05, 12.0, to_zero=False), "ends at sigma = 0 by itself.*add a last node 0"),
        ("flow-euler", {}, TimeGrid.karras(5, 0.05, 12.0, to_zero=False), "add a last node 0"),
        ("flow-euler", {"use_dynamic_shifting": True}, GRIDS["karras"], "needs the mu"),
        ("flow-euler", {"shift_terminal": 0.1}, GRIDS["karras"], "shift_terminal"),
        ("unipc", {}, GRIDS["karras"], "only with use_flow_sigmas=True"),
        ("edm-euler", {"sigma_schedule": "exponential"}, GRIDS["karras"], "only with sigma_schedule='karras'"),
        ("dpmpp", {"final_sigmas_type": "sigma_min"}, GRIDS["karras"], "set final_sigmas_type='zero'"),
        ("euler", TRAINED, TimeGrid((0.9, 0.0), "t"), r"grid\.to\('sigma', path\)"),
    ],
)  # fmt: skip
def test_grids_a_scheduler_cannot_walk_are_refused(diffusers, kind, config, grid, says):
    with pytest.raises(BadValue, match=says):
        interop.make_scheduler(kind, grid, **config)


@pytest.mark.parity
def test_the_remaining_ways_in(diffusers):
    scheduler = interop.make_scheduler("flow-euler", use_dynamic_shifting=True)
    interop.apply(GRIDS["karras"], scheduler, mu=0.8)
    np.testing.assert_allclose(scheduler.sigmas, GRIDS["karras"].on(Linear()), rtol=1e-6)
    wide = interop.apply(TimeGrid.karras(5, 0.05, 80.0), interop.make_scheduler("euler", **TRAINED), clip=True)
    assert wide.sigmas[0] == 80 and wide.timesteps[0] == 999
    low = interop.make_scheduler("dpmpp", **TRAINED, final_sigmas_type="sigma_min")
    levels = interop.model_levels(low)
    interop.apply(TimeGrid.karras(6, levels[-1], 12.0, to_zero=False).snapped(levels), low)
    assert low.sigmas[-1] == pytest.approx(levels[-1], rel=1e-6)
    with pytest.raises(BadValue, match="takes a number of steps, not a schedule"):
        interop.to_diffusers(GRIDS["karras"], diffusers.DEISMultistepScheduler())
