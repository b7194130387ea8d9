import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput

from pipelines.training.loss import denoising_loss, loss_weights, prediction_target

TIMESTEPS = torch.tensor([0, 300, 700, 999])


class Oracle(torch.nn.Module):
    """Knows the clean images, and predicts from the noisy ones what the scheduler asks for."""

    def __init__(self, scheduler, images):
        super().__init__()
        self.scheduler, self.images = scheduler, images

    def forward(self, noisy, timesteps):
        alpha = self.scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noise = (noisy - alpha.sqrt() * self.images) / (1 - alpha).sqrt()
        by_type = {
            "epsilon": noise,
            "sample": self.images,
            "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * self.images,
        }
        return UNet2DOutput(sample=by_type[self.scheduler.config.prediction_type])


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_network_that_knows_the_images_has_no_loss(prediction_type, some_images, noise):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    images, _ = some_images.batch(torch.arange(4))
    losses = denoising_loss(Oracle(scheduler, images), scheduler, images, noise, TIMESTEPS, None)
    assert losses.max() < 1e-6


def test_predicting_nothing_costs_the_noise_of_each_image(some_images, noise, scheduler):
    images, _ = some_images.batch(torch.arange(4))
    losses = denoising_loss(
        lambda noisy, timesteps: UNet2DOutput(sample=torch.zeros_like(noisy)), scheduler, images, noise, TIMESTEPS, None
    )
    torch.testing.assert_close(losses, noise.square().mean(dim=(1, 2, 3)))


def test_the_loss_is_float32_whatever_the_network_gives(some_images, noise, scheduler):
    images, _ = some_images.batch(torch.arange(4))
    model = lambda noisy, timesteps: UNet2DOutput(sample=noisy.bfloat16())  # noqa: E731
    assert denoising_loss(model, scheduler, images, noise, TIMESTEPS, None).dtype == torch.float32


def test_an_unknown_prediction_type_is_refused(some_images, noise):
    scheduler = DDPMScheduler(prediction_type="score")
    images, _ = some_images.batch(torch.arange(4))
    with pytest.raises(ValueError, match="'score'.*epsilon, v_prediction, sample"):
        denoising_loss(lambda x, t: UNet2DOutput(sample=x), scheduler, images, noise, TIMESTEPS, None)


PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_weights_are_those_of_the_same_error_whatever_is_predicted(prediction_type, noise):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(2)
    images, guess = torch.randn(2, 4, 1, 16, 16, generator=generator).unbind()
    timesteps = torch.tensor([5, 300, 600, 900])
    signal = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    guessed_images = images + ((1 - signal) / signal).sqrt() * (noise - guess)  # which with `guess` make the same x_t
    target = prediction_target(scheduler, images, noise, timesteps)
    prediction = prediction_target(scheduler, guessed_images, guess, timesteps)
    weighted = loss_weights(scheduler, "min_snr")[timesteps] * (prediction - target).square().mean(dim=(1, 2, 3))
    papers = (signal / (1 - signal)).clamp(max=5).flatten() * (guessed_images - images).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted, papers, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_error_of_the_prediction_has_no_weights(prediction_type):
    assert (loss_weights(DDPMScheduler(prediction_type=prediction_type), "prediction") == 1).all()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'max_snr' is none of prediction, min_snr"):
        loss_weights(DDPMScheduler(), "max_snr")
    with pytest.raises(ValueError, match="'score' is none of epsilon, v_prediction, sample"):
        loss_weights(DDPMScheduler(prediction_type="score"), "min_snr")


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_a_timestep_without_noise_has_a_finite_weight(prediction_type):
    scheduler = DDPMScheduler(10, trained_betas=[0.0, *[0.01] * 9], prediction_type=prediction_type)
    assert loss_weights(scheduler, "min_snr").isfinite().all()
