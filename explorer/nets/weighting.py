"""A learnt logarithm of the weight that a loss has at each noise level."""

from __future__ import annotations

from torch import Tensor, nn

from explorer.nets.embedding import sinusoids


class LogWeight(nn.Module):
    """w(noise), one number per sample: a linear function of the features of the noise level, 0 at first.

    With a loss e^w E - w the best w is -ln of the mean error E at that level, so that every level weighs the same.
    Source: Karras et al. 2023, arXiv 2312.02696, Eq. 14 to 22 and appendix B.2; Kendall et al. 2018, arXiv 1705.07115.

    Args:
        n_features: of the noise level; even.
    """

    def __init__(self, n_features: int = 64):
        super().__init__()
        self.config = {"n_features": n_features}
        self.n_features = n_features
        self.linear = nn.Linear(n_features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, noise: Tensor) -> Tensor:
        """(B,) from (B,)."""
        features = sinusoids(noise, self.n_features).to(self.linear.weight.dtype)
        return self.linear(features)[:, 0].to(noise.dtype)
