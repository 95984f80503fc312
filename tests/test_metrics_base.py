"""Estimate, jackknife, verdict: printed forms and the jackknife against its closed form."""

import json
import math

import numpy as np
import pytest
import torch

from explorer.errors import BadValue, UnknownName
from explorer.metrics.base import Estimate, jackknife, plus_minus, verdict
from explorer.metrics.features import FeatureSpace, feature_space, network_space, pixel_space


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.4213, 0.0612, "0.42 ± 0.06"),
        (4.132, 0.2, "4.13 ± 0.20"),
        (1234.5, 12.3, "1234 ± 12"),
        (-0.0316, 0.0021, "-0.0316 ± 0.0021"),
        (1.5, 0.0, "1.5 ± 0"),
    ],
)
def test_printed_form(value, error, shown):
    assert plus_minus(value, error) == shown
    assert str(Estimate(value, error, 1280, "FD[x]")) == f"FD[x] {shown} (n=1280)"


def test_too_few_samples_prints_the_note_and_no_number():
    few = Estimate(math.nan, math.nan, 90, "FD[x]", note="not enough samples")
    assert str(few) == "FD[x] not enough samples (n=90)"
    assert json.loads(json.dumps(few.to_dict()))["value"] is None


def test_dict_round_trip():
    for e in (Estimate(1.0, 0.1, 7, "a", 1.2, 0.2, 9, "hm"), Estimate(1.0, 0.1, 7)):
        assert Estimate.from_dict(json.loads(json.dumps(e.to_dict(), allow_nan=False))) == e


def test_interval_is_normal_or_student():
    assert np.allclose(Estimate(0, 1, 10).interval(), (-1.959964, 1.959964))
    assert np.allclose(Estimate(0, 1, 10, dof=9).interval(), (-2.262157, 2.262157))
    assert Estimate(0, 1, 10).interval(looks=10)[1] == pytest.approx(2.807034)
    with pytest.raises(BadValue, match="level"):
        Estimate(0, 1, 10).interval(level=95)


def test_jackknife_of_the_plug_in_variance_is_the_unbiased_variance():
    x = np.random.default_rng(0).normal(size=37)
    left_out = np.array([np.var(np.delete(x, i)) for i in range(37)])
    assert jackknife(np.var(x), left_out).value == pytest.approx(np.var(x, ddof=1), rel=1e-12)
    means = np.array([np.mean(np.delete(x, i)) for i in range(37)])
    assert jackknife(x.mean(), means).std_error == pytest.approx(x.std(ddof=1) / np.sqrt(37), rel=1e-12)


def test_verdict_names_the_winner_or_declines():
    assert verdict(Estimate(-0.6, 0.1, 500), "rho 5", "rho 7").startswith("rho 5 is better than rho 7 by 0.60 ± 0.10")
    assert verdict(Estimate(0.6, 0.1, 500)).startswith("B is better than A")
    assert verdict(Estimate(0.6, 0.1, 500), lower_is_better=False).startswith("A is better than B")
    assert verdict(Estimate(0.15, 0.1, 500)).startswith("not distinguishable: A - B = 0.15 ± 0.10")
    assert "not enough" in verdict(Estimate(math.nan, math.nan, 5, note="not enough samples"))
    assert "distinguishable" in verdict(Estimate(0.25, 0.1, 500), looks=50)


def test_feature_space_checks_shape_and_finiteness():
    space = feature_space("xy")
    out = space(torch.zeros(3, 2))
    assert out.dtype == torch.float64 and out.shape == (3, 2)
    with pytest.raises(BadValue, match=r"\(B, 2\)"):
        space(torch.zeros(3, 1, 8, 8))
    with pytest.raises(BadValue, match=r"samples \[1\]"):
        space(torch.tensor([[0.0, 0.0], [math.nan, 1.0]]))
    with pytest.raises(UnknownName, match="digits-cnn"):
        feature_space("digit-cnn")
    assert pixel_space((1, 8, 8)) != pixel_space((1, 4, 16))


def test_network_space_hash_follows_the_weights_and_batches_do_not_matter():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(4, 3)

        def features(self, x):
            return self.linear(x)

    torch.manual_seed(0)
    net = Net()
    x = torch.randn(10, 4, dtype=torch.float64)
    a, b = network_space("net", net, 3, batch=4), network_space("net", net, 3)
    assert a == b and isinstance(a, FeatureSpace)
    assert torch.allclose(a(x), b(x), rtol=0, atol=1e-6)
    with torch.no_grad():
        net.linear.weight[0, 0] += 1
    assert network_space("net", net, 3) != a
