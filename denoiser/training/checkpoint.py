"""Checkpoints: folders that hold everything that resuming needs, and that appear whole or not at all.

A manifest has the size and the SHA-256 of each file, so that what was cut short or altered afterwards is known.
"""

import json
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from diffusers.training_utils import EMAModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from denoiser.files import sha256, sync

logger = logging.getLogger(__name__)

PREFIX = "step-"
STATE_FILE, EMA_FILE, MANIFEST = "state.json", "ema.safetensors", "manifest.json"
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
    """Return the checkpoints in `folder`, oldest first, whether they are whole or not."""
    return sorted(path for path in folder.glob(f"{PREFIX}*") if path.is_dir())


def find_checkpoint(resume: str, folder: Path) -> Path | None:
    """Return the checkpoint that `resume` means: a path, or the newest whole one in `folder` for "latest".

    Returns:
        The checkpoint; None for "latest" where there is none yet.

    Raises:
        FileNotFoundError: If the path is not a checkpoint.
        ValueError: If it is damaged, or if there are checkpoints and all are.
    """
    if resume != "latest":
        if not (Path(resume) / MANIFEST).is_file():
            raise FileNotFoundError(f"{resume} is not a checkpoint: it has no {MANIFEST}; give a folder, or 'latest'")
        check_whole(Path(resume))
        return Path(resume)
    found = list_checkpoints(folder)
    for path in reversed(found):
        try:
            check_whole(path)
        except ValueError as error:
            logger.warning("passed over: %s", error)
        else:
            return path
    if found:
        raise ValueError(f"none of the checkpoints in {folder} is whole; start anew in another output_dir")
    return None


def check_whole(path: Path) -> None:
    """Raise `ValueError` unless the checkpoint has the files that its manifest lists, unaltered, and no others."""
    try:
        listed = json.loads((path / MANIFEST).read_text())
        sums = {name: (facts["bytes"], facts["sha256"]) for name, facts in listed.items()}
    except (OSError, ValueError, AttributeError, TypeError, KeyError, RecursionError) as error:
        raise _damaged(path, error) from error
    files = _files(path)
    if names := sorted(files.keys() ^ sums.keys()):
        raise _damaged(path, ValueError(f"{names[0]} is {'not in the manifest' if names[0] in files else 'missing'}"))
    for name, file in files.items():
        if (file.stat().st_size, sha256(file)) != sums[name]:
            raise _damaged(path, ValueError(f"{name} is not as it was written"))


def save_checkpoint(
    accelerator: Accelerator, folder: Path, progress: Progress, ema: EMAModel, trained: dict[str, Any]
) -> Path:
    """Save the run's state on all processes.

    The optimizer, the weights and the loss scaler go through Accelerate; the averaged weights are safetensors. What
    is `trained` (the keys of `BOUND_TO`) is written down for `check_trained`. All of it is on the disk before it gets
    its name.

    Raises:
        OSError: On all processes, if one of them cannot write; other checkpoints are as they were.
    """
    path = folder / checkpoint_name(progress.step)
    temporary = folder / f".{path.name}.partial"
    with _together(accelerator):
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
    try:
        with _together(accelerator):
            accelerator.save_state(str(temporary))
        with _together(accelerator):
            if accelerator.is_main_process:
                averages = {str(index): tensor.contiguous() for index, tensor in enumerate(ema.shadow_params)}
                save_file(averages, temporary / EMA_FILE)
                state = {"progress": asdict(progress), "ema_steps": ema.optimization_step, **trained}
                (temporary / STATE_FILE).write_text(json.dumps(state, indent=2) + "\n")
                files = _files(temporary)
                sums = {name: {"bytes": file.stat().st_size, "sha256": sha256(file)} for name, file in files.items()}
                (temporary / MANIFEST).write_text(json.dumps(sums, indent=2) + "\n")
                for file in [*temporary.rglob("*"), temporary]:
                    sync(file)
                if path.exists():
                    shutil.rmtree(path)
                temporary.rename(path)
                sync(folder)
    except OSError:
        if accelerator.is_main_process:
            shutil.rmtree(temporary, ignore_errors=True)
        raise
    return path


def drop_checkpoints(folder: Path, newest: Path, kept: int, keep_every: int | None) -> None:
    """Delete the checkpoints up to `newest` but the last `kept` of them, and those of every `keep_every` steps."""
    older = [path for path in list_checkpoints(folder) if path.name <= newest.name]
    for path in older[:-kept]:
        step = path.name.removeprefix(PREFIX)
        if not (keep_every and step.isdecimal() and int(step) % keep_every == 0):
            shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _together(accelerator: Accelerator) -> Iterator[None]:
    """Raise `OSError` on all processes if the block does on one of them; none goes on before all have come here."""
    failure = None
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:  # torch.save tells of a full disk by the last
        failure = f"{type(error).__name__}: {error}"
    if failures := [told for told in gather_object([failure]) if told]:
        raise OSError(failures[0])


def _files(path: Path) -> dict[str, Path]:
    """Return all files of a checkpoint but the manifest, by their names in it."""
    files = {file.relative_to(path).as_posix(): file for file in sorted(path.rglob("*")) if file.is_file()}
    files.pop(MANIFEST, None)
    return files


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
    return ValueError(f"{path} is damaged ({reason}); --resume latest goes on from the newest that is whole")


def _difference(saved: dict[str, Any], wanted: dict[str, Any]) -> str:
    """Say what differs between the settings of two components: the class if it is named, or else the arguments."""
    if saved.get("class_path") != wanted.get("class_path"):
        return f"{saved['class_path']}, not {wanted['class_path']}"
    before, after = saved.get("init_args", saved), wanted.get("init_args", wanted)
    names = sorted(name for name in before | after if before.get(name) != after.get(name))
    return ", ".join(f"{name} {before.get(name)}, not {after.get(name)}" for name in names)
