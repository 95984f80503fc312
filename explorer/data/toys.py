"""Distributions in the plane, all centred and scaled to sigma_data = 0.5 by exact constants.

Each toy is a raw sampler with its mean and its mean variance per coordinate in closed form; the standardised point is
(raw - mean) * 0.5 / sqrt(variance), so that the average of the two coordinate variances is exactly 0.25.

N points, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from explorer.data.dataset import Dataset
from explorer.data.trees import TREES
from explorer.errors import BadValue, UnknownName
from explorer.process.oracles import GaussianMixture

SIGMA_DATA = 0.5
PI = math.pi
Raw = Callable[[int, torch.Generator], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True)
class Toy:
    """A distribution in the plane.

    Args:
        about: one line for lists.
        raw: (n, generator) -> raw points (n, 2) float64 and labels (n,) or None.
        n_classes: K, 0 without labels.
        mean: exact mean of the raw points.
        variance: exact variance of the raw points, averaged over the two coordinates.
        mixture: the raw distribution as a Gaussian mixture (means (K, 2), std), where it is one.
    """

    about: str
    raw: Raw
    n_classes: int
    mean: tuple[float, float]
    variance: float
    mixture: tuple[Tensor, float] | None = None

    @property
    def scale(self) -> float:
        return SIGMA_DATA / math.sqrt(self.variance)

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor | None]:
        """n standardised points (n, 2) float32 and their labels (n,) int64 or None."""
        if n < 1:
            raise BadValue(f"cannot draw {n} points; n must be at least 1.")
        raw, labels = self.raw(n, generator)
        centred = raw - torch.tensor(self.mean, dtype=torch.float64)
        return (centred * self.scale).float(), labels


def _uniform(n: int, g: torch.Generator) -> Tensor:
    return torch.rand(n, dtype=torch.float64, generator=g)


def _noise(n: int, g: torch.Generator) -> Tensor:
    return torch.randn(n, 2, dtype=torch.float64, generator=g)


def _classes(k: int, n: int, g: torch.Generator) -> Tensor:
    return torch.randint(k, (n,), generator=g)


def _xy(x: Tensor, y: Tensor) -> Tensor:
    return torch.stack([x, y], dim=-1)


def _modes(means: Tensor, std: float) -> Raw:
    def raw(n, g):
        k = _classes(len(means), n, g)
        return means[k] + std * _noise(n, g), k

    return raw


def _moons(n, g):
    k = _classes(2, n, g)
    a = PI * _uniform(n, g)
    upper, lower = _xy(a.cos(), a.sin()), _xy(1 - a.cos(), 0.5 - a.sin())
    return torch.where(k[:, None] == 0, upper, lower) + 0.08 * _noise(n, g), k


def _checkerboard(n, g):
    column, row = _classes(4, n, g), _classes(2, n, g)
    corner = _xy(column, 2 * row + column % 2) - 2.0
    return corner + torch.rand(n, 2, dtype=torch.float64, generator=g), None


def _two_spirals(n, g):
    k = _classes(2, n, g)
    a = 3 * PI * _uniform(n, g).sqrt()
    arm = _xy(-a.cos() * a, a.sin() * a)
    return arm * (1.0 - 2.0 * k)[:, None] + 0.25 * _noise(n, g), k


def _swiss_roll(n, g):
    a = 1.5 * PI * (1 + 2 * _uniform(n, g))
    return _xy(a * a.cos(), a * a.sin()) + 0.25 * _noise(n, g), None


def _pinwheel(n, g):
    k = _classes(5, n, g)
    local = _noise(n, g) * torch.tensor([0.3, 0.06], dtype=torch.float64)
    radial, across = local[:, 0] + 1, local[:, 1]
    angle = 2 * PI / 5 * k + 0.25 * radial.exp()
    c, s = angle.cos(), angle.sin()
    return _xy(c * radial - s * across, s * radial + c * across), k


def _rings(n, g):
    k = _classes(3, n, g)
    angle, radius = 2 * PI * _uniform(n, g), 1.0 + k
    return _xy(radius * angle.cos(), radius * angle.sin()) + 0.08 * _noise(n, g), k


def _s_curve(n, g):
    a = 3 * PI * (_uniform(n, g) - 0.5)
    return _xy(a.sin(), a.sign() * (a.cos() - 1)) + 0.06 * _noise(n, g), None


_CIRCLE = torch.tensor([[math.cos(PI * k / 4), math.sin(PI * k / 4)] for k in range(8)], dtype=torch.float64)
_PAIR = torch.tensor([[-1.0, 0.0], [1.0, 0.0]], dtype=torch.float64)

TOYS: dict[str, Toy] = {
    # r^2/2 + s^2 with r = 1, s = 0.08
    "8gaussians": Toy(
        "eight Gaussian modes on a circle",
        _modes(_CIRCLE, 0.08),
        8,
        (0.0, 0.0),
        0.5 + 0.08**2,
        (_CIRCLE, 0.08),
    ),
    # E x = 1/2, E y = 1/4; var x = 3/4, var y = 5/8 - 1/pi - 1/16
    "moons": Toy(
        "two interleaved half circles",
        _moons,
        2,
        (0.5, 0.25),
        (0.75 + 0.5625 - 1 / PI) / 2 + 0.08**2,
    ),
    # both marginals are uniform on [-2, 2]
    "checkerboard": Toy("eight squares of a 4 x 4 board, uniform", _checkerboard, 0, (0.0, 0.0), 4 / 3),
    # E a^2 = 9 pi^2 / 2 for a = 3 pi sqrt(u)
    "two-spirals": Toy("two Archimedean spirals", _two_spirals, 2, (0.0, 0.0), 9 * PI**2 / 4 + 0.25**2),
    # a uniform on [3 pi/2, 9 pi/2]: E a cos a = 2, E a sin a = 2/(3 pi), E a^2 = 39 pi^2 / 4
    "swiss-roll": Toy(
        "one spiral, seen along the axis of the roll",
        _swiss_roll,
        0,
        (2.0, 2 / (3 * PI)),
        (39 * PI**2 / 4 - 4 - 4 / (9 * PI**2)) / 2 + 0.25**2,
    ),
    # the rotation keeps the norm: E |x|^2 = 1 + 0.3^2 + 0.06^2
    "pinwheel": Toy("five curved arms", _pinwheel, 5, (0.0, 0.0), (1 + 0.3**2 + 0.06**2) / 2),
    # E r^2 = (1 + 4 + 9)/3
    "rings": Toy("three concentric rings", _rings, 3, (0.0, 0.0), 7 / 3 + 0.08**2),
    # two point masses on the horizontal axis: the variance lies in one coordinate
    "two-point": Toy("two points", _modes(_PAIR, 0.0), 2, (0.0, 0.0), 0.5, (_PAIR, 0.0)),
    # a uniform on [-3 pi/2, 3 pi/2]: E sin^2 = 1/2, E (cos - 1)^2 = 3/2 + 4/(3 pi)
    "s-curve": Toy("the letter S", _s_curve, 0, (0.0, 0.0), 1 + 2 / (3 * PI) + 0.06**2),
}


def toy(name: str) -> Toy:
    if name not in TOYS:
        raise UnknownName("toy", name, TOYS)
    return TOYS[name]


def points(name: str, n: int, generator: torch.Generator) -> Tensor:
    """n points (n, 2) float32 of a toy; the same generator state gives the same points."""
    return toy(name).draw(n, generator)[0]


def oracle(name: str) -> GaussianMixture:
    """The standardised toy, or one of `TREES`, as an exact Gaussian mixture, components labelled by class.

    Raises:
        BadValue: the toy has no closed form.
    """
    if name in TREES:
        return TREES[name]()
    found = toy(name)
    if found.mixture is None:
        exact = ", ".join(sorted(key for key, value in TOYS.items() if value.mixture is not None))
        raise BadValue(f"the toy {name!r} is not a Gaussian mixture, so it has no exact oracle; use {exact}.")
    means, std = found.mixture
    return GaussianMixture(means * found.scale, std * found.scale, labels=torch.arange(len(means)))


def toy_dataset(name: str, n: int = 8192, seed: int = 0) -> Dataset:
    """A fixed sample of a toy, which also draws fresh points without end."""
    found = toy(name)
    x, labels = found.draw(n, torch.Generator().manual_seed(seed))
    card = {"about": found.about, "seed": seed, "n": n, "raw_mean": list(found.mean), "scale": found.scale}
    return Dataset(name, x, labels, found.n_classes, SIGMA_DATA, card, found.draw)
