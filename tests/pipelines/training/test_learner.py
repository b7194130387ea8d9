import torch
from diffusers.training_utils import EMAModel
from torch import nn

from pipelines.training.learner import CALIBRATION_BATCH_SIZE, averaged_model
from tests.conftest import tiny_basic_unet, tiny_unet


def moved(model):
    """Return an average of the weights, after which the weights themselves move far away."""
    ema = EMAModel(model.parameters(), decay=0.5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3)
    return ema


def test_the_averaged_model_has_the_average_and_the_trained_one_keeps_its_weights(some_images, scheduler):
    model = tiny_unet()
    before = [parameter.clone() for parameter in model.parameters()]
    ema = moved(model)
    average = averaged_model(model, ema.shadow_params, scheduler, some_images)
    assert not average.training
    for ours, start, trained in zip(average.parameters(), before, model.parameters(), strict=True):
        assert torch.equal(ours, start)
        assert torch.equal(trained, 3 * start)


def test_batch_norm_statistics_are_those_of_the_averaged_weights(some_images, scheduler, noise):
    model = tiny_basic_unet().train()
    ema = moved(model)
    model(noise, 0)  # the trained weights leave their own statistics
    average = averaged_model(model, ema.shadow_params, scheduler, some_images)

    seen = []
    first_norm = next(module for module in average.modules() if isinstance(module, nn.BatchNorm2d))
    first_norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    generator = torch.Generator().manual_seed(5)
    for _ in range(40):
        indices = torch.randint(len(some_images), (CALIBRATION_BATCH_SIZE,), generator=generator)
        images, _ = some_images.batch(indices)
        timesteps = torch.randint(1000, (len(images),), generator=generator)
        noisy = scheduler.add_noise(images, torch.randn(images.shape, generator=generator), timesteps)
        with torch.no_grad():
            average(noisy, timesteps)
    maps = torch.cat(seen)
    spread = maps.std(dim=(0, 2, 3))
    assert ((first_norm.running_mean - maps.mean(dim=(0, 2, 3))).abs() / spread).max() < 0.05
    torch.testing.assert_close(first_norm.running_var, spread**2, rtol=0.05, atol=0)
    assert all(module.momentum == 0.1 for module in average.modules() if isinstance(module, nn.BatchNorm2d))
    assert not torch.allclose(first_norm.running_var, torch.ones_like(first_norm.running_var))
