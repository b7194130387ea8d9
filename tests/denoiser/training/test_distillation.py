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
from pipelines import DenoisingPipeline, SamplingConfig, load_pipeline, make_scheduler
from pipelines.sampling import own_sampler
from tests.conftest import randomised, tiny_basic_unet, tiny_unet

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

    def make(network, output_dir="run", resume=None, calls=4, **options):
        training = {"max_steps": 8, "batch_size": 16, "warmup_steps": 2, "mixed_precision": "no", "log_every": 2}
        config = DistillationRun(
            output_dir=str(tmp_path / output_dir),
            training=TrainingConfig(**{**training, "checkpoint_every": 4, **options}),
            sampling=SamplingConfig(num_images=4, scheduler="lcm", steps=2),
            tracking=TrackingConfig(mode="disabled"),
            resume=resume,
            distillation=DistillationConfig(denoising_steps=2, critic_steps=2, calls=calls),
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
    gradient = distiller._difference(NormalDenoiser(-0.5), drawn, None, *distiller._noise(0))
    assert (gradient < 0).all()  # descending it raises the pixels


@pytest.mark.parametrize("make_network", [lambda: tiny_unet(dropout=0.5), tiny_basic_unet])
def test_the_critics_start_as_the_teacher(make_distiller, make_network, noise):
    distiller = make_distiller(make_network(), batch_size=4).learner
    assert len(distiller.critics) == 4
    for critic in distiller.critics:
        critic.train()  # where dropout and the batch's own statistics would tell them apart
        assert torch.equal(distiller._difference(critic, noise, None, *distiller._noise(0)), torch.zeros_like(noise))


def test_each_call_of_the_student_comes_to_draw_what_the_teacher_would(make_distiller):
    network = tiny_unet(attention_levels=(), num_class_embeds=None)
    trainer = make_distiller(network, calls=2, max_steps=200, batch_size=16, learning_rate=4e-3)
    trainer.learner.teacher = NormalDenoiser(0.5)
    trainer.train()
    lines = [json.loads(line) for line in trainer.folder.metrics.read_text().splitlines()]
    assert [line["step"] for line in lines] == [*range(2, 201, 2)]
    for calls in (1, 2):
        images = trainer.pipeline()(64, num_inference_steps=calls, seed=0, output_type="pt").images * 2 - 1
        assert float(images.mean()) == pytest.approx(0.5, abs=0.1)


def test_a_call_starts_where_the_sampler_would_come_to(make_distiller):
    distiller = make_distiller(tiny_unet(), batch_size=4).learner
    noise, labels = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)), torch.arange(4)
    chances = [distiller._noise(use) for use in range(4)]
    scheduler, seen = distiller.own_scheduler, noise
    for call, start in enumerate(scheduler.timesteps):
        led = distiller._led_to(call, noise, labels, iter(chances))
        torch.testing.assert_close(led, seen, atol=1e-4, rtol=1e-4)
        prediction = distiller.model.eval()(seen, start, class_labels=labels).sample.detach()
        clean = scheduler.step(prediction, start, seen, generator=torch.Generator()).denoised
        if call < 3:
            following = scheduler.timesteps[call + 1].expand(4)
            seen = distiller.scheduler.add_noise(clean, chances[call][0], following)


@pytest.mark.parametrize("make_network", [tiny_unet, tiny_basic_unet])
def test_a_run_leaves_a_pipeline_that_draws_in_few_calls(make_distiller, make_network):
    network = make_network()
    teacher = [parameter.clone() for parameter in network.parameters()]
    trainer = make_distiller(network)
    trainer.train()
    for before, after, own in zip(teacher, network.parameters(), trainer.learner.teacher.parameters(), strict=True):
        assert torch.equal(before, after)
        assert torch.equal(before, own)
        assert after.requires_grad
    pipeline = load_pipeline(trainer.folder.pipeline)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    assert own_sampler(pipeline.scheduler) == {"scheduler": "lcm", "steps": 4}
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    assert "distilled to draw in up to 4 calls" in (trainer.folder.pipeline / "README.md").read_text()
    timesteps = {}
    for calls in (1, 2, 4):
        assert pipeline(2, num_inference_steps=calls, seed=0, output_type="pt").images.shape == (2, 1, 16, 16)
        timesteps[calls] = set(pipeline.scheduler.timesteps.tolist())
    assert timesteps[1] < timesteps[2] < timesteps[4] == set(trainer.learner.starts.tolist())


def parameters(learner):
    """Return all that a distillation has learnt."""
    networks = [learner.raw_model, *learner.critics]
    return [*learner.ema.shadow_params, *(parameter for network in networks for parameter in network.parameters())]


def test_a_resumed_distillation_takes_the_same_steps(make_distiller):
    whole = make_distiller(tiny_unet(dropout=0.3), max_steps=12)
    whole.train()
    checkpoint = whole.folder.checkpoints / "step-00000008"
    resumed = make_distiller(tiny_unet(dropout=0.3), "resumed", str(checkpoint), max_steps=12)
    assert resumed.step == 8
    resumed.train()
    for ours, theirs in zip(parameters(whole.learner), parameters(resumed.learner), strict=True):
        assert torch.equal(ours, theirs)


def test_a_checkpoint_is_bound_to_its_distillation(make_distiller):
    trainer = make_distiller(tiny_unet())
    trainer.train()
    checkpoint = str(trainer.folder.checkpoints / "step-00000008")
    with pytest.raises(ValueError, match="holds another distillation, or none: calls 4, not 2; use the distillation"):
        make_distiller(tiny_unet(), "other", checkpoint, calls=2)
    with pytest.raises(ValueError, match="holds another distillation, or none: teacher .*, not"):
        make_distiller(randomised(tiny_unet()), "other", checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1 in a distillation"),
        ({"calls": 1}, "2 inference steps were asked for; the scheduler takes 1 to 1"),
        ({"calls": 0}, "calls is 0"),
    ],
)
def test_distillations_that_cannot_be_are_refused(make_distiller, options, message):
    with pytest.raises(ValueError, match=message):
        make_distiller(tiny_unet(), **options)


def test_a_student_has_no_student():
    scheduler = make_scheduler("lcm", {**DDPMScheduler().config, "original_inference_steps": 4})
    with pytest.raises(ValueError, match="the teacher is distilled itself"):
        student_of(DenoisingPipeline(tiny_unet(), scheduler))
