"""What the tests of training runs share: short runs in a folder of the test."""

from __future__ import annotations

from explorer.apps.training import previews, process
from explorer.apps.training.folder import RunFiles

TOY = {"paper": "edm", "recipe": "toy-8gaussians", "changes": {"steps": 12, "batch": 32}}


def few(monkeypatch, folder) -> None:
    """Runs in this folder; numbers from few samples, as what they are is tested with the functions that make them."""
    monkeypatch.setenv("EXPLORER_RUNS", str(folder))
    monkeypatch.setattr(previews, "N_PARTICLES", 40)
    monkeypatch.setattr(previews, "N_MEASURED", 64)
    monkeypatch.setattr(previews, "N_FINAL", 128)


def asked(runs, name="a", **changes) -> RunFiles:
    files = RunFiles(runs / name)
    files.ask({**TOY, "changes": {**TOY["changes"], **changes}})
    return files


def done(runs, name="a", **changes) -> RunFiles:
    files = asked(runs, name, **changes)
    process.work(files)
    assert files.status()["state"] == "done", files.status()
    return files
