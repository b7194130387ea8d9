"""Distillation of a denoiser into a student that draws in a few calls.

It is distribution matching (DMD: Yin et al. 2024, CVPR; DMD2: Yin et al. 2024, NeurIPS), without images as targets.
The student leads from a few noise levels to a clean image at once. What it draws is noised again and shown to two
denoisers: the teacher, which knows the data, and a critic, which learns what the student draws. Where the critic sees
another clean image than the teacher, the student's images lie too close together for the data or are none of them: the
difference is the gradient of the divergence between the two distributions at that noise level.

Each of the student's calls has a critic of its own: one for all would hold the calls to the right distribution only
taken together, and lets one draw too dark where another draws too bright.
"""

import copy
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin
from torch import Tensor, nn

from denoiser.checks import check_positive
from denoiser.data import ImageSet
from denoiser.device import in_best_layout
from denoiser.randomness import DISTILLATION, seeded_generator
from denoiser.training.config import RunConfig, TrainingConfig
from denoiser.training.learner import Learner
from denoiser.training.objective import denoising_loss
from pipelines import DenoisingPipeline, SamplingConfig, make_scheduler
from pipelines.predictor import predicted_image
from pipelines.schedulers import build_scheduler, distilled_calls

# Share of the timesteps at which student and teacher are compared: below, images are as they are; above, the clean
# image follows from the predicted noise no more (DMD2's code has 0.02 to 0.98, for a schedule that ends less noisy).
COMPARED = (0.02, 0.95)


@dataclass(frozen=True)
class DistillationConfig:
    """How a student is made.

    Attributes:
        teacher: Pretrained pipeline by name, or folder of a saved one.
        calls: Calls in which the student learns to draw, at most; they get as much training each, so that it draws in
            fewer of them too.
        critic_steps: Steps of a critic for each of the student's.
        denoising_steps: Steps at the start in which the student learns to predict velocities: the noise that the
            teacher predicts says nothing of the image where there is nothing but noise. They alone go by the training's
            `loss_weighting` and `log_normal_levels`.
    """

    teacher: str = "teacher"
    calls: int = 4
    critic_steps: int = 2
    denoising_steps: int = 300

    def __post_init__(self) -> None:
        check_positive(calls=self.calls, critic_steps=self.critic_steps, denoising_steps=self.denoising_steps)


@dataclass(frozen=True)
class DistillationRun(RunConfig):
    """Everything that a distillation depends on; its learning rate is that of student and critics.

    Attributes:
        sampling: How the grids of samples are made: by lcm, in as many steps as the student has calls, or fewer.
        distillation: How the student is made.
    """

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(scheduler="lcm", steps=4))
    distillation: DistillationConfig = field(default_factory=DistillationConfig)


def student_of(teacher: DenoisingPipeline) -> tuple[ModelMixin, DDPMScheduler]:
    """Return a copy of the teacher's network to train, and its noise schedule with velocities to predict.

    Raises:
        ValueError: If the teacher is a student itself.
    """
    if distilled_calls(teacher.scheduler):
        raise ValueError("the teacher is distilled itself, for a few noise levels only; give what it was made from")
    scheduler = build_scheduler(DDPMScheduler, {**teacher.scheduler.config, "prediction_type": "v_prediction"})
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
        images: Training set, to learn to denoise with at the start, and the labels of what is drawn then.

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
        self.options = distillation
        self.teacher_scheduler = build_scheduler(DDPMScheduler, teacher.scheduler.config)
        self.own_scheduler = make_scheduler("lcm", {**scheduler.config, "original_inference_steps": distillation.calls})
        self.own_scheduler.set_timesteps(distillation.calls, device=accelerator.device)
        self.starts = self.own_scheduler.timesteps.clone()
        self.critics = [self._prepare(copy.deepcopy(teacher.unet)) for _ in self.starts]
        self.teacher = in_best_layout(copy.deepcopy(teacher.unet).to(accelerator.device)).eval().requires_grad_(False)
        self.distillation = {"calls": distillation.calls, "teacher": _sha256(teacher.unet)}

    def described(self) -> dict[str, Any]:
        """Return nothing: network and noise schedule follow from the teacher."""
        return {}

    def _learn(self) -> Tensor:
        """Step with student and a critic; returns the critic's loss, or the student's own while it learns to denoise.

        The calls take turns, a step each.
        """
        if self.step < self.options.denoising_steps:
            return super()._learn()
        length, device = self.training.batch_size, self.accelerator.device
        start = self.accelerator.process_index * length
        with self.window.timed("data"):
            part = self._draw().part(start, length).to(device)
            _, class_labels = self._batch(part)
            chances = (self._noise(use) for use in count())
        call = self.step % len(self.starts)
        critic = self.critics[call]
        self._seed_network(start)
        noisy = self._led_to(call, part.noise, class_labels, chances)
        drawn = self._drawn(noisy, call, class_labels)
        clean = drawn.detach().clamp(-1, 1)  # as the sampler leaves it
        norm = self._step(
            self.model,
            self.optimizers[0],
            (drawn * self._difference(critic, clean, class_labels, *next(chances))).mean(),
        )
        assert norm is not None  # without accumulation, each pass is a step
        self.window.gradient_norms.append(norm)
        critic.train()
        means = []
        for _ in range(self.options.critic_steps):
            noise, timesteps = next(chances)
            losses = denoising_loss(critic, self.teacher_scheduler, clean, noise, timesteps, class_labels)
            self._step(critic, self.optimizers[1 + call], losses.mean())
            self.window.count(losses.detach(), timesteps)
            means.append(losses.detach().mean())
        return torch.stack(means).mean()

    @torch.no_grad()
    def _led_to(
        self, call: int, noise: Tensor, class_labels: Tensor | None, chances: Iterator[tuple[Tensor, Tensor]]
    ) -> Tensor:
        """Lead noise to where a call starts, as the sampler does: train on what will be seen (DMD2, section 4.5)."""
        self.model.eval()
        noisy = noise
        for earlier in range(call):
            clean = self._drawn(noisy, earlier, class_labels).clamp(-1, 1)
            noisy = self.scheduler.add_noise(clean, next(chances)[0], self.starts[earlier + 1].expand(len(clean)))
        self.model.train()
        return noisy

    def _drawn(self, noisy: Tensor, call: int, class_labels: Tensor | None) -> Tensor:
        """Return the clean images that a call of the student leads to."""
        start = self.starts[call].expand(len(noisy))
        prediction = self.model(noisy, start, class_labels=class_labels).sample.float()
        return predicted_image(self.scheduler, noisy, prediction, start)

    @torch.no_grad()
    def _difference(
        self, critic: nn.Module, clean: Tensor, class_labels: Tensor | None, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """Return how the critic's clean images differ from the teacher's (DMD, eq. 7 and 8).

        As in DMD2's code, without the factor alpha_t of equation 8.
        """
        scheduler = self.teacher_scheduler
        noisy = scheduler.add_noise(clean, noise, timesteps)
        critic.eval()
        with self.accelerator.autocast():
            predictions = [
                network(noisy, timesteps, class_labels=class_labels).sample.float()
                for network in (critic, self.teacher)
            ]
        ours, theirs = (predicted_image(scheduler, noisy, prediction, timesteps) for prediction in predictions)
        scale = (clean - theirs).abs().mean(dim=(1, 2, 3), keepdim=True)
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


def _sha256(model: ModelMixin) -> str:
    """Return the hash of a network's weights."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()
