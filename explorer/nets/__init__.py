"""Architectures: tensors in, tensors out, no idea of diffusion."""

from explorer.nets.attention import plain_attention
from explorer.nets.dit import DIT_B, DIT_L, DIT_S, DIT_XL, DiT
from explorer.nets.edm_unet import (
    CIFAR10_DDPMPP,
    CIFAR10_NCSNPP,
    FFHQ64_DDPMPP,
    FFHQ64_NCSNPP,
    IMAGENET64_ADM,
    EDMUNet,
)
from explorer.nets.features import FeatureNet
from explorer.nets.forward_mode import jvp
from explorer.nets.mlp import MLP
from explorer.nets.unet import DIGITS_UNET, UNet

__all__ = [
    "CIFAR10_DDPMPP",
    "CIFAR10_NCSNPP",
    "DIGITS_UNET",
    "DIT_B",
    "DIT_L",
    "DIT_S",
    "DIT_XL",
    "DiT",
    "FFHQ64_DDPMPP",
    "FFHQ64_NCSNPP",
    "IMAGENET64_ADM",
    "EDMUNet",
    "FeatureNet",
    "MLP",
    "UNet",
    "jvp",
    "plain_attention",
]
