"""The training loop: the loop decides when, the step says what."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from diffusers import DDPMScheduler, ModelMixin
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import Tensor
from torch.optim import AdamW
from tqdm import tqdm

from denoiser.checks import pair
from denoiser.data import ImageSet
from denoiser.embeddings import drop_labels
from denoiser.files import atomic_path
from denoiser.training.averaging import averaged_model
from denoiser.training.budget import Budget, learning_rate
from denoiser.training.card import write_card
from denoiser.training.checkpoint import Progress, load_checkpoint, save_checkpoint
from denoiser.training.config import RunConfig, resolved, trained
from denoiser.training.device import choose_mixed_precision, in_best_layout, must_use_cpu, use_all_cores
from denoiser.training.draws import Draws, draw
from denoiser.training.metrics import Window
from denoiser.training.objective import check_noise_schedule, denoising_loss
from denoiser.training.probe import Probe
from denoiser.training.run_folder import RunFolder
from denoiser.training.tracking import Tracker
from pipelines import DenoisingPipeline, check_sampling, draw_samples, image_grid, make_scheduler, save_image

EVALUATION_BATCH_SIZE = 256


def start_accelerator(config: RunConfig) -> Accelerator:
    """Set up device, precision and processes as the launcher and the config say.

    Raises:
        ValueError: If the device cannot train in the precision asked for.
    """
    state = PartialState(cpu=must_use_cpu())
    use_all_cores(state)
    return Accelerator(
        cpu=must_use_cpu(),
        mixed_precision=choose_mixed_precision(config.training.mixed_precision, state.device),
        gradient_accumulation_steps=config.training.gradient_accumulation_steps,
        log_with=None if config.tracking.mode == "disabled" else "wandb",
    )


class Trainer:
    """Trains a backbone as the noise-prediction network of a DDPM, and leaves a run folder.

    The folder gets `config.yaml`, `metrics.jsonl`, `samples/`, `checkpoints/` and, at the end, `pipeline/` with the
    averaged weights.

    Args:
        config: Settings of the run.
        model: Backbone with `UNet2DModel`'s call contract; it is trained in place.
        scheduler: Noise levels and prediction type.
        accelerator: From `start_accelerator`.
        images: Training set, of the model's size.
        held_out: Images for the evaluations, never trained on; without them there are none.
        command: What a user types to make this run, for the model card.

    Raises:
        ValueError: If the images do not fit the model, the noise schedule cannot work, or the checkpoint to resume from
            is of another architecture or noise schedule.
        FileExistsError: If the run folder holds a run already and the config does not resume it.
        FileNotFoundError: If the checkpoint to resume from is none.
        OSError: If the run folder cannot be written.
    """

    def __init__(
        self,
        config: RunConfig,
        model: ModelMixin,
        scheduler: DDPMScheduler,
        accelerator: Accelerator,
        images: ImageSet,
        held_out: ImageSet | None = None,
        command: str | None = None,
    ) -> None:
        training = config.training
        self.config, self.training, self.scheduler, self.accelerator = config, training, scheduler, accelerator
        self.images, self.command = images.to(accelerator.device), command
        self.num_classes: int | None = model.config.get("num_class_embeds")
        self.image_shape = (model.config.in_channels, *pair(model.config.sample_size))
        self.raw_model: ModelMixin = model
        in_best_layout(model)
        self._check_images()
        check_noise_schedule(scheduler)
        self.sampler = make_scheduler(config.sampling.scheduler, scheduler.config)
        check_sampling(config.sampling, model, self.sampler)
        self.probe: Probe | None = None
        if held_out is not None:
            sampling = replace(config.sampling, num_images=training.evaluation_images, batch_size=EVALUATION_BATCH_SIZE)
            self.probe = Probe(held_out.to(accelerator.device), sampling)
        self.evaluation: dict[str, float] = {}  # the latest
        self.folder = RunFolder(Path(config.output_dir))
        self.last_checkpoint = self.folder.claim(config.resume, trained(model, scheduler))

        if training.gradient_checkpointing:
            model.enable_gradient_checkpointing()
        optimizer = AdamW(
            model.parameters(),
            lr=training.learning_rate,
            betas=training.adam_betas,
            weight_decay=training.weight_decay,
            fused=True,
        )
        self.model, self.optimizer = accelerator.prepare(model, optimizer)
        self.ema = EMAModel(
            model.parameters(), decay=training.ema_decay, use_ema_warmup=True, power=training.ema_power, foreach=True
        )
        progress = Progress()
        if self.last_checkpoint is not None:
            progress = load_checkpoint(accelerator, self.last_checkpoint, self.ema)
            for group in self.optimizer.param_groups:  # whose settings came back with its state
                group.update(betas=training.adam_betas, weight_decay=training.weight_decay)
        self.step = progress.step
        self.budget = Budget(training.max_steps, training.max_minutes, progress.seconds)
        self.window = self._new_window()

    @property
    def finished(self) -> bool:
        """Whether the budget is used up and the pipeline saved."""
        return self.budget.progress(self.step, self.accelerator) >= 1 and self.folder.pipeline.exists()

    def train(self) -> str | None:
        """Train to the end of the budget and save the pipeline.

        Returns:
            The command that uploads the run to wandb, or None if there is nothing to upload.

        Raises:
            FloatingPointError: If the loss or the gradient is not finite.
        """
        settings = resolved(self.config, self.raw_model, self.scheduler)
        tracker = Tracker(self.accelerator, self.config.tracking, self.folder, settings, self.step)
        if self.accelerator.is_main_process:
            self.folder.start(settings)
        self.budget.start()
        with self._progress_bar() as bar:
            progress = self.budget.progress(self.step, self.accelerator)
            while progress < 1:
                self._train_step(progress, bar)
                progress = self.budget.progress(self.step, self.accelerator)
                self._after_step(progress >= 1, tracker)
        self._save_pipeline(tracker)
        return tracker.finish()

    def pipeline(self) -> DenoisingPipeline:
        """Return the pipeline of the averaged weights."""
        model = averaged_model(self.raw_model, self.ema, self.scheduler, self.images)
        names = None if self.num_classes is None else self.images.class_names
        pipeline = DenoisingPipeline(model, self.scheduler, names)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def _after_step(self, last: bool, tracker: Tracker) -> None:
        """Evaluate, log, draw and save: what is due after this step, and all of it after the last."""
        training = self.training
        evaluated = last or self.step % training.evaluate_every == 0
        if evaluated:
            self._evaluate()
        if evaluated or self.step % training.log_every == 0:
            tracker.log({**self._figures(), **(self.evaluation if evaluated else {})}, self.step)
            self.window = self._new_window()
        if last or self.step % training.sample_every == 0:
            self._show_samples(tracker)
        if last or self.step % training.checkpoint_every == 0:
            self._save_checkpoint()

    def _train_step(self, progress: float, bar: "tqdm[Any]") -> None:
        """Take one optimizer step and tell of it on the bar."""
        training, window = self.training, self.window
        rate = learning_rate(training.learning_rate, training.warmup_steps, self.step, progress)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with window.timed("step"):
            with window.timed("data"):
                draws = self._draw()
            self.model.train()
            losses = [self._backward(draws, micro) for micro in range(training.gradient_accumulation_steps)]
            self.ema.step(self.raw_model.parameters())
            loss = torch.stack(losses).mean().item()
        window.steps += 1
        self.step += 1

        speed = len(draws.indices) * window.steps / window.seconds["step"]
        judged = f", Fréchet {self.evaluation['frechet']:.2f}" if "frechet" in self.evaluation else ""
        bar.set_postfix_str(f"step {self.step}, loss {loss:.4f}, {speed:.0f} images/s{judged}", refresh=False)
        done = self.step if self.budget.max_seconds is None else min(self.budget.seconds, self.budget.max_seconds)
        bar.update(done - bar.n)

    def _figures(self) -> dict[str, float]:
        rate = self.optimizer.param_groups[0]["lr"]
        return {**self.window.summary(self.accelerator), "learning_rate": rate, "seconds": self.budget.seconds}

    def _draw(self) -> Draws:
        """Draw for the global batch: all processes, all accumulated passes."""
        training = self.training
        return draw(
            seed=training.seed,
            step=self.step,
            batch_size=training.batch_size * self.accelerator.num_processes * training.gradient_accumulation_steps,
            image_shape=self.image_shape,
            num_images=len(self.images),
            num_timesteps=self.scheduler.config.num_train_timesteps,
            label_dropout=training.label_dropout,
        )

    def _backward(self, draws: Draws, micro_step: int) -> Tensor:
        """Pass this process's share of the draws forward and backward, and step when all has been passed."""
        accelerator, length = self.accelerator, self.training.batch_size
        with self.window.timed("data"):
            start = (micro_step * accelerator.num_processes + accelerator.process_index) * length
            part = draws.part(start, length).to(accelerator.device)
            images, labels = self.images.batch(part.indices)
            class_labels = None
            if self.num_classes is not None:
                class_labels = drop_labels(labels, self.num_classes, part.label_dropped)
        with accelerator.accumulate(self.model):
            losses = denoising_loss(self.model, self.scheduler, images, part.noise, part.timesteps, class_labels)
            accelerator.backward(losses.mean())
            self._check_finite("loss", losses.detach())
            if accelerator.sync_gradients:
                norm = accelerator.clip_grad_norm_(self.model.parameters(), self.training.max_grad_norm)
                if accelerator.mixed_precision != "fp16":  # whose scaler skips the steps that overflow
                    self._check_finite("gradient", norm)
                self.window.gradient_norms.append(norm)
            self.optimizer.step()
            self.optimizer.zero_grad()
        self.window.count(losses.detach(), part.timesteps)
        return losses.detach().mean()

    def _check_finite(self, what: str, values: Tensor) -> None:
        if not values.isfinite().all():
            good = self.last_checkpoint
            advice = "resume from it" if good else "start anew"
            raise FloatingPointError(
                f"the {what} is not finite at step {self.step + 1}; last good checkpoint: {good or 'none yet'}; "
                f"{advice} with a lower training.learning_rate"
            )

    def _evaluate(self) -> None:
        if self.probe is not None:
            with self.accelerator.autocast():  # as in training, for speed
                self.evaluation = self.probe.figures(self._sampling_pipeline(), self.scheduler)

    def _save_pipeline(self, tracker: Tracker) -> None:
        """Save what the run is for, with its card."""
        if not self.evaluation:
            self._evaluate()  # the run was killed between its last checkpoint and here
        if self.accelerator.is_main_process:
            with atomic_path(self.folder.pipeline) as temporary:
                pipeline, progress = self.pipeline(), Progress(self.step, self.budget.seconds)
                pipeline.save_pretrained(temporary)
                sampling = self.config.sampling
                write_card(temporary, self._grid(), pipeline, sampling, progress, self.evaluation, self.command)
            tracker.log_pipeline(self.folder.pipeline)
        self.accelerator.wait_for_everyone()

    def _grid(self) -> Image.Image:
        return image_grid(draw_samples(self._sampling_pipeline(), self.config.sampling))

    def _sampling_pipeline(self) -> DenoisingPipeline:
        pipeline = self.pipeline()
        pipeline.scheduler = self.sampler
        return pipeline

    def _show_samples(self, tracker: Tracker) -> None:
        """Draw a grid with the averaged weights, from the same noise each time."""
        if self.accelerator.is_main_process:
            grid = self._grid()
            save_image(grid, self.folder.grid(self.step))
            tracker.log_image("samples", grid, self.step)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self) -> None:
        self.last_checkpoint = save_checkpoint(
            self.accelerator,
            self.folder.checkpoints,
            Progress(self.step, self.budget.seconds),
            self.ema,
            trained(self.raw_model, self.scheduler),
            self.training.checkpoints_kept,
        )

    def _check_images(self) -> None:
        shape, names = tuple(self.images.images.shape[1:]), self.images.class_names
        if shape != self.image_shape:
            raise ValueError(f"the images are {shape} (channels, height, width), the model wants {self.image_shape}")
        if (out_channels := self.raw_model.config.out_channels) != shape[0]:
            raise ValueError(f"the model has out_channels {out_channels}, the images have {shape[0]} channels")
        if self.num_classes not in (None, len(names)):
            raise ValueError(f"the model has num_class_embeds {self.num_classes}, the images have {len(names)} classes")

    def _new_window(self) -> Window:
        return Window(self.scheduler.config.num_train_timesteps, self.accelerator.device)

    def _progress_bar(self) -> "tqdm[Any]":
        by_clock = self.budget.max_seconds is not None
        return tqdm(
            total=self.budget.max_seconds if by_clock else self.training.max_steps,
            initial=self.budget.seconds if by_clock else self.step,
            bar_format="{percentage:3.0f}%|{bar:20}| {elapsed}, {remaining} left{postfix}",
            disable=not self.accelerator.is_main_process,
            mininterval=1.0 if sys.stderr.isatty() else 15.0,  # a log file wants fewer lines
        )
