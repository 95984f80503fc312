"""Time-conditioned residual MLP for points in the plane and other short vectors.

Legend: B batch, D dimension of the data, W width.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from explorer.errors import BadValue
from explorer.nets.embedding import Embedding, NoiseFeatures


class MLP(nn.Module):
    """Noisy point, noise level, label -> vector of the same dimension (a raw network output).

    Args:
        dim: D.
        width: W, features of every hidden layer; even.
        depth: number of residual layers.
        n_classes: 0 for unconditional.
        embedding, embedding_scale: features of the noise level and how fast they change, see `Embedding`.

    Attributes:
        config: the constructor's arguments as plain JSON.
        n_skips: 0, there is nothing for skip-tuning to scale.
        feature_shape: of one sample's `features`.
    """

    n_skips = 0
    skip_names: tuple[str, ...] = ()

    def __init__(
        self,
        dim: int = 2,
        width: int = 128,
        depth: int = 3,
        n_classes: int = 0,
        embedding: NoiseFeatures = "sinusoids",
        embedding_scale: float = 1.0,
    ):
        super().__init__()
        self.config = {
            "dim": dim,
            "width": width,
            "depth": depth,
            "n_classes": n_classes,
            "embedding": embedding,
            "embedding_scale": embedding_scale,
        }
        self.shape = (dim,)
        self.n_classes = n_classes
        self.feature_shape = (width,)
        self.embedding = Embedding(width, n_classes, embedding, embedding_scale)
        self.stem = nn.Linear(dim, width)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.films = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.out = nn.Linear(width, dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network output for each point.

        Args:
            x: (B, D).
            noise: (B,), or (1,) to embed one level for the whole batch.
            cond: (B,) int64 labels, -1 for the null class; None is the null class throughout.
        Returns:
            (B, D).
        """
        return self.out(self.features(x, noise, cond))

    def features(self, x: Tensor, noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """What the last layer reads, (B, W); arguments as of `forward`."""
        if x.shape[1:] != self.shape:
            raise BadValue(f"this network reads points of shape {self.shape}, got {tuple(x.shape[1:])}.")
        emb = self.embedding(noise, cond)  # (B or 1, W)
        h = self.stem(x)
        for layer, film in zip(self.layers, self.films, strict=True):
            h = h + layer(F.silu(h + film(emb)))
        return F.silu(h)
