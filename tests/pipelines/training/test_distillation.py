"""Distillation: its gradient against exact denoisers, and runs of it with real images."""

import json

import pytest
import torch
from diffusers import ConfigMixin, DDIMScheduler, DDPMScheduler, LCMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import register_to_config
from diffusers.models.unets.unet_2d import UNet2DOutput
from einops import rearrange
from torch import nn

from denoiser.blocks import batched_timestep
from pipelines import DenoisingPipeline, SamplingConfig, load_pipeline, make_scheduler
from pipelines.classes import Classes
from pipelines.commands.distill import LEARNERS
from pipelines.noise_levels import predicted_image
from pipelines.predictor import Guidance, Predictor
from pipelines.sampling import default_sampler
from pipelines.training import TrackingConfig, Trainer, TrainingConfig, start_accelerator
from pipelines.training.distillation import DistillationConfig, DistillationRun, student_of
from pipelines.training.score_identity import Distiller
from tests.conftest import another_process, randomised, tiny_basic_unet, tiny_unet

SPREAD = 0.2
TRAINING = {"max_steps": 8, "batch_size": 16, "warmup_steps": 2, "mixed_precision": "no"}
TRAINING |= {"log_every": 2, "checkpoint_every": 4}


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


def weaker_unet(**options):
    """Return a guide: a smaller network than `tiny_unet`."""
    return tiny_unet(block_out_channels=(16, 16), attention_levels=(), **options)


def labelled_unet2d():
    """Return a guide of diffusers', which has no null label."""
    widths = {"block_out_channels": (32,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    return UNet2DModel(sample_size=16, in_channels=1, out_channels=1, num_class_embeds=10, **widths)


@pytest.fixture
def make_distiller(tmp_path, some_images):
    """Return a maker of trainers of a distillation in float32, for eight steps unless told otherwise."""

    def make(
        network,
        output_dir="run",
        resume=None,
        objective="sid",
        calls=4,
        guide=None,
        scale=2.0,
        distillation=None,
        schedule=None,
        **training,
    ):
        scheduler = "lcm" if objective == "sid" else "ddim"
        own = {} if objective == "guidance" else {"denoising_steps": 2, "calls": calls}
        config = DistillationRun(
            output_dir=str(tmp_path / output_dir),
            training=TrainingConfig(**{**TRAINING, **training}),
            sampling=SamplingConfig(num_images=4, scheduler=scheduler, steps=2),
            tracking=TrackingConfig(mode="disabled"),
            resume=resume,
            distillation=DistillationConfig(objective=objective, **own, **(distillation or {})),
        )
        another_process()
        accelerator = start_accelerator(config)
        teacher = DenoisingPipeline(
            network, schedule or DDPMScheduler(), guide=guide, autoguidance_scale=1.0 if guide is None else scale
        )
        model, noise_schedule = student_of(teacher, config.distillation)
        kind = LEARNERS[objective]
        learner = kind(config.distillation, teacher, config.training, model, noise_schedule, accelerator, some_images)
        return Trainer(config, learner)

    return make


def test_its_gradient_leads_from_the_students_images_to_the_teachers(make_distiller):
    distiller = make_distiller(tiny_unet()).learner
    distiller.teacher, distiller.raw_critic = NormalDenoiser(0.5), NormalDenoiser(-0.5)
    generated = -0.5 + SPREAD * torch.randn(16, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    gradient = distiller._divergence_gradient(generated, None, torch.zeros(16))
    assert (gradient < 0).all()  # descending it raises the pixels


@pytest.mark.parametrize("classes", [None, 10])
def test_the_critic_starts_as_the_teacher_whichever_call_it_is_labels_of_critic(make_distiller, classes, noise):
    distiller = make_distiller(tiny_unet(dropout=0.5, num_class_embeds=classes), batch_size=4).learner
    labels, calls = None if classes is None else torch.tensor([0, 9, 10, 3]), torch.arange(4)
    distiller.critic.train()  # where dropout would tell them apart
    labels_of_critic = distiller._critic_labels(labels, calls)
    assert torch.equal(distiller._divergence_gradient(noise, labels, labels_of_critic), torch.zeros_like(noise))
    rows = distiller.critic.label_embedding.table.weight
    assert len(rows) == 4 * (1 if classes is None else classes + 1) + 1
    rows.data[labels_of_critic[2]] += 1.0
    changed = distiller._divergence_gradient(noise, labels, labels_of_critic).abs().sum(dim=(1, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, False]  # no two calls and classes share a row


def test_each_call_of_the_student_learns_to_sample_as_the_teacher(make_distiller):
    network = tiny_unet(attention_levels=(), num_class_embeds=None)
    trainer = make_distiller(network, calls=2, max_steps=80, batch_size=16, learning_rate=4e-3)
    learner = trainer.learner
    learner.teacher = NormalDenoiser(0.5)
    trainer.train()
    lines = [json.loads(line) for line in trainer.folder.metrics.read_text(encoding="utf-8").splitlines()]
    assert [line["step"] for line in lines] == [*range(2, 81, 2)]
    unet = trainer.pipeline().unet
    for start in learner.starts:
        noise = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
        noisy = learner.noise_schedule.add_noise(torch.full_like(noise, 0.5), noise, start.expand(32))
        images = predicted_image(learner.noise_schedule, noisy, unet(noisy, start).sample.detach(), start)
        assert float(images.mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("classes", [None, 10])
def test_a_run_leaves_a_pipeline_that_samples_in_few_calls(make_distiller, classes):
    network = tiny_unet(num_class_embeds=classes)
    teacher = [parameter.clone() for parameter in network.parameters()]
    trainer = make_distiller(network)
    trainer.train()
    for before, after, own in zip(teacher, network.parameters(), trainer.learner.teacher.parameters(), strict=True):
        assert torch.equal(before, after)
        assert torch.equal(before, own)
        assert after.requires_grad
    pipeline = load_pipeline(trainer.folder.pipeline)
    assert isinstance(pipeline.scheduler, LCMScheduler)
    assert default_sampler(pipeline.scheduler) == {"scheduler": "lcm", "steps": 4}
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    card = (trainer.folder.pipeline / "README.md").read_text(encoding="utf-8")
    assert "distilled from `teacher` for sampling in up to 4 calls, for 8 optimizer steps" in card
    timesteps = {}
    for calls in (1, 2, 4):
        assert pipeline(2, num_inference_steps=calls, seed=0, output_type="pt").images.shape == (2, 1, 16, 16)
        timesteps[calls] = set(pipeline.scheduler.timesteps.tolist())
    assert timesteps[1] < timesteps[2] < timesteps[4] == set(trainer.learner.starts.tolist())


def parameters(learner):
    """Return all that a distillation has learnt."""
    networks = [learner.raw_model, *([learner.critic] if isinstance(learner, Distiller) else [])]
    return [*learner.ema.shadow_params, *(parameter for network in networks for parameter in network.parameters())]


@pytest.mark.parametrize(
    ("objective", "guide"), [("trajectories", False), ("sid", False), ("sid", True), ("guidance", True)]
)
def test_a_resumed_distillation_takes_the_same_steps(make_distiller, objective, guide):
    options = {"objective": objective, "guide": weaker_unet() if guide else None, "max_steps": 12}
    whole = make_distiller(tiny_unet(dropout=0.3), **options)
    whole.train()
    checkpoint = whole.folder.checkpoints / "step-00000008"
    resumed = make_distiller(tiny_unet(dropout=0.3), "resumed", str(checkpoint), **options)
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


@pytest.mark.parametrize(("first", "second"), [("sid", "trajectories"), ("trajectories", "sid")])
def test_a_checkpoint_is_bound_to_its_objective(make_distiller, first, second):
    trainer = make_distiller(tiny_unet(), objective=first)
    trainer.train()
    checkpoint = str(trainer.folder.checkpoints / "step-00000008")
    with pytest.raises(ValueError, match="holds another distillation, or none: objective"):
        make_distiller(tiny_unet(), "other", checkpoint, objective=second)


def test_a_checkpoint_is_bound_to_the_guide_and_its_scale(make_distiller):
    trainer = make_distiller(tiny_unet(), objective="guidance", guide=weaker_unet())
    trainer.train()
    checkpoint = str(trainer.folder.checkpoints / "step-00000008")
    with pytest.raises(ValueError, match="holds another distillation, or none: autoguidance_scale 2.0, not 3.0"):
        make_distiller(tiny_unet(), "other", checkpoint, objective="guidance", guide=weaker_unet(), scale=3.0)
    with pytest.raises(ValueError, match="holds another distillation, or none: teacher .*, not"):
        make_distiller(tiny_unet(), "other", checkpoint, objective="guidance", guide=randomised(weaker_unet()))


@pytest.mark.parametrize("classes", [None, 10])
def test_the_teacher_of_few_calls_is_guided_where_it_has_a_guide(make_distiller, classes):
    unet, guide = (make(num_class_embeds=classes) for make in (tiny_unet, weaker_unet))
    learner = make_distiller(unet, guide=guide, scale=3.0).learner
    noisy = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels, timesteps = None if classes is None else torch.tensor([0, 3, 9, 10]), torch.tensor([20, 300, 600, 940])
    pipeline = DenoisingPipeline(unet, DDPMScheduler(), guide=guide, autoguidance_scale=3.0)
    given = None if labels is None else Classes(labels[:, None], torch.ones(4, 1))
    predictor = Predictor(unet, pipeline.scheduler, given, Guidance(auto_scale=3.0), guide=guide)
    with torch.no_grad():
        taught = learner.teacher(noisy, timesteps, class_labels=labels).sample
        torch.testing.assert_close(taught, predictor(noisy, timesteps))


def test_steps_by_the_targets_lead_along_the_teachers_trajectory(make_distiller):
    learner = make_distiller(tiny_unet(num_class_embeds=None), objective="trajectories").learner
    learner.teacher = NormalDenoiser(0.9)  # its images leave the range
    noise = torch.randn(8, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    solver = make_scheduler("dpmsolver++", DDPMScheduler().config)
    teacher = DenoisingPipeline(learner.teacher, solver)
    expected = teacher(8, noise=noise, timesteps=learner.timesteps, output_type="latent").images
    _, timesteps, targets = learner._calls(noise, None)
    by_timestep = dict(zip(timesteps[::8].tolist(), targets.split(8), strict=True))
    for calls in (1, 2, 4):
        learner.sampler.set_timesteps(calls)
        assert len(learner.sampler.timesteps) == calls
        sample = noise
        for timestep in learner.sampler.timesteps:
            sample = learner.sampler.step(by_timestep.pop(int(timestep)), timestep, sample).prev_sample
        torch.testing.assert_close(sample, expected.clamp(-1, 1), rtol=0, atol=1e-4)
    assert not by_timestep


@pytest.mark.parametrize("classes", [None, 10])
def test_a_student_of_trajectories_samples_in_its_own_numbers_of_calls(make_distiller, classes):
    trainer = make_distiller(tiny_unet(num_class_embeds=classes), objective="trajectories")
    trainer.train()
    pipeline = load_pipeline(trainer.folder.pipeline)
    assert default_sampler(pipeline.scheduler) == {"scheduler": "ddim", "steps": 4}
    taken = []
    for calls in (1, 2, 4):
        assert pipeline(2, num_inference_steps=calls, seed=0, output_type="pt").images.shape == (2, 1, 16, 16)
        taken += pipeline.scheduler.timesteps.tolist()
    assert len({*taken}) == 7
    again = make_scheduler("ddim", make_scheduler("ddim", pipeline.scheduler.config).config)
    again.set_timesteps(2)
    assert set(again.timesteps.tolist()) < {*taken}
    for refused, message in (
        ({"num_inference_steps": 3}, "the student samples in 4, 2, 1"),
        ({"timesteps": [500, 20]}, "StudentScheduler chooses its own; leave them out"),
        ({"spacing": "log-snr"}, "StudentScheduler chooses its timesteps itself"),
        ({"eta": 0.5}, "eta is 0.5, and the steps of a student take none"),
    ):
        with pytest.raises(ValueError, match=message):
            pipeline(1, seed=0, **refused)
    with pytest.raises(ValueError, match="cannot sample from a network distilled for 4 calls; use ddim"):
        make_scheduler("lcm", pipeline.scheduler.config)
    with pytest.raises(ValueError, match="the teacher is distilled itself"):
        student_of(pipeline, DistillationConfig())
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)
    with pytest.raises(ValueError, match="DDIMScheduler has not the timesteps of a student"):
        pipeline(1, seed=0, num_inference_steps=2)


def test_a_call_learns_to_take_its_part_of_the_trajectory(make_distiller):
    network = tiny_unet(attention_levels=(), num_class_embeds=None)
    trainer = make_distiller(network, calls=2, objective="trajectories", max_steps=150, learning_rate=4e-3)
    trainer.learner.teacher = NormalDenoiser(0.5)
    trainer.train()
    pipeline = load_pipeline(trainer.folder.pipeline)
    for calls in (1, 2):
        images = 2 * pipeline(32, seed=0, num_inference_steps=calls, output_type="pt").images - 1
        assert float(images.mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("classes", [None, 10])
def test_one_network_learns_the_guided_prediction(make_distiller, classes):
    unet, guide = (make(num_class_embeds=classes) for make in (tiny_unet, weaker_unet))
    trainer = make_distiller(unet, objective="guidance", guide=guide, max_steps=60, learning_rate=2e-3)
    trainer.train()
    pipeline, learner = load_pipeline(trainer.folder.pipeline), trainer.learner
    assert pipeline.guide is None
    assert pipeline.config.spacing == "log-snr"
    assert pipeline.scheduler.config.prediction_type == "epsilon"
    assert default_sampler(pipeline.scheduler) == {"scheduler": "sde-dpmsolver++", "steps": 20}
    noisy = torch.randn(32, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    labels, timesteps = None if classes is None else torch.arange(32) % 10, torch.arange(32) * 30
    with torch.no_grad():
        target = learner.teacher(noisy, timesteps, class_labels=labels).sample
        before, after = (
            (network(noisy, timesteps, class_labels=labels).sample - target).square().mean()
            for network in (unet, pipeline.unet)
        )
    assert after < before / 2
    card = (trainer.folder.pipeline / "README.md").read_text(encoding="utf-8")
    assert "distilled from `teacher` and its guide, which makes it no denoiser" in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps must be 1 in a distillation"),
        ({"calls": 1}, "2 inference steps were asked for; the sampler takes 1 to 1"),
        ({"calls": 0}, "calls is 0"),
        (
            {"objective": "trajectories", "schedule": DDPMScheduler(num_train_timesteps=2000)},
            "a call would start at timestep 1454, beyond the teacher's trajectories",
        ),
        (
            {"objective": "trajectories", "schedule": DDPMScheduler(num_train_timesteps=20, beta_end=0.5)},
            "num_train_timesteps is 20, too few to tell calls apart",
        ),
        ({"objective": "guidance"}, "the teacher has no guide, or an autoguidance_scale of 1; a student of"),
        ({"objective": "guidance", "guide": tiny_unet(), "scale": 1.0}, "the teacher has no guide, or an autoguidance"),
        ({"distillation": {"autoguidance_scale": 2.0}}, "autoguidance_scale is 2.0, and the pipeline has no guide"),
        ({"objective": "trajectories", "distillation": {"own_starts": True}}, "own_starts is True, and has no effect"),
        ({"objective": "guidance", "distillation": {"calls": 2}}, "calls is 2, and has no effect on"),
        ({"guide": labelled_unet2d()}, "label_dropout is 0.1, and the guide, a UNet2DModel, has no null label"),
        ({"learning_rate": 0.0}, "learning_rate is 0"),
        ({"objective": "trajectories", "loss_weighting": "min_snr"}, "training.loss_weighting is min_snr"),
        ({"objective": "trajectories", "calls": 9}, "calls is 9; it must be up to 8"),
        ({"calls": 21}, "calls is 21; it must be up to 20"),
    ],
)
def test_distillations_that_cannot_be_are_refused(make_distiller, options, message):
    with pytest.raises(ValueError, match=message):
        make_distiller(tiny_unet(), **options)


def test_what_cannot_be_a_teacher_is_refused():
    scheduler = make_scheduler("lcm", {**DDPMScheduler().config, "original_inference_steps": 4})
    with pytest.raises(ValueError, match="the teacher is distilled itself"):
        student_of(DenoisingPipeline(tiny_unet(), scheduler), DistillationConfig())
    with pytest.raises(ValueError, match="the teacher's network is a BasicUNet; only a UNet"):
        student_of(DenoisingPipeline(tiny_basic_unet(), DDPMScheduler()), DistillationConfig())
