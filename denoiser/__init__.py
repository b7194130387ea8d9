"""Denoiser backbones: noise-prediction U-Nets with the call contract of diffusers' `UNet2DModel`."""

from denoiser.basic_unet import BasicUNet
from denoiser.unet import UNet

__version__ = "0.2.0"
__all__ = ["BasicUNet", "UNet"]
