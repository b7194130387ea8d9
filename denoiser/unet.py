"""`UNet`: the time- and class-conditional backbone. Saved pipelines record this module's name, so it stays here."""

from collections.abc import Sequence

import torch
from diffusers import ConfigMixin, ModelMixin  # diffusers' loader looks both names up in this module
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from denoiser.blocks import (
    Block,
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    convolution,
    depth_to_space,
    group_norm,
    space_to_depth,
    zero_init,
)
from denoiser.checks import check_divisible, check_positive, pair
from denoiser.embeddings import LabelEmbedding, batched_timestep, sinusoidal_embedding
from denoiser.plain import plain_arguments


class EncoderLevel(nn.Module):
    """The step that brings a map to this level's size, and the blocks that work on it."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """Push the map after each block onto `skips`, and return the last, `(batch, width, h, w)`."""
        x = self.downsample(x)
        for block in self.blocks:
            x = block(x, emb)
            skips.append(x)
        return x


class DecoderLevel(nn.Module):
    """The blocks that work at this level's size, and the step that brings their map to the next finer one."""

    def __init__(self, blocks: Sequence[Block], upsample: nn.Module, concatenate_skips: bool) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.upsample = upsample
        self.concatenate_skips = concatenate_skips

    def forward(self, x: Tensor, emb: Tensor, skips: list[Tensor]) -> Tensor:
        """Pop a map off `skips` for each block, and return `(batch, finer width, 2 h, 2 w)`."""
        for block in self.blocks:
            skip = skips.pop()
            x = block(torch.cat([x, skip], dim=1) if self.concatenate_skips else x + skip, emb)
        return self.upsample(x)


class UNet(ModelMixin, ConfigMixin):
    """A U-Net of residual blocks that predicts the noise in a noisy image (Ho et al. 2020; Ronneberger et al. 2015).

    It keeps the call contract of diffusers' `UNet2DModel`, so it works in every pipeline and trainer made for that.
    It is fully convolutional: any height and width divisible by `patch_size * 2^(levels - 1)` will do.

    Args:
        sample_size: Height and width, or one number for both, of the images that pipelines make.
        in_channels: Image channels in.
        out_channels: Image channels out.
        block_out_channels: Width of each level, finest first; each divisible by `norm_group_size`.
        layers_per_block: Residual blocks a level, or of each level, on the way down and again on the way up.
        middle_blocks: Residual blocks between the way down and the way up, at the coarsest level.
        attention_levels: Levels with self-attention, 0 the finest; the middle has it if the coarsest level does.
        attention_head_dim: Channels of an attention head; divides the width of each attention level.
        norm_group_size: Channels in a normalisation group. Under 16 is legal, and slow on CPUs.
        patch_size: Side of the square of pixels that the stem moves into the channels; 1 leaves the image as it is.
        concatenate_skips: Whether the decoder's blocks take the encoder's maps beside their own, as Ronneberger et al.
            do, or added to them, which costs a fifth less and learns as well (docs/study.md).
        second_kernel_size: Side of the second convolution of a residual block, odd.
        dropout: Share of a residual block's values zeroed in training, before its second convolution.
        num_class_embeds: Number of classes, or None for an unconditional network.
        embedding_channels: Channels of the time and label embedding; four times the first width if None.

    Raises:
        ValueError: If a count is not positive, a share or a kernel is out of range, or a size is not divisible as said
            above.
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
        middle_blocks: int = 0,
        attention_levels: tuple[int, ...] = (),
        attention_head_dim: int = 32,
        norm_group_size: int = 16,
        patch_size: int = 1,
        concatenate_skips: bool = False,
        second_kernel_size: int = 3,
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
        if not isinstance(middle_blocks, int) or middle_blocks < 0:
            raise ValueError(f"middle_blocks is {middle_blocks}; it must be a whole number of at least 0")
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
                ResidualBlock(in_channels, width, emb_channels, norm_group_size, second_kernel_size, dropout),
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
        self.middle = nn.ModuleList(block(widths[-1], num_levels - 1) for _ in range(middle_blocks))
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

    @property
    def null_label(self) -> int | None:
        """The label that stands for "no class given", or None for an unconditional network."""
        return self.label_embedding.null_label if self.label_embedding is not None else None

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> UNet2DOutput | tuple[Tensor]:
        """Predict the noise (or what else the scheduler's `prediction_type` says) in noisy images.

        Args:
            sample: Noisy images, `(batch, in_channels, height, width)`.
            timestep: Training timestep, 0 the cleanest: a scalar, or `(batch,)`.
            class_labels: `(batch,)` class indices; `null_label`, or None for all, means no class.
            return_dict: False for a plain tuple.

        Returns:
            `UNet2DOutput` whose `sample` is the prediction, `(batch, out_channels, height, width)`.

        Raises:
            ValueError: If the images' shape or the number of timesteps does not fit, or an unconditional network is
                given labels.
        """
        if sample.ndim != 4 or sample.shape[1] != self.config.in_channels:
            raise ValueError(f"sample is {tuple(sample.shape)}; expected (batch, {self.config.in_channels}, h, w)")
        self._check_size(*sample.shape[2:])

        emb = self._embed(batched_timestep(timestep, sample), class_labels, sample.dtype)  # (b, embedding_channels)
        x = self.stem(space_to_depth(sample, self.config.patch_size))  # (b, widths[0], h / patch, w / patch)
        skips: list[Tensor] = []
        for level in self.encoder:
            x = level(x, emb, skips)  # (b, widths[level], h / (patch 2^level), w / (patch 2^level))
        for block in self.middle:
            x = block(x, emb)  # the same
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
