"""Feature spaces: where two sample sets are compared. The name is part of every metric's name.

B batch, D features.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from explorer.errors import BadValue, UnknownName


@dataclass(frozen=True)
class FeatureSpace:
    """A named map from samples (B, *shape) to features (B, dim).

    Two feature spaces are the same when name, dim and hash agree; `fn` does not enter.
    """

    name: str
    dim: int
    fn: Callable[[Tensor], Tensor] = field(compare=False, repr=False)
    hash: str = ""

    @torch.no_grad()
    def __call__(self, samples: Tensor) -> Tensor:
        """Features (B, dim) in float64 on the CPU.

        Raises:
            BadValue: `fn` returned another shape, or a feature is not finite.
        """
        out = self.fn(samples)
        if out.ndim != 2 or out.shape != (len(samples), self.dim):
            raise BadValue(
                f"feature space {self.name!r} maps a batch to (B, {self.dim}), but samples of shape "
                f"{tuple(samples.shape)} gave {tuple(out.shape)}: these samples belong to another feature space."
            )
        out = out.to(device="cpu", dtype=torch.float64)
        if not torch.isfinite(out).all():
            bad = (~torch.isfinite(out).all(1)).nonzero().flatten().tolist()
            raise BadValue(f"features {self.name!r} are not finite for samples {bad[:8]} of a batch of {len(out)}.")
        return out


def _flat(samples: Tensor) -> Tensor:
    return samples.flatten(1)


def points_space(dim: int = 2) -> FeatureSpace:
    """The points themselves, "xy" in the plane."""
    return FeatureSpace("xy" if dim == 2 else f"r{dim}", dim, _flat, "identity")


def pixel_space(shape: tuple[int, ...]) -> FeatureSpace:
    """Flattened pixels of images of one shape, in the data's own scale."""
    return FeatureSpace("pixels", math.prod(shape), _flat, "identity-" + "x".join(map(str, shape)))


def network_space(name: str, net: nn.Module, dim: int, *, hash: str = "", batch: int = 1024) -> FeatureSpace:
    """Pooled features of a frozen classifier with a method `features(x) -> (B, dim)`.

    Args:
        hash: of the weights file; computed from the parameters when empty.
        batch: largest batch passed through the network at once.
    """
    net.eval().requires_grad_(False)
    like = next(net.parameters())

    def fn(samples: Tensor) -> Tensor:
        pieces = samples.to(device=like.device, dtype=like.dtype).split(batch)
        return torch.cat([net.features(piece) for piece in pieces])

    return FeatureSpace(name, dim, fn, hash or weights_hash(net))


def weights_hash(net: nn.Module) -> str:
    """First 16 hex digits of the SHA-256 of all parameters and buffers, by name."""
    digest = hashlib.sha256()
    for name, tensor in sorted(net.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def feature_space(name: str, shape: tuple[int, ...] | None = None) -> FeatureSpace:
    """A feature space by name: "xy" (2-D points), "pixels" (needs the shape of a sample), a bundled classifier, or a large network.

    "inception" is Inception-v3 under EDM's protocol; `explorer.metrics.inception` has the other protocols, and takes the weights from a
    file. "dinov2" and "clip" need timm and open_clip.
    """
    if name == "xy":
        return points_space(2)
    if name == "pixels":
        if shape is None:
            raise BadValue("the feature space 'pixels' needs the shape of a sample, e.g. (1, 8, 8).")
        return pixel_space(shape)
    if name not in FEATURE_SPACES:
        raise UnknownName("feature space", name, FEATURE_SPACES)
    if name == "inception":
        from explorer.metrics.inception import load_inception
        from explorer.metrics.protocols import protocol

        return load_inception().space(protocol("edm"))
    if name in ("dinov2", "clip"):
        from explorer.metrics import pretrained

        return pretrained.dinov2_space() if name == "dinov2" else pretrained.clip_space()
    from explorer.models.bundled import load_features

    net = load_features(name)
    return network_space(name, net, net.config["n_features"])


FEATURE_SPACES = {
    "xy": "points of the plane as they are",
    "pixels": "flattened pixels",
    "digits-cnn": "32 pooled features of the bundled digits classifier",
    "shapes32-cnn": "32 pooled features of the bundled classifier of lit shapes",
    "inception": "2048 pooled features of Inception-v3, whose weights the user gives: FID",
    "dinov2": "1024 features of DINOv2 (timm)",
    "clip": "768 features of CLIP (open_clip)",
}
