"""Distillation of a denoiser into a student that draws in a few calls.

It is score identity distillation (SiD: Zhou et al. 2024, ICML; in a few steps: Zhou et al. 2025), without images as
targets. The student leads from a few noise levels to a clean image at once. What it draws is noised again and shown to
two denoisers: the teacher, which knows the data, and a critic, which learns what the student draws. Where the two see
different clean images, the student draws such images more often or less often than the data has them: the square of the
difference is the Fisher divergence between the two distributions at that noise level.

The critic is told which call drew what it sees, as a part of the label: otherwise the calls would be held to the right
distribution only taken together, and one might draw too dark where another draws too bright.
"""

import copy
import hashlib
from dataclasses import dataclass, field
from typing import Any

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DDPMScheduler, ModelMixin
from einops import rearrange
from torch import Tensor

from denoiser.checks import check_kinds, check_positive
from denoiser.data import ImageSet
from denoiser.device import in_best_layout
from denoiser.randomness import DISTILLATION, seeded_generator
from denoiser.unet import UNet
from pipelines import DenoisingPipeline, SamplingConfig, make_scheduler
from pipelines.predictor import predicted_image
from pipelines.schedulers import build_scheduler, distilled_calls
from pipelines.training.config import RunConfig, TrainingConfig, architecture
from pipelines.training.learner import Learner
from pipelines.training.objective import denoising_loss

# Share of the timesteps at which student and teacher are compared: below, images are as they are; above, the clean
# image follows from the predicted noise no more.
COMPARED = (0.02, 0.95)
MOST_CALLS = 20


@dataclass(frozen=True)
class DistillationConfig:
    """How a student is made.

    Attributes:
        teacher: Pretrained pipeline by name, or folder of a saved one.
        calls: Calls in which the student learns to draw, at most; each of their noise levels gets as much training, so
            that it draws in fewer calls at some of them too.
        critic_steps: Steps of the critic for each of the student's.
        denoising_steps: Steps at the start in which the student learns to predict velocities: the noise that the
            teacher predicts says nothing of the image where there is nothing but noise. They alone go by the training's
            `loss_weighting` and `log_normal_levels`.
        own_starts: Whether calls start from what the calls before them lead to, as they do in drawing (DMD2: Yin et al.
            2024, section 4.5), in the place of real images; for a student that has learnt to draw from those.
    """

    teacher: str = "teacher"
    calls: int = 4
    critic_steps: int = 2
    denoising_steps: int = 300
    own_starts: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        check_positive(calls=self.calls, critic_steps=self.critic_steps, denoising_steps=self.denoising_steps)
        if self.calls > MOST_CALLS:
            raise ValueError(f"calls is {self.calls}; it must be up to {MOST_CALLS}: the teacher can draw in more")


@dataclass(frozen=True)
class DistillationRun(RunConfig):
    """Everything that a distillation depends on; its learning rate is that of student and critic.

    Attributes:
        sampling: How the grids of samples are made: by lcm, in as many steps as the student has calls, or fewer.
        distillation: How the student is made.
    """

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(scheduler="lcm", steps=4))
    distillation: DistillationConfig = field(default_factory=DistillationConfig)


def student_of(teacher: DenoisingPipeline) -> tuple[ModelMixin, DDPMScheduler]:
    """Return a copy of the teacher's network to train, and its noise schedule with velocities to predict.

    Raises:
        ValueError: If the teacher is a student itself, or its network is none that the critic can be made of.
    """
    if distilled_calls(teacher.scheduler.config):
        raise ValueError("the teacher is distilled itself, for a few noise levels only; give what it was made from")
    if not isinstance(teacher.unet, UNet):
        raise ValueError(f"the teacher's network is a {type(teacher.unet).__name__}; only a UNet can be distilled")
    scheduler = build_scheduler(DDPMScheduler, {**teacher.scheduler.config, "prediction_type": "v_prediction"})
    return copy.deepcopy(teacher.unet), scheduler


def critic_of(unet: UNet, calls: int) -> UNet:
    """Return a copy of a teacher's network whose labels tell the call too, which makes no difference yet.

    Label `call * rows + label` means what `label` means to the teacher, of `rows` labels, its null label the last; or
    `call` alone if the teacher takes no labels. The critic's own null label is not used.
    """
    rows = 1 if unet.null_label is None else unet.null_label + 1
    critic = UNet.from_config({**architecture(unet)["init_args"], "num_class_embeds": calls * rows})
    table = torch.zeros_like(critic.label_embedding.table.weight)
    if unet.label_embedding is not None:
        table[:-1] = unet.label_embedding.table.weight.detach().repeat(calls, 1)
    critic.load_state_dict({**unet.state_dict(), "label_embedding.table.weight": table})
    return critic


class Distiller(Learner):
    """Takes the steps of a distillation.

    Args:
        distillation: How the student is made.
        teacher: What it learns from.
        training: How the networks are trained.
        model: The student, from `student_of`.
        scheduler: The student's noise levels, likewise.
        accelerator: From `start_accelerator`.
        images: Training set; noised, they are what each call starts from, unless `own_starts` is set.

    Raises:
        ValueError: As `Learner` does, or if gradients shall be accumulated or weights split by FSDP.
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
        if accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("FSDP splits one network, and a distillation trains two; use several_gpus.yaml")
        self.options = distillation
        self.teacher_scheduler = build_scheduler(DDPMScheduler, teacher.scheduler.config)
        self.own_scheduler = make_scheduler("lcm", {**scheduler.config, "original_inference_steps": distillation.calls})
        self.own_scheduler.set_timesteps(distillation.calls, device=accelerator.device)
        self.starts = self.own_scheduler.timesteps.clone()
        self.raw_critic = critic_of(teacher.unet, distillation.calls)
        self.critic = self._prepare(self.raw_critic)
        self.teacher = in_best_layout(copy.deepcopy(teacher.unet).to(accelerator.device)).eval().requires_grad_(False)
        self.distillation = {"calls": distillation.calls, "teacher": _sha256(teacher.unet)}

    def described(self) -> dict[str, Any]:
        """Return nothing: network and noise schedule follow from the teacher."""
        return {}

    def _learn(self) -> Tensor:
        """Step with student and critic; returns the critic's loss, or the student's own while it learns to denoise."""
        if self.step < self.options.denoising_steps:
            return super()._learn()
        length, device = self.training.batch_size, self.accelerator.device
        start = self.accelerator.process_index * length
        with self.window.timed("data"):
            part = self._draw().part(start, length).to(device)
            images, class_labels = self._batch(part)
            # spread over the calls as the timesteps are over their range
            calls = part.timesteps * len(self.starts) // self.scheduler.config.num_train_timesteps
            starts = self.starts[calls]
            if self.options.own_starts:
                images = self._led_to(images, class_labels, calls)
            noisy = self.scheduler.add_noise(images, part.noise, starts)
        self._seed_network(start)
        prediction = self.model(noisy, starts, class_labels=class_labels).sample.float()
        drawn = predicted_image(self.scheduler, noisy, prediction, starts)
        clean = drawn.detach().clamp(-1, 1)  # as the sampler leaves it
        told = self._told(class_labels, calls)
        self._step(self.model, self.optimizers[0], (drawn * self._slope(clean, class_labels, told)).mean())
        self.critic.train()
        means = []
        for use in range(1, 1 + self.options.critic_steps):
            noise, timesteps = self._noise(use)
            losses = denoising_loss(self.critic, self.teacher_scheduler, clean, noise, timesteps, told)
            self._step(self.critic, self.optimizers[1], losses.mean())
            self.window.count(losses.detach(), timesteps)
            means.append(losses.detach().mean())
        return torch.stack(means).mean()

    @torch.no_grad()
    def _led_to(self, images: Tensor, class_labels: Tensor | None, calls: Tensor) -> Tensor:
        """Return, for each image, what the student's calls before this one lead to; the image itself at the first."""
        drawn, led_to = images, images
        self.model.eval()
        for call, start in enumerate(self.starts[:-1]):
            noise, _ = self._noise(1 + self.options.critic_steps + call)
            noisy = self.scheduler.add_noise(drawn, noise, start.expand(len(images)))
            prediction = self.model(noisy, start, class_labels=class_labels).sample.float()
            drawn = predicted_image(self.scheduler, noisy, prediction, start).clamp(-1, 1)
            led_to = torch.where(rearrange(calls == call + 1, "b -> b 1 1 1"), drawn, led_to)
        self.model.train()
        return led_to

    def _told(self, class_labels: Tensor | None, calls: Tensor) -> Tensor:
        """Return the labels that tell the critic classes and calls."""
        if class_labels is None or self.num_classes is None:
            return calls
        return calls * (self.num_classes + 1) + class_labels

    def _slope(self, clean: Tensor, class_labels: Tensor | None, told: Tensor) -> Tensor:
        """Return the gradient by each drawn image of the divergence that it shows: SiD's loss with an alpha of 1.

        Both denoisers are passed backward too. Each image's loss is scaled by the teacher's error.
        """
        scheduler = self.teacher_scheduler
        noise, timesteps = self._noise(0)
        clean = clean.clone().requires_grad_()
        noisy = scheduler.add_noise(clean, noise, timesteps)
        self.raw_critic.eval()
        with self.accelerator.autocast():
            predictions = [
                network(noisy, timesteps, class_labels=labels).sample.float()
                for network, labels in ((self.raw_critic, told), (self.teacher, class_labels))
            ]
        ours, theirs = (predicted_image(scheduler, noisy, prediction, timesteps) for prediction in predictions)
        gap, scale = theirs - ours, (clean - theirs).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
        losses = gap * (ours - clean) / scale.clamp(min=1e-3)
        (slope,) = torch.autograd.grad(losses.sum(), clean)
        return slope

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
