"""FastGen's losses beside ours: their classes are given our denoiser, and a missing checkout is absent with its reason."""

from __future__ import annotations

import os

import pytest
import torch
from torch import nn

from explorer.bench import fastgen
from explorer.data import Loader, load_dataset
from explorer.models.bundled import load
from explorer.papers import paper

N = 4


class Schedule:
    """The part of their noise schedule that the adapter asks: x0 as it is, and no other kind."""

    def convert_model_output(self, xt, out, t, src_pred_type, target_pred_type):
        assert (src_pred_type, target_pred_type) == ("x0", "x0")
        return out


class Base(nn.Module):
    def __init__(self, net_pred_type, schedule_type, t_precision):
        super().__init__()
        self.noise_scheduler = Schedule()


@pytest.fixture(name="asked")
def _asked():
    g = torch.Generator().manual_seed(0)
    denoiser = load("digits")
    x, t = torch.randn(N, *denoiser.shape, generator=g), torch.tensor([0.01, 0.3, 2.0, 60.0])
    return denoiser, x, t, torch.randint(10, (N,), generator=g)


def test_what_their_classes_train_is_our_denoiser(asked):
    denoiser, x, t, labels = asked
    network = fastgen.adapter(Base, denoiser)()
    expected = denoiser.denoise(x, t, labels)
    # the same float32 operations in the same order, but for the affine step, which the denoiser fuses: 1e-5 of numbers up to 1
    torch.testing.assert_close(network(x, t, labels), expected, rtol=1e-5, atol=1e-5)
    out, weight = network(x, t, labels, return_logvar=True)
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-5)
    assert weight.shape == (N, 1) and not weight.any()  # a learnt weight begins at 1
    assert all(p.requires_grad for p in network.parameters())
    assert not any(p.requires_grad for p in denoiser.parameters())


def test_a_gan_reads_the_bottleneck_in_one_pass(asked):
    denoiser, x, t, labels = asked
    network = fastgen.adapter(Base, denoiser)()
    out, features = network(x, t, labels, feature_indices={0})
    (alone,) = network(x, t, labels, feature_indices={0}, return_features_early=True)
    assert torch.equal(features[0], alone) and alone.shape == (N, *denoiser.net.feature_shape)
    torch.testing.assert_close(out, denoiser.denoise(x, t, labels), rtol=1e-5, atol=1e-5)
    features[0].sum().backward()
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())
    assert not network.model.net.middle[-1]._forward_hooks


@pytest.mark.parametrize("named", [None, "an empty folder"])
def test_without_a_checkout_the_peer_is_absent_and_the_reason_is_said(monkeypatch, tmp_path, named):
    monkeypatch.delenv(fastgen.FASTGEN_FOLDER, raising=False)
    if named:
        monkeypatch.setenv(fastgen.FASTGEN_FOLDER, str(tmp_path))
    with pytest.raises(ImportError, match="EXPLORER_FASTGEN names no checkout of NVlabs/FastGen"):
        step("ict")


@pytest.mark.parity
@pytest.mark.parametrize("slug", fastgen.CLASSES)
def test_their_losses_train_our_network(slug):
    if not os.environ.get(fastgen.FASTGEN_FOLDER):
        pytest.skip(f"{fastgen.FASTGEN_FOLDER} names no checkout of NVlabs/FastGen")
    pytest.importorskip("omegaconf")
    work = step(slug)
    assert all(torch.tensor([work() for _ in range(2)]).isfinite())


def step(slug):
    data = load_dataset("digits")
    return fastgen.steps_of(slug, load("digits"), paper(slug).recipe("digits").plan, next(iter(Loader(data, N))), 1)
