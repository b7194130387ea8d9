"""The loss of denoising diffusion: how well a network predicts what the scheduler's `prediction_type` asks for."""

from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from denoiser.checks import check_positive


def prediction_target(scheduler: DDPMScheduler, images: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return what the network should predict, shaped as `images`.

    The noise (Ho et al. 2020, eq. 14), the velocity (Salimans & Ho 2022, appendix D) or the clean image.
    """
    match scheduler.config.prediction_type:
        case "epsilon":
            return noise
        case "v_prediction":
            return scheduler.get_velocity(images, noise, timesteps)
        case "sample":
            return images
        case other:
            raise ValueError(f"prediction_type is '{other}'; it is one of epsilon, v_prediction, sample")


def check_noise_schedule(scheduler: DDPMScheduler) -> None:
    """Raise `ValueError` unless the scheduler has a noise level for each timestep and leaves its variance fixed."""
    count, betas = scheduler.config.num_train_timesteps, scheduler.betas
    check_positive(num_train_timesteps=count)
    if len(betas) != count:
        raise ValueError(f"the scheduler has num_train_timesteps {count} and {len(betas)} betas; make them agree")
    if not ((betas >= 0) & (betas <= 1)).all():  # so for nan
        raise ValueError(
            f"the scheduler's betas go from {betas.min():.4g} to {betas.max():.4g}; each is a share of variance, 0 to 1"
        )
    variance = scheduler.config.variance_type
    if variance in ("learned", "learned_range"):
        raise ValueError(f"variance_type is '{variance}', and these networks predict no variance; use fixed_small")


def denoising_loss(
    model: nn.Module,
    scheduler: DDPMScheduler,
    images: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    class_labels: Tensor | None,
) -> Tensor:
    """Return each image's mean squared error, `(batch,)` in float32 (Ho et al. 2020, eq. 14).

    Args:
        model: Backbone, called as `model(noisy, timesteps, class_labels=…)`, or without labels where they are None.
        scheduler: Gives the noise level of each timestep and the prediction type.
        images: `(batch, channels, height, width)` in [-1, 1].
        noise: Standard normal, shaped as `images`.
        timesteps: `(batch,)`.
        class_labels: `(batch,)`, or None for an unconditional network.
    """
    noisy = scheduler.add_noise(images, noise, timesteps)
    labels = {} if class_labels is None else {"class_labels": class_labels}
    prediction = model(noisy, timesteps, **labels).sample
    target = prediction_target(scheduler, images, noise, timesteps)
    return mse_loss(prediction.float(), target.float(), reduction="none").mean(dim=(1, 2, 3))
