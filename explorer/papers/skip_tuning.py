"""The Surprising Effectiveness of Skip-Tuning in Diffusion Sampling (Ma, Xue et al. 2024, arXiv 2402.15170).

A frozen U-Net, its long skip connections numbered i = 1..k from the lowest resolution up; u_i what the decoder has made, d_i what the
encoder stored, EDM's sigma throughout.
    decoder block i reads  concat(u_i, rho_i d_i)                                                   the method: nothing is trained
    rho_i = rho_bottom + (rho_top - rho_bottom) i / k                                               the schedule over depth
    prop_i = |d_i| / |u_i|                                                                          norm ratio, the observation behind it
    pixel loss    E |D_rho(x0 + sigma eps) - x0|^2                                                  what the network was trained for
    feature loss  E |f(D_rho(x0 + sigma eps)) - f(x0)|^2                                            f: features of a frozen classifier
With this numbering the topmost skip has exactly rho_top. The wrapper is `explorer.models.SkipTuned`, the search
`explorer.tuning.SkipScales`.

What a factor reaches. The first operation on the concatenation is a group normalisation. Where a boundary between its groups falls on the
one between u and d (`SkipBlock.aligned`), groups hold either u alone or d alone, and those of d are divided by their own standard
deviation again: the convolutions see no rho, and only the block's shortcut does, which passes by the norm. The paper's appendix discusses
the norm; the statement and its check are ours. A network without shortcuts would ignore skip-tuning wherever groups align.

Nothing is trained, so there are no recipes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from explorer.errors import BadValue, UnknownName
from explorer.metrics.base import Estimate
from explorer.models.base import Cond, Denoiser, Model
from explorer.models.flow_maps import ConsistencyModel
from explorer.models.wrappers import SkipTuned
from explorer.nets.edm_unet import EDMUNet
from explorer.nets.unet import UNet
from explorer.reproduction import Paper, Published, Recipe


@dataclass(frozen=True)
class SkipBlock:
    """A decoder block that reads a skip connection.

    Attributes:
        name: of the connection, e.g. "8x8_block0".
        block: the residual block itself, whose first argument is concat(u, d).
        n_main, n_skip: channels of u and of d.
        n_groups: of the norm that reads them.
        shortcut: whether a convolution passes the concatenation by the norm.
    """

    name: str
    block: nn.Module
    n_main: int
    n_skip: int
    n_groups: int
    shortcut: bool

    @property
    def aligned(self) -> bool:
        """Whether no group of the norm holds channels of both u and d."""
        return self.n_main % ((self.n_main + self.n_skip) // self.n_groups) == 0


def skip_blocks(net: nn.Module) -> tuple[SkipBlock, ...]:
    """The decoder blocks of a U-Net that read a skip, in the order of `net.skip_names`; works on a network without storage, too.

    Raises: BadValue for a network that is neither `UNet` nor `EDMUNet`.
    """
    if isinstance(net, UNet):
        blocks = [block[0] for level in reversed(range(len(net.decoder))) for block in net.decoder[level]]
        mains = [block.norm1.num_channels // 2 for block in blocks]
        norms = [block.norm1 for block in blocks]
    elif isinstance(net, EDMUNet):
        blocks, mains, n = [], [], net.middle[-1].n_out
        for part in net.decoder.values():
            if part.takes_skip:
                blocks.append(part)
                mains.append(n)
            n = part.n_out if hasattr(part, "n_out") else n
        norms = [block.norm0 for block in blocks]
    else:
        raise BadValue(f"{type(net).__name__} has no skip connections that are concatenated: give a UNet or an EDMUNet")
    return tuple(
        SkipBlock(name, block, n, norm.num_channels - n, norm.num_groups, isinstance(block.shortcut, nn.Conv2d))
        for name, block, n, norm in zip(net.skip_names, blocks, mains, norms, strict=True)
    )


def network_of(model: Model) -> nn.Module:
    """The network inside a denoiser or a consistency model, wrappers taken off."""
    while not hasattr(model, "net"):
        inner = model.inner if isinstance(model, ConsistencyModel) else getattr(model, "base", None)
        if inner is None:
            raise BadValue(f"{model.name or type(model).__name__} has no network")
        model = inner
    return model.net


@torch.no_grad()
def norm_ratios(model: Model, run: Callable[[], object]) -> Tensor:
    """prop_i = |d_i| / |u_i| of each sample and skip, mean over the network calls that `run()` makes: (B, k), lowest resolution first.

    Args: run: asks the model for one batch, once or in the steps of a sampler.
    """
    parts, found = skip_blocks(network_of(model)), []
    hooks = []
    for part in parts:

        def seen(module, args, n=part.n_main):
            u, d = args[0][:, :n].flatten(1), args[0][:, n:].flatten(1)
            found.append(d.norm(dim=1) / u.norm(dim=1))

        hooks.append(part.block.register_forward_pre_hook(seen))
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(found).unflatten(0, (-1, len(parts))).mean(0).T.double()


def block_change(part: SkipBlock, h: Tensor, emb: Tensor, rho: float, *, shortcut: bool = True) -> float:
    """Relative change of a block's output, |out(rho) - out(1)| / |out(1)|, when its skip channels are multiplied by rho.

    Args:
        h: (B, n_main + n_skip, H, W) what it reads; emb: (B, E) embedding of noise and class.
        shortcut: False leaves the shortcut's part out of both outputs.
    """
    scaled = torch.cat([h[:, : part.n_main], rho * h[:, part.n_main :]], dim=1)
    handle = None if shortcut else part.block.shortcut.register_forward_hook(lambda m, a, out: torch.zeros_like(out))
    try:
        with torch.no_grad():
            before, after = part.block(h, emb), part.block(scaled, emb)
    finally:
        if handle is not None:
            handle.remove()
    return float((after - before).norm() / before.norm())


@torch.no_grad()
def score_losses(
    model: Denoiser,
    settings: Sequence[Sequence[float]],
    x0: Tensor,
    eps: Tensor,
    sigma: float,
    features: Callable[[Tensor], Tensor] | None = None,
    cond: Cond = None,
) -> Tensor:
    """Score loss of each sample under each bank of skip factors, (len(settings), B): in pixels, or in the features of clean images.

    Args:
        x0: data (B, *shape); eps: noise of that shape, the same for every bank, so that differences pair up.
        features: map (B, *shape) -> (B, D); None compares pixels. Mean over pixels or features.
    """
    f = features or (lambda x: x)
    want, out = f(x0).flatten(1).double(), []
    x = model.path.perturb(
        x0.double(), eps.double(), model.path.time(torch.full((len(x0),), sigma, dtype=torch.float64))
    )
    for scales in settings:
        tuned = SkipTuned(model, list(scales))
        said = tuned.denoise(x, model.path.time_at(sigma), cond)
        out.append((f(said).flatten(1).double() - want).square().mean(dim=1))
    return torch.stack(out)


def paired(values: Tensor, name: str) -> Estimate:
    """Mean of paired differences (B,) with its error."""
    return Estimate(float(values.mean()), float(values.std() / len(values) ** 0.5), len(values), name)


PUBLISHED = (
    Published("imagenet-64x64", "FID", 1.75, 19, "abstract", "EDM model"),
    Published("imagenet-64x64", "FID", 1.57, 39, "abstract", "EDM model"),
)


def recipe(name: str) -> Recipe:
    raise UnknownName("recipe", name, ())


PAPER = Paper(
    slug="skip_tuning",
    title="The Surprising Effectiveness of Skip-Tuning in Diffusion Sampling",
    arxiv="2402.15170",
    family="sampler",
    recipe=recipe,
    recipes=(),
    published=PUBLISHED,
)
