"""The networks: conditioning, skip scales, rebuilding, and forward-mode derivatives against finite differences."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from explorer.errors import BadValue
from explorer.nets import DIGITS_UNET, MLP, FeatureNet, UNet, plain_attention
from explorer.nets.unet import ResBlock

SMALL_UNET = {"shape": (1, 8, 8), "channels": 8, "mult": (1, 2), "blocks": 1, "attention": (4,), "n_classes": 3}
BUILDERS = {
    "mlp": lambda: MLP(2, width=16, depth=2, n_classes=3),
    "unet": lambda: UNet(**SMALL_UNET),
    "unet-digits": lambda: UNet(**DIGITS_UNET, n_classes=10),
    "unet-rgb16": lambda: UNet(shape=(3, 16, 16), channels=8, mult=(1, 1.5, 2), blocks=(1, 0, 1), n_classes=3),
    "unet-patch": lambda: UNet(shape=(3, 16, 16), channels=8, mult=(1, 2), blocks=(0, 1), n_classes=3, patch=2),
}


def stir(net: nn.Module, seed: int = 0) -> nn.Module:
    """All parameters redrawn, so that layers that start at zero are alive."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
    return net.eval()


def inputs(net: nn.Module, n: int = 4, dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(1)
    return torch.randn(n, *net.shape, generator=g, dtype=dtype), torch.arange(n) % 3


@pytest.fixture(params=BUILDERS, name="net")
def _net(request):
    torch.manual_seed(0)
    return BUILDERS[request.param]()


def test_output_starts_at_zero_and_has_the_shape_of_the_input(net):
    x, cond = inputs(net)
    out = net(x, torch.tensor([0.3]), cond)
    assert out.shape == x.shape and not out.any()


def test_one_noise_level_equals_the_level_repeated(net):
    stir(net)
    x, cond = inputs(net)
    one, many = net(x, torch.tensor([0.3]), cond), net(x, torch.full((4,), 0.3), cond)
    torch.testing.assert_close(one, many, rtol=1e-5, atol=1e-5)
    assert (net(x, torch.tensor([0.9]), cond) - one).abs().mean() > 1e-3


def test_label_minus_one_is_the_null_class(net):
    stir(net)
    x, cond = inputs(net)
    noise = torch.tensor([0.3])
    null = net(x, noise, None)
    torch.testing.assert_close(net(x, noise, torch.full((4,), -1)), null, rtol=1e-5, atol=1e-5)
    mixed = net(x, noise, torch.tensor([-1, 1, -1, 2]))
    torch.testing.assert_close(mixed[[0, 2]], null[[0, 2]], rtol=1e-5, atol=1e-5)
    assert (mixed[[1, 3]] - null[[1, 3]]).abs().mean() > 1e-3


def test_samples_do_not_see_each_other(net):
    stir(net)
    x, cond = inputs(net)
    noise = torch.linspace(-1, 1, 4)
    whole = net(x, noise, cond)
    parts = torch.cat([net(x[i : i + 1], noise[i : i + 1], cond[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_a_network_is_rebuilt_from_its_config(net):
    stir(net)
    config = json.loads(json.dumps(net.config))
    twin = type(net)(**config).eval()
    twin.load_state_dict(net.state_dict())
    x, cond = inputs(net)
    assert torch.equal(twin(x, torch.tensor([0.1]), cond), net(x, torch.tensor([0.1]), cond))


def test_every_parameter_receives_a_gradient(net):
    stir(net).train()
    x, _ = inputs(net)
    net(x, torch.linspace(-1, 1, 4), torch.tensor([-1, 0, 1, 2])).square().sum().backward()
    assert [name for name, p in net.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("name", [n for n in BUILDERS if n.startswith("unet")])
def test_skip_scale(name):
    net = stir(BUILDERS[name]())
    x, cond = inputs(net)
    noise = torch.tensor([0.3])
    plain = net(x, noise, cond)
    assert torch.equal(net(x, noise, cond, torch.ones(net.n_skips)), plain)
    assert torch.equal(net(x, noise, cond, torch.ones(4, net.n_skips)), plain)

    for i in range(net.n_skips):  # every single knob is live
        scale = torch.ones(net.n_skips)
        scale[i] = 0.5
        assert (net(x, noise, cond, scale) - plain).abs().max() > 1e-4 * plain.abs().max(), net.skip_names[i]

    rows = torch.rand(4, net.n_skips, generator=torch.Generator().manual_seed(2)) + 0.5
    each = torch.cat([net(x[i : i + 1], noise, cond[i : i + 1], rows[i]) for i in range(4)])
    torch.testing.assert_close(net(x, noise, cond, rows), each, rtol=1e-4, atol=1e-5)
    with pytest.raises(BadValue, match="skip_scale must have shape"):
        net(x, noise, cond, torch.ones(net.n_skips + 1))


def test_skips_are_named_from_the_bottom_up_and_scaled_in_that_order():
    net = stir(UNet(shape=(1, 8, 8), channels=8, mult=(1, 2, 2), blocks=(1, 2, 0)))
    assert net.skip_names == (
        "2x2_block0", "4x4_block0", "4x4_block1", "4x4_block2", "8x8_block0", "8x8_block1",
    )  # fmt: skip
    seen = []
    for blocks in net.decoder:
        for block in blocks:
            block[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, _ = inputs(net)
    net(x, torch.tensor([0.0]))
    net(x, torch.tensor([0.0]), None, torch.tensor([0.0, 1, 1, 1, 1, 1]))
    first, scaled = seen[0], seen[net.n_skips]
    assert first.shape[-1] == 2
    n = first.shape[1] // 2
    assert torch.equal(scaled[:, :n], first[:, :n])  # [x, skip]: the main branch is untouched
    assert first[:, n:].any() and not scaled[:, n:].any()


def test_patches_are_channels_and_nothing_else():
    """The same weights on an image whose 2x2 squares were folded by hand."""
    net = stir(BUILDERS["unet-patch"]())
    inner = UNet(**net.config | {"shape": (12, 8, 8), "patch": 1}).eval()
    inner.load_state_dict(net.state_dict())
    x, cond = inputs(net)
    folded = torch.stack([x[:, c, i::2, j::2] for c in range(3) for i in range(2) for j in range(2)], 1)
    out, noise = inner(folded, torch.tensor([0.3]), cond), torch.tensor([0.3])
    for k, (c, i, j) in enumerate((c, i, j) for c in range(3) for i in range(2) for j in range(2)):
        torch.testing.assert_close(net(x, noise, cond)[:, c, i::2, j::2], out[:, k], rtol=1e-5, atol=1e-5)
    assert net.skip_names[0] == "4x4_block0" and net.shape == (3, 16, 16)


@torch.no_grad()
def test_only_the_shortcut_sees_a_skip_scale_where_groups_align():
    """The GroupNorm remark of arXiv 2402.15170: groups made of skip channels alone are normalised back."""
    block = stir(ResBlock(32, 16, 8, 0.0))
    assert block.norm1.num_groups == 8  # four channels each: none mixes the 16 main with the 16 skip channels
    g = torch.Generator().manual_seed(3)
    x, emb = torch.randn(4, 32, 8, 8, generator=g), torch.randn(4, 8, generator=g)
    scaled = torch.cat([x[:, :16], 0.5 * x[:, 16:]], dim=1)

    def change():
        out = block(x, emb)
        return float((block(scaled, emb) - out).norm() / out.norm())

    assert change() > 0.05
    torch.nn.init.zeros_(block.shortcut.weight)
    assert change() < 1e-4  # only the epsilon inside the norm


@pytest.mark.parametrize("name", ["mlp", "unet"])
def test_jvp_agrees_with_central_differences(name):
    net = stir(BUILDERS[name]()).double()
    x, cond = inputs(net, dtype=torch.float64)
    noise = torch.linspace(-1, 1, 4, dtype=torch.float64)
    dx, dn = torch.randn_like(x), torch.ones_like(noise)
    with plain_attention():
        out, tangent = torch.func.jvp(lambda a, b: net(a, b, cond), (x, noise), (dx, dn))
    h = 1e-5  # truncation about h^2, rounding about 1e-16 / h: both near 1e-10 of a slope of order 1
    central = (net(x + h * dx, noise + h * dn, cond) - net(x - h * dx, noise - h * dn, cond)) / (2 * h)
    torch.testing.assert_close(tangent, central, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(out, net(x, noise, cond), rtol=1e-9, atol=1e-11)


def test_bad_shapes_and_labels_fail_at_the_door():
    with pytest.raises(BadValue, match="divisible by 4"):
        UNet(shape=(1, 6, 6), mult=(1, 2, 2))
    with pytest.raises(BadValue, match="patch"):
        UNet(shape=(1, 8, 9), patch=2)
    with pytest.raises(BadValue, match="one per level"):
        UNet(mult=(1, 2), blocks=(1, 2, 3))
    with pytest.raises(BadValue, match="reads images"):
        UNet()(torch.zeros(2, 3, 8, 8), torch.zeros(1))
    with pytest.raises(BadValue, match="no classes"):
        MLP(2, n_classes=0)(torch.zeros(2, 2), torch.zeros(1), torch.tensor([0, 1]))


def test_feature_net():
    torch.manual_seed(0)
    net = FeatureNet(shape=(3, 16, 16), n_classes=7).eval()
    x = torch.randn(5, 3, 16, 16)
    assert net(x).shape == (5, 7) and net.features(x).shape == (5, 32)
    twin = FeatureNet(**json.loads(json.dumps(net.config))).eval()
    twin.load_state_dict(net.state_dict())
    assert torch.equal(twin.features(x), net.features(x))


def test_features_are_standardised_exactly():
    torch.manual_seed(0)
    net = FeatureNet()
    x = torch.randn(200, 1, 8, 8)
    net.train()(x[:50])  # running statistics that are off
    net.standardise(x)
    f = net.features(x).double()
    assert f.mean(0).abs().max() < 1e-4 and (f.var(0) - 1).abs().max() < 1e-3  # float32 statistics
