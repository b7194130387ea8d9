"""Restoration of Gaussian data, whose exact denoiser is known, and of what a tiny network does to real images."""

import pytest
import torch
from diffusers import ConfigMixin, DDPMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from einops import rearrange
from torch import nn

from denoiser.blocks import batched_timestep
from pipelines import DenoisingPipeline
from pipelines.restoration import denoised, estimated_noise, inpainted, inverted, reconstructed
from tests.pipelines.test_denoising import make_pipeline

SPREAD = 0.2


class GaussianDenoiser(ModelMixin, ConfigMixin):
    """Predicts the noise exactly where all pixels are one Gaussian value, so that known pixels tell of the others."""

    @register_to_config
    def __init__(self, sample_size: int = 16, in_channels: int = 1, num_class_embeds: int | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.signal = DDPMScheduler().alphas_cumprod

    def forward(self, sample, timestep, class_labels=None):
        signal = rearrange(self.signal[batched_timestep(timestep, sample)], "b -> b 1 1 1")
        pixels = sample[0].numel()
        mean = signal.sqrt() * SPREAD**2 * sample.sum(dim=(1, 2, 3), keepdim=True)
        image = mean / (1 - signal + pixels * signal * SPREAD**2)
        return UNet2DOutput(sample=(sample - signal.sqrt() * image) / (1 - signal).sqrt())


@pytest.fixture
def pipeline():
    return DenoisingPipeline(GaussianDenoiser(), DDPMScheduler())


@pytest.fixture
def flat_images():
    """Return images of one grey each."""
    values = torch.randn(40, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * SPREAD
    return values.expand(40, 1, 16, 16).clone()


@pytest.mark.parametrize("sigma", [0.1, 0.5, torch.linspace(0.1, 2, 40)])
def test_denoised_images_are_the_mean_of_what_they_may_come_from(pipeline, flat_images, sigma):
    levels = rearrange(torch.as_tensor(sigma).flatten().expand(40), "b -> b 1 1 1")
    noisy = flat_images + levels * torch.randn(flat_images.shape, generator=torch.Generator().manual_seed(1))
    exact = SPREAD**2 * noisy.sum(dim=(1, 2, 3), keepdim=True) / (levels**2 + 256 * SPREAD**2)
    torch.testing.assert_close(denoised(pipeline, noisy, sigma), exact.expand_as(noisy), atol=0.01, rtol=0.05)


def test_the_noise_is_estimated_where_it_is_not_given(pipeline, flat_images):
    noisy = flat_images + 0.5 * torch.randn(flat_images.shape, generator=torch.Generator().manual_seed(1))
    assert float(estimated_noise(noisy).mean()) == pytest.approx(0.5, rel=0.1)
    error = (denoised(pipeline, noisy) - denoised(pipeline, noisy, 0.5)).abs().mean()
    assert error < 0.02
    assert denoised(pipeline, flat_images).isfinite().all()  # of which the estimate is nothing


def test_labels_count():
    pipeline, noisy = make_pipeline(), torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    bags = denoised(pipeline, noisy, 0.5, labels=["bag"] * 3)
    assert not torch.allclose(bags, denoised(pipeline, noisy, 0.5, labels=["coat"] * 3))
    assert not torch.allclose(bags, denoised(pipeline, noisy, 0.5))


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1e6, float("nan")])
def test_noise_that_the_network_does_not_know_is_refused(pipeline, flat_images, sigma):
    with pytest.raises(ValueError, match="sigma is .*; it must be above 0 and up to"):
        denoised(pipeline, flat_images, sigma)


def test_one_noise_level_or_one_an_image(pipeline, flat_images):
    with pytest.raises(ValueError, match="3 values of sigma for 40 images"):
        denoised(pipeline, flat_images, torch.full((3,), 0.5))


def test_a_hole_is_filled_with_what_the_known_pixels_tell(pipeline, flat_images):
    known = torch.ones(1, 1, 16, 16)
    known[..., 4:12, 4:12] = 0
    damaged = torch.where(known.bool(), flat_images, 5.0)
    filled = inpainted(pipeline, damaged, known, steps=50, resamplings=2)
    assert torch.equal(filled[..., :4, :], flat_images[..., :4, :])
    assert float((filled - flat_images).square().mean().sqrt()) < 0.2 * SPREAD
    assert torch.equal(filled, inpainted(pipeline, damaged, known, steps=50, resamplings=2))
    assert not torch.equal(filled, inpainted(pipeline, damaged, known, steps=50, resamplings=2, seed=1))


@pytest.mark.parametrize(
    ("known", "options", "message"),
    [
        (torch.ones(16), {}, "the mask is a list; give a tensor"),
        (torch.ones(1, 1, 16, 8), {}, r"the mask is \(1, 1, 16, 8\), the images are .*; they do not fit"),
        (torch.ones(16, 16), {}, "they do not fit"),
        (torch.full((1, 1, 16, 16), 0.5), {}, "other values than 0"),
        (torch.zeros(1, 1, 16, 16), {}, "leaves no known pixel"),
        (torch.ones(1, 1, 16, 16), {"steps": 0}, "0 inference steps"),
        (torch.ones(1, 1, 16, 16), {"steps": 30}, "steps is 30; it must divide the 1000 training timesteps"),
        (torch.ones(1, 1, 16, 16), {"resamplings": 0}, "resamplings is 0"),
    ],
)
def test_what_cannot_be_inpainted_is_refused(pipeline, flat_images, known, options, message):
    with pytest.raises(ValueError, match=message):
        inpainted(pipeline, flat_images, known, **options)


@pytest.mark.parametrize("steps", [1, 2, 5, 50])
def test_repaint_starts_where_there_is_nothing_but_noise(steps, flat_images):
    network, timesteps = GaussianDenoiser(), []
    forward = network.forward

    def watched(sample, timestep, class_labels=None):
        timesteps.append(int(timestep[0]))
        return forward(sample, timestep)

    network.forward = watched
    known = torch.ones(1, 1, 16, 16)
    known[:, :, :8] = 0
    inpainted(DenoisingPipeline(network, DDPMScheduler()), flat_images, known, steps=steps)
    assert max(timesteps) == timesteps[0] == 999
    assert min(timesteps) == timesteps[-1] == 1000 // steps - 1


def test_repaint_takes_steps_back_to_the_noise_that_they_started_from():
    network, powers = GaussianDenoiser(), []

    def black(sample, timestep, class_labels=None):
        """Take every image for one of zeros, so that there is noise and nothing else, of a power that is known."""
        noise = sample / (1 - network.signal[timestep][:, None, None, None]).sqrt()
        powers.append(noise[:, :, :8].square().mean())
        return UNet2DOutput(sample=noise)

    network.forward = black
    known = torch.ones(1, 1, 16, 16)
    known[:, :, :8] = 0
    pipeline = DenoisingPipeline(network, DDPMScheduler())
    inpainted(pipeline, torch.zeros(64, 1, 16, 16), known, steps=50, jump_length=10, resamplings=5)
    torch.testing.assert_close(torch.stack(powers), torch.ones(210), atol=0.08, rtol=0)


@pytest.mark.parametrize("prediction_type", ["v_prediction", "sample"])
def test_it_makes_no_difference_what_the_network_predicts(pipeline, flat_images, prediction_type):
    class Other(GaussianDenoiser):
        def forward(self, sample, timestep, class_labels=None):
            noise = super().forward(sample, timestep).sample
            signal = self.signal[batched_timestep(timestep, sample)][:, None, None, None]
            image = (sample - (1 - signal).sqrt() * noise) / signal.sqrt()
            velocity = signal.sqrt() * noise - (1 - signal).sqrt() * image
            return UNet2DOutput(sample=velocity if prediction_type == "v_prediction" else image)

    other = DenoisingPipeline(Other(), DDPMScheduler(prediction_type=prediction_type))
    known = torch.ones(1, 1, 16, 16)
    known[..., 4:12, 4:12] = 0
    close = {"atol": 2e-3, "rtol": 1e-3}
    torch.testing.assert_close(inverted(other, flat_images), inverted(pipeline, flat_images), **close)
    torch.testing.assert_close(
        reconstructed(other, inverted(other, flat_images)),
        reconstructed(pipeline, inverted(pipeline, flat_images)),
        **close,
    )
    torch.testing.assert_close(inpainted(other, flat_images, known), inpainted(pipeline, flat_images, known), **close)
    torch.testing.assert_close(denoised(other, flat_images, 0.5), denoised(pipeline, flat_images, 0.5), **close)


def test_an_inverted_image_is_reconstructed(some_images):
    pipeline = make_pipeline()
    images, labels = some_images.batch(torch.arange(3))
    errors = []
    for iterations in (1, 4, 16):
        noisy = inverted(pipeline, images, labels.tolist(), steps=10, iterations=iterations)
        again = reconstructed(pipeline, noisy, labels.tolist(), steps=10)
        errors.append(float((again - images).abs().max()))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.01
    with pytest.raises(ValueError, match="steps is 1; give at least 2"):
        inverted(pipeline, images, steps=1)


def test_a_change_takes_its_share_of_the_steps(some_images):
    pipeline, steps = make_pipeline(), []
    images, _ = some_images.batch(torch.arange(2))
    pipeline(
        2,
        image=images,
        strength=0.7,
        num_inference_steps=10,
        callback_on_step_end=lambda *told: steps.append(told) or {},
    )
    assert len(steps) == 7


@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "sde-dpmsolver++", "unipc", "euler", "heun"])
def test_the_stronger_a_change_the_less_is_left_of_the_image(scheduler, some_images):
    pipeline = make_pipeline(scheduler=scheduler)
    images, _ = some_images.batch(torch.arange(4))
    distances = []
    for strength in (0.1, 0.4, 0.8):
        options = {"num_inference_steps": 20, "seed": 0, "output_type": "pt"}
        changed = pipeline(4, image=images, strength=strength, **options).images
        distances.append(float((2 * changed - 1 - images).abs().mean()))
    assert distances == sorted(distances)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 0.5}, "strength is 0.5 without an image"),
        ({"image": [0.0]}, "image is a list; give a tensor in"),
        ({"image": torch.zeros(2, 1, 16, 16)}, r"image is \(2, 1, 16, 16\); expected \(3, 1, 16, 16\)"),
        ({"image": torch.zeros(3, 1, 16, 16), "strength": 0.0}, "strength is 0.0; it must be above 0"),
        ({"image": torch.zeros(3, 1, 16, 16), "strength": 1.5}, "strength is 1.5"),
    ],
)
def test_changes_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_pipeline()(3, num_inference_steps=4, seed=0, **options)
