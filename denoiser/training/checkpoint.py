"""Checkpoints: folders that hold everything that resuming needs, and that appear whole or not at all."""

import json
import shutil
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

PREFIX = "step-"
STATE_FILE, EMA_FILE = "state.json", "ema.safetensors"
BOUND_TO = {
    "model": "another architecture",
    "scheduler": "another noise schedule",
    "optimizer": "another optimizer",
    "distillation": "another distillation, or none",
}
STATE_KEYS = {"progress", "ema_steps", *BOUND_TO}


@dataclass(frozen=True)
class Progress:
    """How far a run has come.

    Attributes:
        step: Optimizer steps taken.
        seconds: Time spent, by the clock.
    """

    step: int = 0
    seconds: float = 0.0


def checkpoint_name(step: int) -> str:
    """Return the name of the checkpoint after `step` optimizer steps."""
    return f"{PREFIX}{step:08d}"


def list_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in `folder`, oldest first."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if (path / STATE_FILE).is_file())


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint that `resume` means: a path, or "latest" in `folder`, None if there is none yet.

    Raises:
        FileNotFoundError: If the path is not a checkpoint.
    """
    if resume == "latest":
        return next(reversed(list_checkpoints(folder)), None)
    if not (Path(resume) / STATE_FILE).is_file():
        raise FileNotFoundError(f"{resume} is not a checkpoint: it has no {STATE_FILE}; give a folder, or 'latest'")
    return Path(resume)


def save_checkpoint(
    accelerator: Accelerator, folder: Path, progress: Progress, ema: EMAModel, trained: dict[str, Any], kept: int
) -> Path:
    """Save the run's state on all processes and drop all but the `kept` newest checkpoints.

    The optimizer, the weights and the loss scaler go through Accelerate; the averaged weights are safetensors. What
    is `trained` (the keys of `BOUND_TO`) is written down for `check_trained`.
    """
    path = folder / checkpoint_name(progress.step)
    temporary = folder / f".{path.name}.partial"
    if accelerator.is_main_process:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(temporary))
    if accelerator.is_main_process:
        averages = {str(index): tensor.contiguous() for index, tensor in enumerate(ema.shadow_params)}
        save_file(averages, temporary / EMA_FILE)
        state = {"progress": asdict(progress), "ema_steps": ema.optimization_step, **trained}
        (temporary / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        if path.exists():
            shutil.rmtree(path)
        temporary.rename(path)
        older = [other for other in list_checkpoints(folder) if other.name <= path.name]
        for old in older[:-kept]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()
    return path


def check_trained(path: Path, trained: dict[str, Any]) -> None:
    """Raise `ValueError` if the checkpoint is of another architecture, noise schedule, optimizer or distillation."""
    state = _read_state(path)
    for part, what in BOUND_TO.items():
        if difference := _difference(state[part], trained[part]):
            raise ValueError(f"{path} holds {what}: {difference}; use the {part} settings it was made with")


def load_checkpoint(accelerator: Accelerator, path: Path, ema: EMAModel) -> Progress:
    """Put the run's state back as it was at the checkpoint.

    Raises:
        ValueError: If one of its files is missing or damaged.
    """
    state = _read_state(path)
    try:
        accelerator.load_state(str(path))
        averages = load_file(path / EMA_FILE)
        for index, tensor in enumerate(ema.shadow_params):
            tensor.copy_(averages[str(index)])
        progress = Progress(**state["progress"])
    except (OSError, RuntimeError, KeyError, TypeError, EOFError, UnpicklingError, SafetensorError) as error:
        raise _damaged(path, error) from error
    ema.optimization_step = state["ema_steps"]
    return progress


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE_FILE).read_text())
    except json.JSONDecodeError as error:
        raise _damaged(path, error) from error
    if not isinstance(state, dict) or not state:
        raise _damaged(path, TypeError(f"{STATE_FILE} holds no settings"))
    if missing := STATE_KEYS - state.keys():
        raise ValueError(
            f"{path / STATE_FILE} lacks {', '.join(sorted(missing))}: another version of this package wrote it; "
            "go on with that, or start anew in another output_dir"
        )
    if not all(isinstance(state[name], dict) for name in ("progress", *BOUND_TO)):
        raise _damaged(path, TypeError(f"{STATE_FILE} has values of another kind"))
    return state


def _damaged(path: Path, error: Exception) -> ValueError:
    reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{path} is damaged ({reason}); delete it, and --resume latest goes on from the one before")


def _difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Say what differs between the settings of two components: the class if it is named, or else the arguments."""
    if saved.get("class_path") != wanted.get("class_path"):
        return f"{saved['class_path']}, not {wanted['class_path']}"
    before, after = saved.get("init_args", saved), wanted.get("init_args", wanted)
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return ", ".join(f"{name} {before.get(name)}, not {after.get(name)}" for name in names)
