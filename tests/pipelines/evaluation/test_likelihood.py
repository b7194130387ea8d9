"""Gaussian data, whose exact denoiser is known, so that every term of the bound is."""

import math

import pytest
import torch
from diffusers import DDPMScheduler
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import nn

from denoiser.data import ImageSet
from pipelines.evaluation.likelihood import BIN, Bound, bound_of_batch, discretised_log_likelihood, num_batches
from tests.conftest import tiny_unet

DEVIATION = 0.25


class ExactDenoiser(nn.Module):
    """Predicts what the scheduler asks for, given that the clean pixels are Gaussian with mean 0."""

    def __init__(self, scheduler):
        super().__init__()
        self.scheduler = scheduler

    def forward(self, sample, timesteps):
        alpha = self.scheduler.alphas_cumprod[timesteps].double().view(-1, 1, 1, 1)
        clean = alpha.sqrt() * DEVIATION**2 * sample.double() / (alpha * DEVIATION**2 + 1 - alpha)
        noise = (sample.double() - alpha.sqrt() * clean) / (1 - alpha).sqrt()
        kinds = {"epsilon": noise, "sample": clean, "v_prediction": alpha.sqrt() * noise - (1 - alpha).sqrt() * clean}
        return UNet2DOutput(sample=kinds[self.scheduler.config.prediction_type])


@pytest.fixture(scope="module")
def gaussian_images():
    values = torch.randn(400, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * DEVIATION
    levels = ((values + 1) * 127.5).round().clamp(0, 255).byte()
    return ImageSet(levels, torch.zeros(400, dtype=torch.long), ("noise",))


def bound(images, draws=200, **options):
    scheduler = DDPMScheduler(**options)
    parts = [bound_of_batch(ExactDenoiser(scheduler), scheduler, images, batch, draws) for batch in range(4)]
    return Bound.join(parts)


@pytest.mark.parametrize("variance_type", ["fixed_small", "fixed_large"])
def test_each_denoising_term_is_the_known_one(gaussian_images, variance_type):
    measured = bound(gaussian_images, draws=100, variance_type=variance_type)
    betas = DDPMScheduler().betas.double()
    alpha = (1 - betas).cumprod(0)
    before = torch.cat([torch.ones(1, dtype=torch.float64), alpha[:-1]])
    posterior = betas * (1 - before) / (1 - alpha)
    variance = posterior if variance_type == "fixed_small" else betas
    uncertainty = DEVIATION**2 * (1 - alpha) / (alpha * DEVIATION**2 + 1 - alpha)  # of the clean pixel, given the noisy
    error = (before.sqrt() * betas / (1 - alpha)) ** 2 * uncertainty
    known = ((posterior + error) / variance - 1 - (posterior / variance).log()) / 2 / math.log(2)
    for row in measured.summary()["by_timestep"]:
        assert row["bits"] == pytest.approx(known[row["from"] : row["to"] + 1].sum().item(), rel=0.05), row
    assert measured.terms.mean().item() == pytest.approx(known[1:].sum().item(), rel=0.01)


def test_the_prior_term_is_the_known_one(gaussian_images):
    alpha = DDPMScheduler().alphas_cumprod[-1].double()
    known = (alpha * DEVIATION**2 - alpha - (1 - alpha).log()) / 2 / math.log(2)
    assert bound(gaussian_images, draws=2).prior.mean().item() == pytest.approx(known.item(), rel=0.01)


def test_the_bound_lies_just_above_the_entropy_of_the_data(gaussian_images):
    entropy = math.log2(DEVIATION * math.sqrt(2 * math.pi * math.e) / BIN)  # of a Gaussian in bins this narrow
    summary = bound(gaussian_images, variance_type="fixed_large").summary()  # near the true one, for Gaussian pixels
    assert summary["images"] == 400
    assert entropy < summary["bits_per_dimension"] < entropy + 0.1
    assert bound(gaussian_images, variance_type="fixed_small").total.mean() > summary["bits_per_dimension"]
    assert summary["standard_error"] < 0.02
    parts = summary["prior"] + summary["denoising"] + summary["decoder"]
    assert summary["bits_per_dimension"] == pytest.approx(parts, rel=1e-9)
    by_timestep = summary["by_timestep"]
    assert sum(row["bits"] for row in by_timestep) == pytest.approx(summary["denoising"], rel=1e-9)
    assert [row["from"] for row in by_timestep] == [1, *range(50, 1000, 50)]
    assert by_timestep[-1]["to"] == 999


def test_the_prediction_type_makes_no_difference(gaussian_images):
    epsilon, velocity, sample = (
        bound(gaussian_images, draws=20, prediction_type=kind).total for kind in ("epsilon", "v_prediction", "sample")
    )
    torch.testing.assert_close(velocity, epsilon, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sample, epsilon, rtol=1e-5, atol=1e-5)


def test_a_worse_denoiser_has_a_looser_bound(gaussian_images):
    scheduler = DDPMScheduler()
    exact = ExactDenoiser(scheduler)

    class Biased(nn.Module):
        def forward(self, sample, timesteps):
            return UNet2DOutput(sample=exact(sample, timesteps).sample + 0.1)

    good, bad = (bound_of_batch(model, scheduler, gaussian_images, 0, 20) for model in (exact, Biased()))
    assert bad.total.mean() > good.total.mean() + 0.1


@pytest.mark.parametrize(("mean", "deviation"), [(0.0, 0.3), (0.9, 0.05), (-1.2, 0.2), (0.3, 0.002), (1.0, 1e-3)])
def test_the_decoder_is_a_distribution_over_the_grey_levels(mean, deviation):
    levels = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    means = torch.full_like(levels, mean)
    logs = discretised_log_likelihood(levels, means, torch.tensor(deviation, dtype=torch.float64).log())
    assert logs.isfinite().all()
    assert logs.exp().sum().item() == pytest.approx(1, abs=1e-9)
    normal = torch.distributions.Normal(means, deviation)
    middle = slice(1, 255)
    mass = normal.cdf(levels + BIN / 2) - normal.cdf(levels - BIN / 2)
    torch.testing.assert_close(logs.exp()[middle], mass[middle], atol=1e-9, rtol=1e-6)


def test_labels_are_given_to_a_network_that_takes_them(some_images):
    unet, scheduler = tiny_unet(), DDPMScheduler()
    shifted = ImageSet(some_images.images, (some_images.labels + 1) % 10, some_images.class_names)
    ours, others = (bound_of_batch(unet, scheduler, images, 0, 3).total for images in (some_images, shifted))
    assert not torch.allclose(ours, others)
    assert torch.equal(ours, bound_of_batch(unet, scheduler, some_images, 0, 3).total)
    assert num_batches(some_images) == 3
    assert len(bound_of_batch(unet, scheduler, some_images, 2, 3).total) == 56


def test_a_network_that_gives_nothing_finite_is_refused(some_images):
    unet = tiny_unet()
    with torch.no_grad():
        next(unet.parameters()).fill_(math.nan)
    with pytest.raises(ValueError, match="the likelihood bound is not finite"):
        bound_of_batch(unet, DDPMScheduler(), some_images, 0, 2)
