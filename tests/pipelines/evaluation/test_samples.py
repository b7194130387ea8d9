from dataclasses import replace

import pytest
import torch
from diffusers import DDPMScheduler

from denoiser.data import CLASS_NAMES, ImageSet
from pipelines import SCHEDULERS, DenoisingPipeline, SamplingConfig, make_scheduler
from pipelines.denoising import CALL_SIZE
from pipelines.evaluation.config import EvaluationConfig
from pipelines.evaluation.samples import GUIDANCE_SCALES, SampleGenerator, calls
from tests.conftest import tiny_basic_unet, tiny_unet


@pytest.fixture
def pipeline():
    pipeline = DenoisingPipeline(tiny_unet(), DDPMScheduler(num_train_timesteps=1000), CLASS_NAMES)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


CONFIG = EvaluationConfig(num_images=20, seeds=2, steps=2, sweep_images=100, likelihood_timesteps=2)


def test_the_parts_of_several_processes_are_what_one_generates(pipeline, some_images, monkeypatch):
    def in_parts_of_seven(items, compute):
        return [compute(items[start : start + 7]) for start in range(0, len(items), 7)]

    one = SampleGenerator(pipeline, CONFIG, ["distances", "likelihood"], some_images).generate()
    for module in ("pipelines.sampling", "pipelines.evaluation.samples"):
        monkeypatch.setattr(f"{module}.share_out", in_parts_of_seven)
    many = SampleGenerator(pipeline, CONFIG, ["distances", "likelihood"], some_images).generate()
    for ours, theirs in zip(one.sets, many.sets, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(one.sets[0], one.sets[1])
    torch.testing.assert_close(one.bound.total, many.bound.total)
    assert one.labels.tolist() == [index // 2 for index in range(20)]


def test_the_work_told_beforehand_is_the_work_done(pipeline, some_images):
    work, forwards = [], []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    few = ImageSet(some_images.images[:30], some_images.labels[:30], CLASS_NAMES)
    config = replace(CONFIG, sweep_images=2 * CALL_SIZE)  # so that no call is filled up
    generator = SampleGenerator(pipeline, config, ["guidance", "likelihood"], few)
    generator.on_work = work.append
    samples = generator.generate()
    assert samples.sets == []  # which no section looks at
    assert sum(work) == sum(forwards) == generator.work
    assert tuple(samples.by_guidance) == GUIDANCE_SCALES


@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_network_calls_of_a_sampler_are_counted_right(pipeline, name):
    forwards = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: forwards.append(len(inputs[0])))
    pipeline.scheduler = make_scheduler(name, pipeline.scheduler.config)
    pipeline(batch_size=1, num_inference_steps=5, seed=0)
    assert len(forwards) == calls(SamplingConfig(scheduler=name, steps=5))


def test_an_unconditional_pipeline_has_no_labels(some_images):
    pipeline = DenoisingPipeline(tiny_basic_unet(), DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    assert SampleGenerator(pipeline, CONFIG, ["distances"], some_images).generate().labels is None


def test_a_student_can_be_sampled(some_images):
    scheduler = make_scheduler("lcm", {**DDPMScheduler().config, "original_inference_steps": 4})
    pipeline = DenoisingPipeline(tiny_unet(), scheduler)
    pipeline.set_progress_bar_config(disable=True)
    samples = SampleGenerator(pipeline, replace(CONFIG, scheduler="lcm"), ["distances"], some_images).generate()
    assert [len(images) for images in samples.sets] == [20, 20]


def test_what_cannot_be_sampled_is_refused_at_once(pipeline, some_images):
    with pytest.raises(ValueError, match="the network has 7 classes, and the data 10"):
        SampleGenerator(DenoisingPipeline(tiny_unet(num_class_embeds=7), DDPMScheduler()), CONFIG, [], some_images)
    short = DenoisingPipeline(tiny_unet(), DDPMScheduler(num_train_timesteps=20))
    rows = SampleGenerator(short, CONFIG, ["samplers"], some_images).by_sampler
    assert {steps for _, steps in rows} == {5, 10, 20}


def test_a_pipeline_saved_with_another_scheduler_has_the_same_bound(pipeline, some_images):
    other = DenoisingPipeline(pipeline.unet, make_scheduler("dpmsolver++", pipeline.scheduler.config), CLASS_NAMES)
    ours, theirs = (SampleGenerator(each, CONFIG, ["likelihood"], some_images).generate() for each in (pipeline, other))
    torch.testing.assert_close(ours.bound.total, theirs.bound.total)
