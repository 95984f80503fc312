"""Architectures: tensors in, tensors out, no idea of diffusion."""

from explorer.nets.attention import plain_attention
from explorer.nets.features import FeatureNet
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet

__all__ = ["DIGITS_UNET", "FeatureNet", "MLP", "UNet", "plain_attention"]
