"""The training loop."""

import logging
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DynamoBackend, gather_object, tqdm

from denoiser.data import ImageSet
from denoiser.device import choose_mixed_precision, compilation, must_use_cpu
from denoiser.environment import recorded, settle_training
from denoiser.files import atomic_path
from denoiser.processes import check_splitting, optional, start_process, tell
from pipelines import DenoisingPipeline, check_sampling, image_grid, make_scheduler, sample_images, save_image
from pipelines.hub import push
from pipelines.training.budget import Budget
from pipelines.training.card import card_files, write_card
from pipelines.training.checkpoint import (
    Progress,
    RunFolder,
    drop_checkpoints,
    load_checkpoint,
    save_checkpoint,
    step_of,
)
from pipelines.training.config import RunConfig, settings
from pipelines.training.learner import Learner
from pipelines.training.metrics import Validation
from pipelines.training.signals import EXIT_STATUS, StopSignals
from pipelines.training.tracking import Tracker, settle_tracking

logger = logging.getLogger(__name__)

SHOWN = ("frechet", "second_frechet")  # in the progress bar


def start_accelerator(config: RunConfig) -> Accelerator:
    """Set up device, precision and processes of a run; `ValueError` for what they do not support."""
    state, training = start_process(), config.training
    accumulation = training.gradient_accumulation_steps
    settled, lines = settle_training(training.mixed_precision, training.compile, accumulation, state.device)
    tell(lines)
    training = replace(training, **settled)
    accelerator = Accelerator(
        cpu=must_use_cpu(),
        mixed_precision=choose_mixed_precision(training.mixed_precision, state.device),
        gradient_accumulation_steps=accumulation,
        dynamo_plugin=compilation(training.compile, state.device),
        log_with=None if config.tracking.mode == "disabled" else "wandb",
    )
    check_splitting(accelerator, training.channels_last)
    return accelerator


def as_run(config: RunConfig, accelerator: Accelerator) -> RunConfig:
    """Return the settings with the precision, compilation and tracking that the accelerator resolved."""
    compiled = accelerator.state.dynamo_plugin.backend != DynamoBackend.NO
    training = replace(config.training, mixed_precision=accelerator.mixed_precision, compile=compiled)
    return replace(config, training=training, tracking=settle_tracking(config.tracking)[0])


class Trainer:
    """Runs the training of a learner, and writes its run folder.

    The folder gets `config.yaml`, `metrics.jsonl`, `samples/`, `checkpoints/` and, at the end,
    `pipeline/` with the averaged weights.

    Args:
        config: Settings of the run.
        learner: Takes the optimizer steps; made with `config.training`.
        held_out: Images for evaluations, not used in training; None for no evaluations.
        command: Command line of the run, for the model card.

    Raises:
        ValueError: If the learner has other settings, the sampler does not support the network, or the
            checkpoint to resume from is of another network or noise schedule.
        FileExistsError: If the run folder holds a run that is not resumed.
        FileNotFoundError: If the checkpoint to resume from does not exist.
        OSError: If the run folder cannot be written.
    """

    def __init__(
        self, config: RunConfig, learner: Learner, held_out: ImageSet | None = None, command: str | None = None
    ) -> None:
        if learner.training != config.training:
            raise ValueError("the learner has other training settings; make it with config.training")
        accelerator = learner.accelerator
        config = as_run(config, accelerator)
        training = config.training
        self.config, self.training, self.learner, self.accelerator = config, training, learner, accelerator
        self.command = command
        self.sampler = make_scheduler(config.sampling.scheduler, learner.sampler.config)
        check_sampling(config.sampling, learner.raw_model, self.sampler)
        self.validation: Validation | None = None
        if held_out is not None:
            learner.check_images(held_out)
            count = training.evaluation_images
            self.validation = Validation(held_out, config.sampling, count, learner.images, learner.num_classes)
        self.evaluation: dict[str, Any] = {}  # the latest
        self.folder = RunFolder(Path(config.output_dir))
        self.last_checkpoint = self.folder.claim(config.resume, self._identity(), accelerator.is_main_process)
        self._check_same_checkpoint()
        progress, guide = Progress(), None
        if self.last_checkpoint is not None:
            progress, guide = load_checkpoint(accelerator, self.last_checkpoint, learner.ema, learner.optimizers)
        self.budget = Budget(training.max_steps, training.max_minutes, progress.seconds)
        learner.resume(progress.step, guide, self.budget.progress(progress.step, accelerator))
        if learner.guided and not (learner.guide or learner.guide_is_due):
            tell(["the checkpoint has no guide, and the run is far past training.guide_at: its pipeline gets none"])

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return self.learner.step

    @property
    def finished(self) -> bool:
        """Whether the run is over and its pipeline saved."""
        return self.budget.progress(self.step, self.accelerator) >= 1 and self.folder.pipeline.exists()

    def train(self) -> str | None:
        """Train to the end, save the pipeline, and push it to the Hub if the run names a repository.

        SIGINT, SIGTERM and SIGUSR1 end the run after the current step, with a checkpoint.

        Returns:
            The command that uploads an offline run to wandb, or None.

        Raises:
            FileExistsError: If another run is writing in the run folder.
            FloatingPointError: If the gradient is not finite in too many steps in a row.
            SystemExit: If a signal ended the run, with status 143 for SIGTERM and 0 for the others.
        """
        with self.folder.held() if self.accelerator.is_main_process else nullcontext():
            sync_command = self._train()
        self.push()
        return sync_command

    def push(self) -> None:
        """Push the pipeline with its card to `hub_repo`, if there is one; warn if it fails."""
        if self.config.hub_repo is None:
            return
        pipeline = self.pipeline()  # of all processes
        if self.accelerator.is_main_process:
            with optional(f"pushing to {self.config.hub_repo}, which --resume latest tries again,"):
                files = card_files(self.folder.pipeline, self.config.hub_repo)
                self.accelerator.print(f"pushed to {push(pipeline, self.config.hub_repo, files)}")

    def pipeline(self) -> DenoisingPipeline:
        """Return the pipeline of the averaged weights."""
        return self.learner.pipeline()

    def _train(self) -> str | None:
        described = {**settings(self.config), **self.learner.described()}
        tracker = Tracker(self.accelerator, self.config.tracking, self.folder, described, self.step)
        if self.accelerator.is_main_process:
            self.folder.start(described, self._circumstances())
        self.budget.start()
        with StopSignals() as signals:  # the pipeline too is saved before one ends the run
            with self._progress_bar() as bar:
                progress = self.budget.progress(self.step, self.accelerator)
                while progress < 1:
                    self._train_step(progress, bar)
                    progress = self.budget.progress(self.step, self.accelerator)
                    stopped = signals.agreed(self.accelerator)
                    self._after_step(progress >= 1, stopped is not None, tracker)
                    if stopped and progress < 1:
                        bar.close()
                        tracker.finish()
                        self.accelerator.print(
                            f"stopped by {stopped.name}; --resume latest goes on from {self._saved()}"
                        )
                        sys.exit(EXIT_STATUS[stopped])
            self._save_pipeline(tracker)
            return tracker.finish()

    def _after_step(self, last: bool, stopped: bool, tracker: Tracker) -> None:
        """Evaluate, log, sample and save as due after this step; all of it after the last.

        A checkpoint comes with a line of metrics, so that a resumed run starts a new window there.
        """
        training = self.training
        evaluated = last or self.step % training.evaluate_every == 0
        saved = last or stopped or self.step % training.checkpoint_every == 0
        if evaluated:
            self._evaluate()
        if evaluated or saved or self.step % training.log_every == 0:
            tracker.log({**self._figures(), **(self.evaluation if evaluated else {})}, self.step)
            self.learner.window = self.learner.new_window()
        if last or self.step % training.sample_every == 0:
            self._show_samples(tracker)
        if saved and (last or stopped or not self.learner.skipped):  # so that the last is from before it went wrong
            self._save_checkpoint()

    def _train_step(self, progress: float, bar: Any) -> None:
        """Take one optimizer step and update the progress bar."""
        try:
            loss = self.learner.take_step(progress)
        except FloatingPointError as error:
            good = self.last_checkpoint
            advice = "resume from it" if good else "start anew"
            raise FloatingPointError(
                f"{error}; last good checkpoint: {good or 'none yet'}; {advice} with a lower training.learning_rate "
                "or in another precision"
            ) from error
        distances = [f"{self.evaluation[name]:.2f}" for name in SHOWN if name in self.evaluation]
        judged = f", Fréchet {' and '.join(distances)}" if distances else ""
        speed = self.learner.window.images_per_second
        bar.set_postfix_str(f"step {self.step}, loss {loss:.4f}, {speed:.0f} images/s{judged}", refresh=False)
        done = self.step if self.budget.max_seconds is None else min(self.budget.seconds, self.budget.max_seconds)
        bar.update(done - bar.n)

    def _figures(self) -> dict[str, float]:
        rate = self.learner.optimizers[0].param_groups[0]["lr"]
        return {**self.learner.window.summary(self.accelerator), "learning_rate": rate, "seconds": self.budget.seconds}

    def _evaluate(self) -> None:
        if self.validation is None:
            return
        self.evaluation = {}
        with optional("an evaluation"):
            self.evaluation = self.learner.validate(self.validation, self.sampler)

    def _save_pipeline(self, tracker: Tracker) -> None:
        """Save the pipeline, with its model card."""
        if not self.evaluation:
            self._evaluate()  # the run was killed between its last checkpoint and here
        pipeline, sampling_pipeline = self.pipeline(), self.learner.pipeline(self.sampler)
        if self.accelerator.is_main_process:
            with atomic_path(self.folder.pipeline) as temporary:
                pipeline.save_pretrained(temporary)
                sampling, progress = self.config.sampling, Progress(self.step, self.budget.seconds)
                with optional("the model card"):
                    grid = image_grid(sample_images(sampling_pipeline, **sampling.arguments()))
                    figures, made = self.evaluation, self.config.made
                    write_card(temporary, grid, pipeline, sampling, progress, figures, self.command, made)
            tracker.log_pipeline(self.folder.pipeline)
        self.accelerator.wait_for_everyone()

    def _show_samples(self, tracker: Tracker) -> None:
        """Save a sample grid of the averaged weights, from the same noise each time."""
        pipeline = self.learner.pipeline(self.sampler)
        if self.accelerator.is_main_process:
            path = self.folder.grid(self.step)
            with optional(f"the grid {path}"):
                grid = image_grid(sample_images(pipeline, **self.config.sampling.arguments()))
                tracker.log_image("samples", grid, self.step)
                save_image(grid, path)
        self.accelerator.wait_for_everyone()

    def _check_same_checkpoint(self) -> None:
        """Raise `ValueError` if the processes have found different checkpoints; waits for all.

        Without waiting, a slower process would find the run that a faster one has begun.
        """
        found = [str(path) for path in gather_object([self.last_checkpoint])]
        if others := [path for path in found if path != found[0]]:
            raise ValueError(
                f"the first process resumes from {found[0]}, another one from {others[0]}; give an output_dir on a "
                "disk that all nodes share"
            )

    def _save_checkpoint(self) -> None:
        """Save a checkpoint, or warn and go on."""
        folder, training = self.folder.checkpoints, self.training
        progress = Progress(self.step, self.budget.seconds)
        try:
            learner, identity = self.learner, self._identity()
            checkpoint = save_checkpoint(self.accelerator, folder, progress, learner.ema, identity, learner.guide)
        except OSError as error:
            last = self.last_checkpoint or "none yet"
            logger.warning("no checkpoint of step %d (%s); the last is %s; going on", self.step, error, last)
            return
        self.last_checkpoint = checkpoint
        if self.accelerator.is_main_process:
            drop_checkpoints(folder, checkpoint, training.checkpoints_kept, training.keep_every)

    def _saved(self) -> str:
        """Describe the last checkpoint."""
        return f"step {step_of(self.last_checkpoint)}" if self.last_checkpoint else "the start: none was saved"

    def _identity(self) -> dict[str, Any]:
        """Return the settings that are compared when a checkpoint is resumed."""
        draws = {"seed": self.training.seed, "images_per_step": self.learner.images_per_step}
        return {**self.learner.identity(), "start": {"init_from": self.config.init_from}, "draws": draws}

    def _circumstances(self) -> str:
        """Return the processes, device and environment variables of the run."""
        accelerator = self.accelerator
        exported = "".join(f", {name}={value}" for name, value in recorded().items())
        return f"{accelerator.num_processes} process(es), {accelerator.device.type}{exported}"

    def _progress_bar(self) -> Any:
        by_clock = self.budget.max_seconds is not None
        return tqdm(
            total=self.budget.max_seconds if by_clock else self.training.max_steps,
            initial=self.budget.seconds if by_clock else self.step,
            bar_format="{percentage:3.0f}%|{bar:20}| {elapsed}, {remaining} left{postfix}",
            mininterval=1.0 if sys.stderr.isatty() else 15.0,  # a log file wants fewer lines
        )
