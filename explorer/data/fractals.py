"""Endless labelled pictures in colour that nobody had to collect: attractors of iterated function systems on cloudy grounds.

Each class is a system of contractions x -> A_i x + b_i, drawn by the singular values of its A_i so that it always converges and
looks like something; each picture is its attractor seen through a random window, in random colours, flipped, on a midpoint-
displacement texture. Every number of a picture comes from one generator seeded by (seed, class, index): the same bytes in any
order, in chunks of any size, on any number of threads.

Source: Anderson and Farrell 2022, arXiv 2110.03091, sections 3.1 to 3.3. Hues here go once around the circle (the authors' 8-bit
hues wrap at 180 of 256), and their one chain of 100 000 points is P chains side by side.

Legend: N pictures, n maps, P chains, T steps, S side in pixels.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from explorer.data.dataset import Dataset
from explorer.data.loader import mix
from explorer.errors import BadValue

BURN_IN = 20
CHUNK = 64
"""Pictures rendered together."""
N_TRAIN, N_TEST = 300, 50
"""Per class, of the sets by name."""
SIGMA_DATA = 0.5


@dataclass(frozen=True)
class System:
    """An iterated function system.

    Args:
        a: (n, 2, 2) float64 linear parts.
        b: (n, 2) translations.
    """

    a: Tensor
    b: Tensor

    @property
    def p(self) -> Tensor:
        """(n,) probabilities of the maps, by area |det A_i|, none below 1e-3 of the whole so that no part is missed."""
        return _probabilities(self.a, torch.ones(len(self.a), dtype=torch.bool))

    def mean(self) -> Tensor:
        """(2,) mean of the attractor's measure: the solution of m = sum_i p_i (A_i m + b_i)."""
        whole = torch.einsum("n,nij->ij", self.p, self.a)
        return torch.linalg.solve(torch.eye(2, dtype=torch.float64) - whole, self.p @ self.b)


def sample_system(n: int, generator: torch.Generator, factor: tuple[float, float] | None = None) -> System:
    """A random system of n contractions.

    A_i = U_i diag(s_i1, s_i2) V_i with random rotations and reflections U_i, V_i; the singular values obey 1 >= s_i1 >= s_i2 and
    sum_i (s_i1 + 2 s_i2) = a with the sigma-factor a uniform in `factor`; b_i is uniform in [-1, 1]^2.

    Args:
        n: maps, at least 2.
        factor: range of a, within 0..3n; by default ((5 + n)/2, (6 + n)/2), where the paper finds good shapes.
    """
    low, high = factor or ((5 + n) / 2, (6 + n) / 2)
    if n < 2 or not 0 < low <= high < 3 * n:
        raise BadValue(
            f"a system needs at least 2 maps and a sigma-factor within 0..{3 * n}, got n={n} and {low}..{high}."
        )

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), dtype=torch.float64, generator=generator))

    signs = 1 - 2 * torch.randint(2, (2, n, 2), generator=generator).double()
    angle = math.pi * (2 * torch.rand(2, n, dtype=torch.float64, generator=generator) - 1)
    c, s = angle.cos(), angle.sin()
    u, v = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2) * signs[:, :, None, :]
    p = uniform(low, high)
    q, values = p - 3 * n + 3, []
    for _ in range(n - 1):
        s1 = uniform(max(0.0, q / 3), min(1.0, p))
        p, q = p - s1, q - s1
        s2 = uniform(max(0.0, q / 2), min(s1, p / 2))
        p, q = p - 2 * s2, q - 2 * s2 + 3
        values.append((s1, s2))
    s2 = uniform(max(0.0, (p - 1) / 2), p / 3)
    values.append((p - 2 * s2, s2))
    a = u * torch.tensor(values, dtype=torch.float64)[:, None, :] @ v
    return System(a, 2 * torch.rand(n, 2, dtype=torch.float64, generator=generator) - 1)


def attractor(a: Tensor, b: Tensor, p: Tensor, u: Tensor) -> Tensor:
    """Points of N attractors by the chaos game, (N, P (T - 20), 2) float32, each chain from the fixed point of its first map.

    Args:
        a, b, p: (N, n, 2, 2), (N, n, 2), (N, n); systems of fewer maps are padded by maps of probability 0.
        u: (N, P, T) uniform in [0, 1), what chooses the maps.
    """
    eye = torch.eye(2, dtype=torch.float64)
    start = torch.linalg.solve(eye - a[:, 0], b[:, 0]).float()
    n, chains, steps = u.shape
    choice = (torch.arange(n) * a.shape[1])[:, None, None].expand(u.shape).clone()
    for edge in p.cumsum(1)[:, :-1].float().unbind(1):
        choice += u >= edge[:, None, None]
    choice = choice.permute(2, 0, 1).reshape(steps, n * chains)
    table = torch.cat([a.flatten(2), b], dim=2).float().flatten(0, 1)  # one row per map of every system
    x, y = (start[:, i].repeat_interleave(chains) for i in (0, 1))
    points = torch.empty(steps - BURN_IN, 2, n * chains)
    for t in range(steps):
        xx, xy, yx, yy, bx, by = F.embedding(choice[t], table).unbind(1)
        # products and sums apart, each rounded once: the same on every machine
        x, y = xx * x + xy * y + bx, yx * x + yy * y + by
        if t >= BURN_IN:
            points[t - BURN_IN, 0], points[t - BURN_IN, 1] = x, y
    return points.view(steps - BURN_IN, 2, n, chains).permute(2, 0, 3, 1).reshape(n, -1, 2)


@dataclass(frozen=True)
class Fractals:
    """The distribution of the pictures.

    Args:
        side: S.
        n_classes: systems.
        n_maps: least and most maps of a system.
        seed: of the systems and, with class and index, of every picture.
        chains, steps: P and T; P (T - 20) points make a picture.
        jitter: strength of the change of one map per picture, times the paper's; 0 keeps every system as it is.
        window: view a random part: centre shifted by up to 0.2 of the extent, each axis scaled by 0.5 to 2.
        flips: transpose and mirror at random.
        blur: soften half of the pictures.
        background: a cloudy texture behind; else black.
        patch: splat a random 3x3 pattern for every point.
        trim: share of the points outside the window on each side; the paper's 0 lets single points shrink a small picture.
    """

    side: int = 32
    n_classes: int = 10
    n_maps: tuple[int, int] = (2, 4)
    seed: int = 0
    chains: int = 512
    steps: int = 60
    jitter: float = 1.0
    window: bool = True
    flips: bool = True
    blur: bool = True
    background: bool = True
    patch: bool = False
    trim: float = 0.005

    def __post_init__(self):
        if self.side < 4 or self.n_classes < 1 or not 2 <= self.n_maps[0] <= self.n_maps[1]:
            raise BadValue(f"fractals need a side of at least 4, a class, and 2 maps or more: {self}.")
        if self.chains < 1 or self.steps <= BURN_IN or self.jitter < 0 or not 0 <= self.trim < 0.5:
            raise BadValue(
                f"fractals need chains, more than {BURN_IN} steps, jitter from 0 and trim below 0.5: {self}."
            )

    @cached_property
    def systems(self) -> list[System]:
        """One system per class; class k is the same whatever the number of classes."""
        out = []
        for k in range(self.n_classes):
            g = torch.Generator().manual_seed(mix(self.seed, k, 0, 7))
            low, high = self.n_maps
            out.append(sample_system(low + int(torch.randint(high - low + 1, (), generator=g)), g))
        return out

    def render(self, labels: Sequence[int] | Tensor, indices: Sequence[int] | Tensor, *, workers: int = 1) -> Tensor:
        """Pictures (N, 3, S, S) uint8 number `indices` of the classes `labels`; `workers` threads change nothing but the time."""
        pairs = list(zip(map(int, labels), map(int, indices), strict=True))
        if any(not 0 <= k < self.n_classes for k, _ in pairs):
            raise BadValue(f"the classes of these fractals are 0..{self.n_classes - 1}.")
        parts = [pairs[i : i + CHUNK] for i in range(0, len(pairs), CHUNK)]
        _ = self.systems
        if workers > 1:
            with ThreadPoolExecutor(workers) as pool:
                return torch.cat(list(pool.map(self._chunk, parts)))
        return torch.cat([self._chunk(part) for part in parts])

    def draw(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n fresh pictures (n, 3, S, S) float32 in [-1, 1] of random classes, and the classes (n,)."""
        if n < 1:
            raise BadValue(f"cannot draw {n} pictures; n must be at least 1.")
        labels = torch.randint(self.n_classes, (n,), generator=generator)
        indices = torch.randint(2**62, (n,), generator=generator)
        return self.render(labels, indices).float().div_(127.5).sub_(1), labels

    def _chunk(self, pairs: Sequence[tuple[int, int]]) -> Tensor:
        scalars, u, texture, patches, systems = [], [], [], [], []
        size = 2 ** math.ceil(math.log2(self.side)) + 1
        for k, index in pairs:
            g = torch.Generator().manual_seed(mix(self.seed, k, index, 11))
            scalars.append(torch.rand(28, dtype=torch.float64, generator=g))
            u.append(torch.rand(self.chains, self.steps, generator=g))
            texture.append(torch.rand(size, size, generator=g))
            patches.append(torch.rand(3, 3, generator=g) < 0.5)
            systems.append(self._jittered(self.systems[k], scalars[-1][:8].tolist()))
        r = torch.stack(scalars)[:, 8:]
        points = attractor(*_padded(systems), torch.stack(u))
        graded = self._graded(points, r, torch.stack(patches))
        if self.flips:
            graded = _flipped(graded, r[:, 4:7] > 0.5)
        hue = (graded + r[:, 7, None, None].float()) % 1
        tone = [(low + (1 - low) * r[:, i]).float()[:, None, None].expand_as(hue) for i, low in ((8, 0.3), (9, 0.5))]
        picture = _rgb(hue, *tone) * (graded > 0)[:, None]
        if self.background:
            clouds = _clouds(torch.stack(texture), 0.4 + 0.4 * r[:, 10])[:, : self.side, : self.side]
            ground = _cloud_colour(clouds, r[:, 11:17])
            picture = torch.where((graded > 0)[:, None], picture, ground)
        picture = (picture * 255).to(torch.uint8)
        return _blurred(picture, r[:, 17:19]) if self.blur else picture

    def _jittered(self, system: System, r: list[float]) -> System:
        """One map scaled by 0.8 to 1.1 if it stays a contraction; up to four tries."""
        n = len(system.a)
        for which, by in zip(r[::2], r[1::2], strict=True) if self.jitter else ():
            factor = 1 + self.jitter * (-0.2 + 0.3 * by)
            k = int(which * n)
            if float(torch.linalg.svdvals(system.a[k] * factor)[0]) <= 1:
                scale = torch.ones(n, dtype=torch.float64)
                scale[k] = factor
                return System(system.a * scale[:, None, None], system.b * scale[:, None])
        return system

    def _graded(self, points: Tensor, r: Tensor, patches: Tensor) -> Tensor:
        """(N, S, S) in [0, 1]: points in each pixel over the most in any."""
        n, m = points.shape[:2]
        some = (
            points
            if self.trim == 0
            else points[:, ::16].transpose(1, 2).contiguous().sort(dim=2).values.transpose(1, 2)
        )
        cut = int(self.trim * some.shape[1])
        low, high = (some[:, cut], some[:, -1 - cut]) if self.trim else (some.amin(1), some.amax(1))
        if self.window:
            span = high - low
            centre = (low + high) / 2 + span * (0.4 * r[:, :2] - 0.2).float()
            half = span * (0.5 + 1.5 * r[:, 2:4]).float() / 2
            low, high = centre - half, centre + half
        span = (high - low).clamp_min(1e-12)[:, None]
        cell = ((points - low[:, None]) / span * (self.side - 1)).floor()
        inside = ((cell >= 0) & (cell < self.side)).all(2)
        flat = torch.where(inside, cell[..., 0] * self.side + cell[..., 1], self.side**2).long()
        counts = torch.zeros(n, self.side**2 + 1).scatter_add_(1, flat, torch.ones(n, m))
        counts = counts[:, :-1].view(n, self.side, self.side)
        if self.patch:
            counts = F.conv2d(counts[None], patches.float()[:, None], padding=1, groups=n)[0]
        return counts / counts.amax((1, 2), keepdim=True).clamp_min(1)


def fractals_dataset(
    split: str = "train", fractals: Fractals | None = None, *, n: int | None = None, cache: str | Path | None = None
) -> Dataset:
    """A fixed set of fractals, which also draws fresh ones without end; the test split has other pictures of the same classes.

    Args:
        split: "train" or "test".
        fractals: the distribution; by default ten classes at 32x32.
        n: pictures per class; by default 300 to train and 50 to test.
        cache: folder for the rendered pixels; by default EXPLORER_CACHE or ~/.cache/trajectory-explorer.
    """
    if split not in ("train", "test"):
        raise BadValue(f"unknown split {split!r} of the fractals; use 'train' or 'test'.")
    root = Path(cache or os.environ.get("EXPLORER_CACHE") or Path.home() / ".cache" / "trajectory-explorer")
    return _dataset(split, fractals or Fractals(), n or (N_TRAIN if split == "train" else N_TEST), root)


@lru_cache(maxsize=4)
def _dataset(split: str, fractals: Fractals, n: int, root: Path) -> Dataset:
    labels = torch.arange(fractals.n_classes).repeat_interleave(n)
    indices = (torch.arange(n) + (0 if split == "train" else 2**40)).repeat(fractals.n_classes)
    about = {**asdict(fractals), "n_maps": list(fractals.n_maps), "split": split, "n_per_class": n}
    key = hashlib.sha256(json.dumps([VERSION, about], sort_keys=True).encode()).hexdigest()[:16]
    file = root / f"fractals-{key}.npy"
    pixels = _stored(file, (len(labels), 3, fractals.side, fractals.side))
    if pixels is None:
        pixels = fractals.render(labels, indices, workers=os.cpu_count() or 1)
        try:
            root.mkdir(parents=True, exist_ok=True)
            partial = file.with_name(f".{file.name}.{os.getpid()}.npy")
            np.save(partial, pixels.numpy())
            partial.replace(file)
        except OSError:  # a disk that is full or not ours costs time at the next start, nothing else
            pass
    x = pixels.float().div_(127.5).sub_(1)
    name = f"fractals{fractals.side}" + ("" if split == "train" else "-test")
    card = {"about": "iterated function systems on cloudy grounds", **about}
    return Dataset(name, x, labels, fractals.n_classes, SIGMA_DATA, card, fractals.draw)


VERSION = 1
"""Of the rendering: pixels kept from another one are made anew."""


def _stored(file: Path, shape: tuple[int, ...]) -> Tensor | None:
    try:
        pixels = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return torch.from_numpy(pixels) if pixels.shape == shape and pixels.dtype == np.uint8 else None


def _padded(systems: Sequence[System]) -> tuple[Tensor, Tensor, Tensor]:
    """a, b, p of several systems, those of fewer maps filled up with maps of probability 0."""
    n, most = len(systems), max(len(s.a) for s in systems)
    a, b = torch.zeros(n, most, 2, 2, dtype=torch.float64), torch.zeros(n, most, 2, dtype=torch.float64)
    for i, system in enumerate(systems):
        a[i, : len(system.a)], b[i, : len(system.b)] = system.a, system.b
    there = torch.arange(most) < torch.tensor([len(s.a) for s in systems])[:, None]
    return a, b, _probabilities(a, there)


def _probabilities(a: Tensor, there: Tensor) -> Tensor:
    """(..., n) by area of each map (..., n, 2, 2), at least 1e-3 of the whole for every map that is there."""
    area = (a[..., 0, 0] * a[..., 1, 1] - a[..., 0, 1] * a[..., 1, 0]).abs()
    p = (area / area.sum(-1, keepdim=True)).clamp_min(1e-3) * there
    return p / p.sum(-1, keepdim=True)


def _flipped(x: Tensor, which: Tensor) -> Tensor:
    """Transposed, mirrored up-down, mirrored left-right, each where its column of `which` (N, 3) says so."""
    for i, other in enumerate((lambda v: v.transpose(1, 2), lambda v: v.flip(1), lambda v: v.flip(2))):
        x = torch.where(which[:, i, None, None], other(x), x)
    return x


def _rgb(hue: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """(N, 3, S, S) in [0, 1] from hue, saturation and value in [0, 1], (N, S, S) each."""
    shift = torch.tensor([5.0, 3.0, 1.0]).view(1, 3, 1, 1)
    k = (shift + 6 * hue[:, None]) % 6
    return value[:, None] * (1 - saturation[:, None] * torch.minimum(k, 4 - k).clamp(0, 1))


def _clouds(u: Tensor, decay: Tensor) -> Tensor:
    """Midpoint displacement on a grid that closes on itself, (N, 2^k + 1, 2^k + 1).

    Level i adds uniform noise of half-width exp(decay (1 - i)) / 2 to the mean of four neighbours, first at the centres of the
    squares, then at the middles of their sides. Corners are uniform in [0, 1].

    Args:
        u: (N, 2^k + 1, 2^k + 1) uniform in [0, 1).
        decay: (N,).
    """
    size = u.shape[1]
    out = torch.zeros_like(u)
    corners = torch.tensor([0, size - 1])
    out[:, corners[:, None], corners] = u[:, corners[:, None], corners]
    step = size - 1
    for level in range(1, (size - 1).bit_length()):
        half, m = step // 2, 0.5 * (decay * (1 - level)).exp().float()[:, None, None]
        noise = m * (2 * u - 1)
        at = out[:, ::step, ::step]
        out[:, half::step, half::step] = (
            at[:, :-1, :-1] + at[:, :-1, 1:] + at[:, 1:, :-1] + at[:, 1:, 1:]
        ) / 4 + noise[:, half::step, half::step]
        for rows, columns in (
            (slice(0, None, step), slice(half, None, step)),
            (slice(half, None, step), slice(0, None, step)),
        ):
            index = torch.arange(size)
            r, c = index[rows, None], index[None, columns]
            up, down = (r - half) % (size - 1), (r + half) % (size - 1)
            left, right = (c - half) % (size - 1), (c + half) % (size - 1)
            mean = (out[:, up, c] + out[:, down, c] + out[:, r, left] + out[:, r, right]) / 4
            out[:, rows, columns] = mean + noise[:, rows, columns]
        step = half
    return out


def _cloud_colour(x: Tensor, r: Tensor) -> Tensor:
    """(N, 3, S, S) from a texture (N, S, S) and six uniform numbers for each (N, 6)."""
    r = r.float()[:, :, None, None]
    hue = (x * (0.25 + 0.75 * r[:, 0]) + r[:, 1]) % 1
    saturation = x * (0.1 + 0.2 * r[:, 2]) + 0.4 + 0.2 * r[:, 3]
    value = x * (0.3 + 0.3 * r[:, 4]) + 0.4 + 0.2 * r[:, 5]
    return _rgb(hue, saturation.clamp(0, 1), value.clamp(0, 1))


def _blurred(x: Tensor, r: Tensor) -> Tensor:
    """Pictures uint8, every second one (r[:, 0] > 1/2) smoothed by a 3x3 Gaussian of width 0.5 to 1 pixel."""
    side = torch.exp(-0.5 / (0.5 + 0.5 * r[:, 1]) ** 2).float()
    kernel = torch.stack([side, torch.ones_like(side), side], dim=1)
    kernel = kernel / kernel.sum(1, keepdim=True)
    n, channels = x.shape[:2]
    wide = F.pad(x.float(), (1, 1, 1, 1), mode="reflect").reshape(1, n * channels, x.shape[2] + 2, x.shape[3] + 2)
    each = kernel.repeat_interleave(channels, dim=0)
    soft = F.conv2d(wide, each[:, None, :, None], groups=n * channels)
    soft = F.conv2d(soft, each[:, None, None, :], groups=n * channels).view_as(x)
    return torch.where((r[:, 0] > 0.5)[:, None, None, None], (soft + 0.5).floor().clamp(0, 255).to(torch.uint8), x)
