"""The pipelines that ship."""

import shutil
import sys

import pytest
import torch
from diffusers import DPMSolverMultistepScheduler, LCMScheduler
from PIL import Image

from denoiser.data import CLASS_NAMES
from pipelines import (
    PRETRAINED,
    find_pipeline,
    image_grid,
    load_pretrained,
    make_scheduler,
    pretrained,
    quantised,
    sample_images,
)
from pipelines.commands import sample
from pipelines.evaluation.judge import judge_images, load_judge, weights_file
from pipelines.evaluation.judge_networks import JUDGES
from pipelines.sampling import SamplingConfig, default_sampler


@pytest.mark.parametrize(
    ("name", "sampler", "steps"),
    [("teacher", "sde-dpmsolver++", 20), ("guided", "sde-dpmsolver++", 20), ("student", "lcm", 4)],
)
def test_it_draws_what_is_asked_for(name, sampler, steps):
    pipeline = load_pretrained(name)
    assert tuple(pipeline.config.class_names) == CLASS_NAMES
    assert default_sampler(pipeline.scheduler) == {"scheduler": sampler, "steps": steps}
    pipeline.scheduler = make_scheduler(sampler, pipeline.scheduler.config)
    images = sample_images(pipeline, **SamplingConfig(steps=steps, scheduler=sampler).arguments())
    _, seen = judge_images(load_judge(), quantised(images))
    right = seen == torch.arange(10).repeat_interleave(10)
    assert right.float().mean() > 0.75  # 0.93 of real images


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [("teacher", DPMSolverMultistepScheduler), ("guided", DPMSolverMultistepScheduler), ("student", LCMScheduler)],
)
def test_from_python_it_draws_what_the_command_draws(name, scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sample.py", "--pipeline", name, "--labels", "bag", "--num_images", "1"])
    monkeypatch.chdir(tmp_path)
    sample.main()
    pipeline = load_pretrained(name)
    assert isinstance(pipeline.scheduler, scheduler)
    steps = default_sampler(pipeline.scheduler)["steps"]
    images = pipeline(class_labels="bag", seed=0, num_inference_steps=steps, output_type="pt").images
    with Image.open(tmp_path / "samples.png") as grid:
        assert grid.tobytes() == image_grid(images).tobytes()


def test_all_weights_that_ship_are_small_and_safe():
    weights = [path for path in pretrained.FOLDER.rglob("*") if path.suffix in {".safetensors", ".bin", ".pt", ".pth"}]
    assert {path.suffix for path in weights} == {".safetensors"}
    assert sum(path.stat().st_size for path in [*weights, *map(weights_file, JUDGES)]) < 20_000_000


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_sums_are_of_all_files(name):
    folder = pretrained.FOLDER / name
    listed = {
        folder / line.split(maxsplit=1)[1]
        for line in (folder / pretrained.SUMS).read_text(encoding="utf-8").splitlines()
    }
    assert listed == {path for path in folder.rglob("*") if path.is_file() and path.name != pretrained.SUMS}
    assert (folder / "README.md").is_file()


@pytest.mark.parametrize("name", PRETRAINED)
def test_the_code_on_the_card_draws_with_these_weights(name):
    code = (pretrained.FOLDER / name / "README.md").read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    named = {}
    exec(code.replace("batch_size=8", "batch_size=1"), named)
    steps = default_sampler(named["pipeline"].scheduler)["steps"]
    (expected,) = load_pretrained(name)(batch_size=1, seed=0, num_inference_steps=steps).images
    assert named["images"][0].tobytes() == expected.tobytes()


def test_altered_or_missing_weights_are_refused(tmp_path, monkeypatch, capsys):
    shutil.copytree(pretrained.FOLDER, tmp_path / "weights")
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "weights")
    monkeypatch.setattr(sys, "argv", ["sample.py"])
    monkeypatch.chdir(tmp_path)
    weights = tmp_path / "weights" / "teacher" / "unet" / "diffusion_pytorch_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        sample.main()
    assert ended.value.code == 2
    assert "is not the file that was shipped (its SHA-256 differs)" in capsys.readouterr().err
    assert not (tmp_path / "samples.png").exists()
    (tmp_path / "weights" / "student" / ".DS_Store").write_text("of another program", encoding="utf-8")
    load_pretrained("student")
    sums = tmp_path / "weights" / "teacher" / pretrained.SUMS
    text = sums.read_text(encoding="utf-8")
    for damaged in ("", "damaged\n", text.replace(weights.name, "other")):
        sums.write_text(damaged, encoding="utf-8")
        with pytest.raises(ValueError, match="is not in SHA256SUMS; install the package again"):
            load_pretrained()
    sums.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="is not in SHA256SUMS; install the package again"):
        load_pretrained()
    sums.write_text(text, encoding="utf-8")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="safetensors is missing; install the package again"):
        load_pretrained()


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="there is no pretrained 'techer' .did you mean 'teacher'"):
        load_pretrained("techer")
    with pytest.raises(FileNotFoundError, match="techer is not a saved pipeline"):
        find_pipeline("techer")


def test_the_first_command_draws_a_class_a_row(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sample.py", "--labels", "all"])
    sample.main()
    assert capsys.readouterr().out == "grid: samples.png\n"
    with Image.open(tmp_path / "samples.png") as grid:
        assert grid.size == (10 * 66 + 2, 10 * 66 + 2)
