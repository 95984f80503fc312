"""How pictures become features in the published implementations of FID: each convention by name.

They share one network and differ in what it is shown, and the differences move the number by more than recent methods differ:

    eight bits  samples are rounded to whole grey levels, half up (EDM, image files) or down, or not at all
    resizing    to 299 x 299: as TensorFlow 1 did, bilinear with half-pixel centres, or bicubic with antialiasing
    scaling     (g - 128) / 128 of a grey level g, or g / 127.5 - 1

A reference made under one input convention says nothing about samples seen under another; the feature space carries the convention
in its name, so such a comparison is refused.

B batch, C channels, H W height width; pictures in [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from explorer.errors import BadValue, UnknownName
from explorer.metrics.features import FeatureSpace
from explorer.nets.inception import SIDE, resize_tf1

Rounding = Literal["half-up", "down", "none"]
Resize = Literal["tf1", "half-pixel", "clean"]


@dataclass(frozen=True)
class Protocol:
    """One implementation's way from pictures to a number.

    Attributes:
        name: as given to `--protocol`.
        rounding: how a picture in [-1, 1] becomes grey levels 0..255: "half-up" is floor(127.5 x + 128), "down" is
            floor(127.5 x + 127.5), both limited to 0..255; "none" keeps fractions.
        resize: "tf1" is `resize_tf1`; "half-pixel" bilinear without antialiasing; "clean" bicubic (a = -1/2) with antialiasing,
            limited to 0..255.
        centred: grey levels become (g - 128) / 128; else g / 127.5 - 1.
        n: samples of the published numbers. n_blocks: how many such sets are drawn, of which the least distance is reported.
        root: how the implementation takes the square root of the product of covariances. Ours is exact for all of them.
        about: what a reader must know.
        source: where the convention is from.
    """

    name: str
    rounding: Rounding
    resize: Resize
    centred: bool
    n: int = 50000
    n_blocks: int = 1
    root: str = "general square root"
    about: str = ""
    source: str = ""

    def levels(self, x: Tensor) -> Tensor:
        """Grey levels (B, 3, H, W), float32 in 0..255, of pictures (B, C, H, W) in [-1, 1]; one channel is repeated.

        Raises:
            BadValue: not pictures, or neither 1 nor 3 channels.
        """
        g = grey_levels(x, self.rounding)
        if g.ndim != 4 or g.shape[1] not in (1, 3):
            raise BadValue(f"protocol {self.name!r} needs pictures (B, 1 or 3, H, W), got {tuple(x.shape)}.")
        return g.expand(-1, 3, -1, -1)

    def prepare(self, x: Tensor) -> Tensor:
        """What the network sees, (B, 3, 299, 299) float32, of pictures (B, C, H, W) in [-1, 1]."""
        g = RESIZERS[self.resize](self.levels(x))
        return (g - 128) / 128 if self.centred else g / 127.5 - 1

    @property
    def space_name(self) -> str:
        """Name of the feature space: protocols with the same one differ in nothing that the network sees of an 8-bit file."""
        usual = self.resize != "half-pixel"  # the scaling that goes with each resizing in the list below
        return f"inception-v3/{self.resize}" + ("" if self.centred == usual else f"/centred-{self.centred}")

    def seen(self, space: FeatureSpace) -> FeatureSpace:
        """Another feature space, shown pictures as rounded by this protocol; without rounding, the space itself.

        For pictures in a space of one's own, such as the bundled classifiers': everything of the protocol but its network.
        """
        if self.rounding == "none":
            return space

        def fn(x: Tensor) -> Tensor:
            return space.fn(grey_levels(x, self.rounding) / 127.5 - 1)

        return FeatureSpace(f"{space.name}@8bit", space.dim, fn, space.hash)


def grey_levels(x: Tensor, rounding: Rounding = "half-up") -> Tensor:
    """Grey levels 0..255 as float32 of pictures in [-1, 1]; values beyond are cut off. Pictures in uint8 have their levels already.

    float64 pictures are rounded as such: which level a value between two falls on must not depend on the cast.
    """
    if x.dtype == torch.uint8:
        return x.float()
    shift = {"half-up": 128.0, "down": 127.5, "none": 127.5}[rounding]
    g = x * 127.5 + shift
    return (g.floor() if rounding != "none" else g).clamp(0, 255).float()


def _half_pixel(g: Tensor) -> Tensor:
    return F.interpolate(g, size=(SIDE, SIDE), mode="bilinear", align_corners=False)


def _clean(g: Tensor) -> Tensor:
    """Within 0.004 of a grey level of Pillow's float resizing, which keeps its coefficients in double precision."""
    return F.interpolate(g, size=(SIDE, SIDE), mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)


RESIZERS: Mapping[Resize, Callable[[Tensor], Tensor]] = MappingProxyType(
    {"tf1": resize_tf1, "half-pixel": _half_pixel, "clean": _clean}
)

PROTOCOLS: Mapping[str, Protocol] = MappingProxyType(
    {
        p.name: p
        for p in (
            Protocol(
                "edm",
                "half-up",
                "tf1",
                True,
                n_blocks=3,
                about="three disjoint blocks of 50 000 seeds, of which the least FID is reported",
                source="Karras et al. 2022, arXiv 2206.00364, Sec. 5; NVlabs/edm, fid.py and generate.py",
            ),
            Protocol(
                "torch-fidelity",
                "half-up",
                "tf1",
                True,
                root="square roots of the eigenvalues of the product",
                about="takes whole grey levels only; KID over 100 subsets of 1000, Inception Score over 10 splits after shuffling",
                source="Obukhov et al. 2020, toshas/torch-fidelity",
            ),
            Protocol(
                "pytorch-fid",
                "half-up",
                "half-pixel",
                False,
                about="image files; half-pixel centres, so not the numbers of the TensorFlow code",
                source="Seitzer 2020, mseitzer/pytorch-fid",
            ),
            Protocol(
                "clean-fid",
                "half-up",
                "clean",
                True,
                about="image files; its modes are not comparable with one another, this is 'clean'",
                source="Parmar et al. 2022, arXiv 2104.11222; GaParmar/clean-fid",
            ),
            Protocol(
                "guided-diffusion",
                "down",
                "tf1",
                True,
                about="batches of samples in .npz; means in float32; also sFID, Inception Score in splits of 5000, precision and recall",
                source="Dhariwal & Nichol 2021, arXiv 2105.05233; openai/guided-diffusion, evaluations/evaluator.py",
            ),
        )
    }
)


def protocol(name: str) -> Protocol:
    """A protocol by name."""
    if name not in PROTOCOLS:
        raise UnknownName("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


def differences(a: Protocol, b: Protocol) -> list[str]:
    """In words, what keeps numbers of two protocols apart; empty where nothing does."""
    fields = {
        "resize": "resizing",
        "centred": "scaling",
        "rounding": "rounding",
        "n": "samples",
        "n_blocks": "sets of samples",
    }
    out = []
    for field, word in fields.items():
        p, q = getattr(a, field), getattr(b, field)
        if p != q:
            if field == "centred":
                p, q = ("(g - 128) / 128" if v else "g / 127.5 - 1" for v in (p, q))
            out.append(f"{word}: {p} against {q}")
    return out


def check_mixable(a: Protocol, b: Protocol) -> None:
    """Raises BadValue unless statistics made under one protocol may be compared with those of the other."""
    if a.space_name != b.space_name:
        raise BadValue(
            f"statistics of {a.name!r} and {b.name!r} cannot be compared: the network saw different pictures "
            f"({'; '.join(differences(a, b)[:2])}). Make both under one protocol."
        )
