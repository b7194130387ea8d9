"""What is measured: entries, each a command line of `scripts/train.py`, in a YAML file."""

import ast
import hashlib
import json
import shlex
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import yaml
from diffusers import DDPMScheduler, ModelMixin

import denoiser
import pipelines
from benchmarks.machine import processor
from denoiser.checks import pair
from pipelines.commands.train import parse_run
from pipelines.evaluation.judge import IMAGE_SHAPE
from pipelines.training.config import RunConfig, components, settings

# Settings that decide what is written when and where, not what a training comes to.
_ASIDE = ("output_dir", "data", "tracking", "resume")
_ASIDE_IN_TRAINING = ("log_every", "sample_every", "evaluate_every", "checkpoint_every", "checkpoints_kept")
# Code that a result does not depend on: of the evaluation it needs the judge and the distance only.
_CODE_ASIDE = (
    *(f"evaluation/{name}.py" for name in ("comparison", "config", "drawing", "features", "inputs", "likelihood")),
    *(f"evaluation/{name}.py" for name in ("markdown", "memorisation", "plots", "report", "restoration", "writing")),
    *(f"training/{name}.py" for name in ("card", "checkpoint", "distillation", "run_folder", "tracking")),
    *(f"benchmark/{name}.py" for name in ("drawing", "profile", "speed", "tables")),
)
_PACKAGES = (
    *("torch", "diffusers", "accelerate", "einops", "torchvision"),
    *("denoising-diffusion-pytorch", "smalldiffusion", "pytorch-optimizer"),
)


@dataclass(frozen=True)
class Entry:
    """A network and how it is trained.

    Attributes:
        name: What the tables call it.
        arguments: Command line of `scripts/train.py`.
        seconds: How long to train it, each time from the start.
        ema_powers: Further averages of the weights that are kept and judged beside the training's own.
    """

    name: str
    arguments: tuple[str, ...]
    seconds: tuple[float, ...]
    ema_powers: tuple[float, ...] = ()

    def build(self, seconds: float, seed: int) -> tuple[RunConfig, ModelMixin, DDPMScheduler]:
        """Return the settings of a training of so many seconds, the network with its first weights, the scheduler."""
        given = [*self.arguments, "--training.seed", str(seed), "--output_dir", "unused"]
        config, model, scheduler = parse_run(given)
        training = replace(config.training, max_steps=None, max_minutes=seconds / 60)
        return replace(config, training=training), model, scheduler


@dataclass(frozen=True)
class Field:
    """What is compared with one another.

    Attributes:
        entries: By name.
        baseline: Name of the entry that ratios are to.
    """

    entries: dict[str, Entry]
    baseline: str


def read_field(path: Path, data_root: str | None = None) -> Field:
    """Read a file of entries.

    Args:
        path: YAML with the arguments, seconds, baseline and entries.
        data_root: Folder of FashionMNIST, in the place of what the entries say.

    Raises:
        ValueError: If it is none.
        OSError: If it cannot be read.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        base, seconds, baseline = shlex.split(content["arguments"]), content["seconds"], content["baseline"]
        given = () if data_root is None else ("--data.root", data_root)
        entries = {}
        for name, entry in content["entries"].items():
            lengths, powers = (
                tuple(float(number) for number in numbers)
                for numbers in (entry.get("seconds", seconds), entry.get("ema_powers", ()))
            )
            entries[name] = Entry(name, (*base, *shlex.split(entry["arguments"]), *given), lengths, powers)
    except (yaml.YAMLError, KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error!r}); benchmarks/configs/networks.yaml shows how") from error
    for name in (*entries, baseline):
        if not isinstance(name, str):
            raise ValueError(f"{path}: the name {name!r} is no text; give one, in quotes if it is a number")
    if baseline not in entries:
        raise ValueError(f"{path}: the baseline '{baseline}' is none of {', '.join(entries)}")
    for entry in entries.values():
        if not all(0 <= power <= 1 for power in entry.ema_powers):
            raise ValueError(f"{path}: the ema_powers of '{entry.name}' are {entry.ema_powers}; each is from 0 to 1")
        if not entry.seconds or min(entry.seconds) <= 0:
            raise ValueError(f"{path}: the seconds of '{entry.name}' are {entry.seconds}; give numbers above 0")
    return Field(entries, baseline)


def fingerprint(entry: Entry, config: RunConfig, model: ModelMixin, scheduler: DDPMScheduler) -> dict[str, Any]:
    """Return all that a training's result depends on: settings, code, versions of the packages, and the processor.

    Raises:
        ValueError: If the judge cannot see the network's images.
    """
    shape = (model.config.in_channels, *pair(model.config.sample_size))
    if shape != IMAGE_SHAPE:
        raise ValueError(f"the network makes images of {shape} (channels, height, width), the judge sees {IMAGE_SHAPE}")
    described = {**settings(config), **components(model, scheduler)}
    kept = {name: value for name, value in described.items() if name not in _ASIDE}
    kept["training"] = {name: value for name, value in kept["training"].items() if name not in _ASIDE_IN_TRAINING}
    kept["ema_powers"] = list(entry.ema_powers)
    versions = {name: found[0].version for name in _PACKAGES if (found := [*distributions(name=name)])}
    return {"settings": kept, "code": _code_hash(), "versions": versions, "processor": processor()}


def digest(facts: dict[str, Any]) -> str:
    """Return a short hash of plain values."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


@lru_cache
def _code_hash() -> str:
    """Hash the code that a result depends on; formatting, comments and docstrings are nothing to it."""
    package = Path(denoiser.__file__).parent
    aside = {package / name for name in _CODE_ASIDE}
    files = [*package.rglob("*.py"), *package.rglob("*.safetensors"), *Path(pipelines.__file__).parent.glob("*.py")]
    return hashlib.sha256(b"".join(_meaning(path) for path in sorted(files) if path not in aside)).hexdigest()[:16]


def _meaning(path: Path) -> bytes:
    if path.suffix != ".py":
        return path.read_bytes()
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return ast.dump(tree).encode()
