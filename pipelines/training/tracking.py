"""Logging of a run: `metrics.jsonl`, and wandb through Accelerate's tracker."""

import json
import logging
import math
import os
import re
import shlex
import shutil
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from accelerate import Accelerator
from PIL import Image

from denoiser.files import atomic_path
from denoiser.processes import one_line, optional, tell
from pipelines.training.checkpoint import RunFolder
from pipelines.training.config import TrackingConfig

logger = logging.getLogger(__name__)

MODES = ("online", "offline", "disabled")
# Other names that wandb has for its modes.
OLD_MODES = {"dryrun": "offline", "run": "online"}
OF_THE_FOLDER = {
    "WANDB_DIR": "a run is logged into its own folder",
    "WANDB_RUN_ID": "a run that goes on is the same wandb run, by the id in its folder",
    "WANDB_RESUME": "a run that goes on is the same wandb run, by the id in its folder",
}
_PYDANTIC = re.compile(r"\[type=\w+, input_value=(.+?), input_type=.*")
LONGEST_NAME = 128  # of an artifact


def settle_tracking(config: TrackingConfig) -> tuple[TrackingConfig, list[str]]:
    """Merge wandb's own settings, from its variables and files, into those that the run leaves open."""
    if config.mode == "disabled":
        return config, []
    theirs = _wandb_settings()
    mode = OLD_MODES.get(theirs.mode, theirs.mode)
    if mode not in MODES and config.mode == "auto":
        raise ValueError(f"WANDB_MODE is '{mode}'; runs are logged {', '.join(MODES)}")
    settled = replace(config, project=config.project or theirs.project or "denoiser")
    ignored = {}
    if config.mode == "auto":
        settled = replace(settled, mode=config.mode if mode == "online" else mode)
    elif os.environ.get("WANDB_MODE") and mode != config.mode:
        ignored["WANDB_MODE"] = f"tracking.mode is {config.mode}"
    if config.project and theirs.project not in (None, config.project):
        ignored["WANDB_PROJECT"] = f"tracking.project is {config.project}"
    _wandb_settings(project=settled.project)
    return settled, _told(ignored)


def _told(ignored: Mapping[str, str]) -> list[str]:
    """Return a line with the reason for each variable that is set and ignored."""
    return [f"{name}={os.environ[name]} is ignored: {reason}" for name, reason in ignored.items() if name in os.environ]


def _wandb_settings(**settings: Any) -> Any:
    """Return wandb's settings, of its files, the environment and the arguments, in rising priority."""
    import wandb  # a slow import, which a run without tracking does without

    try:
        known = wandb.setup().settings.model_copy()
        known.update_from_env_vars(dict(os.environ))
        for name, value in settings.items():
            setattr(known, name, value)
    except (ValueError, wandb.Error) as error:
        reason = _PYDANTIC.sub(r"(it is \1)", one_line(error))
        raise ValueError(
            f"wandb refuses its settings ({reason}); mend them, or give --tracking.mode disabled"
        ) from error
    return known


def _can_log_in() -> bool:
    import wandb

    try:
        return wandb.login(prompt=False)
    except wandb.Error as error:  # a key, and no network to try it
        logger.warning("wandb cannot log in (%s); logging offline", error)
        return False


def start_wandb(
    accelerator: Accelerator, config: TrackingConfig, run_dir: Path, settings: dict[str, Any], run_id: str
) -> str:
    """Start or resume a wandb run through Accelerate."""
    wanted = config.mode
    config, lines = settle_tracking(config)
    tell([*lines, *_told({name: why for name, why in OF_THE_FOLDER.items() if os.environ.get(name) != run_id})])
    mode = ("online" if _can_log_in() else "offline") if config.mode == "auto" else config.mode
    if mode == "disabled":
        return mode
    import wandb

    options = {"mode": mode, "dir": str(run_dir), "settings": {"silent": True}, "id": run_id, "resume": "allow"}
    options |= {} if os.environ.get("WANDB_NAME") else {"name": run_dir.resolve().name}
    try:
        accelerator.init_trackers(config.project, config=settings, init_kwargs={"wandb": options})
    except (wandb.Error, OSError, ValueError) as error:
        if wanted == "online":
            raise ValueError(f"wandb cannot log online ({error}); log in, or give --tracking.mode offline") from error
        logger.warning("wandb cannot start (%s); going on without it", one_line(error))
        return "disabled"
    return mode


def close_wandb(accelerator: Accelerator, run_dir: Path) -> str | None:
    """Close wandb and return the command that uploads an offline run, or None.

    A resumed run has a folder for each part, uploaded in order.
    """
    import wandb

    with optional("closing wandb"):
        accelerator.end_training()
        if wandb.run is None:  # otherwise another run of this process would end
            wandb.teardown()  # waits for wandb's own process to write its files
    parts = sorted((run_dir / "wandb").glob("offline-run-*"))
    parts = [part for part in parts if not any(part.glob("*.synced"))]
    if not parts or not accelerator.is_main_process:
        return None
    program = shutil.which("wandb", path=Path(sys.executable).parent) or "wandb"
    return shlex.join([program, "sync", *(str(part.resolve()) for part in parts)])


def wandb_id(run_dir: Path, writes: bool) -> str:
    """Return the id of a run folder's wandb run, which the folder keeps; in a sweep it is the agent's."""
    path = run_dir / "wandb_id"
    if not path.is_file() and writes:
        of_sweep = os.environ.get("WANDB_RUN_ID") if os.environ.get("WANDB_SWEEP_ID") else None
        with atomic_path(path) as temporary:
            temporary.write_text(f"{of_sweep or uuid4().hex[:8]}\n", encoding="utf-8")
    return path.read_text(encoding="utf-8").strip() if path.is_file() else ""


class Tracker:
    """Logs metrics and images of a run, on the main process.

    Lines of `metrics.jsonl` after `first_step` are dropped. Raises `ValueError` if wandb cannot log
    online as asked.
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
        self.metrics_path, self.run_dir = folder.metrics, folder.path
        self.mode: str = config.mode
        self.written, self.unwritten = 0, b""  # bytes in the file's whole lines, and lines to be added
        if accelerator.is_main_process:
            self._drop_metrics_after(first_step)
        if config.mode != "disabled":
            run_id = wandb_id(folder.path, accelerator.is_main_process)
            self.mode = start_wandb(accelerator, config, folder.path, settings, run_id)

    def log(self, metrics: dict[str, float], step: int) -> None:
        """Append a line of metrics; after a failure, such as a full disk, the next line brings it along."""
        if self.accelerator.is_main_process:
            self.unwritten += json.dumps({"step": step, **metrics}).encode() + b"\n"
            self._write()
        with optional("logging to wandb"):
            self.accelerator.log(metrics, step=step)

    def _write(self) -> None:
        """Append the lines that are not in the file."""
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
        """Log an image to wandb."""
        for tracker in self.accelerator.trackers:
            with optional("logging a picture to wandb"):
                tracker.log_images({name: [image]}, step=step)

    def log_pipeline(self, path: Path) -> None:
        """Log a saved pipeline as a wandb artifact."""
        if self.mode == "disabled" or not self.accelerator.is_main_process:
            return
        import wandb

        name = re.sub(r"[^\w.-]", "-", f"{path.resolve().parent.name}-pipeline", flags=re.ASCII)
        with optional("logging the pipeline to wandb"):
            artifact = wandb.Artifact(name[-LONGEST_NAME:], type="model")
            artifact.add_dir(str(path))
            self.accelerator.get_tracker("wandb", unwrap=True).log_artifact(artifact)

    def finish(self) -> str | None:
        """Close wandb and return the command that uploads an offline run, or None."""
        if self.unwritten:
            self._write()
        return None if self.mode == "disabled" else close_wandb(self.accelerator, self.run_dir)

    def _drop_metrics_after(self, step: int) -> None:
        """Drop the lines after `step`, and a line that a kill cut short."""
        if self.metrics_path.exists():
            lines = self.metrics_path.read_bytes().splitlines()
            with atomic_path(self.metrics_path) as temporary:
                temporary.write_bytes(b"".join(line + b"\n" for line in lines if _step_of(line) <= step))
            self.written = self.metrics_path.stat().st_size


def _step_of(line: bytes) -> float:
    """Return the step of a line of metrics, infinite for a broken line."""
    try:
        step = json.loads(line)["step"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return math.inf
    return step if isinstance(step, int) else math.inf
