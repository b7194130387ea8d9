"""Where a run's figures go: `metrics.jsonl` in the run folder always, and wandb through Accelerate's tracker."""

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from PIL import Image

from denoiser.files import atomic_path
from denoiser.training.config import TrackingConfig
from denoiser.training.run_folder import RunFolder

logger = logging.getLogger(__name__)


def choose_wandb_mode(wanted: str) -> str:
    """Return wandb's mode, with "auto" resolved: `WANDB_MODE` if set, else online with a login, else offline."""
    if wanted != "auto":
        return wanted
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    import wandb  # only here and below: whoever turns tracking off need not wait for it

    try:
        return "online" if wandb.login(prompt=False) else "offline"
    except wandb.Error as error:  # a key, and no network to try it
        logger.warning("wandb cannot log in (%s); logging offline", error)
        return "offline"


def start_wandb(accelerator: Accelerator, config: TrackingConfig, run_dir: Path, settings: dict[str, Any]) -> str:
    """Start a wandb run through Accelerate. Returns the mode, "auto" resolved.

    Raises:
        ValueError: If wandb was asked to log online and cannot.
    """
    import wandb

    mode = choose_wandb_mode(config.mode)
    options = {"mode": mode, "dir": str(run_dir), "name": run_dir.name, "settings": {"silent": True}}
    try:
        accelerator.init_trackers(config.project, config=settings, init_kwargs={"wandb": options})
    except wandb.Error as error:
        raise ValueError(f"wandb cannot log online ({error}); log in, or give --tracking.mode offline") from error
    return mode


class Tracker:
    """Writes the figures and pictures of a run, on the main process only.

    Args:
        accelerator: Made with `log_with="wandb"` unless the mode is "disabled".
        config: Mode and project.
        folder: Run folder.
        settings: The resolved config of the run, logged beside its figures.
        first_step: Step at which the run goes on; lines of `metrics.jsonl` beyond it are dropped.

    Raises:
        ValueError: If wandb was asked to log online and cannot.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        config: TrackingConfig,
        folder: RunFolder,
        settings: dict[str, Any],
        first_step: int,
    ) -> None:
        self.accelerator = accelerator
        self.metrics_path = folder.metrics
        self.mode: str = config.mode
        self.written, self.unwritten = 0, b""  # the length of the file's whole lines, and what could not be added
        if accelerator.is_main_process:
            self._drop_metrics_after(first_step)
        if config.mode != "disabled":
            self.mode = start_wandb(accelerator, config, folder.path, settings)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append a line of figures; where that fails, as on a full disk, the next line brings it along."""
        if self.accelerator.is_main_process:
            self.unwritten += json.dumps({"step": step, **metrics}).encode() + b"\n"
            self._write()
        self.accelerator.log(metrics, step=step)

    def _write(self) -> None:
        """Append the lines that are not in the file yet."""
        try:
            with self.metrics_path.open("ab") as file:
                file.truncate(self.written)
                file.write(self.unwritten)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            logger.warning("%s cannot be written (%s); going on", self.metrics_path, error)
        else:
            self.written, self.unwritten = self.written + len(self.unwritten), b""

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """Log a picture to wandb."""
        for tracker in self.accelerator.trackers:
            tracker.log_images({name: [image]}, step=step)

    def log_pipeline(self, path: Path) -> None:
        """Log a saved pipeline as a wandb artifact."""
        if self.mode == "disabled" or not self.accelerator.is_main_process:
            return
        import wandb

        artifact = wandb.Artifact(f"{path.parent.name}-pipeline", type="model")
        artifact.add_dir(str(path))
        self.accelerator.get_tracker("wandb", unwrap=True).log_artifact(artifact)

    def finish(self) -> str | None:
        """Close wandb. Returns the command that uploads an offline run, or None if there is nothing to upload."""
        if self.unwritten:
            self._write()
        if self.mode == "disabled":
            return None
        folder = None
        if self.accelerator.is_main_process:
            folder = Path(self.accelerator.get_tracker("wandb", unwrap=True).dir).parent
        self.accelerator.end_training()
        return f"wandb sync {folder}" if folder and self.mode == "offline" else None

    def _drop_metrics_after(self, step: int) -> None:
        """Drop the lines beyond `step`, and the one that was cut short when the run was killed."""
        if self.metrics_path.exists():
            lines = self.metrics_path.read_bytes().splitlines()
            with atomic_path(self.metrics_path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in lines if _step_of(line) <= step))
            self.written = self.metrics_path.stat().st_size


def _step_of(line: bytes) -> float:
    """Return the step of a line of metrics, infinite if the line is not whole."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf
