import json
import logging
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import wandb

from pipelines.commands.parser import fail
from pipelines.training import TrackingConfig
from pipelines.training.tracking import Tracker, settle_tracking


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    """A home without a wandb key, in which wandb has no settings."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb_config"))
    for name in ("API_KEY", "MODE", "PROJECT", "NAME", "DIR", "RUN_ID", "RESUME"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    wandb.teardown()
    yield
    wandb.teardown()


def folders_of(command):
    """Return what a printed command uploads."""
    program, sync, *folders = shlex.split(command)
    assert (Path(program).name, sync) == ("wandb", "sync")
    assert os.access(program, os.X_OK)
    return [Path(folder) for folder in folders]


def test_without_a_login_the_run_is_logged_offline_and_says_how_to_sync(make_trainer, no_login):
    trainer = make_trainer(tracking="auto")
    (folder,) = folders_of(trainer.train())
    (log,) = (trainer.folder.path / "wandb").glob("offline-run-*/*.wandb")
    assert log.parent == folder
    content = log.read_bytes()
    for name in ("loss", "learning_rate", "gradient_norm", "images_per_second", "loss_quarter_4", "run-pipeline"):
        assert name.encode() in content
    assert b"block_out_channels" in content  # the resolved config
    assert list(log.parent.glob("files/media/images/samples_10_*.png"))


def test_a_resumed_run_is_the_same_wandb_run_and_all_its_parts_are_to_be_uploaded(make_trainer, no_login):
    first = make_trainer("a run; with 'quotes'", tracking="offline", checkpoint_every=4)
    first.budget.max_steps = 4
    (part,) = folders_of(first.train())
    again = make_trainer("a run; with 'quotes'", tracking="offline", resume="latest")
    parts = folders_of(again.train())
    assert parts[0] == part
    assert len(parts) == 2
    run_id = (first.folder.path / "wandb_id").read_text(encoding="utf-8").strip()
    assert all(f"-{run_id}" in path.name for path in parts)  # and a count behind it, for parts of one second
    (part / f"{part.name}.wandb.synced").touch()
    third = make_trainer("a run; with 'quotes'", tracking="offline", resume="latest", max_steps=12)
    assert part not in folders_of(third.train())


def test_two_runs_are_two_wandb_runs(make_trainer, no_login):
    folders = [folders_of(make_trainer(name, tracking="offline", max_steps=1).train())[0] for name in ("one", "two")]
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 2


@pytest.mark.parametrize("name", ["lr=6e-3", "실험 1", "a:b/c?d*e", "x" * 200, "..run.."])
def test_any_name_of_a_run_folder_is_logged_and_the_run_ends_well(make_trainer, no_login, name, caplog):
    trainer = make_trainer(name, tracking="offline", max_steps=1)
    (folder,) = folders_of(trainer.train())
    assert trainer.finished
    assert b"pipeline" in next(folder.glob("*.wandb")).read_bytes()
    assert "failed" not in caplog.text


@pytest.mark.parametrize("method", ["log", "log_images", "log_artifact", "finish"])
def test_where_wandb_fails_the_run_warns_and_ends_well(make_trainer, no_login, monkeypatch, caplog, method):
    """Wandb's own run raises, as it does when its process has died."""
    name = {"log_images": "log"}.get(method, method)

    def broken(*_, **__):
        raise BrokenPipeError("the process of wandb has ended")

    monkeypatch.setattr(wandb.Run, name, broken)
    trainer = make_trainer(tracking="offline", max_steps=1)
    trainer.train()
    assert trainer.finished
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert lines
    assert all(line.endswith("failed (the process of wandb has ended); going on") for line in lines)


def test_disabled_writes_nothing(make_trainer):
    trainer = make_trainer(tracking="disabled")
    assert trainer.train() is None
    assert not (trainer.folder.path / "wandb").exists()
    assert (trainer.folder.path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("wanted", "variable", "mode"),
    [
        ("auto", None, "auto"),
        ("auto", "offline", "offline"),
        ("auto", "dryrun", "offline"),
        ("auto", "disabled", "disabled"),
        ("auto", "run", "auto"),
        ("online", None, "online"),
        ("disabled", "online", "disabled"),
    ],
)
def test_the_mode_follows_the_users_environment(no_login, monkeypatch, wanted, variable, mode):
    if variable:
        monkeypatch.setenv("WANDB_MODE", variable)
    assert settle_tracking(TrackingConfig(mode=wanted)) == (
        TrackingConfig(mode, None if wanted == "disabled" else "denoiser"),
        [],
    )


def test_what_the_run_decides_beats_wandbs_environment_with_a_line(no_login, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    assert settle_tracking(TrackingConfig("offline", "ours")) == (
        TrackingConfig("offline", "ours"),
        [
            "WANDB_MODE=online is ignored: tracking.mode is offline",
            "WANDB_PROJECT=theirs is ignored: tracking.project is ours",
        ],
    )
    assert settle_tracking(TrackingConfig("offline"))[0].project == "theirs"


def test_wandb_turned_off_by_its_own_command_stays_off(make_trainer, no_login):
    subprocess.run([sys.executable, "-m", "wandb", "disabled"], check=True, capture_output=True)
    trainer = make_trainer(tracking="auto", max_steps=1)
    assert trainer.train() is None
    assert not (trainer.folder.path / "wandb").exists()


@pytest.mark.parametrize("mode", ["auto", "offline", "online"])
@pytest.mark.parametrize("project", ["a/b", "x" * 129])
def test_a_project_that_wandb_refuses_is_one_line_before_anything_is_written(no_login, mode, project):
    with pytest.raises(ValueError, match="wandb refuses its settings .*; mend them, or give") as refused:
        settle_tracking(TrackingConfig(mode, project))
    assert "log in" not in str(refused.value)
    assert len(str(refused.value).splitlines()) == 1


def test_a_mode_that_wandb_does_not_know_is_one_line(no_login, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "ofline")
    with pytest.raises(ValueError, match="wandb refuses its settings .*mode.*'ofline'"):
        settle_tracking(TrackingConfig("auto"))


def test_without_a_login_online_is_refused_before_anything_is_written(make_trainer, no_login):
    trainer = make_trainer(tracking="online")
    with pytest.raises(ValueError, match="wandb cannot log online .*; log in, or give --tracking.mode offline"):
        trainer.train()
    assert not trainer.folder.config.exists()


def test_no_file_of_the_run_holds_the_key(make_trainer, monkeypatch, no_login):
    key = "0123456789abcdef" * 2 + "01234567"
    monkeypatch.setenv("WANDB_API_KEY", key)
    trainer = make_trainer(tracking="offline")
    trainer.train()
    files = [path for path in trainer.folder.path.rglob("*") if path.is_file()]
    assert {"config.yaml", "metrics.jsonl", "README.md"} <= {path.name for path in files}
    assert any(path.suffix == ".wandb" for path in files)
    assert [path for path in files if key.encode() in path.read_bytes()] == []


def test_no_error_holds_the_key(monkeypatch, capsys):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef")
    with pytest.raises(SystemExit):
        fail("the key 0123456789abcdef was refused")
    assert capsys.readouterr().err.endswith("error: the key $WANDB_API_KEY was refused\n")


def test_the_last_figures_are_written_again_at_the_end(make_trainer, caplog):
    trainer = make_trainer()
    folder = trainer.folder
    tracker = Tracker(trainer.accelerator, trainer.config.tracking, folder, {}, 0)
    folder.metrics.mkdir(parents=True)  # so that no line can be written
    tracker.log({"loss": 1.0}, 10)
    assert "cannot be written" in caplog.text
    folder.metrics.rmdir()
    tracker.finish()
    assert json.loads(folder.metrics.read_text(encoding="utf-8")) == {"step": 10, "loss": 1.0}
