"""Distillation of a denoiser: into a student of a few network calls, or of it and its guide into one network.

One network for two is a plain regression: at each of the teacher's own noise levels, the student
learns the prediction that autoguidance makes of network and guide.

A student of trajectories learns the steps of the teacher's ODE, several at once, by regression too.

A distribution can be matched instead. Score identity distillation (SiD: Zhou et al. 2024, ICML;
few-step: Zhou et al. 2025) needs no target images. The student maps a few noise levels directly to
clean images. Its images are noised again and given to two denoisers: the teacher, which was trained
on the data, and a critic, which is trained on the student's images. The student minimises the Fisher
divergence between the two distributions: the squared difference of their clean images.

The critic is conditioned on the student's call as a part of its label. Otherwise only the mixture of
all calls would be matched, and one call could be too dark where another is too bright.
"""

import copy
import hashlib
import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import safetensors.torch
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from diffusers import DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from denoiser.checks import check_kinds, check_positive
from denoiser.data import ImageSet, RandomBatch
from denoiser.device import in_best_layout
from denoiser.randomness import DISTILLATION, seeded_generator
from denoiser.unet import UNet
from pipelines import DenoisingPipeline, SamplingConfig, make_scheduler
from pipelines.noise_levels import predicted_image
from pipelines.schedulers import build_scheduler
from pipelines.spacing import spaced_timesteps
from pipelines.stepping import STUDENT_CALLS, Stepper, calls_of_student, distilled_calls, student_timesteps
from pipelines.training.config import RunConfig, TrainingConfig, architecture
from pipelines.training.learner import Learner
from pipelines.training.loss import denoising_loss
from pipelines.training.metrics import Validation

# Timesteps at which student and teacher are compared, as fractions of all: below, the noise changes nothing;
# above, the clean image no longer follows from the predicted noise.
COMPARED = (0.02, 0.95)
MOST_CALLS = 8
TRAJECTORY_STEPS = 12  # of the teacher, about


@dataclass(frozen=True)
class DistillationConfig:
    """Distillation settings.

    Attributes:
        teacher: Pretrained pipeline by name, folder of a saved one, or repository `user/name` of the Hub.
        calls: Network calls in which the student samples, at most. Each of their noise levels is trained
            equally, so fewer calls at some of them work too. None makes one denoiser of the teacher and its
            guide, for every sampler; the attributes below have no effect on it.
        objective: "sid", the teacher's distribution, or "trajectories", the steps of its ODE.
        critic_steps: Critic steps for each student step of "sid".
        denoising_steps: Steps at the start in which the student learns to predict velocities: at pure
            noise the noise that the teacher predicts says nothing of the image.
        own_starts: Whether calls start from the student's own images, as in sampling (DMD2: Yin et al.
            2024, section 4.5), instead of real ones; for the last stage of a distillation.
    """

    teacher: str = "teacher"
    calls: int | None = 4
    objective: Literal["sid", "trajectories"] = "sid"
    critic_steps: int = 2
    denoising_steps: int = 300
    own_starts: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        check_positive(critic_steps=self.critic_steps, denoising_steps=self.denoising_steps)
        if self.calls is None:
            for name in ("critic_steps", "denoising_steps", "own_starts"):
                if (value := getattr(self, name)) != getattr(DistillationConfig, name):
                    raise ValueError(f"{name} is {value}, and has no effect without calls; leave it out")
            return
        check_positive(calls=self.calls)
        if self.calls > MOST_CALLS:
            raise ValueError(f"calls is {self.calls}; it must be up to {MOST_CALLS}: the teacher can sample in more")


@dataclass(frozen=True)
class DistillationRun(RunConfig):
    """Settings of a distillation run; the learning rate is the student's and the critic's.

    Attributes:
        sampling: Sampling settings of the sample grids: lcm for "sid" and ddim for "trajectories", with at most
            the student's calls; without calls any other sampler than lcm.
        distillation: Distillation settings.
    """

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(scheduler="lcm", steps=4))
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None:
            raise ValueError(f"init_from is {self.init_from}, and a student starts from its teacher; leave it out")
        if self.distillation.calls is None and self.sampling.scheduler == "lcm":
            raise ValueError("sampling.scheduler is lcm, for students of a few calls; give another, as dpmsolver++")
        for name in ("guide_at", "autoguidance_scale"):
            if (value := getattr(self.training, name)) != getattr(TrainingConfig, name):
                raise ValueError(f"training.{name} is {value}, and a student has no guide; leave it out")

    @property
    def made(self) -> str:
        """How the network is made, for its card."""
        calls, teacher = self.distillation.calls, self.distillation.teacher
        if calls is None:
            return f"distilled from `{teacher}` and its guide"
        return f"distilled from `{teacher}` for sampling in up to {calls} calls,"


class Guided(nn.Module):
    """A network with autoguidance (Karras et al. 2024a, eq. 3), as one network."""

    def __init__(self, unet: ModelMixin, guide: ModelMixin, scale: float) -> None:
        super().__init__()
        self.unet, self.guide, self.scale = unet, guide, scale

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> UNet2DOutput:
        """Return the guided prediction, in float32."""
        ours, weaker = (
            network(sample, timestep, class_labels=class_labels).sample.float() for network in (self.unet, self.guide)
        )
        return UNet2DOutput(sample=ours + (self.scale - 1) * (ours - weaker))


def teacher_of(pipeline: DenoisingPipeline) -> nn.Module:
    """Return a copy of what a pipeline samples with: its network, with autoguidance if it has a guide."""
    unet, guide = (copy.deepcopy(network) for network in (pipeline.unet, pipeline.guide))
    scale = pipeline.autoguidance_scale
    return unet if scale in (None, 1) else Guided(unet, guide, scale)


def student_of(teacher: DenoisingPipeline, calls: int | None) -> tuple[ModelMixin, DDPMScheduler]:
    """Return a copy of the teacher's network, and its noise schedule: with velocity prediction if it samples in calls.

    Raises:
        ValueError: If the teacher cannot be distilled.
    """
    if distilled_calls(teacher.scheduler.config):
        raise ValueError("the teacher is distilled itself, for a few noise levels only; give what it was made from")
    if not isinstance(teacher.unet, UNet):
        raise ValueError(f"the teacher's network is a {type(teacher.unet).__name__}; only a UNet can be distilled")
    if calls is None:
        if teacher.autoguidance_scale in (None, 1):
            raise ValueError("calls is null, and the teacher has no guide: the student would be the teacher")
        return copy.deepcopy(teacher.unet), teacher.noise_schedule
    config = {**teacher.scheduler.config, "prediction_type": "v_prediction"}
    return copy.deepcopy(teacher.unet), build_scheduler(DDPMScheduler, config)


def critic_of(unet: UNet, calls: int) -> UNet:
    """Return the critic: the teacher's network with a label for each class and call.

    Label `call * rows + label` is initialised with the teacher's `label`, of `rows` labels with the
    null label; or `call` alone without labels.
    """
    rows = 1 if unet.null_label is None else unet.null_label + 1
    critic = UNet.from_config({**architecture(unet)["init_args"], "num_class_embeds": calls * rows})
    table = torch.zeros_like(critic.label_embedding.table.weight)
    if unet.label_embedding is not None:
        table[:-1] = unet.label_embedding.table.weight.detach().repeat(calls, 1)
    critic.load_state_dict({**unet.state_dict(), "label_embedding.table.weight": table})
    return critic


class Student(Learner):
    """Takes the steps of a student that learns from a teacher; the base class of both kinds.

    Args:
        distillation: Distillation settings.
        teacher: Pipeline of the teacher. With a guide, the student learns its guided predictions.
        training: Training settings.
        model: The student, from `student_of`, as `noise_schedule` is.
        images: Training set.
    """

    def __init__(
        self,
        distillation: DistillationConfig,
        teacher: DenoisingPipeline,
        training: TrainingConfig,
        model: ModelMixin,
        noise_schedule: DDPMScheduler,
        accelerator: Accelerator,
        images: ImageSet,
    ) -> None:
        super().__init__(training, model, noise_schedule, accelerator, images)
        self.options = distillation
        self.teacher = in_best_layout(teacher_of(teacher).to(accelerator.device)).eval().requires_grad_(False)
        self.teacher_noise_schedule = teacher.noise_schedule
        self.teacher_identity: dict[str, Any] = {"teacher": _sha256(self.teacher)}
        if isinstance(self.teacher, Guided):
            self.teacher_identity["autoguidance_scale"] = self.teacher.scale

    @property
    def guided(self) -> bool:
        """Whether the pipeline gets a guide: a student has none."""
        return False

    def described(self) -> dict[str, Any]:
        """Return no sections: the network and the noise schedule follow from the teacher."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Return the settings that a checkpoint must share with the run that loads it."""
        return {**super().identity(), "distillation": {"calls": self.options.calls, **self.teacher_identity}}

    def validate(self, validation: Validation, sampler: SchedulerMixin) -> dict[str, float]:
        """Return the Fréchet distance of the averaged weights; the loss of a denoiser tells nothing of a student."""
        pipeline = self.pipeline(sampler)
        with self.accelerator.autocast():
            return validation.frechet_distance(pipeline)


class GuidanceStudent(Student):
    """Takes the steps of a student that predicts what the teacher and its guide predict together."""

    def _losses(self, part: RandomBatch, images: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mean squared differences from the guided predictions of a pass, and their timesteps."""
        noisy = self.noise_schedule.add_noise(images, part.noise, part.timesteps)
        with torch.no_grad(), self.accelerator.autocast():
            target = self.teacher(noisy, part.timesteps, class_labels=class_labels).sample.float()
        prediction = self.model(noisy, part.timesteps, class_labels=class_labels).sample.float()
        return mse_loss(prediction, target, reduction="none").mean(dim=(1, 2, 3)), part.timesteps


class TrajectoryStudent(Student):
    """Takes the steps of a student that goes along the teacher's trajectories in a few calls.

    For each number of calls, the student's calls divide the trajectory of the teacher's ODE from noise to
    an image. A call starts from the trajectory, and its target is the velocity with which one step of DDIM
    comes to where the next call starts, or to the image (Salimans & Ho 2022, appendix G; several steps at
    once instead of two).
    """

    def __init__(
        self,
        distillation: DistillationConfig,
        teacher: DenoisingPipeline,
        training: TrainingConfig,
        model: ModelMixin,
        noise_schedule: DDPMScheduler,
        accelerator: Accelerator,
        images: ImageSet,
    ) -> None:
        super().__init__(distillation, teacher, training, model, noise_schedule, accelerator, images)
        if distillation.calls is None:
            raise ValueError("calls is None, which makes no student of a few calls; take GuidanceStudent")
        if training.loss_weighting != "prediction":
            raise ValueError("training.loss_weighting is min_snr, of the losses of denoisers; leave it out")
        self.sampler = make_scheduler("ddim", {**noise_schedule.config, STUDENT_CALLS: distillation.calls})
        count = noise_schedule.config.num_train_timesteps
        self.calls = [student_timesteps(count, calls) for calls in calls_of_student(distillation.calls)]
        timesteps = [timestep for own in self.calls for timestep in own]
        if len(set(timesteps)) < len(timesteps):
            raise ValueError(f"num_train_timesteps is {count}, too few to tell calls apart; 100 are enough")
        self.solver = make_scheduler("dpmsolver++", self.teacher_noise_schedule.config)
        self.timesteps = _between(
            noise_schedule.alphas_cumprod, {timestep for own in self.calls for timestep in own[1:]}
        )

    def _losses(self, part: RandomBatch, images: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mean squared errors of a pass, of each call from each image's noise, and their timesteps."""
        if self.step < self.options.denoising_steps:
            return super()._losses(part, images, class_labels)
        inputs, timesteps, targets = self._calls(part.noise, class_labels)
        repeats = len(timesteps) // len(images)
        labels = None if class_labels is None else class_labels.repeat(repeats)
        prediction = self.model(inputs, timesteps, class_labels=labels).sample.float()
        return mse_loss(prediction, targets, reduction="none").mean(dim=(1, 2, 3)), timesteps

    def _calls(self, noise: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return the inputs, timesteps and target velocities of all calls on the trajectories from noise."""
        points = self._trajectory(noise, class_labels)
        inputs, timesteps, targets = [], [], []
        for own in self.calls:
            for timestep, following in zip(own, [*own[1:], None], strict=True):
                start = noise if timestep == own[0] else points[timestep]
                signal, deviation = self._level(timestep)
                next_signal, next_deviation = self._level(following)
                rest = next_deviation / deviation  # of the input, in a step of DDIM
                clean = (points[following] - rest * start) / (next_signal - rest * signal)
                inputs.append(start)
                timesteps.append(torch.full((len(noise),), timestep, device=noise.device))
                targets.append((signal * start - clean) / deviation)
        return torch.cat(inputs), torch.cat(timesteps), torch.cat(targets)

    @torch.no_grad()
    def _trajectory(self, noise: Tensor, class_labels: Tensor | None) -> dict[int | None, Tensor]:
        """Return the teacher's noisy images by timestep, and its images at None."""
        stepper = Stepper(self.solver, len(self.timesteps), noise.device, timesteps=self.timesteps)
        sample, points = stepper.from_noise(noise), dict[int | None, Tensor]()
        for timestep in stepper.timesteps:
            points[int(timestep)] = sample
            with self.accelerator.autocast():
                prediction = self.teacher(sample, timestep.expand(len(noise)), class_labels=class_labels).sample
            sample = stepper.step(prediction.float(), timestep, sample)
        points[None] = sample.clamp(-1, 1)
        return points

    def _level(self, timestep: int | None) -> tuple[float, float]:
        """Return the factors of image and noise at a timestep; without noise at None."""
        if timestep is None:
            return 1.0, 0.0
        power = float(self.noise_schedule.alphas_cumprod[timestep])
        return math.sqrt(power), math.sqrt(1 - power)


class Distiller(Student):
    """Takes the steps of a student that samples in a few calls. They start from noisy training images, or own ones."""

    def __init__(
        self,
        distillation: DistillationConfig,
        teacher: DenoisingPipeline,
        training: TrainingConfig,
        model: ModelMixin,
        noise_schedule: DDPMScheduler,
        accelerator: Accelerator,
        images: ImageSet,
    ) -> None:
        super().__init__(distillation, teacher, training, model, noise_schedule, accelerator, images)
        if distillation.calls is None:
            raise ValueError("calls is None, which makes no student of a few calls; take GuidanceStudent")
        if training.gradient_accumulation_steps != 1:
            raise ValueError("gradient_accumulation_steps must be 1 in a distillation; raise batch_size in its place")
        if accelerator.distributed_type == DistributedType.FSDP:
            raise ValueError("FSDP splits one network, and a distillation trains two; use several_gpus.yaml")
        self.sampler = make_scheduler("lcm", {**noise_schedule.config, "original_inference_steps": distillation.calls})
        self.sampler.set_timesteps(distillation.calls, device=accelerator.device)
        self.starts = self.sampler.timesteps.clone()
        self.raw_critic = critic_of(teacher.unet, distillation.calls)
        self.critic = self._prepare(self.raw_critic)

    def _learn(self) -> Tensor:
        """Step with student and critic; returns the critic's loss, or at the start the student's own."""
        if self.step < self.options.denoising_steps:
            return super()._learn()
        ((part, images, class_labels),) = self._passes()
        # spread over the calls as the timesteps are over their range
        calls = part.timesteps * len(self.starts) // self.noise_schedule.config.num_train_timesteps
        starts = self.starts[calls]
        if self.options.own_starts:
            images = self._own_images(images, class_labels, calls)
        noisy = self.noise_schedule.add_noise(images, part.noise, starts)
        self._seed_network(self._start(0))
        prediction = self.model(noisy, starts, class_labels=class_labels).sample.float()
        generated = predicted_image(self.noise_schedule, noisy, prediction, starts)
        clean = generated.detach().clamp(-1, 1)  # as the sampler clips it
        critic_labels = self._critic_labels(class_labels, calls)
        gradient = self._divergence_gradient(clean, class_labels, critic_labels)
        self._step(self.model, self.optimizers[0], (generated * gradient).mean())
        self.critic.train()
        means = []
        for use in range(1, 1 + self.options.critic_steps):
            noise, timesteps = self._noise(use)
            losses = denoising_loss(self.critic, self.teacher_noise_schedule, clean, noise, timesteps, critic_labels)
            self._step(self.critic, self.optimizers[1], losses.mean())
            self.window.count(losses.detach(), timesteps)
            means.append(losses.detach().mean())
        return torch.stack(means).mean()

    @torch.no_grad()
    def _own_images(self, images: Tensor, class_labels: Tensor | None, calls: Tensor) -> Tensor:
        """Return the student's inputs at each image's call; at the first call, the image itself."""
        generated, before = images, images
        self.model.eval()
        for call, start in enumerate(self.starts[:-1]):
            noise, _ = self._noise(1 + self.options.critic_steps + call)
            noisy = self.noise_schedule.add_noise(generated, noise, start.expand(len(images)))
            prediction = self.model(noisy, start, class_labels=class_labels).sample.float()
            generated = predicted_image(self.noise_schedule, noisy, prediction, start).clamp(-1, 1)
            before = torch.where(rearrange(calls == call + 1, "b -> b 1 1 1"), generated, before)
        self.model.train()
        return before

    def _critic_labels(self, class_labels: Tensor | None, calls: Tensor) -> Tensor:
        """Return the critic's labels, of class and call."""
        if class_labels is None or self.num_classes is None:
            return calls
        return calls * (self.num_classes + 1) + class_labels

    def _divergence_gradient(self, clean: Tensor, class_labels: Tensor | None, critic_labels: Tensor) -> Tensor:
        """Return the gradient of SiD's loss, with alpha 1, with respect to the generated images.

        It goes through both denoisers. The loss of each image is scaled by the teacher's error.
        """
        noise_schedule = self.teacher_noise_schedule
        noise, timesteps = self._noise(0)
        clean = clean.clone().requires_grad_()
        noisy = noise_schedule.add_noise(clean, noise, timesteps)
        self.raw_critic.eval()
        with self.accelerator.autocast():
            predictions = [
                network(noisy, timesteps, class_labels=labels).sample.float()
                for network, labels in ((self.raw_critic, critic_labels), (self.teacher, class_labels))
            ]
        ours, theirs = (predicted_image(noise_schedule, noisy, prediction, timesteps) for prediction in predictions)
        gap, scale = theirs - ours, (clean - theirs).detach().abs().mean(dim=(1, 2, 3), keepdim=True)
        losses = gap * (ours - clean) / scale.clamp(min=1e-3)
        (gradient,) = torch.autograd.grad(losses.sum(), clean)
        return gradient

    def _noise(self, use: int) -> tuple[Tensor, Tensor]:
        """Return this process's noise and timesteps for generated images."""
        length, count = self.training.batch_size, self.noise_schedule.config.num_train_timesteps
        whole = length * self.accelerator.num_processes
        generator = seeded_generator(DISTILLATION, self.training.seed, self.step, use)
        low, high = (round(share * count) for share in COMPARED)
        timesteps = torch.randint(low, high, (whole,), generator=generator)
        noise = torch.randn(whole, *self.image_shape, generator=generator)
        rows, device = slice(self._start(0), self._start(0) + length), self.accelerator.device
        return noise[rows].to(device), timesteps[rows].to(device)


def kind_of(distillation: DistillationConfig) -> type[Student]:
    """Return the learner of a distillation."""
    if distillation.calls is None:
        return GuidanceStudent
    return TrajectoryStudent if distillation.objective == "trajectories" else Distiller


def _between(alphas_cumprod: Tensor, points: set[int]) -> list[int]:
    """Return timesteps with all `points` among them, and the others about even in log SNR, noisiest first."""
    log_snr = alphas_cumprod.double().logit()
    highest, *_, lowest = spaced_timesteps(alphas_cumprod, TRAJECTORY_STEPS)
    length = float(log_snr[lowest] - log_snr[highest]) / TRAJECTORY_STEPS
    ends = [highest, *sorted((point for point in points if lowest < point < highest), reverse=True), lowest]
    timesteps = []
    for start, end in pairwise(ends):
        steps = max(1, round(float(log_snr[end] - log_snr[start]) / length))
        levels = torch.linspace(float(log_snr[start]), float(log_snr[end]), steps + 1, dtype=torch.double)
        timesteps += [start, *((log_snr - level).abs().argmin().item() for level in levels[1:-1])]
    return [*timesteps, lowest]


def _sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a network's weights."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()
