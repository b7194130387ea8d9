"""The commands as a user types them: in their own process, on the real data."""

import json
import shlex
import sys

import pytest
import yaml
from huggingface_hub import ModelCard
from PIL import Image
from safetensors.torch import load_file

from pipelines.commands import sample, train
from tests.conftest import DATA_ROOT, ROOT
from tests.scripts.conftest import SMOKE, command


def metrics(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def test_training_says_what_it_made_and_what_to_type_next(smoke_run):
    run_dir, output = smoke_run
    for part in (
        "on 60,000 images, 10,000 held out: 1 process(es), cpu",
        f"run folder:   {run_dir}\n",
        f"pipeline:     {run_dir / 'pipeline'}\n",
        f"sample grid:  {run_dir / 'samples' / 'step-00000020.png'}\n",
        f"wandb sync {run_dir / 'wandb' / 'offline-run-'}",
        f"{ROOT / 'scripts' / 'sample.py'} --pipeline {run_dir / 'pipeline'}",
    ):
        assert part in output
    figures = metrics(run_dir)
    assert [line["step"] for line in figures] == [5, 10, 15, 20]
    assert figures[-1]["loss"] < figures[0]["loss"]
    assert figures[-1]["held_out_loss"] < figures[1]["held_out_loss"]  # evaluated after steps 10 and 20
    assert "frechet" not in figures[0]
    assert 0 < figures[-1]["frechet_floor"] < figures[-1]["frechet"]


def test_the_pipeline_has_a_model_card(smoke_run):
    run_dir, _ = smoke_run
    card = ModelCard.load(run_dir / "pipeline" / "README.md")
    assert card.data.library_name == "diffusers"
    assert card.data.datasets == ["fashion_mnist"]
    assert f"accelerate launch scripts/train.py --config configs/smoke.yaml --data.root {DATA_ROOT}" in card.text
    assert "| Fréchet distance of 200 images" in card.text
    grids = (run_dir / "pipeline" / "samples.png", run_dir / "samples" / "step-00000020.png")
    with Image.open(grids[0]) as shown, Image.open(grids[1]) as drawn:
        assert shown.tobytes() == drawn.tobytes()


def test_the_next_command_draws_the_grid_of_the_run(smoke_run, tmp_path):
    run_dir, output = smoke_run
    python, *typed = shlex.split(output.splitlines()[-1].removeprefix("next: "))
    assert python == sys.executable
    options = ["--num_images", "20", "--steps", "4", "--labels", "all", "--output", str(tmp_path / "grid.png")]
    ended = command(*typed, *options)
    assert ended.returncode == 0, ended.stderr
    with Image.open(tmp_path / "grid.png") as ours, Image.open(run_dir / "samples" / "step-00000020.png") as theirs:
        assert ours.tobytes() == theirs.tobytes()


def test_sampling_with_every_option(smoke_run, call, tmp_path):
    printed = call(
        sample,
        *["--pipeline", smoke_run[0] / "pipeline", "--num_images", "5", "--batch_size", "2"],
        *["--steps", "3", "--scheduler", "unipc", "--labels", "sneaker,8", "--guidance_scale", "2", "--seed", "7"],
        *["--columns", "5", "--output", tmp_path / "grid.png", "--gif", tmp_path / "film.gif"],
        *["--images_dir", tmp_path / "images", "--guidance_rescale", "0.5", "--guidance_interval", "[0.2,5]"],
        *["--predictions", tmp_path / "predictions.png", "--noising", tmp_path / "noising.png"],
    )
    with Image.open(tmp_path / "grid.png") as grid, Image.open(tmp_path / "film.gif") as film:
        assert grid.size == film.size == (5 * 66 + 2, 66 + 2)
        assert film.n_frames == 3
    assert len(list((tmp_path / "images").glob("*.png"))) == 5
    with Image.open(tmp_path / "predictions.png") as predictions, Image.open(tmp_path / "noising.png") as noising:
        assert predictions.size == (3 * 66 + 2, 5 * 66 + 2)
        assert noising.size == (10 * 66 + 2, 5 * 66 + 2)
    assert len(printed.splitlines()) == 5


def test_an_interpolation_with_names(smoke_run, call, tmp_path):
    call(
        sample,
        *["--pipeline", smoke_run[0] / "pipeline", "--interpolate", "--seeds", "3,17"],
        *["--num_images", "6", "--labels", "bag", "--scheduler", "ddim", "--steps", "2", "--columns", "6", "--names"],
        *["--output", tmp_path / "grid.png"],
    )
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.width > 6 * 66 + 2  # the name stands beside them


def test_a_command_in_its_own_process_does_the_same(smoke_run, call, tmp_path):
    given = ["--pipeline", smoke_run[0] / "pipeline", "--num_images", "3", "--steps", "2", "--labels", "bag"]
    call(sample, *given, "--output", tmp_path / "ours.png")
    ended = command("scripts/sample.py", *map(str, given), "--output", str(tmp_path / "theirs.png"))
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "ours.png").read_bytes() == (tmp_path / "theirs.png").read_bytes()


@pytest.mark.slow
def test_a_broken_compiler_is_one_line(smoke_run, tmp_path):
    given = ["scripts/sample.py", "--pipeline", str(smoke_run[0] / "pipeline"), "--num_images", "3", "--steps", "2"]
    broken = {"CXX": "false", "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    ended = command(*given, "--compile", "--output", str(tmp_path / "grid.png"), **broken)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith("sample.py: error: the network cannot be compiled (")
    assert not (tmp_path / "grid.png").exists()


def test_seeds_and_mixtures_are_picked_from_the_command_line(smoke_run, call, tmp_path):
    given = ["--pipeline", smoke_run[0] / "pipeline", "--steps", "2", "--labels", "coat:2+bag"]
    for name, seeds in (("some", "3,17-19"), ("one", "18")):
        call(sample, *given, "--seeds", seeds, "--images_dir", tmp_path / name, "--output", tmp_path / "grid.png")
    assert len(list((tmp_path / "some").iterdir())) == 4
    assert (tmp_path / "some" / "00002.png").read_bytes() == (tmp_path / "one" / "00000.png").read_bytes()


def test_the_config_of_a_run_runs_again(smoke_run, call, tmp_path):
    run_dir, again = smoke_run[0], tmp_path / "again"
    call(train, "--config", run_dir / "config.yaml", "--output_dir", again, "--tracking.mode", "disabled")
    name = "checkpoints/step-00000020/ema.safetensors"
    assert (again / name).read_bytes() == (run_dir / name).read_bytes()
    ours, theirs = (yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")) for folder in (again, run_dir))
    assert {**ours, "output_dir": None, "tracking": None} == {**theirs, "output_dir": None, "tracking": None}


def test_what_a_job_script_exports_changes_no_launched_run_and_is_told(smoke_run, tmp_path):
    exported = {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "WORLD_SIZE": "2", "MASTER_PORT": "29500"}
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/one_cpu.yaml"]
    options = ["--output_dir", str(tmp_path / "run"), "--tracking.mode", "disabled"]
    ended = command(*launch, *SMOKE, *options, **exported, ACCELERATE_MIXED_PRECISION="bf16")
    assert ended.returncode == 0, ended.stderr
    assert [line for line in ended.stderr.splitlines() if " is ignored: " in line] == [
        "WARNING: WORLD_SIZE=2 is ignored: no launcher of several processes has set it",
        "WARNING: MASTER_PORT=29500 is ignored: no launcher of several processes has set it",
        "WARNING: ACCELERATE_GRADIENT_ACCUMULATION_STEPS=4 is ignored: training.gradient_accumulation_steps is 1",
        "WARNING: ACCELERATE_MIXED_PRECISION=bf16 is ignored: accelerate launch was started with no",
    ]
    name = "checkpoints/step-00000020/ema.safetensors"
    assert (tmp_path / "run" / name).read_bytes() == (smoke_run[0] / name).read_bytes()


@pytest.mark.slow
def test_a_locale_without_the_letters_changes_nothing(tmp_path):
    ascii_only = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    config = tmp_path / "설정.yaml"
    smoke = (ROOT / "configs" / "smoke.yaml").read_text(encoding="utf-8")
    config.write_text(f"# 작은 실험\n{smoke}", encoding="utf-8")
    options = [
        "scripts/train.py",
        "--config",
        str(config),
        "--data.root",
        str(DATA_ROOT),
        "--tracking.mode",
        "disabled",
    ]
    options += ["--output_dir", str(tmp_path / "실험"), "--resume", "latest", "--training.checkpoint_every", "5"]
    for steps in ("5", "10"):
        ended = command(*options, "--training.max_steps", steps, **ascii_only)
        assert ended.returncode == 0, ended.stderr
    assert "resume latest" in (tmp_path / "실험" / "pipeline" / "README.md").read_text(encoding="utf-8")
    assert "실험" in (tmp_path / "실험" / "pipeline" / "README.md").read_text(encoding="utf-8")
    drawn = [*("--num_images", "2", "--steps", "2"), "--output", str(tmp_path / "그림.png")]
    ended = command("scripts/sample.py", "--pipeline", str(tmp_path / "실험" / "pipeline"), *drawn, **ascii_only)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "그림.png").is_file()


def test_a_finished_run_says_that_it_is(smoke_run, call):
    options = ["--output_dir", smoke_run[0], "--resume", "latest", "--tracking.mode", "disabled"]
    assert "is finished" in call(train, *SMOKE[1:], *options)


@pytest.mark.parametrize("name", ["fashion_mnist", "configs/basic_unet.yaml"])
def test_the_other_configs_start(name, call, tmp_path):
    call(
        train,
        *["--config", name, "--data.root", DATA_ROOT, "--training.max_steps", "2", "--sampling.steps", "2"],
        *["--training.evaluation_images", "100", "--sampling.num_images", "4"],
        *["--output_dir", tmp_path / "run", "--tracking.mode", "disabled"],
    )
    assert (tmp_path / "run" / "pipeline" / "model_index.json").is_file()


def test_the_config_is_printed_with_every_key(capsys, call):
    with pytest.raises(SystemExit) as ended:
        call(train, "--config", "configs/fashion_mnist.yaml", "--print_config")
    assert ended.value.code == 0
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["training"]["max_minutes"] == 5
    assert printed["model"]["init_args"]["block_out_channels"] == [32, 64, 96]


@pytest.mark.slow
def test_two_processes_take_the_steps_that_one_would(tmp_path):
    options = ["--tracking.mode", "disabled", "--training.mixed_precision", "no", "--training.log_every", "1"]
    options += ["--training.max_steps", "50", "--training.evaluate_every", "50", "--training.sample_every", "50"]
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/two_cpu_processes.yaml"]
    two = command(*launch, *SMOKE, *options, "--training.batch_size", "16", "--output_dir", str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    assert "2 process(es)" in two.stdout
    one = command(*SMOKE, *options, "--training.batch_size", "32", "--output_dir", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    figures = [metrics(tmp_path / "two"), metrics(tmp_path / "one")]
    assert len(figures[0]) == len(figures[1]) == 50
    for ours, theirs in zip(*figures, strict=True):
        assert ours["learning_rate"] == theirs["learning_rate"]
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-4)
        for name in ("loss_quarter_1", "loss_quarter_4", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-3)
    for name in ("model.safetensors", "ema.safetensors"):
        ours, theirs = (load_file(tmp_path / run / "checkpoints" / "step-00000050" / name) for run in ("two", "one"))
        gap = sum((ours[key] - theirs[key]).double().square().sum() for key in theirs)
        assert gap.sqrt() < 1e-4 * sum(theirs[key].double().square().sum() for key in theirs).sqrt()


@pytest.mark.slow
def test_a_distillation_says_what_it_made_in_one_process_or_two(smoke_run, tmp_path):
    teacher = smoke_run[0] / "pipeline"
    distill = ["scripts/distill.py", "--config", "configs/distill.yaml", "--distillation.teacher", str(teacher)]
    distill += ["--distillation.denoising_steps", "2", "--training.max_steps", "6"]
    distill += ["--training.evaluation_images", "100"]
    distill += ["--tracking.mode", "disabled", "--training.mixed_precision", "no", "--training.log_every", "1"]
    distill += ["--data.root", str(DATA_ROOT), "--sampling.num_images", "4"]
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/two_cpu_processes.yaml"]
    two = command(*launch, *distill, "--training.batch_size", "16", "--output_dir", str(tmp_path / "two"))
    assert two.returncode == 0, two.stderr
    one = command(*distill, "--training.batch_size", "32", "--output_dir", str(tmp_path / "one"))
    assert one.returncode == 0, one.stderr
    assert f"distilling {teacher}" in one.stdout
    assert f"scripts/sample.py --pipeline {tmp_path / 'one' / 'pipeline'}" in one.stdout.splitlines()[-1]
    figures = [metrics(tmp_path / "two"), metrics(tmp_path / "one")]
    assert len(figures[0]) == len(figures[1]) == 6
    for ours, theirs in zip(*figures, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)
        assert ours["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    again = command("scripts/distill.py", "--config", str(tmp_path / "one" / "config.yaml"), "--resume", "latest")
    assert again.returncode == 0, again.stderr
    assert again.stdout == f"the run in {tmp_path / 'one'} is finished: {tmp_path / 'one' / 'pipeline'}\n"


@pytest.mark.parametrize("launch", [["--cpu", "--num_processes", "2"]])
def test_a_launcher_that_starts_fewer_processes_than_asked_is_told_on(launch, tmp_path):
    ended = command("-m", "accelerate.commands.launch", *launch, *SMOKE, "--output_dir", str(tmp_path / "run"))
    assert ended.returncode != 0
    assert "the launcher was asked for several processes, and 1 is at work" in ended.stderr
    assert not (tmp_path / "run").exists()
