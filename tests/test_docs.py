"""Links and code blocks of the documentation work, and docs/sampling.md names every option."""

import re
import shlex
import shutil
import tomllib

import pytest
from PIL import Image

from benchmarks import command as benchmark
from pipelines.commands import distill, evaluate, prepare, restore, sample
from pipelines.commands.parsed_run import ParsedRun
from scripts import train_judge
from tests.conftest import DATA_ROOT, ROOT

CARDS = sorted((ROOT / "pipelines" / "weights").glob("*/README.md"))
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")), *CARDS]
BLOCKS = [
    (page.relative_to(ROOT).as_posix(), language, block)
    for page in PAGES
    for language, block in re.findall(
        r"^```(\w+)\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
]
PARSERS = {
    "sample": sample.build_parser(),
    "restore": restore.build_parser(),
    "evaluate": evaluate.build_parser(),
    "distill": distill.build_parser(),
    "prepare": prepare.build_parser(),
    "prepare_data": prepare.build_parser(),
    "benchmark": benchmark.build_parser(),
    "train_judge": train_judge.build_parser(),
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OTHER_PROGRAMS = {"cd", "git", "source", "pre-commit", "lowest/bin/python", "diff", "wandb", "npm", "tar"}


def slug(heading):
    """Return the anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_each_link_leads_somewhere(page):
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://", target):
            continue
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize(("page", "block"), [(page, block) for page, language, block in BLOCKS if language == "python"])
def test_each_python_block_runs(page, block, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(DATA_ROOT)
    shutil.copytree(ROOT / "pipelines" / "weights" / "teacher", tmp_path / "pipeline")
    block = block.replace("max_minutes=5", "max_steps=1").replace("num_inference_steps=50", "num_inference_steps=2")
    exec(compile(block, page, "exec"), {})


@pytest.mark.parametrize(("page", "block"), [(page, block) for page, language, block in BLOCKS if language == "sh"])
def test_each_command_is_understood(page, block, monkeypatch):
    monkeypatch.chdir(ROOT)
    if "git checkout" in block:
        pytest.skip("of another commit")
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        while "&&" in words:
            check_command(words[: words.index("&&")])
            words = words[words.index("&&") + 1 :]
        if words:
            check_command(words)


def check_command(words):
    program, *arguments = words
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        assert all(re.search(f"^{word}:", makefile, re.MULTILINE) for word in arguments if "=" not in word)
    elif program.startswith("denoiser-"):
        assert program in PROJECT["scripts"]
        check_options(program.removeprefix("denoiser-"), arguments)
    elif "scripts/" in " ".join(words):
        assert program in ("python", "accelerate", ".venv/bin/python", ".venv/bin/accelerate")
        if "--config_file" in words:
            assert (ROOT / words[words.index("--config_file") + 1]).is_file()
        place = next(index for index, word in enumerate(words) if word.startswith("scripts/"))
        assert (ROOT / words[place]).is_file()
        check_options(words[place].removeprefix("scripts/").removesuffix(".py"), words[place + 1 :])
    elif program.endswith("pip"):
        for extras in re.findall(r"\[([\w,]+)\]", " ".join(arguments)):
            assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()
    else:
        assert program in OTHER_PROGRAMS or words[1:3] == ["-m", "venv"], words


def check_options(command, arguments):
    if command == "train" and "--print_config" not in arguments:
        ParsedRun(arguments)
    elif command in PARSERS:
        PARSERS[command].parse_args([word for word in arguments if word != "…"])
    else:
        assert not arguments or "--print_config" in arguments


PAGE = (ROOT / "docs" / "sampling.md").read_text(encoding="utf-8")
LINES = re.findall(r"^python scripts/(\w+)\.py (.*)$", PAGE, re.MULTILINE)


def restore_modes():
    return [*PARSERS["restore"]._subcommands_action._name_parser_map.values()]


@pytest.mark.parametrize(("script", "parsers"), [("sample", [PARSERS["sample"]]), ("restore", restore_modes())])
def test_each_option_has_an_example(script, parsers):
    shown = {option for name, arguments in LINES if name == script for option in re.findall(r"--\w+", arguments)}
    actions = [action for parser in parsers for action in parser._actions]
    options = {option for action in actions for option in action.option_strings if option.startswith("--")}
    elsewhere = {option for option in options if option == "--data" or option.startswith("--data.")}  # docs/data.md
    assert options - shown - elsewhere <= {"--help", "--print_config", "--print_shtab"}


def test_each_picture_is_there_and_made_by_a_line():
    pictures = re.findall(r"!\[\]\((pictures/[^)]+)\)", PAGE)
    assert len(pictures) > 30
    for picture in pictures:
        assert f"docs/{picture}" in "".join(arguments for _, arguments in LINES)
        with Image.open(ROOT / "docs" / picture) as image:
            image.load()


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 130
    assert len(re.findall(r"\d[\d.,]*", text)) <= 60


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_wraps_at_100_columns(page):
    text = re.sub(r"(?ms)^```.*?^```$", "", page.read_text(encoding="utf-8"))
    long = [line for line in text.splitlines() if len(line) > 100 and not line.startswith(("|", "- T-shirt"))]
    assert page in CARDS or not long


def test_the_version_stands_in_one_place():
    from denoiser import __version__

    assert PROJECT["dynamic"] == ["version"]
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"## {__version__}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
