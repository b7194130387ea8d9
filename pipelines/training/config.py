"""The settings of a run: one frozen dataclass, and what turns it, a model and a scheduler into a file and back."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from diffusers import ModelMixin, SchedulerMixin

from denoiser.checks import check_between, check_divisible, check_kinds, check_positive, check_seed
from denoiser.plain import plain
from pipelines import SamplingConfig


@dataclass(frozen=True)
class DataConfig:
    """Where the images are.

    Attributes:
        root: Folder that holds FashionMNIST's files or gets them, and the cache of resized images.
    """

    root: str = "data"

    def __post_init__(self) -> None:
        check_kinds(self)


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is trained. The run ends with `max_steps` or `max_minutes`, whichever comes first.

    Attributes:
        max_steps: Optimizer steps.
        max_minutes: Minutes by the clock, all that it does included; the learning rate follows the clock.
        batch_size: Images in a forward pass of each process.
        gradient_accumulation_steps: Forward passes in an optimizer step.
        optimizer: "adamw"; or "muon" or "soap", which the extra `[bench]` brings.
        learning_rate: Peak rate: reached after the warm-up, then decayed to zero along a cosine.
        warmup_steps: Optimizer steps over which the rate rises linearly.
        adam_betas: Decay of the first and second moments.
        weight_decay: Decoupled weight decay.
        max_grad_norm: Norm to which the gradient is clipped.
        ema_decay: Highest decay of the average of the weights.
        ema_power: The decay of the average at step n is 1 - (1 + n)^-power, up to `ema_decay`.
        loss_weighting: What the squared error is of: the "prediction" as it is, the "noise" that follows from it, or
            "min_snr", the noise's with less weight on the cleanest images (`pipelines.training.noise_levels`).
        log_normal_levels: Mean and standard deviation of ln(sigma), the noise levels to train on; None for timesteps
            drawn uniformly.
        stratified_timesteps: Whether the timesteps of a batch are spread evenly, or drawn independently.
        label_dropout: Share of the labels replaced by the null label, for classifier-free guidance.
        mixed_precision: "no", "bf16", "fp16", or "auto": bf16 where the device multiplies it natively, else "no".
        channels_last: Whether the channels are innermost in memory, which mixed precision is faster with.
        compile: Whether the network is compiled (`torch.compile`), which takes a minute or two at the start.
        gradient_checkpointing: Whether activations are computed again in the backward pass, to save memory.
        seed: Of the data order, the noise, the timesteps, the label dropout and the network's own dropout.
        log_every: Steps between lines of metrics.
        sample_every: Steps between grids of samples.
        evaluate_every: Steps between evaluations; the last step is always evaluated.
        evaluation_images: Samples, and held-out images, of such an evaluation.
        checkpoint_every: Steps between checkpoints.
        checkpoints_kept: Newest checkpoints kept.
        keep_every: Steps between checkpoints that are kept for good besides; None for none.
        max_skipped_steps: Steps in a row whose gradient may be infinite or no number, and that change nothing.
    """

    max_steps: int | None = None
    max_minutes: float | None = None
    batch_size: int = 64
    gradient_accumulation_steps: int = 1
    optimizer: Literal["adamw", "muon", "soap"] = "adamw"
    learning_rate: float = 4e-3
    warmup_steps: int = 100
    adam_betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.9999
    ema_power: float = 2 / 3
    loss_weighting: Literal["prediction", "noise", "min_snr"] = "prediction"
    log_normal_levels: tuple[float, float] | None = None
    stratified_timesteps: bool = True
    label_dropout: float = 0.1
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
        if self.max_steps is not None:
            check_positive(max_steps=self.max_steps)
        check_positive(
            batch_size=self.batch_size,
            gradient_accumulation_steps=self.gradient_accumulation_steps,
            warmup_steps=self.warmup_steps,
            log_every=self.log_every,
            sample_every=self.sample_every,
            evaluate_every=self.evaluate_every,
            evaluation_images=self.evaluation_images,
            checkpoint_every=self.checkpoint_every,
            checkpoints_kept=self.checkpoints_kept,
            max_skipped_steps=self.max_skipped_steps,
        )
        if self.keep_every is not None:
            check_divisible("keep_every", self.keep_every, self.checkpoint_every, "checkpoint_every")
        check_seed(self.seed)
        for name in ("max_minutes", "learning_rate", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a finite number above 0")
        _check_levels(self.log_normal_levels)
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay is {self.weight_decay}; it must be a finite number of 0 or more")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas are {self.adam_betas}; each must be from 0 to below 1")
        check_between(0, 1, ema_decay=self.ema_decay, ema_power=self.ema_power, label_dropout=self.label_dropout)


def _check_levels(levels: tuple[float, float] | None) -> None:
    if levels is not None and not (len(levels) == 2 and math.isfinite(levels[0]) and 0 < levels[1] < math.inf):
        raise ValueError(f"log_normal_levels are {levels}; give a finite mean and a deviation above 0")


@dataclass(frozen=True)
class TrackingConfig:
    """Where the run is logged besides `metrics.jsonl`.

    Attributes:
        mode: Weights & Biases "online", "offline" or "disabled"; "auto" is online with a login and offline without.
        project: Name of the wandb project; None for that of `WANDB_PROJECT`, or "denoiser".
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self)


@dataclass(frozen=True)
class RunConfig:
    """Everything that a run depends on besides its model and its scheduler.

    Attributes:
        output_dir: Run folder, made by the run.
        training: How the network is trained.
        data: Where the images are.
        sampling: How the grids of samples are made.
        tracking: Where the run is logged.
        resume: Checkpoint folder to go on from, or "latest" for the newest in `output_dir` (or a new start).
    """

    output_dir: str
    training: TrainingConfig
    data: DataConfig = field(default_factory=DataConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    resume: str | None = None

    def __post_init__(self) -> None:
        check_kinds(self)
        if not self.output_dir:
            raise ValueError("output_dir is empty; name a folder for the run")


def architecture(model: ModelMixin) -> dict[str, Any]:
    """Return what rebuilds the model without its weights: the import path of its class and its arguments."""
    path = f"{type(model).__module__}.{type(model).__qualname__}"
    return {"class_path": path, "init_args": _public(model.config)}


def components(model: ModelMixin, scheduler: SchedulerMixin) -> dict[str, Any]:
    """Return what rebuilds the model and the scheduler, as plain values."""
    return {"model": architecture(model), "scheduler": _public(scheduler.config)}


def settings(config: RunConfig) -> dict[str, Any]:
    """Return the settings of a run as plain values, in the shape of a config file."""
    return _plain(asdict(config))


def _public(component_config: dict[str, Any]) -> dict[str, Any]:
    """Leave out what diffusers notes down: the folder of the weights, and defaults, with positional arguments in it."""
    return _plain({name: value for name, value in component_config.items() if not name.startswith("_")})


def _plain(value: Any) -> Any:
    """Turn tuples and arrays into lists, and numbers into Python's own, which is what YAML and JSON have."""
    value = plain(value)
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value
