"""A network with the averaged weights."""

import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.training_utils import EMAModel
from torch import nn

from denoiser.data import ImageSet
from denoiser.processes import whole
from denoiser.randomness import CALIBRATION, seeded_generator
from pipelines.training.config import architecture

CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 50, 128


def averaged_model(model: ModelMixin, ema: EMAModel, noise_schedule: DDPMScheduler, images: ImageSet) -> ModelMixin:
    """Return a copy of `model` with the averaged weights, in evaluation mode and float32.

    A batch norm's running statistics belong to the trained weights, not to their average. They are
    measured anew with the averaged weights, on noisy training images (Izmailov et al. 2018, section
    3.2). Every process has to call this function.
    """
    device = next(model.parameters()).device
    average = type(model).from_config(architecture(model)["init_args"]).to(device)
    copies = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    average.load_state_dict(copies, assign=True)  # which keeps the layout of the weights
    for parameter, shadow in zip(average.parameters(), ema.shadow_params, strict=True):
        parameter.data.copy_(whole(shadow))
    if any(isinstance(module, nn.BatchNorm2d) for module in average.modules()):
        measure_batch_statistics(average, noise_schedule, images)
    return average.eval()


@torch.no_grad()
def measure_batch_statistics(model: ModelMixin, noise_schedule: DDPMScheduler, images: ImageSet) -> None:
    """Set the running statistics of all batch norms to their mean over fixed noisy batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    model.train()
    for batch in range(CALIBRATION_BATCHES):
        generator = seeded_generator(CALIBRATION, 0, batch)
        indices = torch.randint(len(images), (CALIBRATION_BATCH_SIZE,), generator=generator)
        clean, _ = images.batch(indices.to(images.images.device))
        timesteps = torch.randint(noise_schedule.config.num_train_timesteps, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        timesteps = timesteps.to(clean.device)
        model(noise_schedule.add_noise(clean, noise, timesteps), timesteps)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
