"""Denoiser backbones for small images: noise-prediction U-Nets with the call contract of diffusers' `UNet2DModel`."""

from denoiser.basic_unet import BasicUNet
from denoiser.unet import UNet

__all__ = ["BasicUNet", "UNet"]
