import pytest
import torch
from diffusers import DDPMScheduler

from denoiser.data import CLASS_NAMES, ImageSet
from denoiser.evaluation.config import EvaluationConfig
from denoiser.evaluation.drawing import GUIDANCE_SCALES, Drawing, calls
from pipelines import SCHEDULERS, DenoisingPipeline, make_scheduler
from tests.conftest import tiny_basic_unet, tiny_unet


@pytest.fixture
def pipeline():
    pipeline = DenoisingPipeline(tiny_unet(), DDPMScheduler(num_train_timesteps=1000), CLASS_NAMES)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def alone(items, compute):
    return [compute(items)]


def in_parts_of_seven(items, compute):
    return [compute(items[start : start + 7]) for start in range(0, len(items), 7)]


CONFIG = EvaluationConfig(num_images=20, seeds=2, steps=2, sweep_images=100, likelihood_draws=2)


def test_the_shares_of_several_processes_are_what_one_draws(pipeline, some_images):
    one, many = (
        Drawing(pipeline, CONFIG, share).draw(["likelihood"], some_images) for share in (alone, in_parts_of_seven)
    )
    for ours, theirs in zip(one.samples, many.samples, strict=True):
        assert (ours.int() - theirs.int()).abs().max() <= 1  # batches of another size round otherwise
    assert not torch.equal(one.samples[0], one.samples[1])
    torch.testing.assert_close(one.bound.total, many.bound.total)
    assert one.labels.tolist() == [index // 2 for index in range(20)]


def test_the_work_told_beforehand_is_the_work_done(pipeline, some_images):
    work, forwards = [], []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    few = ImageSet(some_images.images[:30], some_images.labels[:30], CLASS_NAMES)
    drawing = Drawing(pipeline, CONFIG, alone, work.append)
    sections = ["guidance", "likelihood"]
    drawn = drawing.draw(sections, few)
    assert sum(work) == sum(forwards) == drawing.work(sections, len(few))
    assert tuple(drawn.by_guidance) == GUIDANCE_SCALES


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_network_calls_of_a_sampler_are_counted_right(pipeline, name):
    forwards = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    pipeline.scheduler = make_scheduler(name, pipeline.scheduler.config)
    pipeline(batch_size=1, num_inference_steps=5, seed=0)
    assert len(forwards) == calls(name, 5)


def test_an_unconditional_pipeline_has_no_labels(some_images):
    pipeline = DenoisingPipeline(tiny_basic_unet(), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert Drawing(pipeline, CONFIG, alone).draw([], some_images).labels is None
