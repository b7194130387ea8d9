import sys

import torch
from diffusers import DDPMScheduler
from PIL import Image

from denoiser import UNet
from pipelines import SamplingConfig, load_pipeline
from pipelines.training import Learner, RunConfig, TrackingConfig, Trainer, TrainingConfig, start_accelerator
from scripts import train_minimal
from tests.conftest import DATA_ROOT, ROOT, another_process


def test_the_readable_loop_takes_the_steps_of_the_trainer_to_the_bit(train_images, tmp_path, monkeypatch):
    options = {"output_dir": tmp_path / "minimal", "data_root": DATA_ROOT, "steps": 4, "batch_size": 32, "seed": 3}
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    monkeypatch.setattr(sys, "argv", ["train_minimal.py", *words, "--wandb", "disabled"])
    train_minimal.main()

    another_process()
    training = TrainingConfig(max_steps=4, batch_size=32, seed=3, learning_rate=6e-3, guide_at=None)
    config = RunConfig(tmp_path / "run", training, sampling=SamplingConfig(), tracking=TrackingConfig("disabled"))
    torch.manual_seed(3)
    network, noise_schedule = UNet(num_class_embeds=10), DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    accelerator = start_accelerator(config)
    trainer = Trainer(config, Learner(training, network, noise_schedule, accelerator, train_images))
    trainer.train()

    ours, theirs = (load_pipeline(folder) for folder in (tmp_path / "minimal" / "pipeline", trainer.folder.pipeline))
    for one, other in zip(ours.unet.parameters(), theirs.unet.parameters(), strict=True):
        assert torch.equal(one, other)
    assert ours.scheduler.config == theirs.scheduler.config
    assert ours.config.class_names == theirs.config.class_names
    assert ours.config.spacing == theirs.config.spacing
    grids = tmp_path / "minimal" / "samples.png", trainer.folder.grid(4)
    assert Image.open(grids[0]).tobytes() == Image.open(grids[1]).tobytes()


def test_wrong_input_of_the_readable_loop_is_one_line(error_of, tmp_path):
    assert "batch_size is 0; it must be a whole number of at least 1" in error_of(train_minimal, "--batch_size", "0")
    assert list(tmp_path.iterdir()) == []


def test_the_readable_loop_is_short():
    assert len((ROOT / "scripts" / "train_minimal.py").read_text(encoding="utf-8").splitlines()) <= 80
