"""`explorer tune`: a search from the command line, its journal, what it writes, and what the other commands make of it."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from problems import oracle
from test_cli import document, refusal, run

from explorer.models.bundled import load
from explorer.process import EDM, EDMPrecondition
from explorer.sampling import DPMpp2M, Euler, Heun, OdeSampler, Seeds, TimeGrid, interop, sample
from explorer.tuning import Guidance, Setting, Skips, Tuned, export

ORACLE = "oracle-8gaussians"
QUICK = ("--n", 16, "--report", 64, "--budget", 12)


def test_it_explains_itself():
    text = run("tune", "--help").stdout
    assert "explorer tune" in text.partition("Examples")[2] and "tune" in run("--help").stdout


def test_a_guide_that_cannot_guide_is_refused_before_anything_is_measured(tmp_path):
    for name in ("nope", "digits-cnn", "toy-moons"):
        said = refusal("tune", "digits", "--what", "guidance", "--guide", name, "--out", str(tmp_path / "g.json"))
        assert "digits-uncond" in said and "baseline" not in said
    assert not list(tmp_path.iterdir())


def test_a_search_ends_in_a_file_that_the_other_commands_take(tmp_path):
    out = tmp_path / "tuned.json"
    said = document("tune", ORACLE, *QUICK, "--out", out, "--export", "python", "--export", "k-diffusion")
    assert said["trials"] == 12 and said["nfe"] == [5, 5]
    assert said["objective"]["seeds"] == [1_000_000_000, 1_000_000_016] and said["report"] == [0, 64]
    assert [f.rsplit("tuned", 1)[1] for f in said["files"]] == [".json", ".py", ".k-diffusion.json"]
    assert said["score"]["value"] < said["baseline"]["value"]
    assert said["curse"] == pytest.approx(said["difference"]["value"] - said["search_difference"]["value"])

    tuned = Tuned.load(out)
    found = document("eval", ORACLE, "--tuned", out, "--n", 64)
    assert found["sampler"] == tuned.sampler.to_dict() and found["nfe"] == 5
    run("sample", ORACLE, "--tuned", out, "--n", 8, "--out", tmp_path / "x.npz")
    model = load(ORACLE)
    np.testing.assert_array_equal(np.load(tmp_path / "x.npz")["x"], sample(*tuned.on(model), range(8)).numpy())

    names: dict = {}
    exec(compile((tmp_path / "tuned.py").read_text(), "tuned.py", "exec"), names)  # noqa: S102
    assert torch.equal(names["x"][:8], sample(*tuned.on(model), range(8)))
    sigmas = json.loads((tmp_path / "tuned.k-diffusion.json").read_text())
    assert sigmas["sampler"] == "sample_dpmpp_2m"
    np.testing.assert_allclose(sigmas["sigmas"], tuned.sampler.grid.times, rtol=1e-7)
    assert "takes 5 evaluations" in refusal("tune", ORACLE, "--start", out, "--nfe", 3)


def test_the_same_command_goes_on_and_a_smaller_budget_ends(tmp_path, monkeypatch):
    out, other = tmp_path / "a.json", tmp_path / "b.json"
    whole = document("tune", ORACLE, *QUICK, "--out", other)

    from explorer.tuning import study as module

    real, seen = module.Study._measured, []

    def interrupted(self, proposal):
        if len(seen) == 6:
            raise KeyboardInterrupt
        seen.append(proposal)
        return real(self, proposal)

    monkeypatch.setattr(module.Study, "_measured", interrupted)
    stopped = run("tune", ORACLE, *QUICK, "--out", out, code=130)
    assert "6 trials are kept" in stopped.stderr and not out.exists()
    monkeypatch.setattr(module.Study, "_measured", real)
    short = document("tune", ORACLE, "--n", 16, "--report", 64, "--budget", 5, "--out", out)
    assert short["trials"] == 5
    again = document("tune", ORACLE, *QUICK, "--out", out)
    assert again["score"] == whole["score"] and again["setting"] == whole["setting"]


@pytest.mark.parametrize("what", ["solver", "guidance", "restart", "joint"])
def test_every_thing_to_tune_runs(tmp_path, what):
    args = ("--what", what, "--nfe", 7, "--n", 16, "--report", 16, "--budget", 6, "--objective", "sw2")
    said = document("tune", ORACLE, *args, "--out", tmp_path / "t.json")
    assert 1 <= said["trials"] <= 6 and said["score"]["name"].startswith("SW2")
    assert all(cost <= 7 for cost in said["nfe"])


@pytest.mark.parametrize("method", ["cma", "tpe", "dp", "ays", "halving"])
def test_every_method_runs(tmp_path, method):
    said = document("tune", ORACLE, "--method", method, *QUICK, "--out", tmp_path / "t.json")
    assert 1 <= said["trials"] <= 12


def test_layers_are_searched_with_steps(tmp_path):
    args = ("--what", "layers", "--nfe", 3, "--n", 4, "--report", 4, "--budget", 44)
    said = document("tune", "digits", *args, "--out", tmp_path / "t.json", "--export", "python")
    assert 40 <= said["trials"] <= 44 and said["tuner" if "tuner" in said else "how"]["tuner"] == "autodiffusion"
    history = Tuned.load(tmp_path / "t.json").history
    assert any(w.to_dict()["wrapper"] == "layers" for t in history for w in t.setting.wrappers)
    layered = next(t.setting for t in history if t.setting.wrappers)
    names: dict = {}
    exec(compile(export.to_python(layered, "digits").replace("range(64)", "range(2)"), "t.py", "exec"), names)  # noqa: S102
    assert torch.equal(names["x"], sample(*layered.on(load("digits")), range(2)))


def test_a_tuned_sampler_is_compared_with_what_it_was(tmp_path):
    out, other = tmp_path / "tuned.json", tmp_path / "other.json"
    run("tune", ORACLE, *QUICK, "--out", out)
    run("eval", ORACLE, "--steps", 9, "--n", 8, "--json")
    tuned, model = Tuned.load(out), load(ORACLE)
    said = document("compare", out, "--n", 64, "--metric", "sw2")
    assert said["a"]["sampler"] == tuned.sampler.to_dict() and said["b"]["sampler"] == tuned.start.sampler.to_dict()
    assert said["a"]["nfe"] == said["b"]["nfe"] == 5 and said["a"]["seeds"] == [0, 64]
    gaps = (sample(*tuned.on(model), range(64)) - sample(model, tuned.start.sampler, range(64))).norm(dim=1)
    assert said["distance"]["value"] == pytest.approx(float(gaps.mean()))

    skips = {"wrapper": "guidance", "scale": 2.0, "interval": [0.1, None], "guide": ""}
    about = json.loads(out.read_text())
    about["setting"]["wrappers"] = [skips]  # what stands around the model counts too
    other.write_text(json.dumps(about))
    said = document("compare", out, other, "--n", 32, "--metric", "sw2")
    assert said["b"]["wrappers"] == [skips] and said["b"]["nfe"] > said["a"]["nfe"] and said["distance"]["value"] > 0
    noted = run("compare", out, other, "--n", 8, "--metric", "sw2", "--seed", 1_000_000_000)
    assert "was chosen on seeds 1000000000 to 1000000015" in noted.stderr
    other.write_text(json.dumps({"model": ORACLE, "sampler": tuned.sampler.to_dict()}))
    assert "no tuned sampler" in refusal("compare", other)
    about["model"]["name"] = "toy-moons"
    other.write_text(json.dumps(about))
    assert "tuned for another model" in refusal("compare", out, other)


# Several processes; what a kill leaves is tested in test_tuning_scale.py


def test_processes_share_a_search_and_another_command_joins_it(tmp_path):
    out = tmp_path / "a.json"
    said = document("tune", ORACLE, *QUICK, "--workers", 2, "--out", out)
    assert said["trials"] == 12 and (tmp_path / "a.study.log").exists()
    notes = [t.note for t in Tuned.load(out).history]
    assert notes[0] == "baseline" and all(note.startswith("tpe, ") for note in notes[1:])
    storage = ("--storage", f"journal:{tmp_path / 'a.study.log'}")
    more = document("tune", ORACLE, *QUICK[:-1], 14, *storage, "--out", tmp_path / "b.json")
    assert more["trials"] == 14
    assert [t.setting for t in Tuned.load(tmp_path / "b.json").history[:13]] == [
        t.setting for t in Tuned.load(out).history
    ]
    assert "objective.seeds" in refusal("tune", ORACLE, "--n", 32, "--budget", 12, *storage, "--out", out)
    assert "is another one: model.name" in refusal("tune", "toy-moons", *QUICK, *storage, "--out", out)


def test_a_worker_that_cannot_begin_is_named_and_its_work_done(tmp_path, monkeypatch):
    from explorer.cli import tuning

    monkeypatch.setattr(tuning.sys, "executable", "/bin/false")
    done = run("tune", ORACLE, *QUICK, "--workers", 2, "--out", tmp_path / "a.json", "--json")
    assert "ended with 1" in done.stderr and json.loads(done.stdout)["trials"] == 12


def test_a_dask_cluster_shares_a_search(tmp_path):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster:
        said = document("tune", ORACLE, *QUICK, "--dask", cluster.scheduler_address, "--out", tmp_path / "a.json")
    assert said["trials"] == 12 and said["score"]["value"] <= said["baseline"]["value"] * 1.5


def test_no_dask_is_said_plainly(tmp_path, monkeypatch):
    pytest.importorskip("distributed")
    out = ("--out", tmp_path / "a.json")
    assert "no Dask scheduler answers" in refusal("tune", ORACLE, *QUICK, "--dask", "not-an-address", *out)
    monkeypatch.setitem(__import__("sys").modules, "distributed", None)
    assert "distributed" in refusal("tune", ORACLE, *QUICK, "--dask", "tcp://127.0.0.1:1", *out)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--workers", "2", "--method", "coordinate"), "goes from one answer to the next"),
        (("--workers", "2", "--what", "solver"), "goes from one answer to the next"),
        (("--storage", "nowhere"), "is no storage"),
        (("--what", "layers"), "no layers to leave out"),
        (("--what", "skip", "--method", "autodiffusion"), "--what schedule or layers"),
        (("--what", "weights"), "--run"),
        (("--run", "x"), "belongs to --what weights"),
        (("--what", "magic"), "unknown thing to tune 'magic'"),
        (("--objective", "fdd"), "Did you mean 'fd'"),
        (("--method", "magic"), "unknown search method"),
        (("--budget", "0"), "too small for one trial"),
        (("--what", "skip"), "no skip connections"),
        (("--what", "skip", "--method", "dp"), "computes schedules"),
        (("--what", "solver", "--method", "cma"), "one by one"),
        (("--solver", "magic"), "unknown solver"),
        (("--what", "restart", "--start", "no.json"), "cannot be read"),
        (("--objective", "fd", "--n", "4"), "at least"),
        (("--export", "word"), "unknown form"),
    ],
)
def test_bad_input_gets_one_clear_sentence(tmp_path, args, words):
    assert words in refusal("tune", ORACLE, *args, "--out", tmp_path / "t.json")
    assert not list(tmp_path.glob("*.json"))


def test_a_file_of_another_model_is_refused(tmp_path):
    run("tune", ORACLE, "--n", 8, "--report", 8, "--budget", 1, "--out", tmp_path / "t.json")
    assert "tuned for another model: name" in refusal("sample", "toy-moons", "--tuned", tmp_path / "t.json")
    text = (tmp_path / "t.json").read_text()
    (tmp_path / "t.json").write_text(text[: len(text) // 2])
    assert "is not JSON" in refusal("eval", ORACLE, "--tuned", tmp_path / "t.json")


# Exports, run


NOISE = Seeds(range(16)).normal((2,))
FLOAT32 = 2e-5  # states up to 12 in float32, 6e-8 relative a step, then contracted to size 1


@pytest.mark.parity
@pytest.mark.parametrize("solver", [Euler(), Heun()], ids=["euler", "heun"])
def test_diffusers_draws_what_we_draw(solver):
    diffusers = pytest.importorskip("diffusers")
    grid, model = TimeGrid((9.3, 3.1, 1.2, 0.35, 0.07, 0.0)), oracle()
    config = (
        {"sigma_data": 0.5}
        if isinstance(solver, Euler)
        else {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    )
    about = json.loads(json.dumps(export.to_diffusers(Setting(OdeSampler(solver, grid)), **config)))
    scheduler = getattr(diffusers, about["scheduler"])(**about["config"])
    given = about["set_timesteps"]
    if "sigmas" in given and about["scheduler"].startswith("EDM"):
        given["sigmas"] = torch.tensor(given["sigmas"], dtype=torch.float64)
    scheduler.set_timesteps(**given)
    assert interop.from_diffusers(scheduler).times == pytest.approx(grid.times, rel=1e-4)
    x = NOISE.float() * scheduler.sigmas[0]
    for i, t in enumerate(scheduler.timesteps):
        scheduler.scale_model_input(x, t)
        sigma = float(scheduler.sigmas[i])
        if isinstance(solver, Euler):
            c_skip, c_out, _, _ = EDMPrecondition(0.5).at(sigma, EDM())
            said = ((model.denoise(x.double(), sigma) - c_skip * x) / c_out).float()
        else:
            said = model.eps(x.double(), sigma).float()
        x = scheduler.step(said, t, x).prev_sample
    want = OdeSampler(solver, grid).sample(model, NOISE)
    # Heun takes real timesteps, from which sigma comes back to 1e-4
    torch.testing.assert_close(x.double(), want, rtol=0, atol=FLOAT32 if isinstance(solver, Euler) else 2e-3)


def test_k_diffusions_rules_give_our_samples():
    """Its sample_euler and sample_heun, written down from Karras et al. 2022, Alg. 1, on the exported sigmas."""
    model = oracle()
    for solver, second in ((Euler(), False), (Heun(), True)):
        setting = Setting(OdeSampler(solver, TimeGrid((9.3, 3.1, 1.2, 0.35, 0.0))))
        sigmas = export.to_k_diffusion(setting)["sigmas"]
        x = NOISE * sigmas[0]
        for s, following in zip(sigmas[:-1], sigmas[1:], strict=True):
            d = (x - model.denoise(x, s)) / s
            ahead = x + d * (following - s)
            if second and following > 0:
                d = (d + (ahead - model.denoise(ahead, following)) / following) / 2
                ahead = x + d * (following - s)
            x = ahead
        torch.testing.assert_close(x, setting.sampler.sample(model, NOISE), rtol=0, atol=FLOAT32)


def test_what_others_cannot_do_is_refused():
    from explorer.errors import BadValue

    sampler = OdeSampler(DPMpp2M(), TimeGrid((9.0, 1.0, 0.0)))
    for form in (export.to_k_diffusion, export.to_diffusers):
        with pytest.raises(BadValue, match="no place for skips"):
            form(Setting(sampler, (Skips((0.9,)),)))
        with pytest.raises(BadValue, match="no place for guidance"):
            form(Setting(sampler, (Guidance(2.0),)))
    with pytest.raises(BadValue, match="no rule that is"):
        export.to_k_diffusion(Setting(OdeSampler(interop_solver(), sampler.grid)))


def interop_solver():
    from explorer.sampling import DEIS

    return DEIS()


def test_a_script_carries_what_is_around_the_model():
    model = load("digits")
    setting = Setting(
        OdeSampler(Euler(), TimeGrid.karras(2, 0.1, 80.0)), (Skips((0.8, 1, 1, 1, 0.9), (0.1, 9)), Guidance(1.5))
    )
    names: dict = {}
    script = export.to_python(setting, "digits").replace("range(64)", "range(3)")
    exec(compile(script, "tuned.py", "exec"), names)  # noqa: S102
    assert torch.equal(names["x"], sample(*setting.on(model), range(3)))
