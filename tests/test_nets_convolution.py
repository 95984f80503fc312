"""The fast 3x3 convolution: equal to torch's, in place where it pays, absent wherever a derivative is wanted."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from explorer.nets import EDMUNet, convolution, jvp
from explorer.nets.convolution import FROM_CHANNELS, Conv3x3, faster, winograd

WIDE = FROM_CHANNELS


def drawn(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(
    n=st.integers(1, 5), c=st.integers(1, 7), o=st.integers(1, 7), rows=st.integers(1, 5), columns=st.integers(1, 5),
    at_once=st.integers(1, 40), bias=st.booleans(), layout=st.sampled_from([torch.channels_last, torch.contiguous_format]),
)  # fmt: skip
def test_it_is_the_convolution_exactly_in_double_precision(n, c, o, rows, columns, at_once, bias, layout):
    x = drawn(n, c, 4 * rows, 4 * columns, dtype=torch.float64).to(memory_format=layout)
    weight, b = drawn(o, c, 3, 3, dtype=torch.float64, seed=1).to(memory_format=layout), drawn(o, dtype=torch.float64)
    b = b if bias else None
    whole = convolution.AT_ONCE
    try:
        convolution.AT_ONCE = at_once  # tiles are cut into passes anywhere
        out = winograd(x, weight, b)
    finally:
        convolution.AT_ONCE = whole
    # |values| < 40, condition of the transforms below 1e3, 63 terms: 1e-15 * 40 * 1e3 would be the worst
    torch.testing.assert_close(out, F.conv2d(x, weight, b, padding=1), rtol=0, atol=1e-11)
    assert out.is_contiguous(memory_format=torch.channels_last) or 1 in (o, *out.shape[2:])


def test_single_precision_costs_four_times_the_usual_rounding():
    x, weight = drawn(4, WIDE, 16, 16), drawn(WIDE, WIDE, 3, 3, seed=1) / (9 * WIDE) ** 0.5
    exact = F.conv2d(x.double(), weight.double(), padding=1)

    def error(y):
        return ((y - exact).square().mean() / exact.square().mean()).sqrt().item()

    with torch.inference_mode():
        ours, usual = error(winograd(x, weight)), error(F.conv2d(x, weight, padding=1))
    assert ours < 1.5e-6  # 9e-7 as documented
    assert ours < 10 * usual


def test_the_layer_takes_it_only_where_it_pays_and_nothing_is_differentiated():
    layer = Conv3x3(WIDE, WIDE)
    x = drawn(4, WIDE, 16, 16)
    assert not faster(x, layer.weight)  # a gradient may be wanted
    with torch.no_grad():
        assert faster(x, layer.weight)
        assert not faster(x[:, :, :, :10], layer.weight)  # 10 is no multiple of 4
        assert not faster(x[:1], layer.weight)  # 16 tiles: the kernel's transform would cost more
        assert not faster(x.double(), layer.weight.double())
        assert not faster(x[:, :64], layer.weight[:, :64])
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert not faster(x, layer.weight)
            assert layer(x).dtype is torch.bfloat16


def test_values_with_and_without_gradients_agree_and_gradients_are_torchs():
    layer, plain = Conv3x3(WIDE, WIDE), torch.nn.Conv2d(WIDE, WIDE, 3, padding=1)
    assert layer.state_dict().keys() == plain.state_dict().keys()
    plain.load_state_dict(layer.state_dict())
    x = drawn(4, WIDE, 16, 16).requires_grad_()
    with torch.inference_mode():
        quick = layer(x)
        assert not torch.equal(quick, plain(x))  # it was indeed the other algorithm
    # outputs of size 0.6: 192 * 9 terms of standard deviation 1 times 1 / sqrt(3 * 1728)
    torch.testing.assert_close(quick, plain(x).detach(), rtol=0, atol=2e-5)
    ours = torch.autograd.grad(layer(x).square().sum(), x)[0]
    assert torch.equal(ours, torch.autograd.grad(plain(x).square().sum(), x)[0])


@pytest.mark.parametrize("batch", [1, 4])
def test_a_wide_network_gives_the_same_image_either_way(batch):
    net = EDMUNet((3, 16, 16), channels=WIDE, mult=[1], blocks=1, attention=[])
    with torch.no_grad():
        for i, p in enumerate(net.parameters()):  # its branches start closed
            p.copy_(drawn(*p.shape, seed=i) / max(1, p[0].numel()) ** 0.5)
        x, t = drawn(batch, 3, 16, 16), torch.zeros(batch)
        fast = net(x, t)
    slow = net(x, t).detach()  # gradients on
    assert torch.equal(fast, slow) is (batch == 1)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-4 * slow.abs().max().item())


def test_forward_mode_goes_the_usual_way():
    layer, x, dx = Conv3x3(WIDE, WIDE), drawn(4, WIDE, 16, 16), drawn(4, WIDE, 16, 16, seed=1)
    with torch.no_grad():
        value, tangent = jvp(layer, (x,), (dx,))
    usual = F.conv2d(x, layer.weight, layer.bias, padding=1)
    assert torch.equal(value, usual.detach())
    assert torch.equal(tangent, F.conv2d(dx, layer.weight, None, padding=1).detach())
