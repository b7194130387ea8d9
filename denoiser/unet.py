"""`UNet`, the time- and class-conditional backbone. Saved pipelines name this module: it stays here."""

from collections.abc import Sequence
from typing import Any

import torch
from diffusers import ConfigMixin, ModelMixin  # diffusers' loader looks both names up in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from denoiser.blocks import (
    Block,
    Downsample,
    LabelEmbedding,
    ResidualBlock,
    SelfAttention,
    Upsample,
    batched_timestep,
    convolution,
    depth_to_space,
    group_norm,
    sinusoidal_embedding,
    space_to_depth,
    zero_init,
)
from denoiser.checks import check_divisible, check_positive, drop_removed, pair, plain_arguments


class EncoderLevel(nn.Module):
    """A downsampling layer (the identity at the finest level), then residual blocks."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """Append each block's output to `skips` and return the last, `(batch, width, h, w)`."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x, emb)
            skips.append(x)
        return x


class DecoderLevel(nn.Module):
    """Residual blocks, then an upsampling layer (the identity at the finest level)."""

    def __init__(self, blocks: Sequence[Block], upsample: nn.Module, concatenate_skips: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.upsample = upsample
        self.concatenate_skips = concatenate_skips

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """Pop one map off `skips` for each block and return `(batch, finer width, 2 h, 2 w)`."""
        for block in self.blocks:
            skip = skips.pop()
            x = block(torch.cat([x, skip], dim=1) if self.concatenate_skips else x + skip, emb)
        return self.upsample(x)


class UNet(ModelMixin, ConfigMixin):
    """Residual U-Net that predicts the noise in a noisy image (Ho et al. 2020).

    It keeps the call contract of diffusers' `UNet2DModel`, so it works in every pipeline and trainer
    made for that model. It is fully convolutional: any height and width divisible by
    `patch_size * 2^(levels - 1)` is accepted.

    Args:
        sample_size: Height and width of the images that pipelines make, or one number for both.
        in_channels: Number of input image channels.
        out_channels: Number of output image channels.
        block_out_channels: Width of each level, finest first; each divisible by `norm_group_size`.
        layers_per_block: Residual blocks of each encoder level, and again of each decoder level: one
            number, or one a level.
        attention_levels: Levels with self-attention; 0 is the finest.
        attention_head_dim: Channels of an attention head; divides the width of each attention level.
        norm_group_size: Channels in a normalisation group. Values under 16 are slow on CPUs.
        patch_size: Side of the pixel square that the stem moves into the channels; 1 for none.
        concatenate_skips: Whether the decoder concatenates the encoder's maps to its own, as in
            Ronneberger et al. (2015). By default it adds them, which costs a fifth less and learns as
            well (docs/study.md).
        dropout: Dropout probability before the second convolution of each residual block.
        num_class_embeds: Number of classes, or None for an unconditional network.
        embedding_channels: Channels of the time and label embedding; by default four times the
            first width.

    Raises:
        ValueError: If a count is not positive, or a size or width is not divisible as stated above.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("Block",)
    _skip_layerwise_casting_patterns = ("norm",)

    @plain_arguments
    @register_to_config
    def __init__(
        self,
        sample_size: int | tuple[int, int] = 16,
        in_channels: int = 1,
        out_channels: int = 1,
        block_out_channels: tuple[int, ...] = (32, 64, 96),
        layers_per_block: int | tuple[int, ...] = 1,
        attention_levels: tuple[int, ...] = (),
        attention_head_dim: int = 32,
        norm_group_size: int = 16,
        patch_size: int = 1,
        concatenate_skips: bool = False,
        dropout: float = 0.0,
        num_class_embeds: int | None = None,
        embedding_channels: int | None = None,
    ) -> None:
        super().__init__()
        widths, num_levels = tuple(block_out_channels), len(block_out_channels)
        check_positive(levels=num_levels)
        emb_channels = 4 * widths[0] if embedding_channels is None else embedding_channels
        check_positive(
            in_channels=in_channels,
            out_channels=out_channels,
            attention_head_dim=attention_head_dim,
            norm_group_size=norm_group_size,
            patch_size=patch_size,
            embedding_channels=emb_channels,
        )
        depths = self._depths(layers_per_block, num_levels)
        for width in widths:
            check_positive(block_out_channels=width)
            check_divisible("block_out_channels", width, norm_group_size, "norm_group_size")
        for level in attention_levels:
            if level not in range(num_levels):
                raise ValueError(f"attention_levels has {level}; the levels are 0 to {num_levels - 1}")
            check_divisible(f"block_out_channels[{level}]", widths[level], attention_head_dim, "attention_head_dim")
        check_divisible("block_out_channels[0]", widths[0], 2, "cosine and sine of the time embedding")
        if num_class_embeds is not None:
            check_positive(num_class_embeds=num_class_embeds)

        self.size_divisor = patch_size * 2 ** (num_levels - 1)
        self._check_size(*pair(sample_size))

        def block(in_channels: int, level: int) -> Block:
            width, attends = widths[level], level in attention_levels
            return Block(
                ResidualBlock(in_channels, width, emb_channels, norm_group_size, dropout),
                SelfAttention(width, attention_head_dim, norm_group_size) if attends else nn.Identity(),
            )

        self.time_embedding = nn.Sequential(
            nn.Linear(widths[0], emb_channels), nn.SiLU(), nn.Linear(emb_channels, emb_channels)
        )
        self.label_embedding = LabelEmbedding(num_class_embeds, emb_channels) if num_class_embeds else None
        self.activation = nn.SiLU()

        self.stem = convolution(in_channels * patch_size**2, widths[0])
        self.encoder = nn.ModuleList()
        for level, width in enumerate(widths):
            down = Downsample(widths[level - 1], width) if level else nn.Identity()
            self.encoder.append(EncoderLevel(down, [block(width, level) for _ in range(depths[level])]))
        self.decoder = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            up = Upsample(width, widths[level - 1]) if level else nn.Identity()
            width_in = 2 * width if concatenate_skips else width
            blocks = [block(width_in, level) for _ in range(depths[level])]
            self.decoder.append(DecoderLevel(blocks, up, concatenate_skips))
        self.head = nn.Sequential(
            group_norm(widths[0], norm_group_size),
            nn.SiLU(),
            zero_init(convolution(widths[0], out_channels * patch_size**2)),
        )

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], ...]:
        """Split a saved config, as diffusers does, after the removed arguments are checked and left out."""
        return super().extract_init_dict(drop_removed("UNet", config_dict), **kwargs)

    @property
    def null_label(self) -> int | None:
        """Label for "no class given"; None for an unconditional network."""
        return self.label_embedding.null_label if self.label_embedding is not None else None

    def forward(
        self, sample: Tensor, timestep: Tensor | float, class_labels: Tensor | None = None, return_dict: bool = True
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise in noisy images, or another target of the scheduler's `prediction_type`.

        Args:
            sample: Noisy images, `(batch, in_channels, height, width)`.
            timestep: Training timestep, 0 the cleanest: a scalar, or `(batch,)`.
            class_labels: `(batch,)` class indices; `null_label` is no class, None no class for all.
            return_dict: Whether to return a `UNet2DOutput` instead of a tuple.

        Returns:
            `UNet2DOutput` with the prediction as `sample`, `(batch, out_channels, height, width)`.

        Raises:
            ValueError: If the shape or the number of timesteps does not fit, or an unconditional
                network is given labels.
        """
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise ValueError(f"sample is {tuple(sample.shape)}; expected (batch, {self.config.in_channels}, h, w)")
        self._check_size(*sample.shape[2:])

        emb = self._embed(batched_timestep(timestep, sample), class_labels, sample.dtype)  # (b, embedding_channels)
        x = self.stem(space_to_depth(sample, self.config.patch_size))  # (b, widths[0], h / patch, w / patch)
        skips: list[Tensor] = []
        for level in self.encoder:
            x = level(x, emb, skips)  # (b, widths[level], h / (patch 2^level), w / (patch 2^level))
        for level in self.decoder:
            x = level(x, emb, skips)  # (b, widths[level - 1], twice the height, twice the width)
        prediction = depth_to_space(self.head(x), self.config.patch_size)  # (b, out_channels, h, w)
        return UNet2DOutput(sample=prediction) if return_dict else (prediction,)

    def _embed(self, timesteps: Tensor, class_labels: Tensor | None, dtype: torch.dtype) -> Tensor:
        emb = sinusoidal_embedding(timesteps, self.config.block_out_channels[0])
        emb = self.time_embedding(emb.to(dtype))
        if self.label_embedding is not None:
            emb = emb + self.label_embedding(class_labels, timesteps.shape[0])
        elif class_labels is not None:
            raise ValueError("class_labels were given to an unconditional UNet; build it with num_class_embeds")
        return self.activation(emb)

    @staticmethod
    def _depths(layers_per_block: int | Sequence[int], num_levels: int) -> list[int]:
        depths = [*layers_per_block] if isinstance(layers_per_block, Sequence) else [layers_per_block] * num_levels
        if len(depths) != num_levels:
            raise ValueError(f"layers_per_block is {layers_per_block}; give one number, or {num_levels}, one a level")
        for depth in depths:
            check_positive(layers_per_block=depth)
        return depths

    def _check_size(self, height: int, width: int) -> None:
        for name, size in (("height", height), ("width", width)):
            check_divisible(f"image {name}", size, self.size_divisor, "patch_size * 2^(levels - 1)")
