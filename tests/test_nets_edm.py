"""The published U-Nets: parameter counts, the paper's layout rebuilt by hand, and what every network must do."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch.nn import functional as F

from explorer.errors import BadValue, UnknownName
from explorer.nets import (
    CIFAR10_DDPMPP,
    CIFAR10_NCSNPP,
    FFHQ64_DDPMPP,
    FFHQ64_NCSNPP,
    IMAGENET64_ADM,
    EDMUNet,
)
from explorer.nets.edm_blocks import Resample, ShrunkImage

TINY = {
    "shape": (3, 8, 8),
    "channels": 8,
    "mult": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "n_classes": 3,
    "n_augment": 9,
}
SKIP = {"residual_encoder": False, "skip_encoder": True, "skip_decoder": True}
FAMILIES = ("ddpm++", "ncsn++", "adm", "skip")


def tiny(family: str, seed: int = 0, **options) -> EDMUNet:
    """All parameters redrawn, so that layers that start at zero are alive; "skip" is NCSN++ with images in and out at every level."""
    own = {"adm": {"channels": 64}, "skip": {"family": "ncsn++", "differs": SKIP}}.get(family, {})
    net = EDMUNet(**{**TINY, "family": family, "embedding_scale": 0.3, **own, **options})
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
    return net.eval()


def inputs(n: int = 4, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, 3, 8, 8, generator=g, dtype=dtype), torch.linspace(-1, 1, n, dtype=dtype), torch.arange(n) % 3


@pytest.mark.parametrize(
    ("config", "millions", "exactly"),
    [
        (CIFAR10_DDPMPP, "55.73", 55_733_891),
        (CIFAR10_NCSNPP, "56.4", 56_397_827),
        (FFHQ64_DDPMPP, "61.8", 61_805_571),
        (FFHQ64_NCSNPP, "62.8", 62_761_091),
        (IMAGENET64_ADM, "295.9", 295_899_267),
    ],
    ids=["cifar10-ddpm++", "cifar10-ncsn++", "ffhq64-ddpm++", "ffhq64-ncsn++", "imagenet64-adm"],
)
def test_parameter_counts_are_the_published_ones(config, millions, exactly):
    """The rounded numbers are those of arXiv 2206.00364; the exact ones were counted once on the authors' own networks."""
    with torch.device("meta"):
        net = EDMUNet(**config)
    count = sum(p.numel() for p in net.parameters())
    assert count == exactly
    assert f"{count / 1e6:.{len(millions.split('.')[1])}f}" == millions


def test_a_block_has_the_parameters_one_counts_on_paper():
    net = EDMUNet(**{**TINY, "family": "ddpm++"})
    block = net.encoder["4x4_block0"]  # 8 -> 16 channels, 32 embedding features, with attention
    by_hand = (
        2 * 8 + (8 * 9 * 16 + 16) + (32 * 16 + 16) + 2 * 16 + (16 * 9 * 16 + 16)  # norm, conv, shift, norm, conv
        + (8 * 16 + 16) + 2 * 16 + (16 * 48 + 48) + (16 * 16 + 16)  # shortcut; norm, qkv, projection
    )  # fmt: skip
    assert sum(p.numel() for p in block.parameters()) == by_hand


@pytest.mark.slow
@pytest.mark.parametrize("config", [CIFAR10_DDPMPP, CIFAR10_NCSNPP, FFHQ64_DDPMPP, FFHQ64_NCSNPP, IMAGENET64_ADM])
def test_the_networks_run_at_their_size(config):
    net = EDMUNet(**config).eval()
    x = torch.randn(1, *net.shape)
    with torch.no_grad():
        out = net(x, torch.tensor([0.1]), torch.tensor([7]) if net.n_classes else None)
    assert out.shape == x.shape and out.abs().max() < 1e-3  # the last layer starts (nearly) at zero


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 5, 2, 1)])
def test_resampling_is_the_separable_filter_written_out(kernel):
    x = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    k = torch.tensor(kernel, dtype=torch.float64) / sum(kernel)
    half = len(kernel) // 2

    def matrix(n: int) -> torch.Tensor:
        """(n/2, n): output j is centred between the inputs 2j and 2j + 1."""
        m = torch.zeros(n // 2, n + 2 * half, dtype=torch.float64)
        for j in range(n // 2):
            m[j, 2 * j + 1 : 2 * j + 1 + len(kernel)] = k
        return m[:, half : half + n]

    rows, columns = matrix(6), matrix(8)
    down = Resample(kernel, up=False).double()(x)
    torch.testing.assert_close(down, rows @ x @ columns.T, rtol=1e-6, atol=1e-6)  # float32 kernel
    up = Resample(kernel, up=True).double()(down)
    torch.testing.assert_close(up, 4 * rows.T @ down @ columns, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kernel", [(1, 1), (1, 3, 3, 1)])
def test_the_shrunk_image_is_convolution_then_smoothing_then_every_second_pixel(kernel):
    x = torch.randn(2, 3, 8, 6, generator=torch.Generator().manual_seed(0))
    part = ShrunkImage(3, 5, kernel)
    half = len(kernel) // 2
    wide = F.conv2d(x, part.conv.weight, padding=1 + half - 1)
    smooth = part.kernel.expand(5, -1, -1, -1)
    expected = F.conv2d(wide, smooth, stride=2, groups=5) + part.conv.bias[:, None, None]
    torch.testing.assert_close(part(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_labels_and_samples(family):
    net = tiny(family)
    x, noise, cond = inputs()
    whole = net(x, noise, cond)
    assert whole.shape == x.shape
    each = torch.cat([net(x[i : i + 1], noise[i : i + 1], cond[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, each, rtol=1e-4, atol=1e-5)  # samples do not see each other
    one = torch.tensor([0.3])
    torch.testing.assert_close(net(x, one, cond), net(x, one.expand(4), cond), rtol=1e-5, atol=1e-5)
    null = net(x, one, None)
    torch.testing.assert_close(net(x, one, torch.full((4,), -1)), null, rtol=1e-5, atol=1e-5)
    mixed = net(x, one, torch.tensor([-1, 1, -1, 2]))
    torch.testing.assert_close(mixed[[0, 2]], null[[0, 2]], rtol=1e-5, atol=1e-5)
    assert (mixed[[1, 3]] - null[[1, 3]]).abs().mean() > 1e-3
    assert (net(x, torch.tensor([0.9]), cond) - net(x, one, cond)).abs().mean() > 1e-3


@pytest.mark.parametrize("family", FAMILIES)
def test_augmentation_and_guidance_are_read(family):
    net = tiny(family, guided=True)
    x, noise, cond = inputs()
    plain = net(x, noise, cond)
    assert torch.equal(net(x, noise, cond, augment=torch.zeros(4, 9)), plain)  # zeros say "not augmented"
    for i in range(9):
        assert (net(x, noise, cond, augment=torch.eye(9)[i].expand(4, 9)) - plain).abs().max() > 1e-4
    two, three = (net(x, noise, cond, guidance=torch.tensor([w])) for w in (2.0, 3.0))
    assert (two - plain).abs().max() > 1e-4 and (two - three).abs().max() > 1e-5
    fresh = EDMUNet(**net.config)
    assert not fresh.embedding.guidance.weight.any()  # a student starts as its teacher at every weight


@pytest.mark.parametrize("family", FAMILIES)
def test_a_network_is_rebuilt_from_its_config_and_starts_small(family):
    net = tiny(family)
    twin = EDMUNet(**json.loads(json.dumps(net.config))).eval()
    x, noise, cond = inputs()
    assert twin(x, noise, cond).abs().max() < 1e-3
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin(x, noise, cond), net(x, noise, cond))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_on_disk_comes_back(family, tmp_path):
    """Models are built without memory and then filled; what is not in the file must be there all the same."""
    from explorer.models import Preconditioned
    from explorer.models.bundled import load, save_model
    from explorer.process import EDM, EDMPrecondition

    options = {"shape": (3, 8, 8), "t_range": (0.002, 80.0), "n_classes": 3}
    model = Preconditioned(tiny(family), EDM(), EDMPrecondition(), **options)
    again = load(save_model(tmp_path, "tiny", model, {}))
    x, noise, cond = inputs()
    assert torch.equal(again.denoise(x, noise.exp(), cond), model.denoise(x, noise.exp(), cond))


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_reach_every_parameter_and_survive_checkpointing(family):
    net = tiny(family, guided=True).train()
    x, noise, _ = inputs()

    def gradients():
        out = net(x, noise, torch.tensor([-1, 0, 1, 2]), augment=torch.ones(4, 9), guidance=torch.tensor([2.0]))
        return torch.autograd.grad(out.square().sum(), list(net.parameters()))

    kept = gradients()
    assert [n for (n, _), g in zip(net.named_parameters(), kept, strict=True) if not g.any()] == []
    net.checkpointing = True
    for a, b in zip(gradients(), kept, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_skip_scale_is_live_and_belongs_to_its_block(family):
    net = tiny(family)
    assert net.skip_names == ("4x4_block0", "4x4_block1", "8x8_block0", "8x8_block1")
    x, noise, cond = inputs()
    plain = net(x, noise, cond)
    assert torch.equal(net(x, noise, cond, torch.ones(net.n_skips)), plain)
    for i, name in enumerate(net.skip_names):
        scale = torch.ones(4, net.n_skips)
        scale[1, i] = 0.5
        seen = []
        hook = net.decoder[name].register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0]))
        net(x, noise, cond)
        out = net(x, noise, cond, scale)
        hook.remove()
        before, after = seen
        n = before.shape[1] - next(c for c in (after - before).abs().amax((0, 2, 3)).nonzero()[0])  # first one changed
        torch.testing.assert_close(after[1, -n:], 0.5 * before[1, -n:], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(after[1, :-n], before[1, :-n], rtol=1e-5, atol=1e-6)
        changed = (out - plain).abs().amax((1, 2, 3))
        assert changed[1] > 1e-4 * plain.abs().max() and changed[[0, 2, 3]].max() < 1e-5
    with pytest.raises(BadValue, match="skip_scale must have shape"):
        net(x, noise, cond, torch.ones(3))


@pytest.mark.parametrize("family", FAMILIES)
def test_jvp_agrees_with_central_differences(family):
    net = tiny(family).double()
    x, noise, cond = inputs(dtype=torch.float64)
    dx, dn = torch.randn_like(x), torch.ones_like(noise)
    out, tangent = torch.func.jvp(lambda a, b: net(a, b, cond), (x, noise), (dx, dn))
    h = 1e-5  # truncation about h^2 times a third derivative, rounding about 1e-16 / h
    central = (net(x + h * dx, noise + h * dn, cond) - net(x - h * dx, noise - h * dn, cond)) / (2 * h)
    torch.testing.assert_close(tangent, central, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(out, net(x, noise, cond), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("family", ["ncsn++", "skip"])
def test_a_compiler_sees_one_graph(family):
    net = tiny(family, guided=True)
    x, noise, cond = inputs(2)
    shown = {"augment": torch.ones(2, 9), "guidance": torch.tensor([2.0])}
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)  # raises at a graph break
    with torch.no_grad():
        assert torch.equal(compiled(x, noise, cond, **shown), net(x, noise, cond, **shown))


def test_images_in_and_out_of_every_level_written_out():
    """With all blocks silent the network is its image paths: halved and mixed on the way down, doubled and summed on the way up."""
    net = EDMUNet(**{**TINY, "family": "ncsn++", "mult": (1, 1, 1), "attention": (), "differs": SKIP}).eval()
    assert [n for n in net.encoder if n.endswith("image")] == ["4x4_image", "2x2_image"]
    assert [n for n in net.decoder if n.endswith("image")] == ["2x2_image", "4x4_image"]
    x, noise, _ = inputs()
    seen = {}
    for name in ("2x2_image", "4x4_image"):
        net.decoder[name].register_forward_hook(lambda m, a, out, name=name: seen.__setitem__(name, (a[0], out)))
    net.norm.register_forward_hook(lambda m, a, out: seen.__setitem__("8x8", out.clone()))
    entered = {}
    net.encoder["2x2_image"].register_forward_hook(lambda m, a, out: entered.update(image=out[0], mixed=out[1]))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
        out = net(x, noise)
        k = torch.tensor([1.0, 3, 3, 1]) / 8
        each = k.outer(k).expand(3, 1, 4, 4)
        half = F.conv2d(F.conv2d(x, each, stride=2, padding=1, groups=3), each, stride=2, padding=1, groups=3)
        torch.testing.assert_close(entered["image"], half, rtol=1e-5, atol=1e-6)
        low, mid = (net.decoder[n].out(F.silu(net.decoder[n].norm(seen[n][0]))) for n in ("2x2_image", "4x4_image"))
        mid = mid + F.conv_transpose2d(low, 4 * each, stride=2, padding=1, groups=3)
        torch.testing.assert_close(seen["4x4_image"][1], mid, rtol=1e-5, atol=1e-6)
        top = net.out(F.silu(seen["8x8"])) + F.conv_transpose2d(mid, 4 * each, stride=2, padding=1, groups=3)
        torch.testing.assert_close(out, top, rtol=1e-5, atol=1e-6)
    with pytest.raises(BadValue, match="not as both"):
        EDMUNet(**{**TINY, "family": "ncsn++", "differs": {"skip_encoder": True}})


def test_attention_stands_where_the_families_put_it():
    wide = {"shape": (3, 16, 16), "channels": 64, "mult": (1, 1), "blocks": 2, "attention": (8,)}
    for family, decoder in (("ddpm++", ["8x8_block2"]), ("adm", ["8x8_block0", "8x8_block1", "8x8_block2"])):
        with torch.device("meta"):
            net = EDMUNet(**wide, family=family)
        assert [n for n, b in net.decoder.items() if b.attention is not None] == decoder
        assert [b.attention is not None for b in net.middle] == [True, False]
        heads = {b.attention.heads for b in (*net.decoder.values(), *net.middle) if b.attention is not None}
        assert heads == {1}
    with torch.device("meta"):
        assert EDMUNet(**{**wide, "channels": 128}, family="adm").middle[0].attention.heads == 2


def test_options_of_later_papers():
    x, noise, cond = inputs()
    double = tiny("ddpm++", modulation="double")
    assert double.encoder["8x8_block0"].affine.out_features == 16 and double(x, noise, cond).isfinite().all()
    film = double.encoder["8x8_block0"].affine
    out = double(x, noise, cond)
    with torch.no_grad():
        film.weight.mul_(7.0), film.bias.mul_(7.0)
    # both halves are normalised, so their common size is nothing: up to the 1e-8 under the root
    torch.testing.assert_close(double(x, noise, cond), out, rtol=1e-4, atol=1e-5)
    low = EDMUNet(**{**TINY, "family": "ncsn++", "embedding_scale": 0.02})
    assert float(low.embedding.frequencies.abs().max()) < 5 * 0.02 * 2 * math.pi
    part = EDMUNet(**{**TINY, "dropout": 0.4, "dropout_at": (4,)})
    drops = {name: block.dropout.p for name, block in part.encoder.items()}
    assert drops == {"8x8_block0": 0.0, "4x4_down": 0.4, "4x4_block0": 0.4}


def test_bad_arguments_fail_at_the_door():
    with pytest.raises(UnknownName, match="ddpm"):
        EDMUNet(family="ddpm")
    with pytest.raises(UnknownName):
        EDMUNet(modulation="film")
    with pytest.raises(BadValue, match="divisible by 4"):
        EDMUNet(shape=(3, 30, 30))
    with pytest.raises(BadValue, match="names heights"):
        EDMUNet(attention=(12,))
    with pytest.raises(BadValue, match="reads images"):
        tiny("ddpm++")(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    x, noise, _ = inputs()
    with pytest.raises(BadValue, match="class 3 does not exist"):
        tiny("adm")(x, noise, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(BadValue, match="augmentation labels"):
        tiny("ddpm++")(x, noise, None, augment=torch.zeros(4, 8))
    with pytest.raises(BadValue, match="no guidance"):
        tiny("ddpm++")(x, noise, None, guidance=torch.ones(4))
    with pytest.raises(BadValue, match="no classes"):
        tiny("ddpm++", n_classes=0)(x, noise, torch.tensor([0, 1, 2, 0]))
