"""What all the commands share: a parser whose errors are one line, and an end without a traceback."""

import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from diffusers.utils.logging import disable_progress_bar
from jsonargparse import ArgumentParser

from denoiser.checks import did_you_mean

# Lines that jsonargparse puts around the one that says what is wrong.
_AROUND = ("Does not validate", "Subtypes:", "Errors:", "Given value", "Expected a <class 'NoneType'>")
_UNKNOWN = re.compile(
    r"[Uu]nrecognized arguments: --(?P<a>[^\s=]+)|does not accept option '(?P<b>[^']+)'|"
    r"Option '(?P<c>[^']+)' is not accepted|Key '(?P<d>[^']+)' is not expected"
)


class Parser(ArgumentParser):
    """A jsonargparse parser that says what is wrong in one line, and the nearest right option."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line and exit with status 2."""
        fail(self._one_line(message))

    def _one_line(self, message: str) -> str:
        found = _UNKNOWN.search(message)
        if found:
            option = next(group for group in found.groups() if group)
            return f"unknown option '{option}'{did_you_mean(option, self._options())}"
        lines = [line.strip(" -") for line in message.splitlines()]
        return " ".join(line for line in lines if line and not line.startswith(_AROUND))

    def _options(self) -> Iterator[str]:
        for action in self._actions:
            yield action.dest
            yield action.dest.rsplit(".", 1)[-1]


def fail(message: str) -> NoReturn:
    """Print one line to standard error and exit with status 2."""
    rank = os.environ.get("RANK", "0")
    where = f" (process {rank})" if rank != "0" else ""
    print(f"{os.path.basename(sys.argv[0])}: error{where}: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def run(main: Callable[[], Any]) -> None:
    """Call a command's `main`; what its user got wrong ends in one line and exit status 2, not in a traceback."""
    logging.basicConfig(format="%(levelname)s: %(message)s")
    disable_progress_bar()  # diffusers' own, for loading parts that load in a blink
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        logging.getLogger(__name__).debug("where it happened", exc_info=True)
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")
