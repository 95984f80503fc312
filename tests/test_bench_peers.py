"""Peers that are checkouts of a repository: how they are found; and, where they are, that they compute what ours compute."""

import json
import os
import subprocess
import sys

import pytest
import torch

from explorer.bench import peers
from explorer.models import published

parity_edm = pytest.mark.skipif(not os.environ.get(peers.EDM_FOLDER), reason=f"{peers.EDM_FOLDER} names no checkout")
parity_k = pytest.mark.skipif(
    not os.environ.get(peers.K_DIFFUSION_FOLDER), reason=f"{peers.K_DIFFUSION_FOLDER} names no checkout"
)

SAMPLING = """
import torchsde, torchvision
from torchvision.transforms import functional as TF
from . import utils
name = utils.name
"""


@pytest.fixture
def imports(monkeypatch):
    """Modules imported by the test are forgotten after it."""
    before = dict(sys.modules)
    for name in [name for name in before if name.split(".")[0] == "k_diffusion"]:
        monkeypatch.delitem(sys.modules, name)
    yield
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def test_a_module_of_a_checkout_is_imported_without_the_packages_that_it_does_not_use(tmp_path, monkeypatch, imports):
    folder = tmp_path / "k_diffusion"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('asks for the world')")
    (folder / "sampling.py").write_text(SAMPLING)
    (folder / "utils.py").write_text("name = 'found'")
    monkeypatch.setenv(peers.K_DIFFUSION_FOLDER, str(tmp_path))
    missing = [name for name in peers.UNUSED if name not in sys.modules]
    for name in missing:
        monkeypatch.delitem(sys.modules, name, raising=False)
    assert peers.k_diffusion().name == "found" and peers.k_diffusion() is sys.modules["k_diffusion.sampling"]
    assert not any(
        getattr(sys.modules.get(name), "__file__", "") is None for name in missing
    )  # no empty modules are left


def test_where_there_is_no_checkout_the_peer_is_absent(tmp_path, monkeypatch, imports):
    for value in (None, "", str(tmp_path)):
        for variable in (peers.EDM_FOLDER, peers.K_DIFFUSION_FOLDER):
            monkeypatch.setenv(variable, value) if value is not None else monkeypatch.delenv(variable, raising=False)
        with pytest.raises(ImportError, match="EXPLORER_EDM"):
            peers.edm("no_such_module")
        monkeypatch.setitem(sys.modules, "k_diffusion", None)  # as where it is not installed
        with pytest.raises(ImportError, match="EXPLORER_KDIFFUSION"):
            peers.k_diffusion()
    before = list(sys.path)
    (tmp_path / "only_there.py").write_text("value = 3")
    assert peers.edm("only_there").value == 3 and sys.path == before


THEIRS = """
import pickle, sys, torch
sys.path.insert(0, sys.argv[1])
from training.networks import EDMPrecond
kind, to = sys.argv[2:]
adm = dict(model_type="DhariwalUNet", model_channels=64, channel_mult=[1, 2], attn_resolutions=[8], num_blocks=2)
song = dict(model_type="SongUNet", model_channels=32, channel_mult=[1, 2, 2], attn_resolutions=[8], num_blocks=2)
ncsn = dict(embedding_type="fourier", encoder_type="residual", channel_mult_noise=2, resample_filter=[1, 3, 3, 1])
options = {"ddpm++": song, "ncsn++": song | ncsn, "adm": adm}[kind]
torch.manual_seed(0)
net = EDMPrecond(16, 3, label_dim=5, augment_dim=9, **options).eval().requires_grad_(False)
for p in net.parameters():  # the last layers start near zero
    p.copy_(torch.randn(p.shape) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
x, labels, shown = torch.randn(4, 3, 16, 16), torch.tensor([0, 3, 4, 1]), torch.randn(4, 9)
out = [net(x * (1 + s), torch.tensor(s), torch.eye(5)[labels]) for s in (0.01, 0.6, 20.0)]
marks = net.model(x, torch.linspace(-1, 1, 4), torch.eye(5)[labels], augment_labels=shown)
pickle.dump({"ema": net}, open(to + "/net.pkl", "wb"))
torch.save({"x": x, "labels": labels, "shown": shown, "out": out, "marks": marks}, to + "/out.pt")
"""


@pytest.mark.parity
@parity_edm
@pytest.mark.parametrize("kind", ["ddpm++", "ncsn++", "adm"])
def test_networks_of_nvlabs_edm_read_from_their_pickles_give_their_outputs(kind, tmp_path):
    """In a process of its own, since their modules have names like `training`. float32 through some forty layers of order one."""
    folder = os.environ[peers.EDM_FOLDER]
    subprocess.run([sys.executable, "-c", THEIRS, folder, kind, str(tmp_path)], check=True)
    theirs, model = torch.load(tmp_path / "out.pt"), published.read(tmp_path / "net.pkl").model
    x, labels, levels = theirs["x"], theirs["labels"], torch.linspace(-1, 1, 4)
    with torch.no_grad():
        for sigma, expected in zip((0.01, 0.6, 20.0), theirs["out"], strict=True):
            torch.testing.assert_close(model.denoise(x * (1 + sigma), sigma, labels), expected, rtol=1e-4, atol=1e-5)
        marks = model.net(x, levels, labels, augment=theirs["shown"])
    torch.testing.assert_close(marks, theirs["marks"], rtol=1e-4, atol=1e-5)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("row", "peer"),
    [
        pytest.param("heun-edm", "NVlabs/edm edm_sampler", marks=parity_edm),
        pytest.param("heun-edm", "k-diffusion heun", marks=parity_k),
        pytest.param("euler-edm", "k-diffusion euler", marks=parity_k),
        pytest.param("dpmpp-2m", "k-diffusion dpmpp_2m", marks=parity_k),
        pytest.param("dpmpp-2s", "k-diffusion dpmpp_2s", marks=parity_k),
        pytest.param("dpm-solver-2", "k-diffusion dpm_2", marks=parity_k),
    ],
)
def test_samplers_of_others_end_where_ours_do(row, peer):
    """The same network and grid; 18 steps in float32 by differently ordered arithmetic: seen 2e-7 to 5e-7."""
    command = [sys.executable, "-m", "explorer", "bench", f"solver-overhead-{row}", "--quick", "--runs", "1", "--json"]
    [measured] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert measured["checks"][peer] < 1e-5
