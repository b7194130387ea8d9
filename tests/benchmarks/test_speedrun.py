import json
import sys

import pytest

from benchmarks import command
from benchmarks.speedrun import read_runner, speedrun_page
from pipelines import load_pipeline
from tests.conftest import DATA_ROOT, ROOT

CONFIG = """
output_dir: unused
model:
  class_path: denoiser.UNet
  init_args: {block_out_channels: [16, 32]}
training: {max_minutes: 0.01}
sampling: {steps: 1}
"""


def row(seed, distance, **figures):
    second = {"second_frechet": 4.5, "second_frechet_floor": 0.9}
    figures = {"frechet": distance, "frechet_floor": 0.047, **second, "seconds": 300.04, "steps": 2735, **figures}
    figures |= {"images_per_second": 1166.6, "training_operations": 5.6e13, "reached": distance <= 0.25}
    return {"seed": seed, **figures}


@pytest.mark.slow
def test_seeds_that_miss_the_distance_are_told_and_kept(tmp_path, monkeypatch, capsys):
    (tmp_path / "config.yaml").write_text(CONFIG, encoding="utf-8")
    options = ["--config", tmp_path / "config.yaml", "--data_root", DATA_ROOT, "--output_dir", tmp_path / "out"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "speedrun", *map(str, options), "--seeds", "2"])
    with pytest.raises(SystemExit) as ended:
        command.main()
    assert ended.value.code == 1
    assert "missed: 0 of 2 seeds are at a Fréchet distance of 0.25 or less after " in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "speedrun.json").read_text(encoding="utf-8"))["rows"]
    assert [each["seed"] for each in rows] == [each["facts"]["settings"]["training"]["seed"] for each in rows] == [0, 1]
    assert all(0.6 <= each["seconds"] < 10 and each["steps"] > 0 and each["evaluation_images"] == 2048 for each in rows)
    weights = [load_pipeline(tmp_path / "out" / f"seed_{seed}").unet.stem.weight for seed in range(2)]
    assert not weights[0].equal(weights[1])


def test_the_distance_is_reached_if_all_seeds_are_there():
    assert speedrun_page([row(0, 0.2), row(1, 0.25)]).startswith(
        "reached: 2 of 2 seeds are at a Fréchet distance of 0.25 or less after 300.0 s of training; the mean is 0.225\n"
    )
    assert speedrun_page([row(0, 0.2), row(1, 0.2501)]).startswith("missed: 1 of 2 seeds")


def test_a_second_judge_is_told_beside_the_first():
    page = speedrun_page([row(0, 0.2)])
    assert "| 0 | 300.0 | 2,735 | 1,167 | 56.0 | 0.2 | 4.5 | reached |" in page
    assert "As many test images: Fréchet distance 0.047; by the second judge 0.9." in page


def test_our_entry_keeps_the_rules(monkeypatch):
    monkeypatch.chdir(ROOT)
    (seconds,) = read_runner("speedrun", "data").seconds
    assert seconds <= 600


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("data: {source: mnist}", "data.source is mnist, and a speedrun has fashion_mnist; leave it out"),
        ("init_from: teacher", "init_from is teacher, and a speedrun has none; leave it out"),
        ("training: {max_steps: 9}", "training.max_steps is 9, and a speedrun has none"),
        ("training: {max_minutes: 1, evaluation_images: 100}", "evaluation_images is 100, and a speedrun has 2048"),
        ("sampling: {steps: 11}", "an image takes 22 network calls, those of a guide included, and up to 20 in a"),
        ("sampling: {steps: 10, guidance_scale: 2}", "an image takes 30 network calls"),
        ("training: {max_minutes: 1, guide_at: null}\nsampling: {steps: 21}", "an image takes 21 network calls"),
        ("sampling: {steps: 5, guidance_rescale: 0.5}", "guidance_rescale and guidance_interval do nothing"),
    ],
)
def test_a_config_that_breaks_the_rules_is_refused(tmp_path, broken, message):
    (tmp_path / "config.yaml").write_text(CONFIG + broken, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_runner(str(tmp_path / "config.yaml"), "data")
