"""The command line: what it prints for people and for machines, and one clear sentence for bad input."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from explorer import cli
from explorer.knobs import SamplerKnobs, names
from explorer.models.bundled import load

ORACLE = "oracle-8gaussians"
README = (Path(__file__).parent.parent / "README.md").read_text()


def run(*args: str, code: int = 0):
    result = CliRunner().invoke(cli.app, [str(a) for a in args], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert result.exit_code == code, result.output + (repr(result.exception) if result.exception else "")
    return result


@pytest.fixture(scope="module")
def user_file(tmp_path_factory) -> str:
    """A model of the user's own: an untrained MLP without classes, saved as weights and card."""
    from explorer.models.base import Preconditioned
    from explorer.models.bundled import save_model
    from explorer.nets.mlp import MLP
    from explorer.process.paths import EDM
    from explorer.process.precondition import EDMPrecondition

    model = Preconditioned(MLP(2, width=16), EDM(), EDMPrecondition(0.5), shape=(2,), t_range=(0.002, 80.0))
    return str(save_model(tmp_path_factory.mktemp("model"), "mine", model, {"data": "moons"}))


def document(*args: str) -> dict | list:
    """Standard output of a --json run, which must be one JSON document and nothing else."""
    return json.loads(run(*args, "--json").stdout)


def refusal(*args: str) -> str:
    """The one sentence a bad input gets: exit code 2, nothing on standard output, no traceback."""
    result = run(*args, code=2)
    assert result.stdout == ""
    text = result.stderr.strip()
    assert text.startswith("error: ") and "Traceback" not in text and text.count("\n") == 0, text
    return text.removeprefix("error: ")


@pytest.mark.parametrize("command", ["serve", "sample", "eval", "compare", "record", "train", "list", "bench"])
def test_each_command_explains_itself_with_examples(command):
    text = run(command, "--help").stdout
    assert f"explorer {command}" in text.partition("Examples")[2]
    assert command in run("--help").stdout


@pytest.mark.parametrize("command", ["sample", "eval", "record"])
def test_every_knob_is_an_option_with_its_documentation(command):
    text = " ".join(run(command, "--help").stdout.split())
    for name in names():
        assert f"--{name.replace('_', '-')}" in text
        assert SamplerKnobs.param[name].doc.split()[0] in text
    assert "--sampler" in text and "--steps" in text


def test_eval_prints_what_a_machine_needs():
    out = document("eval", ORACLE, "--sampler", "heun", "--steps", 18, "--n", 300, "--seed", 5)
    assert {"metric", "value", "std_error", "n", "nfe", "raw", "seconds"} <= set(out)
    assert out["n"] == 300 and out["nfe"] == 35 and out["std_error"] > 0 and out["seconds"] > 0
    assert out["model"] == ORACLE and out["seeds"] == [5, 305] and out["knobs"]["n_steps"] == 18
    assert out["sampler"]["solver"] == {"name": "heun"}
    assert out["versions"]["torch"] == torch.__version__


def test_eval_does_not_depend_on_the_batch_and_knob_names_and_short_flags_agree():
    first = document("eval", ORACLE, "--sampler", "euler", "--steps", 6, "--n", 200, "--batch", 64)
    second = document("eval", ORACLE, "--solver", "euler", "--n-steps", 6, "--n", 200, "--batch", 200)
    assert first["value"] == pytest.approx(second["value"], rel=1e-9)
    assert first["knobs"] == second["knobs"] and first["metric"] == second["metric"]


def test_eval_without_json_is_one_line():
    text = run("eval", ORACLE, "--steps", 4, "--n", 200).stdout
    assert re.fullmatch(r".+ ± .+ \(n=200\).*, 7 NFE, [\d.]+ s\n", text)


def test_the_dashboards_command_line_reproduces_its_knobs():
    knobs = SamplerKnobs(solver="edm-stochastic", n_steps=7, rho=5.0, s_churn=12.0, seed=3)
    words = knobs.to_cli(ORACLE, n=128).split()
    assert words[:2] == ["explorer", "eval"]
    assert document(*words[1:])["knobs"] == knobs.to_dict()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_sample_writes_the_samples_of_the_python_api(tmp_path, suffix):
    from safetensors.numpy import load_file

    from explorer.sampling.samplers import sample

    out = tmp_path / f"points{suffix}"
    report = document("sample", ORACLE, "--n", 20, "--steps", 5, "--seed", 7, "--out", out)
    stored = load_file(out) if suffix == ".safetensors" else np.load(out)
    model = load(ORACLE)
    built, sampler = SamplerKnobs.for_model(model, n_steps=5).build(model)
    np.testing.assert_array_equal(stored["x"], sample(built, sampler, range(7, 27)).numpy())
    assert list(stored["seed"]) == list(range(7, 27))
    assert report["nfe"] == 9 and report["shape"] == [2] and report["n"] == 20


def test_sample_draws_a_picture_of_points(tmp_path):
    run("sample", ORACLE, "--n", 30, "--steps", 4, "--out", tmp_path / "points.png")
    assert (tmp_path / "points.png").read_bytes().startswith(b"\x89PNG")


def test_sample_puts_images_in_rows(tmp_path):
    from matplotlib.image import imread

    out = tmp_path / "grid.png"
    run("sample", "oracle-digits", "--n", 9, "--steps", 2, "--out", out)
    run("sample", "oracle-digits", "--n", 9, "--steps", 2, "--out", tmp_path / "x.npz")
    picture, x = imread(out)[:, :, 0], np.load(tmp_path / "x.npz")["x"]
    side = (picture.shape[0] - 2) // 3  # three rows, one pixel between them
    first = picture[:side, :side].reshape(8, side // 8, 8, side // 8)
    assert np.abs(first - first[:, :1, :, :1]).max() == 0
    np.testing.assert_allclose(first[:, 0, :, 0], (x[0, 0].clip(-1, 1) + 1) / 2, atol=0.51 / 255)


@pytest.mark.parametrize("suffix", [".nc", ".zarr"])
def test_record_stores_a_trajectory(tmp_path, suffix):
    from explorer.trajectory import storage

    out = tmp_path / f"run{suffix}"
    report = document("record", ORACLE, "--n", 12, "--steps", 5, "--keep", "slope,x0_hat", "--out", out)
    ds = storage.load(out)
    assert ds.sizes["sample"] == 12 and ds.sizes["time"] == 6
    assert {"x", "slope", "x0_hat"} <= set(ds.data_vars)
    assert report["nfe"] == ds.attrs["nfe"] == 9 and report["bytes"] > 0


@pytest.mark.parametrize("what", cli.LISTED)
def test_list_is_the_same_for_people_and_machines(what):
    rows = document("list", what)
    assert rows or what in ("papers", "samplers")  # of samplers there are those that the user has kept
    text = run("list", what).stdout
    assert all(str(row["name"]) in text for row in rows)


def test_list_tells_order_and_cost_of_each_solver():
    rows = {row["name"]: row for row in document("list", "solvers")}
    assert (rows["euler"]["order"], rows["euler"]["nfe"]) == (1, "n")
    assert (rows["heun"]["order"], rows["heun"]["nfe"]) == (2, "2n - 1")
    assert rows["dpmpp-2m"]["nfe"] == "n"


@pytest.mark.parametrize(
    "args, words",
    [
        (["eval", "oracle-8gausians"], ["unknown model", "oracle-8gaussians"]),
        (["eval", ORACLE, "--sampler", "huen"], ["unknown solver", "huen", "'heun'"]),
        (["eval", ORACLE, "--steps", 0], ["n_steps", "0", "1"]),
        (["eval", ORACLE, "--sigma-min", 1.0, "--sigma-max", 0.5], ["sigma_min", "below", "sigma_max"]),
        (["eval", ORACLE, "--skip-bank", "1,x"], ["skip_bank", "numbers"]),
        (["eval", ORACLE, "--rho", 99], ["rho", "99", "15"]),
        (["eval", ORACLE, "--metric", "fdi"], ["unknown metric", "fdi"]),
        (["sample", ORACLE, "--out", "grid.jpeg"], ["grid.jpeg", ".png"]),
        (["record", ORACLE, "--out", "run.csv"], ["run.csv", ".nc"]),
        (["record", ORACLE, "--keep", "slop", "--out", "run.nc"], ["slop", "slope"]),
        (["record", ORACLE, "--n", 1000, "--limit", 1e-5, "--out", "run.nc"], ["GiB", "1000 samples"]),
        (["list", "model"], ["model", "'models'"]),
        (["train", "emd"], ["emd", "'edm'"]),
        (["train", "edm", "--data", "digit"], ["digit", "'digits'"]),
        (["train", "edm", "--set", "plan.n_step=3"], ["n_step", "'n_steps'"]),
        (["train", "edm", "--set", "plan"], ["--set", "FIELD=VALUE"]),
        (["bench", "frechett"], ["frechet"]),
    ],
    ids=lambda value: " ".join(map(str, value[:4])) if isinstance(value, list) else "",
)
def test_bad_input_gets_one_clear_sentence(args, words, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    text = refusal(*args)
    assert all(str(word) in text for word in words), text
    assert not list(tmp_path.iterdir())


def test_guidance_and_skip_tuning_are_refused_where_the_model_has_nothing_to_act_on(user_file):
    assert "guidance 2 needs a class-conditional model" in refusal("eval", user_file, "--guidance", 2)
    assert "class 3" in refusal("eval", user_file, "--class", 3)
    for given in (["--rho-bottom", 0.8], ["--rho-top", 0.9], ["--skip-bank", "0.8,1"]):
        assert "skip connections" in refusal("eval", user_file, *given)


def test_a_users_model_file_is_used_and_refused_once_it_is_damaged(user_file, tmp_path):
    import shutil

    assert document("eval", user_file, "--n", 64, "--steps", 2)["n"] == 64
    assert document("sample", user_file, "--n", 4, "--steps", 2, "--out", tmp_path / "x.npz")["nfe"] == 3
    copy = tmp_path / "mine.safetensors"
    shutil.copy(user_file.replace(".safetensors", ".json"), tmp_path / "mine.json")
    copy.write_bytes(Path(user_file).read_bytes()[:-7])
    assert "mine" in refusal("sample", copy, "--out", tmp_path / "y.npz")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_missing_gpu_is_said(tmp_path):
    assert "cuda is not available" in refusal("eval", ORACLE, "--device", "cuda")


def test_a_knob_that_cannot_act_is_noted():
    result = run("eval", ORACLE, "--steps", 3, "--n", 100, "--s-churn", 5, "--json")
    assert "note: s-churn has no effect" in result.stderr
    json.loads(result.stdout)


def test_interrupting_is_quiet(monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.lists, "rows_of_grids", stop)
    result = run("list", "grids", code=130)
    assert "interrupted" in result.stderr and "Traceback" not in result.output


def test_completion_knows_commands_knobs_and_choices():
    env = {"COMP_WORDS": "explorer eval digits --solver he", "COMP_CWORD": "4", "_EXPLORER_COMPLETE": "complete_bash"}
    result = CliRunner().invoke(cli.app, [], prog_name="explorer", env=env)
    assert "heun" in result.stdout and "euler" not in result.stdout


def test_bench_prints_rows_and_writes_them_with_the_machine(monkeypatch, tmp_path):
    from explorer import bench
    from explorer.bench import Row

    row = Row.of(
        "frechet-d64", {"ours": [2.0, 1.0, 3.0], "limit": [1.0, 1.0, 1.0], "peer": [4.0] * 3}, unit="s", limit_is="x"
    )
    monkeypatch.setattr(bench, "run", lambda names, show, **how: [row])
    [shown] = document("bench", "frechet", "--out", tmp_path / "bench.json")
    assert {"name", "ours", "unit", "limit", "peers"} <= set(shown) and shown["ours"] == 2.0
    assert shown["peers"] == {"peer": 4.0}
    stored = json.loads((tmp_path / "bench.json").read_text())
    assert stored["rows"] == [shown] and stored["machine"] and stored["versions"]
    assert "frechet-d64" in run("bench", "frechet").stdout


def test_serve_hands_its_options_on_and_says_what_is_missing(monkeypatch):
    import builtins

    from explorer.apps import serve

    asked = {}
    monkeypatch.setattr(serve, "serve", lambda **options: asked.update(options))
    run("serve", "--port", 0, "--no-show", "--demo")
    assert asked == {"port": 0, "address": "localhost", "show": False, "demo": True}

    real = builtins.__import__

    def without_panel(name, *rest, **options):
        if name == "explorer.apps.serve":
            raise ModuleNotFoundError("No module named 'panel'", name="panel")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without_panel)
    assert "trajectory-explorer[app]" in refusal("serve")


@pytest.mark.slow
def test_train_writes_a_model_that_the_other_commands_take(tmp_path):
    args = ["--data", "toy-moons", "--set", "plan.n_steps=40", "--seed", 3, "--out", tmp_path]
    done = document("train", "edm", *args)
    assert done["steps"] == 40 and done["card"]["seed"] == 3 and done["card"]["metrics"]
    assert document("eval", done["file"], "--n", 64)["metric"] == "SW2[xy]"


def test_the_readmes_commands_exist():
    lines = re.findall(r"^explorer (.+?)(?:\s+#.*)?$", README, re.M)
    assert len(lines) >= 6
    for line in lines:
        run(*line.split(), "--help")


def test_the_readmes_python_runs():
    [code] = re.findall(r"```python\n(.*?)```", README, re.S)
    assert 8 <= len(code.splitlines()) <= 12
    exec(compile(code, "README.md", "exec"), {})


def test_version():
    from explorer import __version__

    assert run("--version").stdout.strip() == f"explorer {__version__}"


def setting(folder: Path, name: str, **knobs) -> Path:
    file = folder / f"{name}.json"
    file.write_text(json.dumps({"model": ORACLE, "knobs": knobs}))
    return file


def test_compare_pairs_two_settings_on_the_same_noise(tmp_path):
    a = setting(tmp_path, "few", solver="euler", n_steps=3, seed=7)
    b = setting(tmp_path, "many", solver="heun", n_steps=18, seed=7)
    out = document("compare", a, b, "--n", 300)
    assert out["a"]["nfe"] == 3 and out["b"]["nfe"] == 35 and out["a"]["seeds"] == out["b"]["seeds"] == [7, 307]
    alone = [
        document("eval", ORACLE, "--sampler", s, "--steps", k, "--n", 300, "--seed", 7)
        for s, k in (("euler", 3), ("heun", 18))
    ]
    for side, eval_ in zip("ab", alone, strict=True):
        assert out[side]["value"] == pytest.approx(eval_["value"], rel=1e-9)
    unpaired = sum(eval_["std_error"] ** 2 for eval_ in alone) ** 0.5
    assert out["difference"]["value"] == pytest.approx(alone[0]["value"] - alone[1]["value"], abs=unpaired)
    assert "many" in out["verdict"].partition("is better than")[0] and out["distance"]["value"] > 0.03
    same = document("compare", b, b, "--n", 100)
    assert same["difference"]["value"] == 0 and same["distance"]["value"] == 0
    assert out["verdict"] in run("compare", a, b, "--n", 300).stdout


def test_compare_takes_what_eval_prints_and_what_the_dashboard_exports(tmp_path):
    from explorer.apps.session import Session
    from explorer.apps.worker import Worker

    printed = tmp_path / "printed.json"
    printed.write_text(run("eval", ORACLE, "--steps", 4, "--n", 50, "--json").stdout)
    session = Session(Worker())
    session.choose_model(ORACLE)
    exported = tmp_path / "exported.json"
    exported.write_text(session.to_json())
    session.cancel()
    out = document("compare", printed, exported, "--n", 50)
    assert out["a"]["knobs"]["n_steps"] == 4 and out["b"]["knobs"] == session.knobs.to_dict()


@pytest.mark.parametrize(
    "text, words",
    [(None, "cannot be read"), ("{", "not JSON"), ('{"knobs": {}}', "explorer eval --json"), ('{"model": "digit", "knobs": {}}', "digits"),
     ('{"model": "toy-moons", "knobs": {"sovler": "heun"}}', "solver")],
)  # fmt: skip
def test_compare_says_what_is_wrong_with_a_file(text, words, tmp_path):
    good, bad = setting(tmp_path, "good"), tmp_path / "bad.json"
    if text is not None:
        bad.write_text(text)
    assert words in refusal("compare", good, bad)


def test_a_stored_sampler_of_any_kind_can_be_used(tmp_path):
    from explorer.sampling import AdaptiveSampler, Heun, OdeSampler, Restart, RestartSampler, TimeGrid

    grid, file = TimeGrid.karras(5, 0.002, 80.0), tmp_path / "sampler.json"
    file.write_text(OdeSampler(Heun(), grid).to_json())
    out, plain = (document("eval", ORACLE, "--n", 60, *how) for how in (("--sampler-file", file), ("--steps", 5)))
    assert out["value"] == plain["value"] and out["nfe"] == 9 and "knobs" not in out
    printed = tmp_path / "printed.json"
    printed.write_text(json.dumps(out))
    assert document("compare", printed, printed, "--n", 20)["difference"]["value"] == 0
    file.write_text(json.dumps({"sampler": RestartSampler(grid, (Restart(3, 2, 0.06, 0.3),), Heun()).to_dict()}))
    assert document("sample", ORACLE, "--n", 4, "--sampler-file", file, "--out", tmp_path / "x.npz")["nfe"] == 9 + 8
    file.write_text(AdaptiveSampler(TimeGrid.explicit((80.0, 0.01)), "bosh3", 1e-2, 1e-2).to_json())
    assert document("eval", ORACLE, "--n", 20, "--sampler-file", file)["nfe"] is None
    assert "adaptive steps" in run("eval", ORACLE, "--n", 20, "--sampler-file", file).stdout
    assert "--steps" in refusal("eval", ORACLE, "--sampler-file", file, "--steps", 3).replace("n-steps", "steps")
    file.write_text("{}")
    assert "describes no sampler" in refusal("eval", ORACLE, "--sampler-file", file)
