import json

import pytest

from denoiser.cli import fail
from denoiser.training.tracking import Tracker, choose_wandb_mode


@pytest.fixture
def no_login(tmp_path, monkeypatch):
    """A home without a wandb key."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)


def test_without_a_login_the_run_is_logged_offline_and_says_how_to_sync(make_trainer, no_login):
    trainer = make_trainer(tracking="auto")
    command = trainer.train()
    folder = command.removeprefix("wandb sync ")
    (log,) = (trainer.folder.path / "wandb").glob("offline-run-*/*.wandb")
    assert str(log.parent) == folder
    content = log.read_bytes()
    for name in ("loss", "learning_rate", "gradient_norm", "images_per_second", "loss_quarter_4", "run-pipeline"):
        assert name.encode() in content
    assert b"block_out_channels" in content  # the resolved config
    assert list(log.parent.glob("files/media/images/samples_10_*.png"))


def test_disabled_writes_nothing(make_trainer):
    trainer = make_trainer(tracking="disabled")
    assert trainer.train() is None
    assert not (trainer.folder.path / "wandb").exists()
    assert (trainer.folder.path / "metrics.jsonl").exists()


def test_the_mode_follows_the_users_environment(no_login, monkeypatch):
    assert choose_wandb_mode("auto") == "offline"
    assert choose_wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_wandb_mode("auto") == "disabled"


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
    assert json.loads(folder.metrics.read_text()) == {"step": 10, "loss": 1.0}
