"""`configs/sweep.yaml` as wandb's own agent runs it, without its server."""

import os
import sys
from pathlib import Path

import pytest
import yaml
from wandb.wandb_agent import Agent

from pipelines.commands.parsed_run import ParsedRun
from tests.conftest import DATA_ROOT, ROOT
from tests.scripts.conftest import clean_environment

SWEEP = yaml.safe_load((ROOT / "configs" / "sweep.yaml").read_text(encoding="utf-8"))
LAUNCHER = """#!/bin/sh
printf '%s\\n' "$@" >"$WANDB_RUN_ID.arguments"
"""


def drawn(share):
    """Return a value of each parameter, from the lowest or first at 0 to the highest or last at 1."""
    values = {}
    for name, parameter in SWEEP["parameters"].items():
        if "values" in parameter:
            values[name] = parameter["values"][round(share * (len(parameter["values"]) - 1))]
        elif parameter["distribution"] == "log_uniform_values":
            values[name] = parameter["min"] ** (1 - share) * parameter["max"] ** share
        else:
            values[name] = parameter["min"] * (1 - share) + parameter["max"] * share
    return values


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """Return what has wandb's agent run a draw of the sweep in `tmp_path`, and waits for its end."""
    (tmp_path / "scripts").symlink_to(ROOT / "scripts")
    monkeypatch.chdir(tmp_path)
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)
    settings = {"WANDB_SWEEP_ID": "ofthetest", "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path / "agent")}
    for name, value in {**settings, "WANDB_RUN_ID": "", "WANDB_SWEEP_PARAM_PATH": "", "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)  # also those that the agent sets, so that they are put back

    def run(run_id, values, program_folder):
        monkeypatch.setenv("PATH", f"{program_folder}{os.pathsep}{os.environ['PATH']}")
        wandbs = Agent(api=None, queue=None)
        wandbs._sweep_command = list(SWEEP["command"])
        arguments = {name: {"value": value} for name, value in values.items()}
        wandbs._command_run({"run_id": run_id, "program": SWEEP["program"], "args": arguments})
        return wandbs._run_processes[run_id]._popen.wait(timeout=150)

    return run


def test_each_command_line_is_a_run_in_a_folder_of_its_own(agent, tmp_path):
    (tmp_path / "accelerate").write_text(LAUNCHER, encoding="utf-8")
    (tmp_path / "accelerate").chmod(0o755)
    for index, share in enumerate((0, 0.3, 0.5, 1)):
        values = drawn(share)
        assert agent(f"run{index}", values, tmp_path) == 0
        launch, program, *arguments = Path(f"run{index}.arguments").read_text(encoding="utf-8").splitlines()
        assert (launch, program) == ("launch", "scripts/train.py")
        run = ParsedRun(arguments)
        config, (model, _) = run.config, run.build((1, 16, 16), 10)
        assert config.output_dir == f"runs/sweep/run{index}"
        assert {name: getattr(config.training, name.removeprefix("training.")) for name in values} == values
        assert model.num_parameters() > 500_000  # of the default


def test_a_run_of_the_sweep_trains_and_is_the_agent_s_run(agent, tmp_path, capfd):
    quick = {
        "data.root": str(DATA_ROOT),
        "training.max_steps": 2,
        "training.batch_size": 8,
        "training.evaluation_images": 100,
        "sampling.num_images": 4,
        "sampling.steps": 2,
    }
    assert agent("ab12cd34", {**drawn(0.5), **quick}, Path(sys.executable).parent) == 0
    run_dir = tmp_path / "runs" / "sweep" / "ab12cd34"
    assert SWEEP["metric"]["name"] in (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    (part,) = (run_dir / "wandb").glob("offline-run-*")
    assert part.name.endswith("-ab12cd34")
    assert SWEEP["metric"]["name"].encode() in next(part.glob("*.wandb")).read_bytes()
    assert (run_dir / "wandb_id").read_text(encoding="utf-8") == "ab12cd34\n"  # a resume without the agent is it too
    assert "WANDB_RUN_ID" not in capfd.readouterr().err
    assert (run_dir / "pipeline" / "README.md").is_file()
