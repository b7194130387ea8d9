"""Numbers of NumPy and PyTorch where the public interface takes counts, sizes, seeds and labels."""

import json

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDIMScheduler, DDPMScheduler

from denoiser import BasicUNet, UNet
from denoiser.data import load_fashion_mnist
from denoiser.randomness import SAMPLING, seeded_generator
from pipelines import DenoisingPipeline, SamplingConfig, image_grid, interpolated, noising_stages, sample_images
from pipelines.restoration import denoised, inpainted, inverted
from pipelines.training import RunConfig, TrainingConfig
from pipelines.training.config import settings
from tests.conftest import DATA_ROOT, tiny_unet

KINDS = [np.int64, np.int32, np.uint8, torch.tensor, lambda number: np.array(number)]


@pytest.fixture(scope="module")
def pipeline():
    made = DenoisingPipeline(tiny_unet(), DDIMScheduler(), tuple("abcdefghij"))
    made.set_progress_bar_config(disable=True)
    return made


def images_of(pipeline, *labels, **options):
    return pipeline(*labels, output_type="pt", **options).images


@pytest.mark.parametrize("kind", KINDS)
def test_the_pipeline_takes_them(pipeline, kind):
    plain = images_of(pipeline, 2, 3, seed=5, num_inference_steps=2)
    assert torch.equal(images_of(pipeline, kind(2), kind(3), seed=kind(5), num_inference_steps=kind(2)), plain)
    mixed = images_of(pipeline, 2, [{3: 1, 4: 2}, 3], seed=[5, 6], num_inference_steps=2)
    labels = [{kind(3).item(): kind(1), 4: kind(2)}, kind(3)]
    assert torch.equal(images_of(pipeline, 2, labels, seed=(kind(5), kind(6)), num_inference_steps=2), mixed)
    scaled = images_of(pipeline, 2, 3, seed=5, num_inference_steps=2, guidance_scale=2.0, guidance_interval=(1, 3))
    options = {"guidance_scale": kind(2), "guidance_interval": (kind(1), kind(3)), "num_inference_steps": 2}
    assert torch.equal(images_of(pipeline, 2, 3, seed=5, **options), scaled)


@pytest.mark.parametrize("array", [np.array, torch.tensor])
def test_arrays_are_taken_where_sequences_are(pipeline, array):
    plain = images_of(pipeline, None, [3, 4], seed=[5, 6], num_inference_steps=2)
    assert torch.equal(images_of(pipeline, None, array([3, 4]), seed=array([5, 6]), num_inference_steps=2), plain)
    ours = sample_images(pipeline, 4, array([3, 4]), indices=array([1, 2]), num_inference_steps=2)
    assert torch.equal(ours, sample_images(pipeline, 4, [3, 4], indices=[1, 2], num_inference_steps=2))
    ours = sample_images(pipeline, 2, seed=array([7, 8]), num_inference_steps=2)
    assert torch.equal(ours, sample_images(pipeline, 2, seed=[7, 8], num_inference_steps=2))


@pytest.mark.parametrize("kind", KINDS)
def test_networks_are_built_and_saved_with_them(kind, tmp_path):
    for network, options in (
        (
            UNet,
            {"block_out_channels": (kind(16), kind(32)), "attention_levels": [kind(1)], "num_class_embeds": kind(3)},
        ),
        (BasicUNet, {"block_out_channels": [kind(4), kind(8), kind(16)], "bottleneck_channels": kind(8)}),
    ):
        built = network(sample_size=(kind(16), kind(8)), **options)
        built.save_pretrained(tmp_path)
        saved = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
        assert saved["sample_size"] == [16, 8]
        assert network.from_pretrained(tmp_path).config.sample_size == [16, 8]


@pytest.mark.parametrize("kind", KINDS)
def test_configs_hold_plain_numbers(kind, tmp_path):
    config = RunConfig(
        tmp_path / "run",
        TrainingConfig(max_steps=kind(3), seed=kind(5), adam_betas=(np.float32(0.5), 0.5), learning_rate=np.float64(1)),
        sampling=SamplingConfig(num_images=kind(4), steps=kind(2), seed=kind(7), eta=np.float32(0)),
    )
    plain = yaml.safe_load(yaml.safe_dump(settings(config)))
    assert (plain["output_dir"], plain["training"]["max_steps"]) == (str(tmp_path / "run"), 3)
    assert plain["training"]["adam_betas"] == [0.5, 0.5]


@pytest.mark.parametrize("kind", KINDS)
def test_functions_take_them(pipeline, kind):
    assert load_fashion_mnist(DATA_ROOT, "test", kind(16)).images.shape == (10_000, 1, 16, 16)
    assert (
        seeded_generator(SAMPLING, kind(3), kind(4)).initial_seed() == seeded_generator(SAMPLING, 3, 4).initial_seed()
    )
    images = torch.full((2, 1, 16, 16), 0.5)
    assert image_grid(images, kind(2), kind(3)).size == image_grid(images, 2, 3).size
    assert len(noising_stages(images, DDPMScheduler(), kind(3), kind(1))) == 3
    ours = interpolated(pipeline, [kind(1), kind(2)], kind(2), num_inference_steps=kind(1))
    assert torch.equal(ours, interpolated(pipeline, [1, 2], 2, num_inference_steps=1))
    assert torch.equal(denoised(pipeline, images, kind(1), [kind(3)] * 2), denoised(pipeline, images, 1, [3, 3]))
    known = torch.ones(1, 1, 16, 16)
    known[..., 4:] = 0
    counts = {"steps": 2, "jump_length": 1, "resamplings": 1, "seed": 3}
    ours = inpainted(pipeline, images, known, **{name: kind(count) for name, count in counts.items()})
    assert torch.equal(ours, inpainted(pipeline, images, known, **counts))
    assert torch.equal(inverted(pipeline, images, None, kind(2), kind(1)), inverted(pipeline, images, None, 2, 1))


@pytest.mark.parametrize("wrong", [2.0, np.float64(2), True, np.bool_(True), torch.tensor(2.5), "2", None])
def test_what_is_no_whole_number_stays_refused(pipeline, wrong):
    with pytest.raises(ValueError, match="num_images is"):
        SamplingConfig(num_images=wrong)
    with pytest.raises(ValueError, match="in_channels is"):
        UNet(in_channels=wrong)
    if wrong is not None:
        with pytest.raises(ValueError, match="batch_size is"):
            pipeline(batch_size=wrong)
        with pytest.raises(ValueError, match="seed is"):
            pipeline(seed=wrong)
