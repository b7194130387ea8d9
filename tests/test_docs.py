"""docs/sampling.md names every option, its lines can be run, and its pictures are there."""

import re
import shlex

import pytest
from PIL import Image

from pipelines.commands import restore, sample
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
LINES = re.findall(r"^python scripts/(\w+)\.py (.*)$", PAGE, re.MULTILINE)
PARSERS = {"sample": sample.build_parser(), "restore": restore.build_parser()}


def restore_modes():
    return [*PARSERS["restore"]._subcommands_action._name_parser_map.values()]


@pytest.mark.parametrize(("script", "arguments"), LINES)
def test_each_line_is_understood(script, arguments, monkeypatch):
    monkeypatch.chdir(ROOT)
    PARSERS[script].parse_args(shlex.split(arguments))


@pytest.mark.parametrize(("script", "parsers"), [("sample", [PARSERS["sample"]]), ("restore", restore_modes())])
def test_each_option_has_an_example(script, parsers):
    shown = {option for name, arguments in LINES if name == script for option in re.findall(r"--\w+", arguments)}
    actions = [action for parser in parsers for action in parser._actions]
    options = {option for action in actions for option in action.option_strings if option.startswith("--")}
    assert options - shown <= {"--help", "--print_config", "--print_shtab"}


def test_each_picture_is_there_and_made_by_a_line():
    pictures = re.findall(r"!\[\]\((pictures/[^)]+)\)", PAGE)
    assert len(pictures) > 30
    for picture in pictures:
        assert f"docs/{picture}" in "".join(arguments for _, arguments in LINES)
        with Image.open(ROOT / "docs" / picture) as image:
            image.load()
