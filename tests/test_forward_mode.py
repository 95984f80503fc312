"""Derivatives of networks along a direction: against central differences, torch's own, and by counting convolutions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from explorer.errors import BadValue, UnknownName
from explorer.models.base import Preconditioned
from explorer.models.bundled import load, save_model
from explorer.nets import MLP, EDMUNet, UNet, jvp
from explorer.nets.attention import GroupNorm
from explorer.nets.embedding import Embedding
from explorer.process.paths import Trig
from explorer.process.precondition import TrigFlowPrecondition

NETS = {
    "mlp": lambda: MLP(2, 16, 2, n_classes=3),
    "mlp-fourier": lambda: MLP(2, 16, 2, n_classes=3, embedding="fourier", embedding_scale=0.5),
    "unet": lambda: UNet((1, 8, 8), 8, (1, 2), (0, 1), attention=(4,), n_classes=3, dropout=0.3),
    "edm-unet": lambda: EDMUNet((3, 8, 8), 8, (1, 2), 1, (4,), n_classes=3, modulation="double", dropout=0.3),
}


def network(name: str, dtype=torch.float64) -> nn.Module:
    torch.manual_seed(0)
    net = NETS[name]().eval()
    with torch.no_grad():
        for p in net.parameters():  # the zero initialisation of last layers would hide what lies in front
            p.add_(0.1 * torch.randn_like(p))
    return net.requires_grad_(False).to(dtype)


def question(net: nn.Module, n: int = 3, dtype=torch.float64):
    g = torch.Generator().manual_seed(1)
    x, dx = torch.randn(2, n, *net.shape, generator=g, dtype=torch.float64).to(dtype)
    t, dt = torch.rand(2, n, generator=g, dtype=torch.float64).to(dtype) + 0.2
    cond = torch.tensor([0, 2, -1])[torch.arange(n) % 3]
    return (x, t), (dx, dt), lambda x, t: net(x, t, cond)


def central(function, primals, tangents, h: float = 1e-5):
    ahead, behind = (function(*(p + s * h * d for p, d in zip(primals, tangents, strict=True))) for s in (1, -1))
    return (ahead - behind) / (2 * h)


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("name", NETS)
def test_a_networks_derivative_is_that_of_central_differences_and_of_torch(name):
    primals, tangents, function = question(network(name))
    out, moved = jvp(function, primals, tangents)
    # differences: h^2 = 1e-10 in truncation, eps/h = 1e-11 in rounding, times third derivatives of order 100 at most
    assert relative(moved, central(function, primals, tangents)) < 1e-7
    theirs = torch.func.jvp(function, primals, tangents)
    assert relative(out, function(*primals)) < 1e-13  # plain attention and the fast kernel round differently
    assert relative(out, theirs[0]) < 1e-13 and relative(moved, theirs[1]) < 1e-12


@pytest.mark.parametrize("name", NETS)
def test_single_precision_is_as_good_as_its_rounding(name):
    exact = jvp(question(network(name))[2], *question(network(name))[:2])[1]
    primals, tangents, function = question(network(name, torch.float32), dtype=torch.float32)
    moved = jvp(function, primals, tangents)[1]
    assert moved.dtype == torch.float32
    assert relative(moved.double(), exact) < 1e-4  # 1e-7 over some twenty layers, each may amplify a little


LAYERS = {
    "linear": (lambda x, w: F.linear(x.flatten(1), w.flatten(1)), (5, 4, 3, 3)),
    "conv1d": (lambda x, w: F.conv1d(x.flatten(2), w.flatten(2), padding=2), (5, 4, 3, 1)),
    "conv2d": (lambda x, w: F.conv2d(x, w, torch.ones(5).double(), stride=2, padding=1), (5, 4, 3, 3)),
    "conv2d-groups": (lambda x, w: F.conv2d(input=x, weight=w, groups=2), (6, 2, 2, 2)),
    "conv3d": (lambda x, w: F.conv3d(x[:, :, None], w[:, :, None]), (5, 4, 2, 2)),
    "transpose": (lambda x, w: F.conv_transpose2d(x, w, torch.ones(5).double(), stride=2), (4, 5, 2, 2)),
    "silu": (lambda x, w: F.silu(x * w), (1, 4, 1, 1)),
    "silu-inplace": (lambda x, w: F.silu(x * w, inplace=True), (1, 4, 1, 1)),
    "group_norm": (lambda x, w: F.group_norm(x, 2, w.flatten(), w.flatten()), (4, 1, 1, 1)),
    "group_norm-plain": (lambda x, w: F.group_norm(x * w, 1), (1, 4, 1, 1)),
    "softmax": (lambda x, w: F.softmax(x * w, dim=1) + (x * w).softmax(-1), (1, 4, 1, 1)),
    "addcmul": (lambda x, w: torch.addcmul(x, x, w, value=0.3), (1, 4, 1, 1)),
    "addcmul-constant": (lambda x, w: torch.addcmul(w, x, x.square()), (1, 4, 1, 1)),
    "sums": (lambda x, w: (x + w) * (w - x) + (1 + w) / (2 + x * x) + torch.sub(w, x, alpha=3), (1, 4, 1, 1)),
    "ratios": (lambda x, w: x.square() / w + w / (3 + x.square()) + 1 / (3 + x.square()), (1, 4, 1, 1)),
    "number": (lambda x, w: 3.0 * x * 2 + (w * x).mul_(0.5), (1, 4, 1, 1)),
}


@pytest.mark.parametrize("weight_moves", (False, True))
@pytest.mark.parametrize("layout", (torch.contiguous_format, torch.channels_last))
@pytest.mark.parametrize("name", LAYERS)
def test_a_layers_rule_is_torchs_derivative(name, layout, weight_moves):
    layer, shape = LAYERS[name]
    x, dx, w, dw = (
        torch.randn(*s, generator=torch.Generator().manual_seed(i), dtype=torch.float64)
        for i, s in enumerate([(3, 4, 3, 3), (3, 4, 3, 3), shape, shape])
    )
    x, dx = (v.contiguous(memory_format=layout) for v in (x, dx))
    call = layer if weight_moves else lambda x: layer(x, w)
    primals, tangents = ((x, w), (dx, dw)) if weight_moves else ((x,), (dx,))
    for quiet in (True, False):
        with torch.set_grad_enabled(not quiet):
            out, moved = jvp(call, primals, tangents)
        assert relative(out, call(*primals)) < 1e-14
        assert relative(moved, central(call, primals, tangents)) < 1e-8


@pytest.mark.parametrize("moving", ((), ("gain",), ("shift",), ("gain", "shift")))
def test_a_modulated_norm_is_norm_and_modulation(moving):
    torch.manual_seed(0)
    norm = GroupNorm(2, 4).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    x, dx = torch.randn(2, 3, 4, 5, 2, dtype=torch.float64)
    values = {k: torch.randn(3, 4, 1, 1, dtype=torch.float64) for k in ("gain", "shift")}
    tangents = {k: torch.randn_like(values[k]) for k in moving}

    def fused(x, *moved):
        given = values | dict(zip(moving, moved, strict=True))
        return norm(x, given["gain"], given["shift"])

    def apart(x, *moved):
        given = values | dict(zip(moving, moved, strict=True))
        return F.group_norm(x, 2, norm.weight, norm.bias) * given["gain"] + given["shift"]

    primals, directions = (x, *(values[k] for k in moving)), (dx, *tangents.values())
    for mine, theirs in zip(jvp(fused, primals, directions), torch.func.jvp(apart, primals, directions), strict=True):
        assert relative(mine, theirs) < 1e-13


class Counter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.convolutions = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.convolutions += func is torch.ops.aten.convolution.default
        return func(*args, **(kwargs or {}))


def test_a_derivative_costs_two_convolutions_for_each_of_the_network():
    primals, tangents, function = question(network("unet"))
    with Counter() as once:
        function(*primals)
    with Counter() as twice, torch.no_grad():
        jvp(function, primals, tangents)
    assert once.convolutions > 10
    assert twice.convolutions == 2 * once.convolutions


def test_dropout_is_the_same_in_value_and_derivative():
    net = network("unet").train()
    primals, tangents, function = question(net)

    def pinned(*args):
        torch.manual_seed(7)
        return function(*args)

    out, moved = jvp(pinned, primals, tangents)
    assert relative(out, pinned(*primals)) < 1e-13  # the value under forward mode sees the mask that a plain call sees
    assert relative(moved, central(pinned, primals, tangents)) < 1e-7
    assert relative(out, net.eval()(*primals, torch.tensor([0, 2, -1]))) > 1e-2  # and dropout was on


def test_gradients_flow_through_value_and_derivative():
    net = network("unet").requires_grad_(True)
    primals, tangents, function = question(net)
    grads = []
    for derivative in (jvp, torch.func.jvp):
        out, moved = derivative(function, primals, tangents)
        grads.append(torch.autograd.grad((out + moved.square()).sum(), list(net.parameters())))
    scale = max(float(g.norm()) for g in grads[1])
    for mine, theirs in zip(*grads, strict=True):
        assert float((mine - theirs).norm()) < 1e-11 * scale


def test_no_graph_is_kept_without_gradients():
    net = network("mlp").requires_grad_(True)
    primals, tangents, function = question(net)
    with torch.no_grad():
        out, moved, aux = jvp(lambda x, t: (function(x, t), {"square": x**2}), primals, tangents, has_aux=True)
    assert not out.requires_grad and not moved.requires_grad
    assert torch.equal(aux["square"], primals[0] ** 2)
    assert torch.autograd.forward_ad._current_level == -1  # nothing stays switched on


def test_derivatives_do_not_nest():
    x = torch.randn(3, 2)
    with pytest.raises(BadValue, match="do not nest"):
        jvp(lambda x: jvp(torch.sin, (x,), (x,))[1], (x,), (x,))
    assert torch.equal(jvp(torch.sin, (x,), (x,))[1], x.cos() * x)  # and nothing stays switched on


def test_a_constant_has_derivative_zero_and_a_wrong_tangent_is_named():
    x = torch.randn(3, 2)
    assert torch.equal(jvp(lambda x: torch.ones(3), (x,), (x,))[1], torch.zeros(3))
    with pytest.raises(BadValue, match="tangent of shape"):
        jvp(lambda x: x, (x,), (x[:2],))


# How fast a network's noise features change


def steepest(kind: str, scale: float) -> float:
    """Largest derivative of a noise feature at t = 0.3 and nearby."""
    torch.manual_seed(0)
    embedding = Embedding(256, 0, kind, scale).double()
    t = torch.linspace(0, 1.5, 400, dtype=torch.float64)
    return float(jvp(embedding.features, (t,), (torch.ones_like(t),))[1].abs().max())


def test_the_scale_bounds_how_fast_noise_features_change():
    for scale in (1.0, 25.0):  # frequencies from 8 scale down; the steepest sinusoid reaches its frequency
        assert 0.98 * 8 * scale < steepest("sinusoids", scale) <= 8 * scale + 1e-6
    for scale in (0.02, 16.0):  # the largest of 128 normal numbers lies between 2 and 4 standard deviations
        assert 2 < steepest("fourier", scale) / (2 * math.pi * scale) < 4


def test_frequencies_travel_with_the_weights(tmp_path):
    net = network("mlp-fourier", torch.float32)
    model = Preconditioned(net, Trig(0.5), TrigFlowPrecondition(0.5), shape=(2,), t_range=(1e-3, 1.5), n_classes=3)
    again = load(save_model(tmp_path, "fourier", model, {"data": "none"}))
    x, t = torch.randn(3, 2), torch.rand(3)
    assert again.net.config == net.config and torch.equal(again.net(x, t), net(x, t))


def test_unknown_features_are_refused():
    with pytest.raises(UnknownName, match="sinusoids"):
        MLP(2, 16, 1, embedding="learnt")
    with pytest.raises(BadValue, match="positive"):
        MLP(2, 16, 1, embedding_scale=0.0)
