"""The benchmark command; what it measures is tested with the package."""

import json
import shutil
import subprocess
from itertools import product

import pytest

from benchmarks import command as benchmark
from tests.conftest import DATA_ROOT, ROOT
from tests.scripts.conftest import command

DATA = ["--data_root", str(DATA_ROOT)]
FIELD = """
arguments: --config configs/smoke.yaml --model.num_class_embeds null
seconds: [1]
baseline: deep
entries:
  deep:
    arguments: --model.layers_per_block 2
  shallow:
    arguments: ""
"""


@pytest.fixture
def checkout(tmp_path):
    """Return a clean checkout of the code, whose trainings are kept."""
    folder = tmp_path / "checkout"
    for part in ("benchmarks", "configs", "denoiser", "pipelines", "scripts"):
        shutil.copytree(ROOT / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
    for words in (("init", "-q"), ("add", "-A"), (*identity, "commit", "-q", "-m", "all")):
        subprocess.run(["git", "-C", str(folder), *words], check=True)
    return folder


@pytest.fixture
def entries(tmp_path):
    path = tmp_path / "entries.yaml"
    path.write_text(FIELD, encoding="utf-8")
    return path


def test_sampling_speeds_are_printed_and_written(entries, tmp_path):
    sizes = ["--rounds", "1", "--steps", "[1,2]", "--batch_sizes", "[4,8]"]
    options = ["--entries", str(entries), *sizes, "--output_dir", str(tmp_path / "out"), *DATA]
    ended = command("scripts/benchmark.py", "sample", *options)
    assert ended.returncode == 0, ended.stderr
    assert "| deep | 4 |" in ended.stdout
    figures = json.loads((tmp_path / "out" / "sample.json").read_text(encoding="utf-8"))
    measured = [(row["batch_size"], row["steps"], row["name"]) for row in figures["rows"]]
    assert measured == [*product((4, 8), (1, 2), ("deep", "shallow"))]
    assert (tmp_path / "out" / "sample.md").read_text(encoding="utf-8") in ended.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"sample.json", "sample.md"}


@pytest.mark.slow
def test_trainings_are_compared_and_then_sampled_beside_the_stock_pipeline(entries, tmp_path, checkout):
    script = str(checkout / "scripts" / "benchmark.py")
    options = ["--entries", str(entries), "--output_dir", str(tmp_path / "out"), *DATA]
    ended = command(script, "train", *options)
    assert ended.returncode == 0, ended.stderr
    assert "| shallow |" in ended.stdout
    assert "Seconds to a Fréchet distance of" in ended.stdout
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"train.json", "train.md", "trainings"}
    again = command(script, "train", *options)
    assert again.stdout == ended.stdout

    ended = command(script, "stock", *options, "--images", "99")
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert "images is 99; it must be from 100 to 10000" in line
    ended = command(script, "stock", *options, "--images", "100")
    assert ended.returncode == 0, ended.stderr
    stock, *ours = json.loads((tmp_path / "out" / "stock.json").read_text(encoding="utf-8"))["rows"]
    assert "DDPMPipeline" in ended.stderr
    assert f"{1 + len(ours)}row" in ended.stderr
    assert (stock["name"], stock["steps"], stock["images"]) == ("deep", 1000, 100)
    assert {row["name"] for row in ours} == {"shallow"}
    assert all(row["frechet"] > stock["frechet"] for row in ours[:-1])
    assert ours[-1]["frechet"] <= stock["frechet"] or ours[-1]["steps"] == 50

    sampled = ["--samplers", "[ddim,sde-dpmsolver++]", "--steps", "[2]", "--images", "100"]
    ended = command(script, "samplers", *options, *sampled)
    assert ended.returncode == 0, ended.stderr
    compared = json.loads((tmp_path / "out" / "samplers.json").read_text(encoding="utf-8"))["rows"]
    assert [(row["name"], row["sampler"]) for row in compared] == [
        *product(("deep", "shallow"), ("ddim", "sde-dpmsolver++"))
    ]
    assert len({row["frechet"] for row in compared}) == 4
    assert "4/4" in ended.stderr
    for wrong, message in (
        (["--samplers", "[ddim,unipcc]"], "unknown scheduler 'unipcc'"),
        (["--steps", "[2,1001]"], "1001 inference steps"),
        (["--images", "10001"], "images is 10001; it must be from 100 to 10000"),
        (["--seconds", "300"], "seconds is 300; the trainings that are here are of 1"),
    ):
        ended = command(script, "samplers", *options, *sampled, *wrong)
        assert (ended.returncode, ended.stdout) == (2, "")
        (line,) = ended.stderr.splitlines()
        assert message in line

    (checkout / "denoiser" / "new.py").write_text("x = 1\n", encoding="utf-8")
    ended = command(script, "train", *options)
    assert (ended.returncode, "no training is kept" in ended.stderr) == (0, True)
    ended = command(script, "stock", *options)
    assert (ended.returncode, "the code has uncommitted changes" in ended.stderr) == (2, True)


@pytest.mark.slow
def test_a_profile_is_printed_and_written(entries, tmp_path):
    options = ["--entries", str(entries), "--name", "shallow", "--batch_sizes", "[2]", "--output_dir", str(tmp_path)]
    ended = command("scripts/benchmark.py", "profile", *options, *DATA)
    assert ended.returncode == 0, ended.stderr
    assert "|  | training step, batch 32 | forward pass, batch 2 |" in ended.stdout


@pytest.mark.slow
def test_the_input_path_is_compared(tmp_path):
    options = ["--rounds", "1", "--output_dir", str(tmp_path), *DATA]
    ended = command("scripts/benchmark.py", "data", *options)
    assert ended.returncode == 0, ended.stderr
    assert "| torchvision, DataLoader |" in ended.stdout


@pytest.mark.parametrize("arguments", ["stock --output_dir {tmp_path}", "samplers --quick --output_dir {tmp_path}"])
def test_there_is_nothing_to_compare_before_a_training(error_of, monkeypatch, arguments, tmp_path):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(benchmark, "code_trees", lambda: "a tree")
    assert "make them first, with the same options and train" in error_of(
        benchmark, *arguments.format(tmp_path=tmp_path).split()
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("walk --output_dir {tmp_path}", "walk"),
        ("train --entries nowhere.yaml --output_dir {tmp_path}", "nowhere.yaml"),
        ("train --entries configs/smoke.yaml --output_dir {tmp_path}", "configs/smoke.yaml cannot be read"),
        ("sample --rounds 0 --output_dir {tmp_path}", "rounds is 0; it must be a whole number of at least 1"),
        ("sample --steps [] --output_dir {tmp_path}", "steps is empty; give at least one number"),
        ("sample --batch_sizes [0] --output_dir {tmp_path}", "batch_sizes is 0; it must be"),
        ("train --steps [4] --output_dir {tmp_path}", "unknown option 'steps'"),
        ("data --entries configs/smoke.yaml --output_dir {tmp_path}", "unknown option 'entries'"),
        ("train --quick --entries configs/smoke.yaml --output_dir {tmp_path}", "give one of them"),
        ("profile --name Unet --output_dir {tmp_path}", "name is 'Unet'; the entries are UNet, UNet2DModel,"),
        ("profile --batch_sizes [] --output_dir {tmp_path}", "batch_sizes is empty"),
        ("samplers --samplers [] --output_dir {tmp_path}", "samplers is empty; name at least one"),
        ("sample --steps [4,1001] --output_dir {tmp_path}", "1001"),
    ],
)
def test_what_cannot_be_measured_ends_in_one_line(error_of, monkeypatch, arguments, message, tmp_path):
    monkeypatch.chdir(ROOT)
    assert message in error_of(benchmark, *arguments.format(tmp_path=tmp_path).split())
    assert not list(tmp_path.iterdir())
