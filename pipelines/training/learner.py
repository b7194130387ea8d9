"""One training step, and all that it changes: the weights, the optimizer's state, the average of the weights."""

import logging
from typing import Any

import torch
from accelerate import Accelerator
from diffusers import DDPMScheduler, ModelMixin, SchedulerMixin
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from denoiser.checks import pair
from denoiser.data import ImageSet
from denoiser.device import in_best_layout
from denoiser.embeddings import drop_labels
from denoiser.plain import plain
from denoiser.processes import whole
from denoiser.randomness import NETWORK, seeded_generator
from pipelines import DenoisingPipeline
from pipelines.training.averaging import averaged_model
from pipelines.training.budget import learning_rate
from pipelines.training.config import TrainingConfig, components
from pipelines.training.draws import Draws, draw
from pipelines.training.metrics import Window
from pipelines.training.noise_levels import loss_weights, timestep_table
from pipelines.training.objective import check_noise_schedule, denoising_loss
from pipelines.training.optimizers import make_optimizer

logger = logging.getLogger(__name__)


class Learner:
    """Takes training steps.

    Networks draw their dropout from PyTorch's global generator, so each pass seeds that. All other draws are the same
    however many processes and passes share a batch; dropout's are each pass's own.

    Args:
        training: How the network is trained.
        model: Backbone with `UNet2DModel`'s call contract; it is trained in place.
        scheduler: Noise levels and prediction type.
        accelerator: From `start_accelerator`.
        images: Training set, of the model's size.

    Attributes:
        step: Optimizer steps taken.
        window: Figures of the steps since it was last set anew.
        skipped: Whether the last step changed nothing, because its gradient was not finite.
        optimizers: All that the steps are taken with, the model's first.
        own_scheduler: What the pipeline of the trained network is saved with.
        denoises: Whether the network learns to denoise at every noise level, so that a loss on held-out images tells.
        distillation: What a checkpoint of a distillation is bound to besides; empty for a training.

    Raises:
        ValueError: If the images do not fit the model, the noise schedule cannot work, or the optimizer is missing.
    """

    denoises = True

    def __init__(
        self,
        training: TrainingConfig,
        model: ModelMixin,
        scheduler: DDPMScheduler,
        accelerator: Accelerator,
        images: ImageSet,
    ) -> None:
        if not isinstance(scheduler, DDPMScheduler):
            raise ValueError(f"the scheduler is a {type(scheduler).__name__}; a training takes a DDPMScheduler")
        _check_image_set(images)
        for part in (model, scheduler):  # whose numbers are written to files
            part.register_to_config(**plain({name: part.config[name] for name in part.config if name[0] != "_"}))
        self.training, self.scheduler, self.accelerator = training, scheduler, accelerator
        self.images = images.to(accelerator.device)
        self.raw_model: ModelMixin = model
        self.components = components(model, scheduler)  # before FSDP makes another class of it
        self.num_classes: int | None = model.config.get("num_class_embeds")
        self.image_shape = (model.config.in_channels, *pair(model.config.sample_size))
        self.check_images(images)
        self._check_label_dropout()
        check_noise_schedule(scheduler)
        if (training.loss_weighting, scheduler.config.prediction_type) == ("noise", "epsilon"):
            raise ValueError(
                "loss_weighting is noise, and changes nothing: the network predicts the noise; leave it out"
            )

        self.timestep_table = timestep_table(scheduler, training.log_normal_levels).to(accelerator.device)
        self.loss_weights = loss_weights(scheduler, training.loss_weighting).to(accelerator.device)
        self.optimizers: list[torch.optim.Optimizer] = []
        self.model = self._prepare(model)
        self.own_scheduler: SchedulerMixin = scheduler
        self.distillation: dict[str, Any] = {}
        self.ema = self.new_average(training.ema_power)
        self.step = 0
        self.skipped, self.skipped_in_a_row = False, 0
        self.window = self.new_window()

    def described(self) -> dict[str, Any]:
        """Return what the config file of a run names besides the run's settings."""
        return self.components

    def new_window(self) -> Window:
        """Return an empty window for the figures to come."""
        return Window(self.scheduler.config.num_train_timesteps, self.accelerator.device)

    def new_average(self, power: float) -> EMAModel:
        """Return an average that starts at the present weights; its decay at step n is 1 - (1 + n)^-power."""
        decay = self.training.ema_decay
        return EMAModel(self.raw_model.parameters(), decay=decay, use_ema_warmup=True, power=power, foreach=True)

    def take_step(self, progress: float) -> float:
        """Take one optimizer step; one whose gradient is not finite changes nothing, and is counted.

        Args:
            progress: Share of the budget used, 0 to 1: the learning rate follows it.

        Returns:
            The loss of this process's images.

        Raises:
            FloatingPointError: If that happens in `max_skipped_steps` steps in a row.
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
        self.window.count_step(self.images_per_step, self.skipped)
        self.step += 1
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if self.skipped else 0
        if self.skipped_in_a_row == self.training.max_skipped_steps:
            raise FloatingPointError(f"the gradient was not finite in {self.skipped_in_a_row} steps up to {self.step}")
        return loss

    def pipeline(self, scheduler: SchedulerMixin | None = None, ema: EMAModel | None = None) -> DenoisingPipeline:
        """Return the pipeline of the averaged weights, its progress bar off.

        Args:
            scheduler: What to draw with, in the place of what it is saved with.
            ema: Another average than the learner's own.
        """
        names = None if self.num_classes is None else self.images.class_names
        model = averaged_model(self.raw_model, ema or self.ema, self.scheduler, self.images)
        pipeline = DenoisingPipeline(model, scheduler or self.own_scheduler, names)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    @property
    def images_per_step(self) -> int:
        """Images in a step: of all processes and all accumulated passes."""
        training = self.training
        return training.batch_size * self.accelerator.num_processes * training.gradient_accumulation_steps

    def _prepare(self, model: ModelMixin) -> nn.Module:
        """Return a network made ready to be trained, and add its optimizer."""
        if self.training.channels_last:
            in_best_layout(model)
        if self.training.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        prepared, optimizer = self.accelerator.prepare(model, make_optimizer(self.training, model))
        self.optimizers.append(optimizer)
        return prepared

    def _learn(self) -> Tensor:
        """Change the weights once; returns this process's loss."""
        with self.window.timed("data"):
            draws = self._draw()
        losses = [self._backward(draws, micro) for micro in range(self.training.gradient_accumulation_steps)]
        return torch.stack(losses).mean()

    def _draw(self) -> Draws:
        """Draw for the global batch."""
        training = self.training
        return draw(
            seed=training.seed,
            step=self.step,
            batch_size=self.images_per_step,
            image_shape=self.image_shape,
            num_images=len(self.images),
            num_timesteps=self.scheduler.config.num_train_timesteps,
            label_dropout=training.label_dropout,
            stratified_timesteps=training.stratified_timesteps,
        )

    def _backward(self, draws: Draws, micro_step: int) -> Tensor:
        """Pass this process's share of the draws forward and backward, and step when all has been passed."""
        accelerator, length = self.accelerator, self.training.batch_size
        with self.window.timed("data"):
            start = (micro_step * accelerator.num_processes + accelerator.process_index) * length
            part = draws.part(start, length).to(accelerator.device)
            timesteps = self.timestep_table[part.timesteps]
            images, class_labels = self._batch(part)
        self._seed_network(start)
        with accelerator.accumulate(self.model):
            losses = denoising_loss(self.model, self.scheduler, images, part.noise, timesteps, class_labels)
            self._step(self.model, self.optimizers[0], (losses * self.loss_weights[timesteps]).mean())
        self.window.count(losses.detach(), timesteps)
        return losses.detach().mean()

    def _step(self, model: nn.Module, optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
        """Pass a loss backward and, when all of the batch has been, step unless the gradient is not finite."""
        accelerator = self.accelerator
        accelerator.backward(loss)
        if accelerator.sync_gradients:
            norm = whole(accelerator.clip_grad_norm_(model.parameters(), self.training.max_grad_norm))
            if not norm.isfinite():
                self.skipped = True
                logger.warning("step %d is skipped: its gradient is not finite", self.step + 1)
                if accelerator.mixed_precision != "fp16":  # whose scaler skips the step itself, and finds its scale so
                    optimizer.zero_grad()
                    return
            elif model is self.model:
                self.window.gradient_norms.append(norm)
        optimizer.step()
        optimizer.zero_grad()

    def _batch(self, part: Draws) -> tuple[Tensor, Tensor | None]:
        """Return images in [-1, 1] and their labels, some dropped; None for an unconditional network."""
        images, labels = self.images.batch(part.indices)
        if self.num_classes is None:
            return images, None
        return images, drop_labels(labels, self.num_classes, part.label_dropped)

    def _seed_network(self, start: int) -> None:
        """Seed a network's own draws, such as dropout, which come from PyTorch's global generator."""
        torch.manual_seed(seeded_generator(NETWORK, self.training.seed, self.step, start).initial_seed())

    def check_images(self, images: ImageSet) -> None:
        """Raise `ValueError` if the network has other channels, sizes or classes than the images."""
        _check_image_set(images)
        shape, names = tuple(images.images.shape[1:]), images.class_names
        if shape != self.image_shape:
            raise ValueError(f"the images are {shape} (channels, height, width), the model wants {self.image_shape}")
        if (out_channels := self.raw_model.config.out_channels) != shape[0]:
            raise ValueError(f"the model has out_channels {out_channels}, the images have {shape[0]} channels")
        if self.num_classes not in (None, len(names)):
            raise ValueError(f"the model has num_class_embeds {self.num_classes}, the images have {len(names)} classes")

    def _check_label_dropout(self) -> None:
        """Raise `ValueError` if labels shall be dropped, and the network has none or no null label."""
        share, network = self.training.label_dropout, type(self.raw_model).__name__
        if (kind := self.raw_model.config.get("class_embed_type")) is not None:
            raise ValueError(f"class_embed_type is {kind}, and labels here are indices of classes; leave it out")
        if self.num_classes is None and share not in (0, TrainingConfig.label_dropout):
            raise ValueError(f"label_dropout is {share}, and the network takes no labels; leave it out")
        if self.num_classes is not None and share and getattr(self.raw_model, "null_label", None) is None:
            raise ValueError(
                f"label_dropout is {share}, and {network} has no null label to put in a label's place; give "
                "--training.label_dropout 0"
            )


def _check_image_set(images: ImageSet) -> None:
    """Raise `ValueError` if the images are not an `ImageSet`."""
    if not isinstance(images, ImageSet):
        raise ValueError(f"the images are a {type(images).__name__}; give a denoiser.data.ImageSet")
