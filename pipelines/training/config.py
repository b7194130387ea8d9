"""Settings of a training run, and their form in files."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from diffusers import ModelMixin, SchedulerMixin

from denoiser.checks import check_between, check_divisible, check_kinds, check_positive, check_seed, plain
from denoiser.data import DataConfig
from pipelines import SamplingConfig
from pipelines.hub import is_repository

_COUNTS = (
    *("max_steps", "batch_size", "gradient_accumulation_steps", "warmup_steps", "log_every", "sample_every"),
    *("evaluate_every", "evaluation_images", "checkpoint_every", "checkpoints_kept", "max_skipped_steps"),
)


@dataclass(frozen=True)
class TrainingConfig:
    """Training settings. The run ends with `max_steps` or `max_minutes`, whichever comes first.

    Attributes:
        max_steps: Optimizer steps.
        max_minutes: Wall-clock minutes, evaluations included; the learning rate follows the clock.
        batch_size: Images in a forward pass of each process.
        gradient_accumulation_steps: Forward passes in an optimizer step.
        learning_rate: Peak learning rate of AdamW, decayed to zero along a cosine.
        warmup_steps: Optimizer steps of linear warm-up.
        adam_betas: Decay rates of the first and second moments.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Gradient clipping norm.
        ema_decay: Highest decay of the average of the weights.
        ema_power: The decay of the average at step n is 1 - (1 + n)^-power, up to `ema_decay`.
        guide_at: Fraction of the run after which the averaged weights are kept as the guide of the pipeline,
            for autoguidance; None for no guide.
        autoguidance_scale: Scale of autoguidance that the pipeline is saved with.
        loss_weighting: Squared error of the "prediction", or with "min_snr" weights (Hang et al. 2023).
        label_dropout: Probability of the null label, for classifier-free guidance.
        horizontal_flips: Whether each image is flipped horizontally with probability 1/2.
        mixed_precision: "no", "bf16", "fp16" or "auto": bf16 where the device multiplies it natively.
        channels_last: Whether channels are innermost in memory, which is faster in mixed precision.
        compile: Whether to compile the network (`torch.compile`), which takes a minute or two.
        gradient_checkpointing: Whether to recompute activations in the backward pass, to save memory.
        seed: Seed of the data order, the noise, the timesteps and the dropout.
        log_every: Steps between lines of metrics.
        sample_every: Steps between sample grids.
        evaluate_every: Steps between evaluations; the last step is always evaluated.
        evaluation_images: Number of samples, and of held-out images, of an evaluation.
        checkpoint_every: Steps between checkpoints.
        checkpoints_kept: Number of newest checkpoints to keep.
        keep_every: Steps between checkpoints that are kept for good; None for none.
        max_skipped_steps: Steps in a row with a non-finite gradient after which the run stops.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    adam_betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_power: float = 2 / 3
    guide_at: float | None = 1 / 3
    autoguidance_scale: float = 2.0
    loss_weighting: Literal["prediction", "min_snr"] = "prediction"
    label_dropout: float = 0.1
    horizontal_flips: bool = False
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    channels_last: bool = True
    compile: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0
    log_every: int = 50
    sample_every: int = 1000
    evaluate_every: int = 2000
    evaluation_images: int = 2048
    checkpoint_every: int = 500
    checkpoints_kept: int = 2
    keep_every: int | None = None
    max_skipped_steps: int = 10

    def __post_init__(self) -> None:
        check_kinds(self)
        if self.max_steps is None and self.max_minutes is None:
            raise ValueError("the run has no end: give training.max_steps or training.max_minutes")
        counts = {name: getattr(self, name) for name in _COUNTS}
        check_positive(**{name: count for name, count in counts.items() if count is not None})
        if self.keep_every is not None:
            check_divisible("keep_every", self.keep_every, self.checkpoint_every, "checkpoint_every")
        check_seed(self.seed)
        for name in ("max_minutes", "learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a finite number above 0")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be a finite number of 0 or more")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas are {self.adam_betas}; each must be from 0 to below 1")
        if self.guide_at is not None and not 0 < self.guide_at < 1:
            raise ValueError(f"guide_at is {self.guide_at}; it must be above 0 and below 1, or null")
        if not math.isfinite(self.autoguidance_scale):
            raise ValueError(f"autoguidance_scale is {self.autoguidance_scale}; it must be a finite number")
        check_between(0, 1, ema_decay=self.ema_decay, ema_power=self.ema_power, label_dropout=self.label_dropout)

    @property
    def own_autoguidance(self) -> float | None:
        """Scale of autoguidance that the pipeline is saved with; None without a guide."""
        return None if self.guide_at is None else self.autoguidance_scale


@dataclass(frozen=True)
class TrackingConfig:
    """Weights & Biases settings.

    Attributes:
        mode: "online", "offline", "disabled" or "auto": online with a login, offline without.
        project: Name of the project; None for `WANDB_PROJECT`, or "denoiser".
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self)


@dataclass(frozen=True)
class RunConfig:
    """Settings of a run, apart from its network and its noise schedule.

    Attributes:
        output_dir: Run folder, made by the run.
        training: Training settings.
        data: Settings of the image set.
        sampling: Sampling settings of the sample grids.
        tracking: Weights & Biases settings.
        init_from: Pipeline whose weights the training starts from: "teacher", a folder, or user/name of the Hub.
        resume: Checkpoint to resume from, or "latest" for the newest in `output_dir`, if there is any.
        hub_repo: Repository `user/name` of the Hugging Face Hub to which the pipeline is pushed at the end.
    """

    output_dir: str
    training: TrainingConfig
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    init_from: str | None = None
    resume: str | None = None
    hub_repo: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if not self.output_dir:
            raise ValueError("output_dir is empty; name a folder for the run")
        if self.sampling.autoguidance_scale is not None or self.sampling.autoguidance_interval is not None:
            raise ValueError(
                "sampling.autoguidance_scale and _interval are of finished pipelines; give training.autoguidance_scale"
            )
        if self.hub_repo is not None and not is_repository(self.hub_repo):
            raise ValueError(f"hub_repo is '{self.hub_repo}'; it must be user/name, as the Hub names a repository")

    @property
    def made(self) -> str:
        """How the network is made, for its card."""
        return f"trained from the weights of `{self.init_from}`" if self.init_from else "trained"


def architecture(model: ModelMixin) -> dict[str, Any]:
    """Return the import path of the model's class and its arguments."""
    path = f"{type(model).__module__}.{type(model).__qualname__}"
    return {"class_path": path, "init_args": _public(model.config)}


def components(model: ModelMixin, noise_schedule: SchedulerMixin) -> dict[str, Any]:
    """Return what rebuilds the model and the noise schedule, as the sections of a config file."""
    return {"model": architecture(model), "scheduler": _public(noise_schedule.config)}


def settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run as the sections of a config file."""
    return _plain(asdict(config))


def _public(component_config: dict[str, Any]) -> dict[str, Any]:
    """Leave out diffusers' private entries, such as the folder of the weights."""
    return _plain({name: value for name, value in component_config.items() if not name.startswith("_")})


def _plain(value: Any) -> Any:
    """Convert tuples and arrays to lists and numbers to Python's, as YAML and JSON have them."""
    value = plain(value)
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
