"""U-Net building blocks: embeddings, residual block, self-attention, down- and upsampling."""

import math
from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn


def sinusoidal_embedding(timesteps: Tensor, channels: int, max_period: float = 10_000.0) -> Tensor:
    """Return the sinusoidal timestep embedding (Vaswani et al. 2017, section 3.5).

    Args:
        timesteps: `(batch,)`, whole or fractional.
        channels: Number of embedding channels, even.
        max_period: Longest period, in timesteps, divided by 2 pi.

    Returns:
        `(batch, channels)` in float32, in [-1, 1]: cosines, then sines.
    """
    half = channels // 2
    frequencies = torch.exp(-math.log(max_period) / half * torch.arange(half, device=timesteps.device))
    angles = timesteps.float()[:, None] * frequencies  # (batch, channels / 2)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def batched_timestep(timestep: Tensor | float, sample: Tensor) -> Tensor:
    """Expand one timestep, or one for each image, to `(batch,)`; `ValueError` for other numbers."""
    timesteps = torch.as_tensor(timestep, device=sample.device).flatten()
    num_timesteps, num_images = timesteps.shape[0], sample.shape[0]
    if num_timesteps not in (1, num_images):
        raise ValueError(f"{num_timesteps} timesteps for {num_images} images; give one, or one for each image")
    return timesteps.expand(num_images)


class LabelEmbedding(nn.Module):
    """Embedding of labels 0 to `num_classes - 1`, and of the null label `num_classes`.

    The null label means that no class is given, for classifier-free guidance (Ho & Salimans 2022).
    """

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.null_label = num_classes
        self.table = nn.Embedding(num_classes + 1, channels)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, class_labels: Tensor | None, batch_size: int) -> Tensor:
        """Map `(batch,)` labels, or None for the null label throughout, to `(batch, channels)`."""
        if class_labels is None:
            class_labels = torch.full((batch_size,), self.null_label, device=self.table.weight.device)
        return self.table(class_labels)


def space_to_depth(x: Tensor, factor: int = 2) -> Tensor:
    """Move each `factor x factor` square of pixels into the channels; unlike pooling, it is lossless.

    `(batch, channels, h * factor, w * factor)` becomes `(batch, channels * factor^2, h, w)`. A
    channels_last map stays channels_last.
    """
    if factor == 1:
        return x
    x = rearrange(x, "b c (h p1) (w p2) -> b h w (p1 p2 c)", p1=factor, p2=factor)
    return channels_first(x)


def channels_first(x: Tensor) -> Tensor:
    """Permute `(batch, h, w, channels)` to `(batch, channels, h, w)`, channels_last in memory.

    While compiling, the result is contiguous: inductor cannot order the strides of a permuted map of
    unknown size that a convolution keeps for its backward pass.
    """
    x = rearrange(x, "b h w c -> b c h w")
    return x.contiguous() if torch.compiler.is_compiling() else x


def depth_to_space(x: Tensor, factor: int = 2) -> Tensor:
    """Invert `space_to_depth`: `(b, channels * factor^2, h, w)` to `(b, channels, h * factor, w * factor)`."""
    if factor == 1:
        return x
    x = rearrange(x, "b (p1 p2 c) h w -> b (h p1) (w p2) c", p1=factor, p2=factor)
    return rearrange(x, "b h w c -> b c h w")


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Zero a layer's parameters, so that its residual branch starts as zero (Goyal et al. 2017, 5.1)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def convolution(in_channels: int, out_channels: int) -> nn.Conv2d:
    """Return a 3x3 convolution that keeps height and width."""
    return nn.Conv2d(in_channels, out_channels, 3, padding=1)


def group_norm(channels: int, group_size: int) -> nn.GroupNorm:
    """Return a group norm over groups of `group_size` channels."""
    return nn.GroupNorm(channels // group_size, channels)


class ResidualBlock(nn.Module):
    """Residual block with adaptive group normalisation (Dhariwal & Nichol 2021, section 3).

    The embedding scales and shifts the output of the second normalisation.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        embedding_channels: Channels of the conditioning vector.
        group_size: Channels in a normalisation group; divides `in_channels` and `out_channels`.
        dropout: Dropout probability before the second convolution.
    """

    def __init__(
        self, in_channels: int, out_channels: int, embedding_channels: int, group_size: int, dropout: float = 0.0
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, group_size)
        self.conv1 = convolution(in_channels, out_channels)
        self.modulation = nn.Linear(embedding_channels, 2 * out_channels)
        self.norm2 = group_norm(out_channels, group_size)
        self.conv2 = zero_init(convolution(out_channels, out_channels))
        self.dropout = nn.Dropout(dropout)
        self.shortcut = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        self.activation = nn.SiLU()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` and `(batch, embedding_channels)` to `(batch, out_channels, h, w)`."""
        scale, shift = rearrange(self.modulation(emb), "b (two c) -> two b c 1 1", two=2).unbind()
        h = self.conv1(self.activation(self.norm1(x)))
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)
        return self.shortcut(x) + self.conv2(self.dropout(self.activation(h)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over the pixels of a map, with a shortcut (Ho et al. 2020, app. B).

    It uses matrix products and a softmax: for the 16 to 64 pixels of these maps the backward pass of
    `scaled_dot_product_attention` is many times slower on a CPU.

    Args:
        channels: Number of input and output channels.
        head_dim: Channels of a head; divides `channels`.
        group_size: Channels in a normalisation group; divides `channels`.
    """

    def __init__(self, channels: int, head_dim: int, group_size: int) -> None:
        super().__init__()
        self.num_heads = channels // head_dim
        self.norm = group_norm(channels, group_size)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1)
        self.out = zero_init(nn.Conv2d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, channels, h, w)` to the same shape."""
        qkv = self.qkv(self.norm(x))
        q, k, v = rearrange(qkv, "b (three n d) h w -> three b n (h w) d", three=3, n=self.num_heads).unbind()
        weights = (q @ k.mT * q.shape[-1] ** -0.5).softmax(dim=-1)  # (b, n, h w, h w)
        out = rearrange(weights @ v, "b n (h w) d -> b h w (n d)", h=x.shape[2])
        return x + self.out(channels_first(out))


class Block(nn.Module):
    """Residual block and self-attention (or the identity); the unit of gradient checkpointing."""

    def __init__(self, residual: ResidualBlock, attention: nn.Module) -> None:
        super().__init__()
        self.residual = residual
        self.attention = attention
        # diffusers' `enable_gradient_checkpointing` sets both on every module that has the first
        self.gradient_checkpointing = False
        self._gradient_checkpointing_func: Callable[..., Tensor] | None = None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` and `(batch, embedding_channels)` to `(batch, out_channels, h, w)`."""
        if self.gradient_checkpointing and torch.is_grad_enabled() and self._gradient_checkpointing_func:
            return self._gradient_checkpointing_func(self._apply_layers, x, emb)
        return self._apply_layers(x, emb)

    def _apply_layers(self, x: Tensor, emb: Tensor) -> Tensor:
        return self.attention(self.residual(x, emb))


class Downsample(nn.Module):
    """Downsampling by 2: space-to-depth and a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, h / 2, w / 2)`."""
        return self.conv(space_to_depth(x))


class Upsample(nn.Module):
    """Upsampling by 2: a 1x1 convolution and depth-to-space."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, 2 h, 2 w)`."""
        return depth_to_space(self.conv(x))
