"""`scripts/evaluate.py` as a user types it, on a pipeline of the smoke config and on images."""

import json
import shutil

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from PIL import Image

from pipelines import DenoisingPipeline
from pipelines.commands import evaluate
from pipelines.evaluation.config import BY_DEFAULT
from scripts import train_judge
from tests.conftest import DATA_ROOT, ROOT, tiny_unet
from tests.scripts.conftest import command

EVALUATE = ["scripts/evaluate.py", "--data.root", str(DATA_ROOT)]
SMALL = ["--num_images", "2000", "--seeds", "2", "--steps", "2", "--sweep_images", "100", "--likelihood_timesteps", "2"]
PICTURES = [
    *("confusion.png", "guidance.png", "likelihood.png", "memorisation_judge.png", "memorisation_pixels.png"),
    *("memorisation_second_judge.png", "samplers.png"),
]


def report_of(pipeline, output_dir, *options, launch=(), **environment):
    given = ["--pipeline", str(pipeline), "--output_dir", str(output_dir), *SMALL, *options]
    ended = command(*launch, *EVALUATE, *given, **environment)
    assert ended.returncode == 0, ended.stderr
    return ended


@pytest.fixture(scope="module")
def whole(smoke_run, tmp_path_factory):
    """A copy of the smoke run with its whole report, and what the command printed."""
    run_dir = tmp_path_factory.mktemp("evaluated")
    shutil.copytree(smoke_run[0] / "pipeline", run_dir / "pipeline")
    ended = command(*EVALUATE, "--pipeline", str(run_dir / "pipeline"), *SMALL)
    assert ended.returncode == 0, ended.stderr
    return run_dir, ended.stdout


@pytest.mark.slow
def test_the_report_has_every_section_and_stands_in_the_run_folder(whole):
    run_dir, printed = whole
    report, page = (
        json.loads((run_dir / "report.json").read_text(encoding="utf-8")),
        (run_dir / "report.md").read_text(encoding="utf-8"),
    )
    assert {*BY_DEFAULT, "subject", "judge", "second_judge"} <= report.keys()
    assert "".join(line for line in page.splitlines(keepends=True) if not line.startswith("![")) in printed
    for title in ("Distances", "By class", "Usefulness", "Guidance", "Likelihood", "Memorisation", "Samplers"):
        assert f"\n## {title}\n" in page
    assert sorted(path.name for path in (run_dir / "report").iterdir()) == PICTURES
    for name in PICTURES:
        with Image.open(run_dir / "report" / name) as picture:
            assert len(set(picture.convert("L").tobytes())) > 10  # something is drawn on it
    for space in ("judge", "second_judge", "pixels"):
        for split in ("train", "test"):
            columns = report["distances"][space][split]
            for name in ("frechet", "kernel", "sliced_wasserstein"):
                floor, samples, ceiling = (columns[column][name]["mean"] for column in ("floor", "samples", "ceiling"))
                assert floor < samples  # of a network trained for twenty steps
                assert floor < 0.1 * ceiling
            assert columns["samples"]["frechet"]["spread"] is not None
    rows = {(row["sampler"], row["calls"]) for row in report["samplers"][:-1]}
    few = {(name, steps) for name in ("ddpm", "ddim", "dpmsolver++", "unipc") for steps in (5, 10, 20, 50)}
    assert rows >= few | {("ddpm", 1000)}
    assert sum(map(sum, report["classes"]["confusion"])) == 4000
    assert all(row["second_frechet"] > 0 for row in [*report["samplers"], *report["guidance"]])
    assert report["usefulness"]["samples"] < 0.6 < report["usefulness"]["real"]


@pytest.mark.slow
def test_the_model_card_gets_the_table(whole):
    card = (whole[0] / "pipeline" / "README.md").read_text(encoding="utf-8")
    assert "2 sets of 2,000 images, sde-dpmsolver++, 2 steps" in card
    assert "| Fréchet distance | " in card
    assert "at the end of training" not in card
    assert card.startswith("---\ndatasets:")


@pytest.mark.slow
def test_the_same_seed_gives_the_same_report_and_two_processes_nearly(whole, tmp_path):
    run_dir, _ = whole
    expected = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    report_of(run_dir / "pipeline", tmp_path / "again", "--sections", "[classes,guidance,likelihood]")
    again = json.loads((tmp_path / "again" / "report.json").read_text(encoding="utf-8"))
    assert {"classes", "guidance", "likelihood"} <= again.keys()
    assert all(expected[section] == figures for section, figures in again.items())
    launch = ["-m", "accelerate.commands.launch", "--config_file"]
    launch.append(str(ROOT / "configs" / "accelerate" / "two_cpu_processes.yaml"))
    report_of(run_dir / "pipeline", tmp_path / "two", "--sections", "[distances,likelihood]", launch=launch)
    two = json.loads((tmp_path / "two" / "report.json").read_text(encoding="utf-8"))
    pairs = [(two["likelihood"]["bits_per_dimension"], expected["likelihood"]["bits_per_dimension"])]
    for space in ("judge", "second_judge"):
        pairs.append(tuple(each["distances"][space]["test"]["samples"]["frechet"]["mean"] for each in (two, expected)))
    for ours, theirs in pairs:
        assert ours == pytest.approx(theirs, rel=1e-3)


@pytest.mark.slow
def test_images_are_judged_without_what_needs_a_pipeline(held_out, call, tmp_path, monkeypatch):
    monkeypatch.setattr("pipelines.evaluation.judge.LEAST_STEPS", 256)
    images, labels = held_out.images[:2000].numpy(), held_out.labels[:2000].numpy()
    np.savez(tmp_path / "images.npz", images=images, labels=labels)
    call(evaluate, "--data.root", DATA_ROOT, "--images", tmp_path / "images.npz")
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    made = report.keys() - {"subject", "judge", "second_judge", "images", "sets"}
    assert made == {"distances", "classes", "usefulness", "memorisation"}
    assert report["classes"]["agreement"]["mean"] > 0.9
    assert report["classes"]["second_agreement"]["mean"] > 0.9
    assert report["usefulness"]["samples"] == pytest.approx(report["usefulness"]["real"], abs=0.05)  # both are real


@pytest.fixture(scope="module")
def small_run(held_out, tmp_path_factory):
    """A run folder with a colour network, trained on a small set without classes, and its config."""
    folder = tmp_path_factory.mktemp("small")
    images = held_out.images[:620]
    np.save(folder / "small.npy", torch.cat([images, images // 2, 255 - images], dim=1).numpy())
    unet = tiny_unet(in_channels=3, out_channels=3, num_class_embeds=None)
    DenoisingPipeline(unet, DDPMScheduler()).save_pretrained(folder / "pipeline")
    data = {"source": str(folder / "small.npy"), "root": str(folder / "data"), "held_out": 0.2}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data, "training": {"seed": 0}}), encoding="utf-8")
    return folder


FEW = ["--seeds", "2", "--steps", "1", "--sweep_images", "100", "--likelihood_timesteps", "1"]


def test_a_small_set_without_classes_is_that_of_the_run_and_has_what_it_can(small_run, call, caplog):
    sections = ["--sections", "[distances,likelihood,memorisation]"]
    printed = call(evaluate, "--pipeline", small_run / "pipeline", *FEW, *sections)
    report = json.loads((small_run / "report.json").read_text(encoding="utf-8"))
    assert "496 training images" in report["subject"]["set"]
    assert report["images"] == 1000
    assert report["notes"] == [
        "The distances are of 124 images a set, as many as are held out",
        "Left out: the kernel distance, which needs 2,000 images",
    ]
    assert all(f"{note}." in printed and f"{note}." in caplog.messages for note in report["notes"])
    assert not {"judge", "second_judge", "usefulness"} & report.keys()
    assert report["distances"].keys() == report["memorisation"].keys() == {"convolutions", "pixels"}
    for splits in report["distances"].values():
        for columns in splits.values():
            assert columns["samples"].keys() >= {"frechet", "recall"}
            assert "kernel" not in columns["samples"]
            floor, samples = (columns[name]["frechet"]["mean"] for name in ("floor", "samples"))
            assert floor < samples
    assert report["likelihood"]["images"] == 124
    for section in report["memorisation"].values():
        assert section["floor"]["share_of_ratios_below_half"] < 0.2


def test_a_set_with_nothing_held_out_has_its_copies_found(small_run, call, tmp_path):
    source = ["--data.source", small_run / "small.npy", "--data.root", tmp_path, "--data.held_out", "0"]
    np.savez(tmp_path / "copies.npz", images=np.load(small_run / "small.npy")[:40])
    call(evaluate, "--images", tmp_path / "copies.npz", *source)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report.keys() == {"subject", "notes", "images", "sets", "memorisation"}
    assert "the set has 0 images held out, and a distance needs 100" in report["notes"][-1]
    for section in report["memorisation"].values():
        assert section["samples"]["share_of_ratios_below_half"] == 1
        assert all(pair["image"] == pair["training_image"] for pair in section["closest_pairs"])
        assert "floor" not in section


@pytest.mark.slow
def test_a_small_labelled_set_is_evaluated_with_the_classifier_trained_on_it(held_out, call, tmp_path):
    images = held_out.images[:2000]
    arrays = {"images": images[:, :, 2:14, 2:14].numpy(), "labels": held_out.labels[:2000].numpy()}
    np.savez(tmp_path / "cut.npz", **arrays)
    data = ["--data.source", tmp_path / "cut.npz", "--data.root", tmp_path, "--data.held_out", "0.3"]
    printed = call(train_judge, *data, "--epochs", "8")
    for kind in ("judge", "second_judge"):
        assert f"{kind}: accuracy on the training images 0." in printed
        assert f"{kind}.safetensors" in printed
    pipeline = DenoisingPipeline(tiny_unet(sample_size=12), DDPMScheduler(), tuple("0123456789"))
    pipeline.save_pretrained(tmp_path / "pipeline")
    sections = ["--sections", "[distances,classes,guidance,memorisation]"]
    call(evaluate, "--pipeline", tmp_path / "pipeline", *FEW, *data, *sections)
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    for kind, seed in (("judge", 0), ("second_judge", 1)):
        assert report[kind]["test_accuracy"] > 0.6
        assert report[kind]["seed"] == seed
    assert report["distances"].keys() == report["memorisation"].keys() == {"judge", "second_judge", "pixels"}
    for name in ("agreement", "second_agreement"):
        assert report["guidance"][-1][name] > 0.6  # of real held-out images
    assert all("frechet" not in row for row in report["classes"]["by_class"].values())  # 60 held-out images each


def test_a_pipeline_is_not_compared_with_another_set(error_of, tmp_path):
    given = ["--pipeline", tmp_path / "pipeline", "--data.root", DATA_ROOT]
    pipeline = DenoisingPipeline(tiny_unet(sample_size=16), DDPMScheduler(), tuple("0123456789"))
    pipeline.save_pretrained(tmp_path / "pipeline")
    assert "the classes of fashion_mnist and of the pipeline differ (T-shirt/top, " in error_of(evaluate, *given)
    pipeline = DenoisingPipeline(tiny_unet(sample_size=16, in_channels=3, out_channels=3), DDPMScheduler())
    pipeline.save_pretrained(tmp_path / "pipeline")
    assert "give the --data.source that it was trained on, or " in error_of(evaluate, *given)


def test_a_folder_that_is_not_a_report_is_not_replaced(error_of, smoke_run, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "thesis.txt").write_text("years of work", encoding="utf-8")
    given = ["--data.root", DATA_ROOT, "--pipeline", smoke_run[0] / "pipeline", "--output_dir", tmp_path]
    assert "is not a report's folder of pictures; give another --output_dir" in error_of(evaluate, *given)
    assert (tmp_path / "report" / "thesis.txt").read_text(encoding="utf-8") == "years of work"
