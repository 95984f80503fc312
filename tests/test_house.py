"""The house rules that code can check: floors, imports, one training loop, nothing executed from disk, honest set-up files."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "explorer"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
README = (ROOT / "README.md").read_text()

FLOOR = {
    "errors": -1, "files": -1, "unpickle": -1,  # every floor raises, writes and reads these
    "process": 0, "nets": 0,
    "models": 1, "data": 1,
    "sampling": 2, "metrics": 2,
    "training": 3, "trajectory": 3, "live": 3, "paired": 3, "knobs": 3,
    "reproduction": 4, "tuning": 4,
    "papers": 5, "viz": 5,
    "apps": 6, "bench": 6,
    "cli": 7, "__main__": 8,
}  # fmt: skip

# Where a third-party package may be imported at all; anything not named here may be imported everywhere above floor 0.
ONLY_IN = {
    "xarray": lambda file: floor_of(file) >= 3,
    "matplotlib": lambda file: top(file) in {"viz", "apps", "cli"},
    "plotly": lambda file: top(file) in {"viz", "apps"},
    "panel": lambda file: top(file) in {"apps", "notebook"},
    "bokeh": lambda file: top(file) in {"apps"},
    "ipywidgets": lambda file: top(file) in {"apps", "notebook"},
    "param": lambda file: top(file) in {"knobs", "apps", "notebook", "cli"},
    "typer": lambda file: top(file) == "cli",
    "torchdiffeq": lambda file: file.name == "adaptive.py" or top(file) == "bench",
}
HEAVY = {"sklearn", "ot", "diffusers", "torchmetrics", "optuna", "matplotlib", "plotly", "panel", "bokeh"}
FLOOR_0 = {"torch", "numpy", "scipy", "explorer"} | set(sys.stdlib_module_names)

FILES = sorted(PACKAGE.rglob("*.py"))


def top(file: Path) -> str:
    """First name below the package: `process` for explorer/process/paths.py, `cli` for explorer/cli/output.py."""
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def floor_of(file: Path) -> int:
    return FLOOR[top(file)]


def imports(tree: ast.AST, file: Path):
    """(module, at_import_time) of every import; `from explorer import x` counts as explorer.x."""
    lazy = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        for node in ast.walk(function)
    }
    lazy |= {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, id(node) not in lazy
        elif isinstance(node, ast.ImportFrom):
            package = file.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            module = ".".join([*package, *([node.module] if node.module else [])])
            for alias in node.names:
                yield (f"{module}.{alias.name}" if module == "explorer" else module), id(node) not in lazy


@functools.cache
def parsed(file: Path) -> ast.AST:
    return ast.parse(file.read_text(), filename=str(file))


def modules() -> list[Path]:
    """Every file of the package but explorer/__init__.py, which only gathers names."""
    return [file for file in FILES if file != PACKAGE / "__init__.py"]


def ids(file: Path) -> str:
    return str(file.relative_to(ROOT))


def test_every_module_has_a_floor():
    assert {top(file) for file in modules()} <= set(FLOOR)


@pytest.mark.parametrize("file", modules(), ids=ids)
def test_imports_go_downward_only(file):
    for name, _ in imports(parsed(file), file):
        parts = name.split(".")
        if parts[0] != "explorer":
            continue
        assert len(parts) > 1, f"{ids(file)} imports the whole package; name the module"
        other = parts[1]
        if other == "__version__":
            continue
        assert other in FLOOR, f"{ids(file)} imports {name}, which has no floor"
        inside = other == top(file) and top(file) != "papers"
        own_package = top(file) == "papers" and (file.name == "__init__.py" or claims_of(file) in parts[2:3])
        assert FLOOR[other] < floor_of(file) or inside or own_package or both_loose(file, other), (
            f"{ids(file)} (floor {floor_of(file)}) imports {name} (floor {FLOOR[other]})"
        )


@pytest.mark.parametrize("file", modules(), ids=ids)
def test_private_names_stay_in_their_module(file):
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("explorer"):
            hidden = [a.name for a in node.names if a.name.startswith("_") and not a.name.startswith("__")]
            assert not hidden, f"{ids(file)} imports {', '.join(hidden)} of {node.module}"


def claims_of(file: Path) -> str:
    """The one paper that a file of claims may import, "edm" for explorer/papers/edm_claims.py."""
    return file.stem.removesuffix("_claims") if file.stem.endswith("_claims") else ""


def both_loose(file: Path, other: str) -> bool:
    """Single files of floor 3 (live.py, paired.py) may use the packages of their own floor."""
    return (PACKAGE / f"{top(file)}.py").is_file() and FLOOR[other] == floor_of(file)


@pytest.mark.parametrize("file", modules(), ids=ids)
def test_third_party_imports_stay_where_they_belong(file):
    for name, at_import in imports(parsed(file), file):
        package = name.split(".")[0]
        if floor_of(file) <= 0:
            lazy_pot = package == "ot" and not at_import  # exact matchings; scipy stands in for it
            its_error = top(file) == "files" and package == "safetensors"  # which a full disk raises
            assert package in FLOOR_0 or lazy_pot or its_error, f"{ids(file)} is on floor 0 and imports {name}"
        if package in ONLY_IN:
            assert ONLY_IN[package](file), f"{ids(file)} must not import {name}"
        if package in HEAVY and at_import:
            allowed = {"viz", "apps"} if package in {"matplotlib", "plotly", "panel", "bokeh"} else set()
            assert top(file) in allowed, f"{ids(file)} imports {name} at import time; import it in the function"


@pytest.mark.parametrize("file", modules(), ids=ids)
def test_only_the_loop_trains(file):
    if file.relative_to(PACKAGE).as_posix() == "training/loop.py":
        return
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            call = ast.unparse(node.func)
            assert node.func.attr != "backward", f"{ids(file)}:{node.lineno} calls {call}"
            assert not re.search(r"(optimi[sz]er|optim|opt)s?(\[.*\])?\.step$", call), (
                f"{ids(file)}:{node.lineno} {call}"
            )


@pytest.mark.parametrize("file", modules(), ids=ids)
def test_nothing_read_from_disk_is_executed_and_no_global_state_is_used(file):
    for node in ast.walk(parsed(file)):
        if not isinstance(node, ast.Call):
            continue
        call, where = ast.unparse(node.func), f"{ids(file)}:{node.lineno}"
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        assert call not in {"eval", "exec", "yaml.load"}, f"{where} calls {call}"
        assert not re.match(r"(pickle|dill|joblib|cloudpickle)\.loads?$", call), f"{where} calls {call}"
        if call == "torch.load":
            assert keywords.get("weights_only") == "True", f"{where} unpickles: pass weights_only=True"
        assert keywords.get("allow_pickle", "False") == "False", f"{where} allows pickles"
        if ids(file) != "explorer/training/loop.py":  # the loop pins dropout inside a forked generator state
            assert call not in {"torch.manual_seed", "np.random.seed", "random.seed"}, f"{where} seeds global state"
        assert not call.endswith(".cuda"), f"{where} moves to a device of its own choice"


@pytest.mark.parametrize("file", sorted((PACKAGE / "papers").glob("[!_]*.py")), ids=ids)
def test_a_paper_fits_in_one_readable_file(file):
    assert len(file.read_text().splitlines()) <= 350


def run(code: str) -> subprocess.CompletedProcess:
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=env, timeout=240)


def test_no_public_name_is_also_a_module():
    """`import explorer.x` would bind the module over the function of that name."""
    import explorer

    own = {file.stem for file in PACKAGE.glob("*.py")} | {file.name for file in PACKAGE.iterdir() if file.is_dir()}
    assert not own & set(explorer._HOME)


def test_importing_the_package_leaves_optional_and_heavy_packages_alone():
    heavy = sorted(HEAVY | {"IPython", "ipywidgets"})
    done = run(f"import explorer, sys; [getattr(explorer, n) for n in explorer.__all__]; "
               f"print(sorted(set({heavy!r}) & set(sys.modules)))")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_help_does_not_wait_for_torch():
    done = run("import sys, explorer.cli as c\ntry: c.app(['--help'])\nexcept SystemExit: pass\n"
               "print('torch' in sys.modules, 'numpy' in sys.modules)")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("False False")


# Set-up files


def requirement_names(requirements: list[str]) -> set[str]:
    return {re.match(r"[A-Za-z0-9_.-]+", r).group().lower() for r in requirements}


def direct_dependencies() -> dict[str, str]:
    """Name -> whole requirement, of the core and every extra."""
    project = PYPROJECT["project"]
    everything = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    out = {re.match(r"[A-Za-z0-9_.-]+", r).group().lower(): r for r in everything}
    out.pop("trajectory-explorer")
    return out


def constraints() -> dict[str, str]:
    lines = (ROOT / "constraints-cpu.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    return {name.lower(): version for name, version in pins.items()}


def test_all_is_the_union_of_the_extras():
    extras = dict(PYPROJECT["project"]["optional-dependencies"])
    [everything] = extras.pop("all")
    apart = set(extras) - set(re.search(r"\[(.*)\]", everything).group(1).split(","))
    assert apart == {"features"}  # needs a torchvision of the same build as torch, which no index gives to all
    assert all(f"[{extra}]" in (ROOT / "environment.yml").read_text() for extra in apart)


def test_constraints_pin_each_direct_dependency_within_its_bounds():
    from packaging.requirements import Requirement

    pins, direct = constraints(), direct_dependencies()
    assert set(pins) == set(direct)
    for name, requirement in direct.items():
        assert pins[name] in Requirement(requirement).specifier, f"{requirement} excludes the tested {pins[name]}"


def test_what_the_users_asked_for_is_installed_by_both_commands():
    asked = {"torch", "jupyterlab", "ipywidgets", "matplotlib", "plotly", "panel", "xarray", "torchdiffeq"}
    assert asked <= set(direct_dependencies())
    makefile = (ROOT / "Makefile").read_text()
    setup = (ROOT / ".ci/setup.sh").read_text()
    assert "--editable '.[all]'" in setup
    for target in ("serve", "lint"):
        assert re.search(rf"^{target}: \.venv/\.installed$", makefile, re.M)
    assert re.search(r"^test: lint$", makefile, re.M)
    for name in asked:
        importlib.metadata.version(name)


def test_environment_yml_installs_what_pyproject_declares():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, section = conda["dependencies"]
    assert conda["name"] == PYPROJECT["project"]["name"] and pip == "pip"
    assert section == {"pip": ["-c constraints-cpu.txt", "-e .[all]"]}
    lowest = PYPROJECT["project"]["requires-python"]
    assert python.startswith(f"python{lowest},")
    minors = [c.rsplit(".", 1)[1] for c in PYPROJECT["project"]["classifiers"] if "Python :: 3." in c]
    assert python.endswith(f"<3.{int(minors[-1]) + 1}")


def test_ci_runs_the_commands_of_the_readme():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    shown = set(re.findall(r"^\s*make ([a-z]+)", README, re.M))
    assert {"serve", "test"} <= shown <= targets
    ci = (ROOT / ".ci/run").read_text()
    assert re.findall(r"^make \w+", ci, re.M) == ["make test"]
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "bash .ci/run" in (ROOT / ".github/workflows/test.yml").read_text()


def test_bundled_files_are_put_into_the_wheel():
    forced = PYPROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert forced["assets/models"] == "explorer/_assets/models"
    assert all((ROOT / source).exists() for source in forced)


def test_no_committed_file_names_a_package_index_or_a_private_path():
    # Spelled in halves so that this file passes its own test.
    hosts = [
        "py" + "pi.org",
        "python" + "hosted.org",
        "download.py" + "torch.org",
        "conda.ana" + "conda.org",
        "/wo" + "rk/",
    ]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    for name in filter(None, listed.stdout.split("\0")):
        file = ROOT / name
        if file.suffix in {".safetensors", ".png", ".npz"} or not file.is_file():
            continue
        text = file.read_text(errors="replace")
        assert not [h for h in hosts if h in text], f"{name} names {[h for h in hosts if h in text]}"
