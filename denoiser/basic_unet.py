"""`BasicUNet`: the network of the U-Net notebook, to the parameter. Saved pipelines record this module's name."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from diffusers import ConfigMixin, ModelMixin  # diffusers' loader looks both names up in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from einops.layers.torch import Rearrange
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from denoiser.checks import check_divisible, check_positive, pair
from denoiser.embeddings import batched_timestep, sinusoidal_embedding
from denoiser.plain import plain_arguments


def conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Convolve 3x3 at the same size, normalise over the batch, rectify."""
    return [nn.Conv2d(in_channels, out_channels, 3, 1, 1), nn.BatchNorm2d(out_channels), nn.ReLU()]


class DownBlock(nn.Module):
    """Two convolutions, then a max pool that halves the map."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *conv_norm_relu(in_channels, out_channels),
            *conv_norm_relu(out_channels, out_channels),
            nn.MaxPool2d(2),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, h / 2, w / 2)`."""
        return self.model(x)


class UpBlock(nn.Module):
    """Join the encoder's map, double the size with a transposed convolution, then convolve."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(2 * in_channels, out_channels, 3, 2, 1, 1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            *conv_norm_relu(out_channels, out_channels),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map two of `(batch, in_channels, h, w)` to `(batch, out_channels, 2 h, 2 w)`."""
        return self.model(torch.cat([x, skip], dim=1))


class TimeEmbedding(nn.Module):
    """A sinusoidal embedding of the timestep and two linear layers, as a value to add to each channel of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.model = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Map `(batch,)` to `(batch, channels, 1, 1)`."""
        return self.model(sinusoidal_embedding(timesteps, self.channels).to(dtype))[:, :, None, None]


class BasicUNet(ModelMixin, ConfigMixin):
    """The notebook's U-Net: two levels of plain convolutions, batch norm, and a dense bottleneck.

    Module names, layers and order are the notebook's, so a state dict saved there loads with `strict=True`: 234,977
    parameters at 16x16x1. Two of its slips are mended: `DownBlock` normalises with `BatchNorm2d`, and `forward` calls
    `dense_emb`, which the notebook built and left out.

    Args:
        sample_size: Height and width, or one number for both; divisible by 4. The bottleneck fixes it.
        in_channels: Image channels in.
        out_channels: Image channels out.
        block_out_channels: Width of the three maps, finest first; each even if `time_conditioning`.
        bottleneck_channels: Width of `dense_emb`.
        time_conditioning: Whether the timestep is used: added to the maps that enter `up1` and `up2`. Off, the
            network and its parameters are the notebook's, and the timestep is accepted and not used.

    Raises:
        ValueError: If a count is not positive or the size is not divisible by 4.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("DownBlock", "UpBlock")

    @plain_arguments
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 16,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple[int, int, int] = (16, 32, 64),
        bottleneck_channels: int = 32,
        time_conditioning: bool = False,
    ) -> None:
        super().__init__()
        check_positive(in_channels=in_channels, out_channels=out_channels, bottleneck_channels=bottleneck_channels)
        if len(block_out_channels) != 3:
            raise ValueError(f"block_out_channels has {len(block_out_channels)} widths; BasicUNet has three")
        for width in block_out_channels:
            check_positive(block_out_channels=width)
            if time_conditioning:
                check_divisible("block_out_channels", width, 2, "cosine and sine of the time embedding")
        height, width = pair(sample_size)
        check_divisible("image height", height, 4, "two poolings")
        check_divisible("image width", width, 4, "two poolings")

        fine, middle, coarse = block_out_channels
        map_height, map_width = height // 4, width // 4
        vector = coarse * map_height * map_width
        self.gradient_checkpointing = False

        self.down0 = nn.Sequential(*conv_norm_relu(in_channels, fine))
        self.down1 = DownBlock(fine, middle)
        self.down2 = DownBlock(middle, coarse)
        self.to_vec = nn.Sequential(Rearrange("b c h w -> b (c h w)"), nn.ReLU())
        self.dense_emb = nn.Sequential(
            nn.Linear(vector, bottleneck_channels),
            nn.ReLU(),
            nn.Linear(bottleneck_channels, bottleneck_channels),
            nn.ReLU(),
            nn.Linear(bottleneck_channels, vector),
            nn.ReLU(),
        )
        self.up0 = nn.Sequential(
            Rearrange("b (c h w) -> b c h w", h=map_height, w=map_width),
            *conv_norm_relu(coarse, coarse),
        )
        self.up1 = UpBlock(coarse, middle)
        self.up2 = UpBlock(middle, fine)
        self.out = nn.Sequential(*conv_norm_relu(fine, fine), nn.Conv2d(fine, out_channels, 3, 1, 1))
        if time_conditioning:
            self.time1 = TimeEmbedding(coarse)
            self.time2 = TimeEmbedding(middle)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise (or what else the scheduler's `prediction_type` says) in noisy images.

        Args:
            sample: Noisy images, `(batch, in_channels, *sample_size)`.
            timestep: Training timestep, 0 the cleanest: a scalar, or `(batch,)`. Unused without `time_conditioning`.
            class_labels: Only None: this network has no classes.
            return_dict: False for a plain tuple.

        Returns:
            `UNet2DOutput` whose `sample` is the prediction, `(batch, out_channels, *sample_size)`.

        Raises:
            ValueError: If the images' shape or the number of timesteps does not fit, or labels are given.
        """
        expected = (self.config.in_channels, *pair(self.config.sample_size))
        if tuple(sample.shape[1:]) != expected:
            raise ValueError(f"sample is {tuple(sample.shape)}; expected (batch, {', '.join(map(str, expected))})")
        if class_labels is not None:
            raise ValueError("class_labels were given to a BasicUNet, which has no classes; use UNet")
        timesteps = batched_timestep(timestep, sample)

        down0 = self._run(self.down0, sample)  # (b, 16, 16, 16)
        down1 = self._run(self.down1, down0)  # (b, 32, 8, 8)
        down2 = self._run(self.down2, down1)  # (b, 64, 4, 4)
        vector = self.dense_emb(self.to_vec(down2))  # (b, 1024)
        x = self._run(self.up0, vector)  # (b, 64, 4, 4)
        if self.config.time_conditioning:
            x = x + self.time1(timesteps, sample.dtype)
        x = self._run(self.up1, x, down2)  # (b, 32, 8, 8)
        if self.config.time_conditioning:
            x = x + self.time2(timesteps, sample.dtype)
        x = self._run(self.up2, x, down1)  # (b, 16, 16, 16)
        prediction = self.out(x)  # (b, 1, 16, 16)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)

    def enable_gradient_checkpointing(self, gradient_checkpointing_func: Callable | None = None) -> None:
        """Recompute activations in the backward pass; batch norms update their statistics once all the same."""
        super().enable_gradient_checkpointing(gradient_checkpointing_func or _checkpoint)

    def _run(self, block: nn.Module, *maps: Tensor) -> Tensor:
        if torch.is_grad_enabled() and self.gradient_checkpointing:
            return self._gradient_checkpointing_func(block, *maps)
        return block(*maps)


def _checkpoint(block: nn.Module, *maps: Tensor) -> Tensor:
    return checkpoint(block, *maps, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Return what surrounds the forward pass and what surrounds its repetition."""
    return nullcontext(), _running_statistics_kept(block)


@contextmanager
def _running_statistics_kept(block: nn.Module) -> Iterator[None]:
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    kept = [(norm, norm.momentum, norm.state_dict()["num_batches_tracked"].clone()) for norm in norms]
    for norm in norms:
        norm.momentum = 0.0
    try:
        yield
    finally:
        for norm, momentum, num_batches_tracked in kept:
            norm.momentum = momentum
            norm.num_batches_tracked = num_batches_tracked
