"""What diffusers' users do with a pipeline works with ours as with diffusers' own."""

import subprocess
import sys

import pytest
import torch
from diffusers import DDIMPipeline, DDPMPipeline, DDPMScheduler, DiffusionPipeline

from pipelines import DenoisingPipeline
from tests.conftest import ROOT, tiny_unet

NAMES = tuple("abcdefghij")


@pytest.fixture
def pipeline():
    made = DenoisingPipeline(tiny_unet(), DDPMScheduler(), NAMES)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture
def folder(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def drawn(pipeline, **options):
    defaults = {"batch_size": 2, "num_inference_steps": 3, "output_type": "pt"}
    return pipeline(generator=torch.Generator().manual_seed(0), **{**defaults, **options}).images


def test_diffusers_loads_what_was_saved_by_its_own_class(pipeline, folder):
    loaded = DiffusionPipeline.from_pretrained(folder)
    assert type(loaded) is DenoisingPipeline
    assert loaded.config.class_names == list(NAMES)
    assert torch.equal(drawn(loaded), drawn(pipeline))
    assert DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.bfloat16).unet.dtype == torch.bfloat16
    assert DiffusionPipeline.from_pretrained(folder, unet=pipeline.unet).unet is pipeline.unet


@pytest.mark.parametrize("stock", [DDPMPipeline, DDIMPipeline])
def test_stock_pipelines_draw_from_what_was_saved(folder, stock):
    loaded = stock.from_pretrained(folder)
    loaded.set_progress_bar_config(disable=True)
    images = loaded(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 1)


def test_without_the_import_diffusers_own_error_stands(folder):
    code = "import sys; from diffusers import DiffusionPipeline; DiffusionPipeline.from_pretrained(sys.argv[1])"
    ended = subprocess.run(
        [sys.executable, "-c", code, str(folder)], cwd=ROOT, capture_output=True, text=True, encoding="utf-8"
    )
    assert "has no attribute DenoisingPipeline" in ended.stderr.splitlines()[-1]


def test_a_pipeline_is_made_from_another_with_its_parts_and_names(pipeline):
    again = DenoisingPipeline.from_pipe(pipeline)
    assert again.unet is pipeline.unet
    assert again.scheduler is pipeline.scheduler
    assert again.config.class_names == list(NAMES)
    stock = DDPMPipeline(pipeline.unet, DDPMScheduler())
    assert DenoisingPipeline.from_pipe(stock).unet is pipeline.unet


def test_a_callback_may_return_nothing(pipeline):
    assert torch.equal(drawn(pipeline, callback_on_step_end=lambda *_: None), drawn(pipeline))


@pytest.mark.parametrize("given", ["sample", "latents"])
def test_a_callback_may_replace_the_noisy_images(pipeline, given):
    def blank(pipe, step, timestep, tensors):
        return {given: torch.zeros(2, 1, 16, 16)} if step == pipe.num_timesteps - 1 else {}

    names = [given]
    images = drawn(pipeline, callback_on_step_end=blank, callback_on_step_end_tensor_inputs=names)
    assert images.unique().tolist() == [0.5]


def test_a_callback_may_change_the_guidance(pipeline):
    def stronger(pipe, step, timestep, tensors):
        scales.append(pipe.guidance_scale)
        pipe._guidance_scale += 1

    scales, options = [], {"class_labels": 1, "guidance_scale": 2}
    images = drawn(pipeline, callback_on_step_end=stronger, **options)
    assert scales == [2, 3, 4]
    assert pipeline.guidance_scale == 5
    assert not torch.equal(images, drawn(pipeline, **options))
    with pytest.raises(ValueError, match="guidance_scale is 2.0 without class labels"):
        drawn(pipeline, callback_on_step_end=stronger)


def test_a_callback_that_interrupts_leaves_the_other_steps_out(pipeline):
    steps = []

    def interrupt(pipe, step, timestep, tensors):
        steps.append(step)
        pipe._interrupt = step == 1

    drawn(pipeline, callback_on_step_end=interrupt, num_inference_steps=5)
    assert steps == [0, 1]
    assert pipeline.interrupt
    assert torch.equal(drawn(pipeline), drawn(pipeline))  # the next call takes all of its steps
    assert not pipeline.interrupt
    assert pipeline.num_timesteps == 3


def test_a_network_in_half_precision_draws(pipeline):
    assert drawn(pipeline.to(torch.bfloat16)).isfinite().all()


def test_images_of_two_channels_are_arrays_and_no_pictures():
    pipeline = DenoisingPipeline(tiny_unet(in_channels=2, out_channels=2, num_class_embeds=None), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert drawn(pipeline, output_type="np").shape == (2, 16, 16, 2)
    with pytest.raises(ValueError, match="images of 2 channels are no pictures; give output_type np or pt"):
        drawn(pipeline, output_type="pil")
