import sys

import pytest
import yaml

from denoiser.training.tracking import choose_wandb_mode


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
    (log,) = (trainer.run_dir / "wandb").glob("offline-run-*/*.wandb")
    assert str(log.parent) == folder
    content = log.read_bytes()
    for name in ("loss", "learning_rate", "gradient_norm", "images_per_second", "loss_quarter_4", "run-pipeline"):
        assert name.encode() in content
    assert b"block_out_channels" in content  # the resolved config
    assert list(log.parent.glob("files/media/images/samples_10_*.png"))


def test_disabled_writes_nothing(make_trainer):
    trainer = make_trainer(tracking="disabled")
    assert trainer.train() is None
    assert not (trainer.run_dir / "wandb").exists()
    assert (trainer.run_dir / "metrics.jsonl").exists()


def test_the_mode_follows_the_users_environment(no_login, monkeypatch):
    assert choose_wandb_mode("auto") == "offline"
    assert choose_wandb_mode("online") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert choose_wandb_mode("auto") == "disabled"


def test_the_config_holds_no_key(make_trainer, monkeypatch, no_login):
    monkeypatch.setenv("WANDB_API_KEY", "0123456789abcdef" * 2 + "01234567")
    trainer = make_trainer(tracking="offline")
    trainer.train()
    assert "0123456789abcdef" not in yaml.safe_dump(yaml.safe_load((trainer.run_dir / "config.yaml").read_text()))
    assert "wandb" in sys.modules
