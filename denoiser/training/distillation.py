"""Distillation of a denoiser into a student that draws in a few calls, by distribution matching (Yin et al. 2024).

The student leads from a few noise levels to a clean image at once. What it draws is noised again and shown to two
denoisers: the teacher, which knows the data, and a critic, which learns what the student draws. Where the critic sees
another clean image than the teacher, the student's images lie too close together for the data or are none of them: the
difference is the gradient of the divergence between the two distributions at that noise level.
"""

import copy
from dataclasses import dataclass, field

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin
from torch import Tensor

from denoiser.checks import check_positive
from denoiser.data import ImageSet
from denoiser.device import in_best_layout
from denoiser.randomness import DISTILLATION, seeded_generator
from denoiser.training.config import RunConfig, TrainingConfig
from denoiser.training.learner import Learner
from denoiser.training.objective import denoising_loss
from denoiser.training.optimizers import make_optimizer
from pipelines import DenoisingPipeline, make_scheduler
from pipelines.predictor import predicted_image
from pipelines.sampling import is_distilled

# Share of the timesteps at which student and teacher are compared: below, images are as they are; above, the clean
# image follows from the predicted noise no more (DMD2's code has 0.02 to 0.98, for a schedule that ends less noisy).
COMPARED = (0.02, 0.95)


@dataclass(frozen=True)
class DistillationConfig:
    """How a student is made.

    Attributes:
        teacher: Pretrained pipeline by name, or folder of a saved one.
        calls: Calls in which the student learns to draw, at most; each of their noise levels gets as much training, so
            that it draws in fewer calls at some of them too.
        critic_steps: Steps of the critic for each of the student's.
        denoising_steps: Steps at the start in which the student learns to predict velocities: the noise that the
            teacher predicts says nothing of the image where there is nothing but noise.
    """

    teacher: str = "teacher"
    calls: int = 4
    critic_steps: int = 2
    denoising_steps: int = 300

    def __post_init__(self) -> None:
        check_positive(calls=self.calls, critic_steps=self.critic_steps, denoising_steps=self.denoising_steps)


@dataclass(frozen=True)
class DistillationRun(RunConfig):
    """Everything that a distillation depends on; its learning rate is that of student and critic.

    Attributes:
        distillation: How the student is made.
    """

    distillation: DistillationConfig = field(default_factory=DistillationConfig)


def student_of(teacher: DenoisingPipeline) -> tuple[ModelMixin, DDPMScheduler]:
    """Return a copy of the teacher's network to train, and its noise schedule with velocities to predict.

    Raises:
        ValueError: If the teacher is a student itself.
    """
    if is_distilled(teacher.scheduler):
        raise ValueError("the teacher is distilled itself, for a few noise levels only; give what it was made from")
    scheduler = DDPMScheduler.from_config(teacher.scheduler.config, prediction_type="v_prediction")
    return copy.deepcopy(teacher.unet), scheduler


class Distiller(Learner):
    """Takes the steps of a distillation.

    Args:
        distillation: How the student is made.
        teacher: What it learns from.
        training: How the networks are trained.
        model: The student, from `student_of`.
        scheduler: The student's noise levels, likewise.
        accelerator: From `start_accelerator`.
        images: Training set; noised, they are what the student starts from.

    Raises:
        ValueError: As `Learner` does, or if gradients shall be accumulated.
    """

    denoises = False

    def __init__(
        self,
        distillation: DistillationConfig,
        teacher: DenoisingPipeline,
        training: TrainingConfig,
        model: ModelMixin,
        scheduler: DDPMScheduler,
        accelerator: Accelerator,
        images: ImageSet,
    ) -> None:
        super().__init__(training, model, scheduler, accelerator, images)
        if training.gradient_accumulation_steps != 1:
            raise ValueError("gradient_accumulation_steps must be 1 in a distillation; raise batch_size in its place")
        self.distillation, self.teacher_scheduler = distillation, teacher.scheduler
        self.teacher = in_best_layout(teacher.unet.to(accelerator.device)).eval().requires_grad_(False)
        critic = copy.deepcopy(self.teacher).requires_grad_(True)
        self.critic, critic_optimizer = accelerator.prepare(critic, make_optimizer(training, critic))
        self.optimizers.append(critic_optimizer)
        self.own_scheduler = make_scheduler("lcm", scheduler.config)
        self.own_scheduler.set_timesteps(distillation.calls, device=accelerator.device)
        self.starts = self.own_scheduler.timesteps.clone()

    def _learn(self) -> Tensor:
        """Step with student and critic; returns the critic's loss, or the student's own while it learns to denoise."""
        if self.step < self.distillation.denoising_steps:
            return super()._learn()
        length, device = self.training.batch_size, self.accelerator.device
        start = self.accelerator.process_index * length
        with self.window.timed("data"):
            part = self._draw().part(start, length).to(device)
            images, class_labels = self._batch(part)
            count, num_timesteps = len(self.starts), self.scheduler.config.num_train_timesteps
            starts = self.starts[part.timesteps * count // num_timesteps]
            noisy = self.scheduler.add_noise(images, part.noise, starts)
        self._seed_network(start)
        prediction = self.model(noisy, starts, class_labels=class_labels).sample.float()
        drawn = predicted_image(self.scheduler, noisy, prediction, starts)
        gradient = self._difference(drawn.detach(), class_labels)
        norm = self._step(self.model, self.optimizers[0], (drawn * gradient).mean())
        assert norm is not None  # without accumulation, each pass is a step
        self.window.gradient_norms.append(norm)
        drawn = drawn.detach().clamp(-1, 1)  # as the sampler leaves it
        self.critic.train()
        means = []
        for use in range(1, 1 + self.distillation.critic_steps):
            noise, timesteps = self._noise(use)
            losses = denoising_loss(self.critic, self.teacher_scheduler, drawn, noise, timesteps, class_labels)
            self._step(self.critic, self.optimizers[1], losses.mean())
            self.window.count(losses.detach(), timesteps)
            means.append(losses.detach().mean())
        return torch.stack(means).mean()

    @torch.no_grad()
    def _difference(self, drawn: Tensor, class_labels: Tensor | None) -> Tensor:
        """Return how the critic's clean images differ from the teacher's (Yin et al. 2024, eq. 7 and 8)."""
        scheduler = self.teacher_scheduler
        noise, timesteps = self._noise(0)
        noisy = scheduler.add_noise(drawn, noise, timesteps)
        self.critic.eval()
        with self.accelerator.autocast():
            predictions = [
                network(noisy, timesteps, class_labels=class_labels).sample.float()
                for network in (self.critic, self.teacher)
            ]
        ours, theirs = (predicted_image(scheduler, noisy, prediction, timesteps) for prediction in predictions)
        scale = (drawn - theirs).abs().mean(dim=(1, 2, 3), keepdim=True)
        return (ours - theirs) / scale.clamp(min=1e-3)

    def _noise(self, use: int) -> tuple[Tensor, Tensor]:
        """Return this process's noise and timesteps to noise drawn images with."""
        length, count = self.training.batch_size, self.scheduler.config.num_train_timesteps
        whole = length * self.accelerator.num_processes
        generator = seeded_generator(DISTILLATION, self.training.seed, self.step, use)
        low, high = (round(share * count) for share in COMPARED)
        timesteps = torch.randint(low, high, (whole,), generator=generator)
        noise = torch.randn(whole, *self.image_shape, generator=generator)
        start = self.accelerator.process_index * length
        rows, device = slice(start, start + length), self.accelerator.device
        return noise[rows].to(device), timesteps[rows].to(device)
