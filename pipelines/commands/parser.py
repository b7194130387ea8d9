"""What all the commands share: a parser whose errors are one line, and an end without a traceback."""

import io
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial, wraps
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from diffusers.utils.logging import disable_progress_bar
from jsonargparse import ArgumentParser, get_loader, set_loader
from safetensors import SafetensorError

from denoiser.checks import did_you_mean

# What jsonargparse says around and inside the one fact that matters.
_UNKNOWN_OPTION = re.compile(
    r"unrecognized arguments: --([^\s=]+)|does not accept option '([^']+)'|Option '([^']+)' is not accepted"
)
_KEY = re.compile(r'Parser key "([^"]+)"')
_EXPECTED = re.compile(r"Expected a (?:<class '([^']+)'>|typing\.Literal\[([^]]+)\]|(tuple with \d+ elements))")
_GIVEN = re.compile(r"(?:Got|Given) value: (?!Namespace|NestedArg|\{)(.+)")
_IMPORT_PATH = re.compile(r"Expected a dot import path string: (\S+)")
_SECTION = re.compile(r"Unexpected config: (.+)", re.DOTALL)
_AROUND = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a ", "Parser key")

SECRET = 8  # characters, at least
OUT_OF_MEMORY = "out of memory; lower the batch size, or the widths of the network"

_load_yaml = get_loader("yaml")


def _load_without_aliases(text: str) -> Any:
    """Read YAML, but no aliases: a few lines of them can stand for more than memory holds."""
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
        raise yaml.YAMLError("it has an alias (*); write out what that stands for")
    return _load_yaml(text)


set_loader("yaml", _load_without_aliases, (yaml.YAMLError,))


class Parser(ArgumentParser):
    """A jsonargparse parser that says what is wrong in one line, and the nearest right option."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        fail(self._one_line(message))

    def parse_path(self, path: str | os.PathLike[str], *args: Any, **kwargs: Any) -> Any:
        """Parse a config file, which is UTF-8 whatever the locale."""
        try:
            content = Path(path).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from error
        return self.parse_string(content, str(path), *args, **kwargs)

    def instantiate(self, *args: Any, **kwargs: Any) -> Any:
        """Build what was parsed, as jsonargparse does, with errors of one line."""
        try:
            return super().instantiate(*args, **kwargs)
        except (ValueError, TypeError, RuntimeError) as error:
            raise ValueError(self._one_line(str(error))) from error

    def _one_line(self, message: str) -> str:
        if unknown := _UNKNOWN_OPTION.search(message):
            option = next(group for group in unknown.groups() if group)
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


def add_sampling_arguments(parser: Parser, config_class: type[Any]) -> None:
    """Add the options of a `SamplingConfig` to a parser; scheduler and steps may be left to the pipeline."""
    parser.add_class_arguments(config_class, skip={"scheduler", "steps"})
    parser.add_argument("--scheduler", type=str | None, help="ddpm, ddim, … (default: what the pipeline is made for)")
    parser.add_argument("--steps", type=int | None, help="steps of the scheduler (default: likewise)")


def sampling_config(config_class: type[Any], options: Any, own: dict[str, Any]) -> Any:
    """Return what was given for `add_sampling_arguments`; `own` is the pipeline's own scheduler and steps."""
    given = {field.name: options[field.name] for field in fields(config_class)}
    return config_class(**{**own, **{name: value for name, value in given.items() if value is not None}})


def fail(message: str) -> NoReturn:
    """Print one line to standard error, without the keys in the environment, and exit with status 2."""
    for name, value in os.environ.items():
        if name.endswith(("_KEY", "_TOKEN", "_PASSWORD")) and len(value) >= SECRET:
            message = message.replace(value, f"${name}")
    rank = os.environ.get("RANK", "0") if "WORLD_SIZE" in os.environ else "0"
    where = f" (process {rank})" if rank != "0" else ""
    print(f"{Path(sys.argv[0]).name}: error{where}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a command's `main`; what its user got wrong ends in one line and exit status 2, not in a traceback."""
    return wraps(main)(partial(_run, main))


def _run(main: Callable[[], None]) -> None:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # which letters that the locale lacks would end the command
            stream.reconfigure(errors="backslashreplace")
    logging.basicConfig(format="%(levelname)s: %(message)s")
    disable_progress_bar()  # diffusers' own, for loading parts that load in a blink
    try:
        main()
    except (ValueError, OSError, FloatingPointError, SafetensorError) as error:  # the last of a full disk, too
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        fail(str(error))
    except (MemoryError, torch.OutOfMemoryError):
        fail(OUT_OF_MEMORY)
    except RuntimeError as error:
        reason = next(iter(str(error).splitlines()), "")
        if isinstance(error, torch.distributed.DistError) or "gloo" in reason:
            what = f"another process of the run has ended ({reason}); its own lines say why; --resume latest goes on"
        elif "can't allocate memory" in reason:
            what = OUT_OF_MEMORY
        elif type(error).__module__.startswith(("torch._inductor", "torch._dynamo")):
            what = f"the network cannot be compiled ({reason}); leave compile off"
        else:
            raise
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        fail(what)
    except KeyboardInterrupt:
        fail("interrupted")
