"""Diffusion transformers: published sizes, conditioning, rotary embedding, derivatives."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from explorer.errors import BadValue
from explorer.nets import DIT_B, DIT_L, DIT_S, DIT_XL, DiT, UNet
from explorer.nets.dit import _turns, rotate

TINY = {"shape": (3, 8, 8), "patch": 2, "width": 32, "depth": 2, "heads": 2, "n_classes": 3}


def tiny(modern: bool, **options) -> DiT:
    net = DiT(**{**TINY, "modern": modern, **options})
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) * (p[0].numel() ** -0.5 if p.ndim > 1 else 0.3))
    return net.eval()


def inputs(dtype: torch.dtype = torch.float32):
    g = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 8, 8, generator=g, dtype=dtype), torch.linspace(-1, 1, 4, dtype=dtype), torch.arange(4) % 3


@pytest.mark.parametrize(
    ("config", "millions"), [(DIT_S, 33), (DIT_B, 130), (DIT_L, 458), (DIT_XL, 675)], ids=["S", "B", "L", "XL"]
)
def test_parameter_counts_are_the_published_ones(config, millions):
    """Table 1 of arXiv 2212.09748, and the sum by hand."""
    with torch.device("meta"):
        net = DiT(**config)
    count = sum(p.numel() for p in net.parameters())
    assert round(count / 1e6) == millions
    d = config["width"]
    block = (3 * d * d + 3 * d) + (d * d + d) + (8 * d * d + 5 * d) + (6 * d * d + 6 * d)
    ends = (16 * d + d) + (256 * d + d) + (d * d + d) + 1001 * d + (2 * d * d + 2 * d) + (32 * d + 32)
    assert count == config["depth"] * block + ends


@pytest.mark.parametrize("modern", [False, True])
def test_conditioning_and_config(modern):
    net = tiny(modern)
    x, noise, cond = inputs()
    whole = net(x, noise, cond)
    each = torch.cat([net(x[i : i + 1], noise[i : i + 1], cond[i : i + 1]) for i in range(4)])
    assert whole.shape == x.shape
    torch.testing.assert_close(whole, each, rtol=1e-4, atol=1e-5)
    one = torch.tensor([0.3])
    torch.testing.assert_close(net(x, one, cond), net(x, one.expand(4), cond), rtol=1e-5, atol=1e-5)
    null = net(x, one)
    torch.testing.assert_close(net(x, one, torch.full((4,), -1)), null, rtol=1e-5, atol=1e-5)
    assert (net(x, one, cond) - null).abs().mean() > 1e-3
    assert (net(x, torch.tensor([0.9])) - null).abs().mean() > 1e-3
    fresh = DiT(**json.loads(json.dumps(net.config))).eval()
    assert not fresh(x, noise, cond).any()  # adaLN-Zero
    fresh.load_state_dict(net.state_dict())
    assert torch.equal(fresh(x, noise, cond), whole)
    with torch.device("meta"):  # as files are read
        filled = DiT(**net.config)
    filled.load_state_dict(net.state_dict(), assign=True)
    assert torch.equal(filled.eval()(x, noise, cond), whole)
    assert net.features(x, noise, cond).shape == (4, 32, 4, 4)
    wide = tiny(modern, variance=True)
    assert wide(x, noise, cond).shape == x.shape and wide.out.out_features == 2 * net.out.out_features


@pytest.mark.parametrize("modern", [False, True])
def test_gradients_reach_every_parameter_and_survive_checkpointing(modern):
    net = tiny(modern).train()
    x, noise, _ = inputs()

    def gradients():
        out = net(x, noise, torch.tensor([-1, 0, 1, 2])).square().sum()
        return torch.autograd.grad(out, list(net.parameters()))

    kept = gradients()
    assert [n for (n, _), g in zip(net.named_parameters(), kept, strict=True) if not g.any()] == []
    net.checkpointing = True
    assert all(torch.allclose(a, b, rtol=1e-5, atol=1e-6) for a, b in zip(gradients(), kept, strict=True))


@pytest.mark.parametrize("modern", [False, True])
def test_jvp_agrees_with_central_differences(modern):
    net = tiny(modern).double()
    x, noise, cond = inputs(torch.float64)
    dx, dn, h = torch.randn_like(x), torch.ones_like(noise), 1e-5
    _, tangent = torch.func.jvp(lambda a, b: net(a, b, cond), (x, noise), (dx, dn))
    central = (net(x + h * dx, noise + h * dn, cond) - net(x - h * dx, noise - h * dn, cond)) / (2 * h)
    torch.testing.assert_close(tangent, central, rtol=1e-6, atol=1e-7)


def test_patches_come_back_where_they_were():
    """With the identity between them, the stem and the last layer are inverse to each other."""
    net = DiT(shape=(2, 8, 4), patch=2, width=16, depth=0, heads=1)
    net.norm = nn.Identity()
    with torch.no_grad():
        net.places.zero_(), net.stem.bias.zero_(), net.out.bias.zero_(), net.stem.weight.zero_(), net.out.weight.zero_()
        for c in range(2):
            for i in range(2):
                for j in range(2):
                    k = (2 * i + j) * 2 + c
                    net.stem.weight[k, c, i, j] = net.out.weight[k, k] = 1
    x = torch.randn(3, 2, 8, 4)
    assert torch.equal(net(x, torch.zeros(1)), x)


def test_rotary_products_depend_on_the_offset_alone():
    cos, sin = _turns((5, 6), 8).double()
    g = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, 8, generator=g, dtype=torch.float64).expand(30, 8) for _ in range(2))
    product = (rotate(q, cos, sin) @ rotate(k, cos, sin).T).view(5, 6, 5, 6)
    torch.testing.assert_close(product[0, 0, 2, 3], product[2, 1, 4, 4], rtol=1e-5, atol=1e-6)  # float32 angles
    torch.testing.assert_close(product[4, 5, 1, 0], product[3, 5, 0, 0], rtol=1e-5, atol=1e-6)
    assert (product[0, 0, 2, 3] - product[0, 0, 3, 2]).abs() > 1e-3


def test_bad_arguments_fail_at_the_door():
    with pytest.raises(BadValue, match="do not tile"):
        DiT(shape=(3, 9, 9))
    with pytest.raises(BadValue, match="divisible"):
        DiT(width=30, heads=4)
    with pytest.raises(BadValue, match="reads images"):
        tiny(False)(torch.zeros(1, 3, 16, 16), torch.zeros(1))
    with pytest.raises(BadValue, match="no classes"):
        tiny(False, n_classes=0)(*inputs())


@pytest.mark.parametrize("kind", ["transformer", "unet"])
def test_a_compiler_sees_one_graph(kind):
    net = tiny(True) if kind == "transformer" else UNet((3, 8, 8), 8, (1, 2), 1, (4,), n_classes=3, patch=2).eval()
    x, noise, cond = inputs()
    torch._dynamo.reset()
    compiled = torch.compile(net, backend="eager", fullgraph=True)  # raises at a graph break
    with torch.no_grad():
        assert torch.equal(compiled(x, noise, cond), net(x, noise, cond))
