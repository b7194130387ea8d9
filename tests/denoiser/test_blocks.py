import pytest
import torch
from diffusers.models.embeddings import get_timestep_embedding
from einops import rearrange
from torch.nn.functional import scaled_dot_product_attention

from denoiser.blocks import (
    Downsample,
    ResidualBlock,
    SelfAttention,
    Upsample,
    depth_to_space,
    sinusoidal_embedding,
    space_to_depth,
)
from tests.conftest import randomised


@pytest.mark.parametrize("factor", [1, 2, 4])
def test_depth_to_space_undoes_space_to_depth(factor):
    x = torch.randn(2, 3, 8, 16)
    deep = space_to_depth(x, factor)
    assert deep.shape == (2, 3 * factor**2, 8 // factor, 16 // factor)
    assert torch.equal(depth_to_space(deep, factor), x)


def test_space_to_depth_gathers_the_pixels_of_each_square():
    x = torch.arange(16.0).view(1, 1, 4, 4)
    assert space_to_depth(x)[0, :, 0, 0].tolist() == [0, 1, 4, 5]
    assert space_to_depth(x)[0, :, 1, 1].tolist() == [10, 11, 14, 15]


def test_channels_last_maps_stay_channels_last():
    x = torch.randn(2, 16, 8, 8).to(memory_format=torch.channels_last)
    for change in (Downsample(16, 32), Upsample(16, 8), space_to_depth):
        change = change.to(memory_format=torch.channels_last) if isinstance(change, torch.nn.Module) else change
        assert change(x).is_contiguous(memory_format=torch.channels_last)


def test_attention_is_scaled_dot_product_attention_over_the_pixels():
    attention = randomised(SelfAttention(32, head_dim=16, group_size=16))
    x = torch.randn(2, 32, 4, 6)
    qkv = rearrange(attention.qkv(attention.norm(x)), "b (three n d) h w -> three b n (h w) d", three=3, n=2)
    expected = rearrange(scaled_dot_product_attention(*qkv), "b n (h w) d -> b (n d) h w", h=4)
    torch.testing.assert_close(attention(x), x + attention.out(expected))


def test_a_new_residual_block_changes_nothing():
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(ResidualBlock(16, 16, 8, group_size=16)(x, torch.randn(2, 8)), x)


def test_the_embedding_reaches_a_residual_block():
    block = randomised(ResidualBlock(16, 32, 8, group_size=16))
    x = torch.randn(2, 16, 4, 4)
    assert not torch.allclose(block(x, torch.zeros(2, 8)), block(x, torch.ones(2, 8)))


def test_sinusoidal_embedding_is_diffusers_own():
    timesteps = torch.tensor([0, 1, 500, 999])
    expected = get_timestep_embedding(timesteps, 32, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(sinusoidal_embedding(timesteps, 32), expected, atol=1e-4, rtol=0)
