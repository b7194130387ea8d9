import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.configuration_utils import FrozenDict

from benchmarks.machine import operations_per_image
from benchmarks.peers import LucidrainsUNet, SmallDiffusionUNet
from denoiser.blocks import batched_timestep
from tests.conftest import randomised


@pytest.mark.parametrize("network", [LucidrainsUNet, SmallDiffusionUNet])
def test_a_peer_keeps_the_call_contract_and_can_be_saved(network, tmp_path):
    torch.manual_seed(0)
    model = randomised(network())
    images = torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    one, each = model(images, 500).sample, model(images, torch.tensor([500, 500, 500])).sample
    assert one.shape == images.shape
    torch.testing.assert_close(one, each)
    assert not torch.allclose(one, model(images, 100).sample)
    assert torch.equal(model(images, 500, return_dict=False)[0], one)
    model.save_pretrained(tmp_path)
    torch.testing.assert_close(network.from_pretrained(tmp_path).eval()(images, 500).sample, one)


def test_smalldiffusion_is_told_the_label():
    torch.manual_seed(0)
    model = randomised(SmallDiffusionUNet(num_class_embeds=10))
    images = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0)).expand(2, 1, 16, 16)
    one, other = model(images, 500, class_labels=torch.tensor([3, 4])).sample
    assert not torch.allclose(one, other)


def test_smalldiffusion_is_told_the_noise_level_of_the_timestep():
    model, told = SmallDiffusionUNet().eval(), []
    model.unet.register_forward_pre_hook(lambda module, arguments: told.append(arguments[1]))
    timesteps = batched_timestep(torch.tensor([0, 999]), torch.zeros(2, 1, 16, 16))
    model(torch.zeros(2, 1, 16, 16), timesteps)
    signal = DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod[timesteps]
    torch.testing.assert_close(told[0], ((1 - signal) / signal).sqrt())


def test_operations_are_those_of_products_and_convolutions():
    layer = torch.nn.Conv2d(1, 4, 3, padding=1)

    class OneLayer(torch.nn.Module):
        config = FrozenDict(in_channels=1, sample_size=16)
        device = torch.device("cpu")

        def forward(self, sample, timestep):
            return layer(sample)

    assert operations_per_image(OneLayer()) == 2 * 9 * 4 * 16 * 16
