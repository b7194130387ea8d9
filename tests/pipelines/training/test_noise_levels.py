import pytest
import torch
from diffusers import DDPMScheduler

from pipelines.training.noise_levels import loss_weights, signal_to_noise, timestep_table
from pipelines.training.objective import prediction_target

PREDICTION_TYPES = ["epsilon", "v_prediction", "sample"]


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_noise_weighting_is_the_error_of_the_noise_that_follows_from_the_prediction(prediction_type, noise):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    generator = torch.Generator().manual_seed(2)
    images, guess = torch.randn(2, 4, 1, 16, 16, generator=generator).unbind()
    timesteps = torch.tensor([5, 300, 600, 900])
    signal = scheduler.alphas_cumprod[timesteps].view(-1, 1, 1, 1)
    guessed_images = images + ((1 - signal) / signal).sqrt() * (noise - guess)  # which with `guess` make the same x_t
    target = prediction_target(scheduler, images, noise, timesteps)
    prediction = prediction_target(scheduler, guessed_images, guess, timesteps)
    weighted = loss_weights(scheduler, "noise")[timesteps] * (prediction - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(weighted, (guess - noise).square().mean(dim=(1, 2, 3)), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_min_snr_takes_weight_from_the_cleanest_images_and_from_no_others(prediction_type):
    scheduler = DDPMScheduler(prediction_type=prediction_type)
    snr = signal_to_noise(scheduler)
    ratio = loss_weights(scheduler, "min_snr") / loss_weights(scheduler, "noise")
    assert (ratio[snr > 5] < 1).all()
    assert (ratio[snr <= 5] == 1).all()
    assert (ratio.diff() >= 0).all()
    assert ratio[0] == pytest.approx(5 / float(snr[0]))


def test_min_snr_is_its_papers_for_the_error_of_the_image():
    scheduler = DDPMScheduler(prediction_type="sample")
    snr = signal_to_noise(scheduler)
    torch.testing.assert_close(loss_weights(scheduler, "min_snr"), snr.clamp(max=5).float())


@pytest.mark.parametrize("prediction_type", PREDICTION_TYPES)
def test_the_error_of_the_prediction_has_no_weights(prediction_type):
    assert (loss_weights(DDPMScheduler(prediction_type=prediction_type), "prediction") == 1).all()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="'max_snr' is none of noise, min_snr"):
        loss_weights(DDPMScheduler(), "max_snr")
    with pytest.raises(ValueError, match="'score' is none of epsilon, v_prediction, sample"):
        loss_weights(DDPMScheduler(prediction_type="score"), "noise")


@pytest.mark.parametrize("weighting", ["noise", "min_snr"])
def test_a_timestep_without_noise_has_a_finite_weight_or_is_refused(weighting):
    betas = [0.0, *[0.01] * 9]
    schedulers = {name: DDPMScheduler(10, trained_betas=betas, prediction_type=name) for name in PREDICTION_TYPES}
    assert loss_weights(schedulers["epsilon"], weighting)[0] == (weighting == "noise")
    assert loss_weights(schedulers["v_prediction"], weighting)[0] == (weighting == "noise")
    with pytest.raises(
        ValueError, match=f"loss_weighting {weighting}: .* without noise.*; use loss_weighting prediction"
    ):
        loss_weights(schedulers["sample"], weighting)
    assert (loss_weights(schedulers["sample"], "prediction") == 1).all()


def test_uniform_timesteps_stay_as_they_are(scheduler):
    assert torch.equal(timestep_table(scheduler, None), torch.arange(1000))


def test_log_normal_levels_have_the_mean_and_the_deviation_asked_for(scheduler):
    table = timestep_table(scheduler, (-0.5, 0.8))
    levels = -signal_to_noise(scheduler).log()[table] / 2
    assert float(levels.mean()) == pytest.approx(-0.5, abs=0.01)
    assert float(levels.std()) == pytest.approx(0.8, abs=0.01)
    assert (table.diff() >= 0).all()


@pytest.mark.parametrize("mean", [-50, 50])
def test_levels_outside_of_the_schedule_become_its_ends(scheduler, mean):
    assert set(timestep_table(scheduler, (mean, 0.1)).tolist()) == {0 if mean < 0 else 999}
