"""Distillation of a denoiser: its settings, what all students share, and the student of the guided prediction."""

import copy
import hashlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal

import safetensors.torch
import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.models.unets.unet_2d import UNet2DOutput
from torch import Tensor, nn

from denoiser.checks import check_kinds, check_positive
from denoiser.data import ImageSet, RandomBatch
from denoiser.device import in_best_layout
from denoiser.unet import UNet
from pipelines import DenoisingPipeline, SamplingConfig
from pipelines.predictor import Guidance
from pipelines.schedulers import build_scheduler
from pipelines.stepping import distilled_calls
from pipelines.training.config import RunConfig, TrainingConfig
from pipelines.training.learner import Learner
from pipelines.training.loss import squared_errors
from pipelines.training.metrics import Validation

Objective = Literal["sid", "trajectories", "guidance"]
MOST_CALLS = {"sid": 20, "trajectories": 8}
_WITHOUT_EFFECT = {
    "sid": (),
    "trajectories": ("critic_steps", "own_starts"),
    "guidance": ("calls", "critic_steps", "denoising_steps", "own_starts"),
}


@dataclass(frozen=True)
class DistillationConfig:
    """Distillation settings.

    Attributes:
        teacher: Pretrained pipeline by name, folder of a saved one, or repository `user/name` of the Hub.
        objective: What the student learns: "sid", to match the teacher's distribution in a few calls;
            "trajectories", to take the steps of the teacher's ODE in a few calls; or "guidance", to predict
            what the teacher and its guide predict together, as one network for every sampler.
        calls: Network calls in which a student of a few calls samples, at most: in so many or fewer with
            "sid", with "trajectories" in so many, in half of them, rounded down, and so on to 1.
        autoguidance_scale: Scale of autoguidance by the teacher's guide; None is the teacher's own, 1 is none.
        critic_steps: Critic steps for each student step of "sid".
        denoising_steps: Steps at the start in which the student learns to predict velocities, of the data
            with "sid" and of the teacher with "trajectories": at pure noise the noise that the teacher
            predicts says nothing of the image.
        own_starts: Whether calls start from the student's own images, as in sampling (DMD2: Yin et al.
            2024, section 4.5), instead of real ones; for the last stage of a distillation.
    """

    teacher: str = "teacher"
    objective: Objective = "sid"
    calls: int = 4
    autoguidance_scale: float | None = None
    critic_steps: int = 2
    denoising_steps: int = 300
    own_starts: bool = False

    def __post_init__(self) -> None:
        check_kinds(self)
        check_positive(calls=self.calls, critic_steps=self.critic_steps, denoising_steps=self.denoising_steps)
        for name in _WITHOUT_EFFECT[self.objective]:
            if (value := getattr(self, name)) != getattr(DistillationConfig, name):
                raise ValueError(f"{name} is {value}, and has no effect on {self.objective}; leave it out")
        if self.calls > (most := MOST_CALLS.get(self.objective, self.calls)):
            raise ValueError(f"calls is {self.calls}; it must be up to {most}: the teacher can sample in more")
        if self.autoguidance_scale is not None and not math.isfinite(self.autoguidance_scale):
            raise ValueError(f"autoguidance_scale is {self.autoguidance_scale}; it must be a finite number")


@dataclass(frozen=True)
class DistillationRun(RunConfig):
    """Settings of a distillation run; the learning rate is the student's and the critic's.

    Attributes:
        sampling: Sampling settings of the sample grids: lcm for "sid" and ddim for "trajectories", with at most
            the student's calls; any other sampler for "guidance".
        distillation: Distillation settings.
    """

    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(scheduler="lcm", steps=4))
    distillation: DistillationConfig = field(default_factory=DistillationConfig)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.init_from is not None:
            raise ValueError(f"init_from is {self.init_from}, and a student starts from its teacher; leave it out")
        if self.distillation.objective != "sid" and self.sampling.scheduler == "lcm":
            use = "ddim" if self.distillation.objective == "trajectories" else "dpmsolver++"
            raise ValueError(f"sampling.scheduler is lcm, for students of sid; give --sampling.scheduler {use}")
        for name in ("guide_at", "autoguidance_scale"):
            if (value := getattr(self.training, name)) != getattr(TrainingConfig, name):
                raise ValueError(f"training.{name} is {value}, and a student has no guide; leave it out")

    @property
    def made(self) -> str:
        """How the network is made, for its card."""
        calls, teacher = self.distillation.calls, self.distillation.teacher
        if self.distillation.objective == "guidance":
            return f"distilled from `{teacher}` and its guide, which makes it no denoiser of the training images,"
        return f"distilled from `{teacher}` for sampling in up to {calls} calls,"


class Guided(nn.Module):
    """A network with autoguidance (Karras et al. 2024a, eq. 3), as one network."""

    def __init__(self, unet: ModelMixin, guide: ModelMixin, scale: float) -> None:
        super().__init__()
        self.unet, self.guide, self.scale = unet, guide, scale

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor | None = None) -> UNet2DOutput:
        """Return the guided prediction, in float32."""
        labels = {} if class_labels is None else {"class_labels": class_labels}
        ours, weaker = (network(sample, timestep, **labels).sample.float() for network in (self.unet, self.guide))
        return UNet2DOutput(sample=ours + (self.scale - 1) * (ours - weaker))


def guidance_of(teacher: DenoisingPipeline, distillation: DistillationConfig) -> float | None:
    """Return the scale of autoguidance that a student learns, or None without any.

    Raises:
        ValueError: If a scale was given, and there is no guide.
    """
    scale = Guidance(auto_scale=distillation.autoguidance_scale).with_own(teacher.autoguidance_scale).auto_scale
    return None if scale == 1 else scale


def student_of(teacher: DenoisingPipeline, distillation: DistillationConfig) -> tuple[ModelMixin, DDPMScheduler]:
    """Return a copy of the teacher's network and its noise schedule, for a few calls with velocity prediction.

    Raises:
        ValueError: If the teacher cannot be distilled.
    """
    if distilled_calls(teacher.scheduler.config):
        raise ValueError("the teacher is distilled itself, for a few noise levels only; give what it was made from")
    if not isinstance(teacher.unet, UNet):
        raise ValueError(f"the teacher's network is a {type(teacher.unet).__name__}; only a UNet can be distilled")
    if distillation.objective == "guidance":
        if guidance_of(teacher, distillation) is None:
            raise ValueError(
                "the teacher has no guide, or an autoguidance_scale of 1; a student of guidance needs both"
            )
        return copy.deepcopy(teacher.unet), teacher.noise_schedule
    config = {**teacher.scheduler.config, "prediction_type": "v_prediction"}
    return copy.deepcopy(teacher.unet), build_scheduler(DDPMScheduler, config)


class Student(Learner):
    """Learner of a student; the base class of the learners of each objective.

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
        network, scale = copy.deepcopy(teacher.unet), guidance_of(teacher, distillation)
        if scale is not None:
            self._check_guide(teacher.guide)
            network = Guided(network, copy.deepcopy(teacher.guide), scale)
        self.teacher = in_best_layout(network.to(accelerator.device)).eval().requires_grad_(False)
        self.teacher_noise_schedule = teacher.noise_schedule
        self.distilled: dict[str, Any] = {"calls": distillation.calls, "teacher": _sha256(self.teacher)}
        if distillation.objective != "sid":
            self.distilled["objective"] = distillation.objective
        if scale is not None:
            self.distilled["autoguidance_scale"] = scale
        self._set_up(teacher)

    def _set_up(self, teacher: DenoisingPipeline) -> None:
        """Build what the objective needs besides; the last part of the constructor."""

    @property
    def guided(self) -> bool:
        """Whether the pipeline gets a guide: a student has none."""
        return False

    def described(self) -> dict[str, Any]:
        """Return no sections: the network and the noise schedule follow from the teacher."""
        return {}

    def identity(self) -> dict[str, Any]:
        """Return the settings that a checkpoint must share with the run that loads it."""
        return {**super().identity(), "distillation": self.distilled}

    def validate(self, validation: Validation, sampler: SchedulerMixin) -> dict[str, float]:
        """Return the Fréchet distance of the averaged weights; the loss of a denoiser tells nothing of a student."""
        pipeline = self.pipeline(sampler)
        with self.accelerator.autocast():
            return validation.frechet_distance(pipeline)

    def _check_guide(self, guide: ModelMixin) -> None:
        """Raise `ValueError` if labels are to be dropped, and the guide has no null label."""
        if self.training.label_dropout and self.num_classes and getattr(guide, "null_label", None) is None:
            raise ValueError(
                f"label_dropout is {self.training.label_dropout}, and the guide, a {type(guide).__name__}, has no null "
                "label; give --training.label_dropout 0"
            )


class GuidanceStudent(Student):
    """Learner of the objective "guidance": a regression of the guided prediction at all noise levels."""

    def _losses(self, part: RandomBatch, images: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the mean squared differences from the guided predictions of a pass, and their timesteps."""
        noisy = self.noise_schedule.add_noise(images, part.noise, part.timesteps)
        with torch.no_grad(), self.accelerator.autocast():
            target = self.teacher(noisy, part.timesteps, class_labels=class_labels).sample
        prediction = self.model(noisy, part.timesteps, class_labels=class_labels).sample
        return squared_errors(prediction, target), part.timesteps


def _sha256(model: nn.Module) -> str:
    """Return the SHA-256 of a network's weights."""
    weights = {name: tensor.cpu().contiguous() for name, tensor in model.state_dict().items()}
    return hashlib.sha256(safetensors.torch.save(weights)).hexdigest()
