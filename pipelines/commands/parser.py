"""Command-line parser and entry point of the commands: errors are one line with exit status 2."""

import inspect
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from diffusers.utils.logging import disable_progress_bar
from jsonargparse import ArgumentParser, get_loader, set_loader
from safetensors import SafetensorError

from denoiser.checks import (
    LAST_COMMIT_WITH_THEM,
    REMOVED,
    check_not_removed,
    did_you_mean,
    drop_removed,
    how_to_install,
)

# jsonargparse reports an error as text of several lines only: neither its exceptions nor the argument of
# `error` hold the key, the expected type or the value. So they are taken out of the text.
_UNKNOWN_OPTION = re.compile(
    r"unrecognized arguments: --([^\s=]+)|does not accept option '([^']+)'|Option '([^']+)' is not accepted"
)
_KEY = re.compile(r'Parser key "([^"]+)"')
_EXPECTED = re.compile(r"Expected a (?:<class '([^']+)'>|typing\.Literal\[([^]]+)\]|(tuple with \d+ elements))")
_GIVEN = re.compile(r"(?:Got|Given) value: (?!Namespace|NestedArg|\{)(.+)")
_IMPORT_PATH = re.compile(r"Expected a dot import path string: (\S+)")
_SECTION = re.compile(r"Unexpected config: (.+)", re.DOTALL)
_AROUND = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a ", "Parser key")

Mode = Callable[..., Any]

UNETS = ("denoiser.UNet", "denoiser.unet.UNet", "UNet")
SECRET = 8  # characters of a secret, at least
OUT_OF_MEMORY = "out of memory; lower the batch size or the widths of the network, or give --data.in_memory false"

# Package data of the wheel, and the folder `configs` of a checkout.
CONFIGS = next(parent / "configs" for parent in Path(__file__).parents if (parent / "configs").is_dir())

_load_yaml = get_loader("yaml")


def _load(text: str) -> Any:
    """Load YAML without aliases, a few lines of which can expand to more than memory holds."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise yaml.YAMLError("it has an alias (*); write out what that stands for")
    try:
        return _without_removed(_load_yaml(text))
    except ValueError as error:
        raise yaml.YAMLError(str(error)) from error


def _without_removed(content: Any) -> Any:
    """Leave removed options at their defaults out of the config of an earlier run."""
    if not isinstance(content, dict):
        return content
    kept = {name: _without_removed(value) for name, value in content.items()}
    arguments, training = kept.get("init_args"), kept.get("training")
    if isinstance(arguments, dict) and kept.get("class_path", UNETS[0]) in UNETS:
        kept["init_args"] = drop_removed("UNet", arguments)
    if isinstance(training, dict):
        weighting = training.get("loss_weighting")
        check_not_removed(weighting == "noise", "loss_weighting", weighting)
        kept["training"] = drop_removed("training", training)
    return kept


def find_config(name: str) -> str:
    """Return the path of a config of the package by its name; other values are returned unchanged."""
    if not name.isidentifier() or Path(name).is_file():
        return name
    if not (CONFIGS / f"{name}.yaml").is_file():
        known = sorted(path.stem for path in CONFIGS.glob("*.yaml"))
        fail(f"config '{name}' is neither a file nor one of the package{did_you_mean(name, known)}: {', '.join(known)}")
    return str(CONFIGS / f"{name}.yaml")


set_loader("yaml", _load, (yaml.YAMLError,))


class Parser(ArgumentParser):
    """jsonargparse parser with errors of one line and suggestions for unknown options."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        fail(self._one_line(message))

    def parse_args(self, args: Sequence[str], **kwargs: Any) -> Any:  # type: ignore[override]
        """Parse a command line; `--config` takes a path or the name of a config of the package."""
        words = []
        for before, word in pairwise(["", *args]):
            option, separator, value = word.partition("=")
            if before == "--config":
                words.append(find_config(word))
            else:
                words.append(option + separator + (find_config(value) if option == "--config" else value))
        return super().parse_args(words, **kwargs)

    def parse_mode(self, modes: Sequence[Mode], args: Sequence[str]) -> tuple[Mode, Any]:
        """Parse a command line of `subcommands`; returns the mode and its options."""
        parsed = self.parse_args(args)
        return next(mode for mode in modes if mode.__name__ == parsed.mode), parsed[parsed.mode]

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Parse a config file, in UTF-8 whatever the locale."""
        try:
            content = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
        return self.parse_string(content, str(path), *args, **kwargs)

    def instantiate(self, *args: Any, **kwargs: Any) -> Any:
        """Instantiate the parsed classes, with errors of one line."""
        try:
            return super().instantiate(*args, **kwargs)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(self._one_line(str(error))) from error

    def _one_line(self, message: str) -> str:
        if unknown := _UNKNOWN_OPTION.search(message):
            option = next(group for group in unknown.groups() if group)
            if option in [*REMOVED["UNet"], *(f"training.{name}" for name in REMOVED["training"])]:
                return f"{option} is a removed option; commit {LAST_COMMIT_WITH_THEM} is the last that has it"
            return f"unknown option '{option}'{did_you_mean(option, self._options())}"
        if section := _SECTION.search(message):
            return f"the config cannot be read: '{section[1].strip()}'; leave a section out if it is empty"
        key, given = ".".join(dict.fromkeys(_KEY.findall(message))), _GIVEN.search(message)
        types = dict.fromkeys("".join(parts) for parts in _EXPECTED.findall(message))
        types.pop("NoneType", None)
        if path := _IMPORT_PATH.search(message):
            return f"{key}: '{path[1]}' is not the import path of a class, such as denoiser.UNet"
        if key and types:
            hint = ' (YAML reads a bare no as False: write "no")' if given and given[1] == "False" else ""
            return f"{key}: expected {' or '.join(types)}" + (f", got {given[1]}{hint}" if given else "")
        lines = [line.strip(" -") for line in message.splitlines()]
        rest = " ".join(line for line in lines if line and not line.startswith(_AROUND))
        return (f"{key}: " if key else "") + (rest or message)

    def _options(self) -> Iterator[str]:
        for action in self._actions:
            yield action.dest
            yield action.dest.rsplit(".", 1)[-1]


def subcommands(
    description: str | None, modes: Sequence[Mode], given: Collection[str], add_common: Callable[["Parser", Mode], None]
) -> "Parser":
    """Return a parser with a subcommand for each mode, whose arguments are options unless `given`."""
    parser = Parser(description=description)
    commands = parser.add_subcommands(dest="mode")
    for mode in modes:
        help_ = str(mode.__doc__).split("\n")[0]
        own = Parser(description=help_)
        add_common(own, mode)
        own.add_function_arguments(mode, skip=set(given))
        commands.add_subcommand(mode.__name__, own, help=help_)
    return parser


def call_mode(mode: Mode, options: Any, **given: Any) -> Any:
    """Call a mode with its options and with what is given."""
    names = inspect.signature(mode).parameters
    return mode(**{name: given[name] if name in given else options[name] for name in names})


@contextmanager
def needed(extra: str) -> Iterator[None]:
    """Turn a failed import into one line that names the extra to install."""
    try:
        yield
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] in ("denoiser", "pipelines"):
            raise
        fail(f"{error}; {how_to_install(extra)}")


def add_sampling_arguments(parser: Parser, config_class: type[Any]) -> None:
    """Add the options of a `SamplingConfig`; sampler and steps default to the pipeline's."""
    parser.add_class_arguments(config_class, skip={"scheduler", "steps"})
    parser.add_argument("--scheduler", type=str | None, help="sampler: ddpm, ddim, … (default: the pipeline's)")
    parser.add_argument("--steps", type=int | None, help="steps of the sampler (default: the pipeline's)")


def sampling_config(config_class: type[Any], options: Any, sampler: dict[str, Any]) -> Any:
    """Return the settings of `add_sampling_arguments`, by default with the pipeline's `sampler`."""
    given = {field.name: options[field.name] for field in fields(config_class)}
    return config_class(**{**sampler, **{name: value for name, value in given.items() if value is not None}})


def check_unused(config_class: type[Any], options: Any, names: Sequence[str], reason: str) -> None:
    """Raise `ValueError` for the first of these settings that is given and not used."""
    for name in names:
        if options[name] not in (None, getattr(config_class, name)):
            raise ValueError(f"{name} is {options[name]}, and is not used: {reason}; leave it out")


def fail(message: str) -> NoReturn:
    """Print one line to standard error, without secrets of the environment, and exit with status 2."""
    for name, value in os.environ.items():
        if name.endswith(("_KEY", "_TOKEN", "_PASSWORD")) and len(value) >= SECRET:
            message = message.replace(value, f"${name}")
    rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    where = f" (process {rank})" if rank != "0" else ""
    print(f"{Path(sys.argv[0]).name}: error{where}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a command's `main`: a user's errors end it with one line and exit status 2."""
    return wraps(main)(partial(_run, main))


def _run(main: Callable[[], None]) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # letters that the locale lacks are escaped
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    disable_progress_bar()  # diffusers' own, for loading
    try:
        main()
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:  # also of a full disk
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        fail(str(error))
    except (MemoryError, torch.OutOfMemoryError):
        fail(OUT_OF_MEMORY)
    except RuntimeError as error:
        what = _what_to_do(error)
        if what is None:
            raise
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        fail(what)
    except KeyboardInterrupt:
        fail("interrupted")


def _what_to_do(error: RuntimeError) -> str | None:
    """Describe an error of processes, memory or compiler, with what to do; None for another."""
    reason = next(iter(str(error).splitlines()), "")
    if "connectFullMesh" in reason:  # of gloo, at the start
        return (
            f"the processes cannot reach each other ({reason}); if a machine's name stands for 127.0.0.1, export "
            "GLOO_SOCKET_IFNAME, its network interface, such as eth0"
        )
    if isinstance(error, torch.distributed.DistError) or "gloo" in reason:
        return (
            f"another process of the run has ended ({reason}); its own lines say why; start all of them again, a "
            "training with --resume latest"
        )
    if "can't allocate memory" in reason:
        return OUT_OF_MEMORY
    if type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
        return f"the network cannot be compiled ({reason}); leave compile off"
    return None
