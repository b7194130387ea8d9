"""`BasicUNet`, the study notebook's network. Saved pipelines name this module: it stays here."""

import torch
from diffusers import ConfigMixin, ModelMixin  # diffusers' loader looks both names up in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from einops.layers.torch import Rearrange
from torch import Tensor, nn

from denoiser.blocks import batched_timestep, sinusoidal_embedding
from denoiser.checks import check_divisible, check_positive, pair, plain_arguments


def conv_norm_relu(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Return a 3x3 convolution that keeps the size, batch norm and ReLU."""
    return [nn.Conv2d(in_channels, out_channels, 3, 1, 1), nn.BatchNorm2d(out_channels), nn.ReLU()]


class DownBlock(nn.Module):
    """Two convolutions, then 2x2 max pooling."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *conv_norm_relu(in_channels, out_channels), *conv_norm_relu(out_channels, out_channels), nn.MaxPool2d(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, h / 2, w / 2)`."""
        return self.model(x)


class UpBlock(nn.Module):
    """Concatenation with the encoder's map, a transposed convolution of stride 2, and a convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(
            nn.ConvTranspose2d(2 * in_channels, out_channels, 3, 2, 1, 1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(),
            *conv_norm_relu(out_channels, out_channels),
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """Map two `(batch, in_channels, h, w)` to `(batch, out_channels, 2 h, 2 w)`."""
        return self.model(torch.cat([x, skip], dim=1))


class TimeEmbedding(nn.Module):
    """Sinusoidal timestep embedding and two linear layers; one value for each channel of a map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.model = nn.Sequential(nn.Linear(channels, channels), nn.ReLU(), nn.Linear(channels, channels))

    def forward(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        """Map `(batch,)` to `(batch, channels, 1, 1)`."""
        return self.model(sinusoidal_embedding(timesteps, self.channels).to(dtype))[:, :, None, None]


class BasicUNet(ModelMixin, ConfigMixin):
    """The network of a Korean study notebook on U-Net: 234,977 parameters at 16x16x1.

    Two pooling levels of plain convolutions with batch norm, and a dense bottleneck. Module names and
    order are the notebook's, so a state dict saved there loads with `strict=True`. Two of its slips
    are corrected: `DownBlock` normalises with `BatchNorm2d`, and `forward` calls `dense_emb`, which
    the notebook builds and never uses.

    Args:
        sample_size: Height and width, or one number for both; divisible by 4. The bottleneck fixes it.
        in_channels: Number of input image channels.
        out_channels: Number of output image channels.
        block_out_channels: Width of the three maps, finest first; even with `time_conditioning`.
        bottleneck_channels: Width of `dense_emb`.
        time_conditioning: Whether a timestep embedding is added to the inputs of `up1` and `up2`.
            Without it the network is the notebook's, and the timestep is accepted and ignored.

    Raises:
        ValueError: If a count is not positive or the size is not divisible by 4.
    """

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
            Rearrange("b (c h w) -> b c h w", h=map_height, w=map_width), *conv_norm_relu(coarse, coarse)
        )
        self.up1 = UpBlock(coarse, middle)
        self.up2 = UpBlock(middle, fine)
        self.out = nn.Sequential(*conv_norm_relu(fine, fine), nn.Conv2d(fine, out_channels, 3, 1, 1))
        if time_conditioning:
            self.time1 = TimeEmbedding(coarse)
            self.time2 = TimeEmbedding(middle)

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise in noisy images, or another target of the scheduler's `prediction_type`.

        Args:
            sample: Noisy images, `(batch, in_channels, *sample_size)`.
            timestep: Training timestep, 0 the cleanest: a scalar, or `(batch,)`. Ignored without
                `time_conditioning`.
            class_labels: None; this network has no classes.
            return_dict: Whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            `UNet2DOutput` with the prediction as `sample`, `(batch, out_channels, *sample_size)`.

        Raises:
            ValueError: If the shape or the number of timesteps does not fit, or labels are given.
        """
        expected = (self.config.in_channels, *pair(self.config.sample_size))
        if tuple(sample.shape[1:]) != expected:
            raise ValueError(f"sample is {tuple(sample.shape)}; expected (batch, {', '.join(map(str, expected))})")
        if class_labels is not None:
            raise ValueError("class_labels were given to a BasicUNet, which has no classes; use UNet")
        timesteps = batched_timestep(timestep, sample)

        down0 = self.down0(sample)  # (b, 16, 16, 16)
        down1 = self.down1(down0)  # (b, 32, 8, 8)
        down2 = self.down2(down1)  # (b, 64, 4, 4)
        vector = self.dense_emb(self.to_vec(down2))  # (b, 1024)
        x = self.up0(vector)  # (b, 64, 4, 4)
        if self.config.time_conditioning:
            x = x + self.time1(timesteps, sample.dtype)
        x = self.up1(x, down2)  # (b, 32, 8, 8)
        if self.config.time_conditioning:
            x = x + self.time2(timesteps, sample.dtype)
        x = self.up2(x, down1)  # (b, 16, 16, 16)
        prediction = self.out(x)  # (b, 1, 16, 16)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)
