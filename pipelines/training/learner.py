"""One optimizer step, and the state that it changes: weights, optimizer, average of the weights."""

import logging
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.training_utils import EMAModel
from einops import rearrange
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from denoiser.checks import pair, plain
from denoiser.data import ImageSet, RandomBatch, drop_labels, random_batch
from denoiser.device import in_best_layout
from denoiser.processes import whole
from denoiser.randomness import CALIBRATION, NETWORK, seeded_generator
from pipelines import DenoisingPipeline
from pipelines.spacing import takes_timesteps
from pipelines.training.budget import learning_rate
from pipelines.training.config import TrainingConfig, architecture, components
from pipelines.training.loss import check_noise_schedule, denoising_loss, loss_weights
from pipelines.training.metrics import Validation, Window

logger = logging.getLogger(__name__)

CALIBRATION_BATCHES, CALIBRATION_BATCH_SIZE = 50, 128

# Randomness, images in [-1, 1] and labels (None for an unconditional network) of a forward pass.
Pass = tuple[RandomBatch, Tensor, Tensor | None]


class Learner:
    """Takes optimizer steps on a network. The images of the next step are fetched by a thread meanwhile.

    A network's own dropout comes from PyTorch's global generator, which each forward pass seeds. All
    other randomness is independent of the number of processes and passes that share a batch.

    Args:
        training: Training settings.
        model: Network with `UNet2DModel`'s call contract, trained in place.
        noise_schedule: Noise levels and prediction type.
        accelerator: From `start_accelerator`.
        images: Training set, of the model's size.

    Attributes:
        step: Optimizer steps taken.
        window: Metrics since it was last replaced.
        skipped: Whether the last step was skipped for a non-finite gradient.
        optimizers: Optimizers of all the networks in training, the model's first.
        sampler: Scheduler that the trained pipeline is saved with.
        guide: Averaged weights at `guide_at`, or None before.

    Raises:
        ValueError: If the images do not fit the model, or the noise schedule is invalid.
    """

    def __init__(
        self,
        training: TrainingConfig,
        model: ModelMixin,
        noise_schedule: DDPMScheduler,
        accelerator: Accelerator,
        images: ImageSet,
    ) -> None:
        if not isinstance(noise_schedule, DDPMScheduler):
            raise ValueError(f"the scheduler is a {type(noise_schedule).__name__}; a training takes a DDPMScheduler")
        _check_image_set(images)
        for part in (model, noise_schedule):  # whose numbers are written to files
            part.register_to_config(**plain({name: part.config[name] for name in part.config if name[0] != "_"}))
        self.training, self.noise_schedule, self.accelerator = training, noise_schedule, accelerator
        self.images = images.to(accelerator.device)
        self.images_sha256 = images.sha256
        self._fetcher = ThreadPoolExecutor(1, "images")
        self._fetched: tuple[int, Future[list[Pass]]] | None = None  # with its step
        self.raw_model: ModelMixin = model
        self.components = components(model, noise_schedule)  # before FSDP makes another class of it
        self.num_classes: int | None = model.config.get("num_class_embeds")
        self.image_shape = (model.config.in_channels, *pair(model.config.sample_size))
        self.check_images(images)
        if len(images) < self.images_per_step:
            raise ValueError(
                f"there are {len(images):,} images to train on, fewer than the {self.images_per_step:,} of a step; "
                "lower training.batch_size"
            )
        self._check_label_dropout()
        check_noise_schedule(noise_schedule)

        self.loss_weights = loss_weights(noise_schedule, training.loss_weighting).to(accelerator.device)
        self.optimizers: list[Optimizer] = []
        self.model = self._prepare(model)
        self.sampler: SchedulerMixin = noise_schedule
        self.ema = EMAModel(
            model.parameters(), decay=training.ema_decay, use_ema_warmup=True, power=training.ema_power, foreach=True
        )
        self.guide: list[Tensor] | None = None
        self.guide_is_due = self.guided
        self.step = 0
        self.skipped, self.skipped_in_a_row = False, 0
        self.window = self.new_window()

    def described(self) -> dict[str, Any]:
        """Return the sections of the run's config file besides its settings."""
        return self.components

    def identity(self) -> dict[str, Any]:
        """Return the settings that a checkpoint must share with the run that loads it."""
        return {**self.components, "data": {"images": len(self.images), "sha256": self.images_sha256}}

    def new_window(self) -> Window:
        """Return empty metrics."""
        return Window(self.noise_schedule.config.num_train_timesteps, self.accelerator.device)

    def take_step(self, progress: float) -> float:
        """Take one optimizer step, or skip it if its gradient is not finite.

        Args:
            progress: Fraction of the run that is over, 0 to 1; the learning rate follows it.

        Returns:
            The mean loss of this process's images.

        Raises:
            FloatingPointError: If `max_skipped_steps` steps in a row were skipped.
        """
        rate = learning_rate(self.training.learning_rate, self.training.warmup_steps, self.step, progress)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        with self.window.timed("step"):
            if not self.raw_model.training:  # to ask is cheaper than to tell every layer
                self.model.train()
            self.skipped = False
            statistics = [buffer.clone() for buffer in self.raw_model.buffers()]  # a batch norm's
            loss = self._learn().item()
            if self.skipped:
                for buffer, before in zip(self.raw_model.buffers(), statistics, strict=True):
                    buffer.copy_(before)
            else:
                self.ema.step(self.raw_model.parameters())
            if self.guide_is_due and progress >= (self.training.guide_at or 0):
                self.guide, self.guide_is_due = [shadow.clone() for shadow in self.ema.shadow_params], False
        self.window.count_step(self.images_per_step, self.skipped)
        self.step += 1
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if self.skipped else 0
        if self.skipped_in_a_row == self.training.max_skipped_steps:
            raise FloatingPointError(f"the gradient was not finite in {self.skipped_in_a_row} steps up to {self.step}")
        return loss

    def pipeline(self, sampler: SchedulerMixin | None = None) -> DenoisingPipeline:
        """Return the pipeline of the averaged weights, with `sampler` instead of the learner's if given."""
        names = None if self.num_classes is None else self.images.class_names
        model, guide = (
            None if weights is None else averaged_model(self.raw_model, weights, self.noise_schedule, self.images)
            for weights in (self.ema.shadow_params, self.guide)
        )
        scale = 1.0 if guide is None else self.training.autoguidance_scale
        spacing = "log-snr" if takes_timesteps(self.sampler) else None
        pipeline = DenoisingPipeline(model, sampler or self.sampler, names, guide, scale, spacing)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def validate(self, validation: Validation, sampler: SchedulerMixin) -> dict[str, float]:
        """Return the held-out loss and the Fréchet distance of the averaged weights, in training precision."""
        pipeline = self.pipeline(sampler)
        with self.accelerator.autocast():
            return {**validation.held_out_loss(pipeline, self.noise_schedule), **validation.frechet_distance(pipeline)}

    def resume(self, step: int, guide: list[Tensor] | None, progress: float) -> None:
        """Go on after a step of a run, of which `progress` is over, with the guide that it had kept, if any.

        Without one, it keeps a guide if half of what followed `guide_at` is still to come: a later one would be
        too near to the network.
        """
        self.step, self.guide = step, guide if self.guided else None
        self.guide_is_due = self.guided and guide is None and progress < (1 + (self.training.guide_at or 0)) / 2

    @property
    def guided(self) -> bool:
        """Whether the pipeline gets a guide."""
        return self.training.guide_at is not None

    @property
    def images_per_step(self) -> int:
        """Images in a step, of all processes and all accumulated passes."""
        training = self.training
        return training.batch_size * self.accelerator.num_processes * training.gradient_accumulation_steps

    def _prepare(self, model: ModelMixin) -> nn.Module:
        """Prepare a network for training, and add its optimizer."""
        training = self.training
        if training.channels_last:
            in_best_layout(model)
        if training.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        optimizer = AdamW(
            model.parameters(),
            lr=training.learning_rate,
            betas=training.adam_betas,
            weight_decay=training.weight_decay,
            fused=True,
        )
        prepared, optimizer = self.accelerator.prepare(model, optimizer)
        self.optimizers.append(optimizer)
        return prepared

    def _learn(self) -> Tensor:
        """Update the weights once; returns this process's loss."""
        losses = [self._backward(micro, *images) for micro, images in enumerate(self._passes())]
        return torch.stack(losses).mean()

    def _passes(self) -> Sequence[Pass]:
        """Return the passes of this step, and let the thread fetch those of the next."""
        with self.window.timed("data"):
            if self._fetched is None or self._fetched[0] != self.step:
                self._fetched = self.step, self._fetcher.submit(self._fetch, self.step)
            passes = self._fetched[1].result()
        self._fetched = self.step + 1, self._fetcher.submit(self._fetch, self.step + 1)
        return passes

    def _fetch(self, step: int) -> list[Pass]:
        """Return this process's passes of a step."""
        training, accelerator = self.training, self.accelerator
        sizes = self.images_per_step, self.image_shape, len(self.images), self.noise_schedule.config.num_train_timesteps
        passes: list[Pass] = []
        for micro_step in range(training.gradient_accumulation_steps):
            rows = range(self._start(micro_step), self._start(micro_step) + training.batch_size)
            part = random_batch(training.seed, step, *sizes, training.label_dropout, rows)
            images, labels = self.images.batch(part.indices, accelerator.device)
            part = part.to(accelerator.device)  # after the images: a mapped set is read where the indices are
            if training.horizontal_flips:
                images = torch.where(rearrange(part.flipped, "b -> b 1 1 1"), images.flip(-1), images)
            passes.append((part, images, drop_labels(labels, self.num_classes, part.label_dropped)))
        return passes

    def _start(self, micro_step: int) -> int:
        """Return the place in the global batch where this process's pass begins."""
        accelerator = self.accelerator
        return (micro_step * accelerator.num_processes + accelerator.process_index) * self.training.batch_size

    def _backward(self, micro_step: int, part: RandomBatch, images: Tensor, class_labels: Tensor | None) -> Tensor:
        """Pass images forward and backward, and step after the last pass."""
        accelerator = self.accelerator
        self._seed_network(self._start(micro_step))
        with accelerator.accumulate(self.model):
            losses, timesteps = self._losses(part, images, class_labels)
            self._step(self.model, self.optimizers[0], (losses * self.loss_weights[timesteps]).mean())
        self.window.count(losses.detach(), timesteps)
        return losses.detach().mean()

    def _losses(self, part: RandomBatch, images: Tensor, class_labels: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the losses of a pass, and their timesteps, both `(predictions,)`."""
        timesteps = part.timesteps
        return denoising_loss(self.model, self.noise_schedule, images, part.noise, timesteps, class_labels), timesteps

    def _step(self, model: nn.Module, optimizer: Optimizer, loss: Tensor) -> None:
        """Pass a loss backward; after the last pass, step unless the gradient is not finite."""
        accelerator = self.accelerator
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            norm = whole(accelerator.clip_grad_norm_(model.parameters(), self.training.max_grad_norm))
            if not norm.isfinite():
                self.skipped = True
                logger.warning("step %d is skipped: its gradient is not finite", self.step + 1)
                if accelerator.mixed_precision != "fp16":  # whose scaler skips the step, and adapts its scale by that
                    optimizer.zero_grad()
                    return
            elif model is self.model:
                self.window.gradient_norms.append(norm)
        optimizer.step()
        optimizer.zero_grad()

    def _seed_network(self, start: int) -> None:
        """Seed PyTorch's global generator, which the network's dropout uses."""
        torch.manual_seed(seeded_generator(NETWORK, self.training.seed, self.step, start).initial_seed())

    def check_images(self, images: ImageSet) -> None:
        """Raise `ValueError` if the channels, sizes or classes of the images are not the network's."""
        _check_image_set(images)
        shape, names = tuple(images.images.shape[1:]), images.class_names
        if shape != self.image_shape:
            raise ValueError(f"the images are {shape} (channels, height, width), the model wants {self.image_shape}")
        if (out_channels := self.raw_model.config.out_channels) != shape[0]:
            raise ValueError(f"the model has out_channels {out_channels}, the images have {shape[0]} channels")
        if self.num_classes not in (None, len(names)):
            raise ValueError(f"the model has num_class_embeds {self.num_classes}, the images have {len(names)} classes")

    def _check_label_dropout(self) -> None:
        """Raise `ValueError` if labels are to be dropped and the network has none, or no null label."""
        rate, network = self.training.label_dropout, type(self.raw_model).__name__
        if (kind := self.raw_model.config.get("class_embed_type")) is not None:
            raise ValueError(f"class_embed_type is {kind}, and labels here are indices of classes; leave it out")
        if self.num_classes is None and rate not in (0, TrainingConfig.label_dropout):
            raise ValueError(f"label_dropout is {rate}, and the network takes no labels; leave it out")
        if self.num_classes is not None and rate and getattr(self.raw_model, "null_label", None) is None:
            raise ValueError(
                f"label_dropout is {rate}, and {network} has no null label to put in a label's place; give "
                "--training.label_dropout 0"
            )


def _check_image_set(images: ImageSet) -> None:
    if not isinstance(images, ImageSet):
        raise ValueError(f"the images are a {type(images).__name__}; give a denoiser.data.ImageSet")


def averaged_model(
    model: ModelMixin, weights: Sequence[Tensor], noise_schedule: DDPMScheduler, images: ImageSet
) -> ModelMixin:
    """Return a copy of `model` with averaged weights, in evaluation mode and float32.

    A batch norm's running statistics belong to the trained weights, not to their average. They are
    measured anew with the averaged weights, on noisy training images (Izmailov et al. 2018, section
    3.2). Every process has to call this function.
    """
    device = next(model.parameters()).device
    average = type(model).from_config(architecture(model)["init_args"]).to(device)
    copies = {name: whole(tensor).clone() for name, tensor in model.state_dict().items()}
    average.load_state_dict(copies, assign=True)  # which keeps the layout of the weights
    for parameter, shadow in zip(average.parameters(), weights, strict=True):
        parameter.data.copy_(whole(shadow))
    if any(isinstance(module, nn.BatchNorm2d) for module in average.modules()):
        measure_batch_statistics(average, noise_schedule, images)
    return average.eval()


@torch.no_grad()
def measure_batch_statistics(model: ModelMixin, noise_schedule: DDPMScheduler, images: ImageSet) -> None:
    """Set the running statistics of all batch norms to their mean over fixed noisy batches."""
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over all batches
    model.train()
    for batch in range(CALIBRATION_BATCHES):
        generator = seeded_generator(CALIBRATION, 0, batch)
        indices = torch.randint(len(images), (CALIBRATION_BATCH_SIZE,), generator=generator)
        clean, _ = images.batch(indices, next(model.parameters()).device)
        timesteps = torch.randint(noise_schedule.config.num_train_timesteps, (len(clean),), generator=generator)
        noise = torch.randn(clean.shape, generator=generator).to(clean.device)
        timesteps = timesteps.to(clean.device)
        model(noise_schedule.add_noise(clean, noise, timesteps), timesteps)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
