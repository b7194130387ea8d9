"""Commands in their own process, and a run that several tests look at."""

import os
import re
import subprocess
import sys

import pytest

from tests.conftest import DATA_ROOT, ROOT, another_process
from tests.reliability import record

SMOKE = ["scripts/train.py", "--config", "configs/smoke.yaml", "--data.root", str(DATA_ROOT)]


def clean_environment():
    """Return the environment without what would change how a command trains, logs or warns."""
    changing = ("ACCELERATE_", "WANDB_", "PYTHONWARN")
    return {name: value for name, value in os.environ.items() if not name.startswith(changing)}


def command(*arguments, **environment):
    """Run a command from the project's folder. Returns how it ended."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**clean_environment(), **environment},
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=300,
    )


@pytest.fixture
def call(capsys, monkeypatch):
    """Return what runs a command in this process, from the project's folder, and returns what it printed."""
    monkeypatch.chdir(ROOT)

    def run(script, *arguments):
        another_process()
        monkeypatch.setattr(sys, "argv", [f"scripts/{script.__name__.split('.')[-1]}.py", *map(str, arguments)])
        script.main()
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="session")
def smoke_run(tmp_path_factory):
    """A run of the smoke config through `accelerate launch`, tracked offline, and what it printed."""
    home = tmp_path_factory.mktemp("home")
    run_dir = home / "run"
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/one_cpu.yaml"]
    ended = command(*launch, *SMOKE, "--output_dir", str(run_dir), HOME=str(home), NETRC=str(home / "netrc"))
    assert ended.returncode == 0, ended.stderr
    assert "WARNING" not in ended.stderr
    return run_dir, ended.stdout


@pytest.fixture
def error_of(capsys, monkeypatch, tmp_path):
    """Run a command in an empty folder. Returns its one line of error."""
    monkeypatch.chdir(tmp_path)

    def call(script, *arguments):
        monkeypatch.setattr(sys, "argv", [f"{script.__name__.split('.')[-1]}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            script.main()
        assert ended.value.code == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.strip() and "%|" not in line]
        assert len(lines) == 1, lines
        assert lines[0].startswith(f"{sys.argv[0]}: error: ")
        told = " ".join([sys.argv[0], *sys.argv[1:]]), lines[0].removeprefix(f"{sys.argv[0]}: error: ")
        record("input", *(re.sub(r"/\S*/(?=[^/\s]+)", "", text).replace("\n", " ") for text in told))
        return lines[0]

    return call
