"""Skip-tuning: what the norm lets through, norm ratios by hand, losses by hand, and the claims that cost nothing."""

import pytest
import torch
from torch import nn

from explorer.errors import BadValue, UnknownName
from explorer.models import SkipTuned
from explorer.models.bundled import load
from explorer.nets.edm_unet import CIFAR10_DDPMPP, EDMUNet
from explorer.nets.mlp import MLP
from explorer.papers import paper, skip_tuning, skip_tuning_claims
from explorer.papers.skip_tuning import block_change, network_of, norm_ratios, score_losses, skip_blocks
from explorer.reproduction import Bench


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.fixture(scope="module")
def small():
    return EDMUNet(
        **{**CIFAR10_DDPMPP, "channels": 16, "shape": [3, 8, 8], "attention": [], "blocks": 1, "mult": [1, 2]}
    )


@pytest.mark.parametrize("which", ["digits", "small"])
def test_blocks_are_found_in_the_order_of_the_skips(which, digits, small):
    """Zeroing the k-th factor must change what the k-th block reads, and only there first."""
    net = digits.net if which == "digits" else small.eval()
    parts = skip_blocks(net)
    assert [p.name for p in parts] == list(net.skip_names)
    x, noise, seen = torch.randn(2, *net.shape, generator=torch.Generator().manual_seed(0)), torch.zeros(1), {}
    for k, part in enumerate(parts):
        scales = torch.ones(net.n_skips)
        scales[k] = 0.0
        hook = part.block.register_forward_pre_hook(lambda m, a, k=k: seen.update({k: a[0]}))
        with torch.no_grad():
            net(x, noise, None, skip_scale=scales)
        hook.remove()
        assert seen[k].shape[1] == part.n_main + part.n_skip
        assert (seen[k][:, part.n_main :] == 0).all() and (seen[k][:, : part.n_main] != 0).any()


def test_a_network_without_skips_is_refused():
    with pytest.raises(BadValue, match="no skip connections"):
        skip_blocks(MLP(2, width=8))


@pytest.mark.parametrize(("groups", "aligned"), [(4, True), (2, True), (3, False), (1, False)])
def test_alignment_is_that_of_the_group_borders(groups, aligned):
    """12 channels, of which 6 are u: groups of 3 and 6 end there, groups of 4 and 12 do not."""
    part = skip_tuning.SkipBlock("x", nn.Identity(), 6, 6, groups, True)
    assert part.aligned is aligned
    norm, x = nn.GroupNorm(groups, 12, eps=1e-12), torch.randn(2, 12, 5, 5, dtype=torch.float64)
    scaled = torch.cat([x[:, :6], 0.3 * x[:, 6:]], dim=1)
    gap = float((norm.double()(scaled) - norm(x)).abs().max().detach())
    assert (gap < 1e-9) is aligned  # group norm divides by the scale again, up to its eps


def test_norm_ratios_by_hand(digits):
    x, labels = torch.randn(3, 1, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2])
    got = norm_ratios(digits, lambda: digits.denoise(x, 0.5, labels))
    assert got.shape == (3, digits.n_skips) and (got > 0).all()
    tuned = SkipTuned(digits, [0.5, 1, 1, 1, 1])
    half = norm_ratios(tuned, lambda: tuned.denoise(x, 0.5, labels))
    twice = norm_ratios(digits, lambda: [m.denoise(x, 0.5, labels) for m in (digits, tuned)])
    torch.testing.assert_close(twice, (got + half) / 2)
    torch.testing.assert_close(half[:, 0], 0.5 * got[:, 0], rtol=1e-6, atol=0)  # what the deepest block reads is halved
    assert network_of(load("digits-cd")) is not None and not any(b._forward_pre_hooks for b in digits.net.modules())


def test_score_losses_by_hand(digits):
    g = torch.Generator().manual_seed(0)
    x0, eps, labels = torch.rand(4, 1, 8, 8, generator=g), torch.randn(4, 1, 8, 8, generator=g), torch.arange(4)
    ones, half = score_losses(digits, [[1.0] * 5, [0.5] * 5], x0, eps, 0.5, cond=labels)
    want = (digits.denoise(x0.double() + 0.5 * eps.double(), 0.5, labels) - x0).square().flatten(1).mean(1)
    torch.testing.assert_close(ones, want, rtol=1e-6, atol=0)
    assert (half != ones).all()
    in_features = score_losses(digits, [[1.0] * 5], x0, eps, 0.5, lambda x: 2 * x.flatten(1), labels)
    torch.testing.assert_close(in_features[0], 4 * ones, rtol=1e-6, atol=0)


def test_what_bypasses_the_norm_is_all_that_is_seen(small):
    part = next(p for p in skip_blocks(small.eval()) if p.aligned and p.shortcut)
    nn.init.normal_(part.block.conv1.weight, generator=torch.Generator().manual_seed(0))
    h = torch.randn(2, part.n_main + part.n_skip, 8, 8)
    emb = torch.randn(2, small.config["n_emb"])
    assert block_change(part, h, emb, 1.0) == 0.0
    assert block_change(part, h, emb, 0.5, shortcut=False) < 1e-3 < block_change(part, h, emb, 0.5)
    assert not part.block.shortcut._forward_hooks


def test_the_paper_is_listed_and_has_nothing_to_train():
    about = paper("skip_tuning")
    assert about.arxiv == "2402.15170" and about.recipes == () and len(about.claims) == len(skip_tuning_claims.CLAIMS)
    with pytest.raises(UnknownName):
        about.recipe("digits")


CHEAP = (skip_tuning_claims.identity, skip_tuning_claims.only_the_shortcut, skip_tuning_claims.depth)


@pytest.mark.parametrize("check", CHEAP, ids=lambda c: c.__name__)
def test_claims_hold(check):
    assert check(Bench(seed=5)).holds
