"""U-Nets of other projects with the call contract of diffusers' `UNet2DModel` (extra `[bench]`)."""

import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin  # the loader looks both names up in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor

from denoiser.blocks import batched_timestep
from pipelines.commands.parser import needed

with needed("bench"):
    from denoising_diffusion_pytorch import Unet as _LucidrainsUnet
    from smalldiffusion import CondEmbedderLabel
    from smalldiffusion import Unet as _SmallDiffusionUnet


class LucidrainsUNet(ModelMixin, ConfigMixin):
    """`denoising_diffusion_pytorch.Unet`, unconditional; the arguments are its own."""

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 1,
        out_channels: int = 1,
        dim: int = 32,
        dim_mults: tuple[int, ...] = (1, 2, 4),
    ) -> None:
        super().__init__()
        self.unet = _LucidrainsUnet(dim=dim, dim_mults=tuple(dim_mults), channels=in_channels, out_dim=out_channels)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise in `sample`, `(batch, channels, height, width)`."""
        prediction = self.unet(sample, batched_timestep(timestep, sample))
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)


class SmallDiffusionUNet(ModelMixin, ConfigMixin):
    """`smalldiffusion.Unet`, by default in the shape of that project's FashionMNIST example.

    Its timestep is the noise level sigma of diffusers' `DDPMScheduler` with the given `beta_schedule`.
    With `num_class_embeds` it takes labels; the training drops them.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 16,
        in_channels: int = 1,
        out_channels: int = 1,
        ch: int = 64,
        ch_mult: tuple[int, ...] = (1, 1, 2),
        attn_resolutions: tuple[int, ...] = (8,),
        beta_schedule: str = "squaredcos_cap_v2",
        num_class_embeds: int | None = None,
    ) -> None:
        super().__init__()
        emb_channels = 4 * ch  # as the network has them
        labels = CondEmbedderLabel(emb_channels, num_class_embeds, dropout_prob=0) if num_class_embeds else None
        self.unet = _SmallDiffusionUnet(
            sample_size,
            in_channels,
            out_channels,
            ch=ch,
            ch_mult=tuple(ch_mult),
            attn_resolutions=attn_resolutions,
            cond_embed=labels,
        )
        with torch.device("cpu"):  # the loader builds a network on the meta device
            self.signal = DDPMScheduler(beta_schedule=beta_schedule).alphas_cumprod

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise in `sample`, `(batch, channels, height, width)`, with `(batch,)` labels if it takes any."""
        signal = self.signal.to(sample.device)[batched_timestep(timestep, sample).long()]
        sigma = ((1 - signal) / signal).sqrt()
        prediction = self.unet(sample, sigma, cond=class_labels)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)
