"""Variational bound on the likelihood, in bits per dimension (Ho et al. 2020, eq. 5)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from denoiser.checks import check_positive
from denoiser.data import ImageSet
from denoiser.randomness import LIKELIHOOD, seeded_generator
from pipelines.noise_levels import clean_image

BIN = 2 / 255  # width of a grey level in [-1, 1]
BATCH_SIZE = 100  # images that share a generator; a part of the result, not a setting
BUCKETS = 20


@dataclass(frozen=True)
class Bound:
    """Terms of the bound for some images, in bits per dimension.

    A term is the KL divergence of a denoising step (Ho et al. 2020, eq. 8) over the probability of its
    timestep. The mean over an image's timesteps is an unbiased estimate of the sum.
    """

    prior: Tensor  # (count,), the KL divergence of q(x_T | x_0) from the standard normal
    decoder: Tensor  # (count,), -log p(x_0 | x_1) of the discretised decoder (eq. 13)
    terms: Tensor  # (count, samples)
    timesteps: Tensor  # (count, samples), from 1: those of the terms
    num_timesteps: int
    variance_type: str
    given_labels: bool

    @property
    def total(self) -> Tensor:
        """The bound for each image, `(count,)`, an unbiased estimate."""
        return self.prior + self.decoder + self.terms.mean(dim=1)

    def summary(self) -> dict[str, object]:
        """Return the mean bound with its standard error, its parts, and its terms by twentieth."""
        width = self.num_timesteps / BUCKETS
        bucket = (self.timesteps / width).long()
        sums = torch.zeros(BUCKETS, dtype=torch.float64).index_add_(0, bucket.flatten(), self.terms.flatten())
        return {
            "bits_per_dimension": self.total.mean().item(),
            "standard_error": (self.total.std() / len(self.total) ** 0.5).item(),
            "prior": self.prior.mean().item(),
            "decoder": self.decoder.mean().item(),
            "denoising": self.terms.mean().item(),
            "by_timestep": [
                {"from": math.ceil(index * width) or 1, "to": math.ceil((index + 1) * width) - 1, "bits": bits}
                for index, bits in enumerate((sums / self.terms.numel()).tolist())
            ],
            "images": len(self.total),
            "variance_type": self.variance_type,
            "given_labels": self.given_labels,
        }

    @staticmethod
    def join(parts: "list[Bound]") -> "Bound":
        """Concatenate the bounds of several batches."""
        names = ("prior", "decoder", "terms", "timesteps")
        tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in names}
        return replace(parts[0], **tensors)


def num_batches(images: ImageSet) -> int:
    """Return the number of batches of `bound_of_batch`."""
    return math.ceil(len(images) / BATCH_SIZE)


@torch.no_grad()
def bound_of_batch(
    model: nn.Module, noise_schedule: DDPMScheduler, images: ImageSet, batch: int, num_samples: int, seed: int = 0
) -> Bound:
    """Bound the likelihood of a batch of images, conditional on their labels if the model takes any.

    The prior and the decoder are computed exactly, the denoising terms at `num_samples` random timesteps,
    stratified and importance-sampled by their weights. Nothing is clipped. With the `variance_type`
    "fixed_large" the variance of the reverse steps is beta_t, otherwise that of q(x_{t-1} | x_t, x_0),
    the first step's replaced by the second's (Nichol & Dhariwal 2021, appendix).

    Raises:
        ValueError: If the bound is not finite.
    """
    check_positive(num_samples=num_samples)
    device = images.images.device
    rows = torch.arange(batch * BATCH_SIZE, min((batch + 1) * BATCH_SIZE, len(images)))
    images_on_device, labels = images.batch(rows.to(device))
    given_labels = getattr(model, "config", {}).get("num_class_embeds") is not None
    conditions = {"class_labels": labels} if given_labels else {}
    clean = images_on_device.cpu().double()  # not every device has float64
    schedule = _Schedule(noise_schedule)
    generator = seeded_generator(LIKELIHOOD, seed, batch)

    def predicted(timesteps: Tensor) -> Tensor:
        noise, there = torch.randn(clean.shape, generator=generator).to(device), timesteps.to(device)
        noisy = noise_schedule.add_noise(images_on_device, noise, there)
        prediction = model(noisy, there, **conditions).sample
        return schedule.clean(noisy.cpu().double(), prediction.cpu().double(), timesteps)

    mean = predicted(torch.zeros_like(rows))  # the posterior of the first step is the clean image itself
    decoder = -discretised_log_likelihood(clean, mean, schedule.log_variance[0] / 2)
    strata = torch.rand(len(rows), num_samples, generator=generator, dtype=torch.float64)
    position = (torch.arange(num_samples) + strata) / num_samples
    timesteps = torch.searchsorted(schedule.proposal.cumsum(0), position).clamp(1, len(schedule.proposal) - 1)
    terms = [schedule.denoising_term(clean, predicted(part), part) for part in timesteps.T]
    bound = Bound(
        prior=_bits(schedule.prior_term(clean)),
        decoder=_bits(decoder),
        terms=torch.stack([_bits(term) for term in terms], dim=1) / schedule.proposal[timesteps],
        timesteps=timesteps,
        num_timesteps=len(schedule.betas),
        variance_type=noise_schedule.config.variance_type,
        given_labels=given_labels,
    )
    if not bound.total.isfinite().all():
        raise ValueError("the likelihood bound is not finite: the network cannot undo the noise of every timestep")
    return bound


class _Schedule:
    """Coefficients of the forward process and its posterior, `(timesteps,)` each in float64."""

    def __init__(self, noise_schedule: DDPMScheduler) -> None:
        self.prediction_type = noise_schedule.config.prediction_type
        self.betas = noise_schedule.betas.double().cpu()
        self.alphas_cumprod = (1 - self.betas).cumprod(0)
        before = torch.cat([torch.ones_like(self.betas[:1]), self.alphas_cumprod[:-1]])
        posterior = self.betas * (1 - before) / (1 - self.alphas_cumprod)
        self.log_posterior_variance = torch.cat([posterior[1:2], posterior[1:]]).log()
        large = noise_schedule.config.variance_type in ("fixed_large", "fixed_large_log")
        self.log_variance = self.betas.log() if large else self.log_posterior_variance
        weight = torch.cat([torch.zeros_like(before[:1]), self.betas[1:] / (1 - before[1:])])  # of white noise as data
        self.proposal = (weight / weight.sum() + (weight > 0) / (weight > 0).sum()) / 2
        self.clean_coefficient = before.sqrt() * self.betas / (1 - self.alphas_cumprod)  # Ho et al. 2020, eq. 7

    def clean(self, noisy: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """Return the clean image that a prediction implies."""
        return clean_image(self.prediction_type, noisy, prediction, _column(self.alphas_cumprod[timesteps]))

    def prior_term(self, clean: Tensor) -> Tensor:
        """Return the KL divergence of q(x_T | x_0) from the standard normal, in nats, shaped as the images."""
        alpha = self.alphas_cumprod[-1]
        return (alpha * clean**2 - alpha - (1 - alpha).log()) / 2

    def denoising_term(self, clean: Tensor, predicted: Tensor, timesteps: Tensor) -> Tensor:
        """Return the KL divergence of the reverse step from the posterior (Ho et al. 2020, eq. 8), in nats."""
        log_ratio = _column(self.log_posterior_variance[timesteps] - self.log_variance[timesteps])
        error = _column(self.clean_coefficient[timesteps]) * (clean - predicted)
        return (log_ratio.exp() - 1 - log_ratio + error**2 / _column(self.log_variance[timesteps]).exp()) / 2


def discretised_log_likelihood(images: Tensor, mean: Tensor, log_deviation: Tensor) -> Tensor:
    """Return each pixel's log-probability under the discretised decoder (Ho et al. 2020, eq. 13).

    The grey levels are k of 256, as 2k / 255 - 1; the outermost take the tails of the Gaussian. The
    result is in nats, shaped as the images.
    """
    upper = torch.where(images > 1 - BIN / 2, math.inf, images - mean + BIN / 2) / log_deviation.exp()
    lower = torch.where(images < -1 + BIN / 2, -math.inf, images - mean - BIN / 2) / log_deviation.exp()
    right = upper + lower > 0  # mirrored to the left tail, where differences are exact
    upper, lower = torch.where(right, -lower, upper), torch.where(right, -upper, lower)
    log_upper, log_lower = torch.special.log_ndtr(upper), torch.special.log_ndtr(lower)
    return log_upper + torch.log1p(-(log_lower - log_upper).exp())


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _bits(nats: Tensor) -> Tensor:
    """Return each image's mean over its dimensions, in bits."""
    return nats.flatten(1).mean(dim=1) / math.log(2)
