"""Every part that a U-Net is made of: residual block, attention, down- and up-sampling."""

from collections.abc import Callable

import torch
from einops import rearrange
from torch import Tensor, nn


def space_to_depth(x: Tensor, factor: int = 2) -> Tensor:
    """Move each `factor x factor` square of pixels into the channels; nothing is lost, unlike in pooling.

    The channels stay innermost in memory, so a channels_last map stays channels_last.

    Args:
        x: `(batch, channels, height, width)`, height and width divisible by `factor`.
        factor: Side of the square.

    Returns:
        `(batch, channels * factor^2, height / factor, width / factor)`.
    """
    if factor == 1:
        return x
    x = rearrange(x, "b c (h p1) (w p2) -> b h w (p1 p2 c)", p1=factor, p2=factor)
    return channels_first(x)


def channels_first(x: Tensor) -> Tensor:
    """Move the innermost channels of `(batch, h, w, channels)` to the front.

    In memory they stay innermost. In a compiler's graph they do not: inductor cannot order the strides of a permuted
    map of unknown size that a convolution keeps for its backward pass.
    """
    x = rearrange(x, "b h w c -> b c h w")
    return x.contiguous() if torch.compiler.is_compiling() else x


def depth_to_space(x: Tensor, factor: int = 2) -> Tensor:
    """Undo `space_to_depth`: `(batch, channels * factor^2, h, w)` to `(batch, channels, h * factor, w * factor)`."""
    if factor == 1:
        return x
    x = rearrange(x, "b (p1 p2 c) h w -> b (h p1) (w p2) c", p1=factor, p2=factor)
    return rearrange(x, "b h w c -> b c h w")


def zero_init(layer: nn.Conv2d) -> nn.Conv2d:
    """Zero a layer's parameters, so that the branch it ends starts as no change (Goyal et al. 2017, section 5.1)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def convolution(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Conv2d:
    """Return a convolution that keeps height and width; the kernel's size is odd."""
    return nn.Conv2d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)


def group_norm(channels: int, group_size: int) -> nn.GroupNorm:
    """Normalise over groups of `group_size` channels."""
    return nn.GroupNorm(channels // group_size, channels)


class ResidualBlock(nn.Module):
    """Two normalised convolutions beside a shortcut; the embedding scales and shifts the second norm.

    The adaptive group normalisation of Dhariwal & Nichol (2021), section 3.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        embedding_channels: Channels of the conditioning vector.
        group_size: Channels in a normalisation group; divides `in_channels` and `out_channels`.
        second_kernel_size: Side of the second convolution, odd.
        dropout: Share of the values zeroed in training, before the second convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_channels: int,
        group_size: int,
        second_kernel_size: int = 3,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, group_size)
        self.conv1 = convolution(in_channels, out_channels)
        self.modulation = nn.Linear(embedding_channels, 2 * out_channels)
        self.norm2 = group_norm(out_channels, group_size)
        if second_kernel_size < 1 or second_kernel_size % 2 == 0:
            raise ValueError(f"second_kernel_size is {second_kernel_size}; it must be odd, such as 1 or 3")
        self.conv2 = zero_init(convolution(out_channels, out_channels, second_kernel_size))
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
    """Self-attention over all the pixels of a map, beside a shortcut (Ho et al. 2020, appendix B).

    Plain products and a softmax, not `scaled_dot_product_attention`: the maps here have 16 to 64 pixels, where the
    fused kernel's backward pass is the slower one on a CPU.

    Args:
        channels: Channels in and out.
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
    """A residual block, and self-attention (or nothing) after it; the unit of gradient checkpointing."""

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
    """Halve height and width: space-to-depth, then a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4 * in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, h / 2, w / 2)`."""
        return self.conv(space_to_depth(x))


class Upsample(nn.Module):
    """Double height and width: a 1x1 convolution, then depth-to-space."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, 4 * out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map `(batch, in_channels, h, w)` to `(batch, out_channels, 2 h, 2 w)`."""
        return depth_to_space(self.conv(x))
