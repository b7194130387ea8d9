"""Distillation: its gradient against exact denoisers, and runs of it with real images."""

import json

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from diffusers import ConfigMixin, DDPMScheduler, LCMScheduler, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from einops import rearrange
from torch import nn

from denoiser.embeddings import batched_timestep
from denoiser.training import TrackingConfig, Trainer, TrainingConfig, start_accelerator
from denoiser.training.distillation import DistillationConfig, DistillationRun, Distiller, student_of
from pipelines import DenoisingPipeline, SamplingConfig, load_pipeline
from tests.conftest import tiny_basic_unet, tiny_unet

SPREAD = 0.2


class NormalDenoiser(ModelMixin, ConfigMixin):
    """Predicts the noise exactly where pixels are independent and normal about one mean."""

    @register_to_config
    def __init__(self, mean: float = 0.5, sample_size: int = 16, in_channels: int = 1, out_channels: int = 1):
        super().__init__()
        self.centre = nn.Parameter(torch.tensor(mean))
        self.signal = DDPMScheduler().alphas_cumprod

    def forward(self, sample, timestep, class_labels=None):
        signal = rearrange(self.signal[batched_timestep(timestep, sample)], "b -> b 1 1 1")
        surprise = sample - signal.sqrt() * self.centre
        return UNet2DOutput(sample=(1 - signal).sqrt() * surprise / (signal * SPREAD**2 + 1 - signal))


@pytest.fixture
def make_distiller(tmp_path, some_images):
    """Return a maker of trainers of a distillation in float32, for eight steps unless told otherwise."""

    def make(network, output_dir="run", resume=None, **options):
        training = {"max_steps": 8, "batch_size": 16, "warmup_steps": 2, "mixed_precision": "no", "log_every": 2}
        config = DistillationRun(
            output_dir=str(tmp_path / output_dir),
            training=TrainingConfig(**{**training, "checkpoint_every": 4, **options}),
            sampling=SamplingConfig(num_images=4, scheduler="lcm", steps=2),
            tracking=TrackingConfig(mode="disabled"),
            resume=resume,
            distillation=DistillationConfig(denoising_steps=2, critic_steps=2),
        )
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        accelerator = start_accelerator(config)
        teacher = DenoisingPipeline(network, DDPMScheduler())
        model, scheduler = student_of(teacher)
        learner = Distiller(config.distillation, teacher, config.training, model, scheduler, accelerator, some_images)
        return Trainer(config, model, scheduler, accelerator, some_images, learner=learner)

    return make


def test_its_gradient_leads_from_what_the_student_draws_to_what_the_teacher_knows(make_distiller):
    distiller = make_distiller(NormalDenoiser(0.5)).learner
    drawn = -0.5 + SPREAD * torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert distiller._difference(drawn, None).abs().max() < 1e-3  # the critic starts as the teacher
    distiller.critic = NormalDenoiser(-0.5)
    gradient = distiller._difference(drawn, None)
    assert (gradient < 0).all()  # descending it raises the pixels


def test_the_student_comes_to_draw_what_the_teacher_would(make_distiller):
    trainer = make_distiller(tiny_unet(attention_levels=()), max_steps=150, batch_size=32, learning_rate=2e-3)
    learner = trainer.learner
    learner.teacher = NormalDenoiser(0.5)
    learner.critic.load_state_dict(tiny_unet(attention_levels=()).state_dict())
    trainer.train()
    losses = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    assert len(losses) == 75
    images = learner.pipeline()(32, num_inference_steps=1, class_labels=0, seed=0, output_type="pt").images * 2 - 1
    assert float(images.mean()) == pytest.approx(0.5, abs=0.15)


@pytest.mark.parametrize("make_network", [tiny_unet, tiny_basic_unet])
def test_a_run_leaves_a_pipeline_that_draws_in_few_calls(make_distiller, make_network):
    trainer = make_distiller(make_network())
    teacher = [parameter.clone() for parameter in trainer.learner.teacher.parameters()]
    trainer.train()
    for before, after in zip(teacher, trainer.learner.teacher.parameters(), strict=True):
        assert torch.equal(before, after)
    pipeline = load_pipeline(trainer.folder.pipeline)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    timesteps = {}
    for calls in (1, 2, 4):
        assert pipeline(2, num_inference_steps=calls, seed=0, output_type="pt").images.shape == (2, 1, 16, 16)
        timesteps[calls] = set(pipeline.scheduler.timesteps.tolist())
    assert timesteps[1] < timesteps[2] < timesteps[4] == set(trainer.learner.starts.tolist())


def test_a_resumed_distillation_takes_the_same_steps(make_distiller):
    whole = make_distiller(tiny_unet())
    whole.train()
    checkpoint = whole.folder.checkpoints / "step-00000004"
    resumed = make_distiller(tiny_unet(), "resumed", str(checkpoint))
    assert resumed.step == 4
    resumed.train()
    for ours, theirs in zip(whole.learner.raw_model.parameters(), resumed.learner.raw_model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    for ours, theirs in zip(whole.learner.critic.parameters(), resumed.learner.critic.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_accumulation_is_refused(make_distiller):
    with pytest.raises(ValueError, match="gradient_accumulation_steps must be 1 in a distillation"):
        make_distiller(tiny_unet(), gradient_accumulation_steps=2)
