"""Training on images of one's own, through the command line."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from PIL import Image
from safetensors.torch import load_file

from denoiser import UNet
from denoiser.data import CLASS_NAMES, DataConfig, load_sets, open_set
from pipelines import load_pretrained
from pipelines.classes import ClassReader
from pipelines.commands import distill, evaluate, restore, train
from pipelines.commands.parsed_run import ParsedRun
from pipelines.training.initial import start_from
from tests.conftest import DATA_ROOT, another_process, tiny_basic_unet
from tests.scripts.conftest import command

TEACHER = ["--init_from", "teacher", "--data.channels", "1"]
COLOURS = {"Trouser": (255, 80, 80), "Bag": (80, 255, 80), "Sneaker": (80, 80, 255)}


@pytest.fixture(scope="module")
def pictures(train_images, tmp_path_factory):
    """A folder of FashionMNIST in colour, a class a folder."""
    folder = tmp_path_factory.mktemp("data") / "pictures"
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        rows = (train_images.labels == CLASS_NAMES.index(name)).nonzero()[:40, 0]
        for row in rows.tolist():
            grey = train_images.images[row, 0].numpy()[..., None] / 255
            Image.fromarray((grey * np.array(colour)).astype(np.uint8)).save(folder / name / f"{row}.png")
    return folder


@pytest.fixture
def options(pictures, tmp_path):
    # without minutes: the first learning rate would follow the clock, so that a busy machine changes a bit
    ends = ["--training.max_steps", "4", "--training.max_minutes", "null"]
    short = [*ends, "--training.batch_size", "16", "--training.checkpoint_every", "2"]
    small = ["--model.block_out_channels", "[16,32]", "--model.attention_levels", "[]", "--sampling.steps", "2"]
    places = ["--data.root", tmp_path / "sets", "--output_dir", tmp_path / "run", "--tracking.mode", "disabled"]
    return ["--data.source", pictures, *short, *small, *places]


def kept_network(options):
    """Return options without those of the network."""
    small = ("--model.block_out_channels", "[16,32]", "--model.attention_levels", "[]")
    return [word for word in options if word not in small]


def weights(run):
    return load_file(run / "pipeline" / "unet" / "diffusion_pytorch_model.safetensors")


def same(ours, theirs):
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_folder_in_one_line(options, call, tmp_path):
    output = call(train, *options)
    assert "on 108 images, 12 held out" in output  # a tenth of 120 is held out
    written = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text(encoding="utf-8"))
    ends = ("sample_size", "in_channels", "out_channels", "num_class_embeds")
    assert [written["model"]["init_args"][name] for name in ends] == [16, 3, 3, 3]
    assert written["training"]["learning_rate"] == 6e-3  # of the default config
    card = (tmp_path / "run" / "pipeline" / "README.md").read_text(encoding="utf-8")
    assert "classes, in order: Bag, Sneaker, Trouser" in card
    assert "fashion_mnist" not in card.split("---")[1]


def test_the_run_folder_is_named_after_the_images(pictures):
    run = ParsedRun(["--data.source", str(pictures)])
    assert run.config.output_dir == "runs/pictures"
    assert run.config.data.size is None
    assert ParsedRun([]).config.data == DataConfig(source="fashion_mnist", size=16)
    assert ParsedRun(["--data.source=x/flowers.zip", "--output_dir=here"]).config.output_dir == "here"


def test_mapped_and_in_memory_are_the_same_to_the_bit(options, call, tmp_path):
    for mapped in ("true", "false"):
        call(train, *options, "--output_dir", tmp_path / mapped, "--data.in_memory", mapped)
    assert same(weights(tmp_path / "true"), weights(tmp_path / "false"))


def test_a_mapped_run_resumes_to_the_bit(options, call, tmp_path, monkeypatch):
    mapped = [*options, "--data.in_memory", "false", "--training.horizontal_flips", "true"]
    call(train, *mapped)
    taken = train.Learner.take_step

    def stop(learner, progress):
        loss = taken(learner, progress)
        if learner.step == 2:
            signal.raise_signal(signal.SIGUSR1)
        return loss

    monkeypatch.setattr(train.Learner, "take_step", stop)
    with pytest.raises(SystemExit):
        call(train, *mapped, "--output_dir", tmp_path / "halves")
    monkeypatch.setattr(train.Learner, "take_step", taken)
    call(train, *mapped, "--output_dir", tmp_path / "halves", "--resume", "latest")
    assert same(weights(tmp_path / "run"), weights(tmp_path / "halves"))


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_on_a_mapped_set(options, tmp_path):
    given = [*map(str, options), "--training.mixed_precision", "no", "--data.in_memory", "false"]
    given += ["--training.max_steps", "50", "--training.checkpoint_every", "50", "--training.horizontal_flips", "true"]
    launch = ["-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/two_cpu_processes.yaml"]
    for name, launcher, batch_size in (("two", launch, "16"), ("one", [], "32")):
        places = ["--output_dir", str(tmp_path / name), "--training.batch_size", batch_size]
        ended = command(*launcher, "scripts/train.py", *given, *places)
        assert ended.returncode == 0, ended.stderr
    ours, theirs = weights(tmp_path / "two"), weights(tmp_path / "one")
    gap = sum((ours[key] - theirs[key]).double().square().sum() for key in theirs)
    assert gap.sqrt() < 1e-4 * sum(theirs[key].double().square().sum() for key in theirs).sqrt()


def test_a_checkpoint_belongs_to_its_set(options, call, error_of, tmp_path):
    call(train, *options)
    error = error_of(train, *options, "--resume", "latest", "--data.limit", "60")
    assert "holds another image set: images 108, not 54" in error


def test_flips_turn_half_of_the_images(options, tmp_path):
    both = []
    for flips in ("false", "true"):
        another_process()
        run = ParsedRun([*map(str, options), "--training.horizontal_flips", flips])
        accelerator = train.start_accelerator(run.config)
        images, _ = load_sets(run.config.data)
        learner = train.Learner(run.config.training, *run.build(images.shape, 3), accelerator, images)
        both.append(learner._fetch(0)[0])
    (part, plain, labels), (_, flipped, same_labels) = both
    assert 0 < part.flipped.sum() < len(plain)
    assert torch.equal(flipped[part.flipped], plain[part.flipped].flip(-1))
    assert torch.equal(flipped[~part.flipped], plain[~part.flipped])
    assert torch.equal(labels, same_labels)


def test_fewer_images_than_a_step(options, error_of):
    error = error_of(train, *options, "--training.batch_size", "200")
    assert "there are 108 images to train on, fewer than the 200 of a step; lower training.batch_size" in error


def test_what_the_network_is_given_decides_the_images(pictures, tmp_path):
    run = ParsedRun(["--data.source", str(pictures), "--model.sample_size", "24", "--data.channels", "1"])
    assert (run.data.channels, run.data.size) == (1, 24)
    images, held_out = load_sets(replace(run.data, root=str(tmp_path)))
    assert images.shape == held_out.shape == (1, 24, 24)
    model, _ = run.build(images.shape, None)
    assert (model.config.in_channels, model.config.num_class_embeds) == (1, None)


def test_images_that_are_not_square(pictures, options, call, tmp_path):
    call(train, *options, "--data.size", "[16,24]", "--data.fit", "pad")
    images, _ = open_set(next((tmp_path / "sets").glob("pictures-16x24-*")))
    assert images.shape == (3, 16, 24)
    config = json.loads((tmp_path / "run" / "pipeline" / "unet" / "config.json").read_text(encoding="utf-8"))
    assert config["sample_size"] == [16, 24]


# weights to start from


def test_weights_of_the_teacher_with_another_label_table(pictures):
    teacher = load_pretrained().unet
    run = ParsedRun(["--data.source", str(pictures), "--init_from", "teacher"])
    assert (run.data.channels, run.data.size) == (None, 16)
    model, _ = run.build((1, 16, 16), 3)
    assert list(model.config.block_out_channels) == list(teacher.config.block_out_channels)
    for name, value in model.state_dict().items():
        if name.startswith("label_embedding."):
            assert len(value) == 4  # with the null label
        else:
            assert torch.equal(value, teacher.state_dict()[name])
    same_table, _ = run.build((1, 16, 16), 10)
    assert same(same_table.state_dict(), teacher.state_dict())
    without, _ = run.build((1, 32, 32), None)
    assert not any(name.startswith("label_embedding.") for name in without.state_dict())


def test_a_card_says_where_the_weights_started(options, call, tmp_path):
    call(train, *kept_network(options), "--init_from", "teacher", "--data.channels", "1")
    card = (tmp_path / "run" / "pipeline" / "README.md").read_text(encoding="utf-8")
    assert "trained from the weights of `teacher` for 4 optimizer steps" in card


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--init_from", "student"], "student is distilled, for a few noise levels only; give its teacher"),
        (["--init_from", "nowhere"], "nowhere"),
        (["--init_from", "teacher"], "the model of teacher has in_channels 1, not 3; give images of as many channels"),
        (
            [*TEACHER, "--model.block_out_channels", "[32,64,64]"],
            "has block_out_channels [32, 64, 128], not [32, 64, 64]",
        ),
        ([*TEACHER, "--model.norm_group_size", "8"], "has norm_group_size 16, not 8; give its own"),
        ([*TEACHER, "--scheduler.prediction_type", "sample"], "has prediction_type epsilon, not sample"),
        ([*TEACHER, "--scheduler.beta_schedule", "linear"], "has beta_schedule squaredcos_cap_v2, not linear"),
        ([*TEACHER, "--model", "denoiser.BasicUNet"], "give --model UNet"),
        (["--data.size", "16", "--model.sample_size", "24"], "data.size is (16, 16), and model.sample_size (24, 24)"),
    ],
)
def test_weights_that_do_not_fit(pictures, error_of, tmp_path, given, message):
    places = ["--data.root", tmp_path / "sets", "--output_dir", tmp_path / "run", "--tracking.mode", "disabled"]
    assert message in error_of(train, "--data.source", pictures, *places, *given)
    assert not (tmp_path / "run").exists()


def test_an_unlabelled_network_starts_from_its_own_weights():
    origin = load_pretrained()
    model = UNet.from_config(origin.unet.config)
    start_from(model, origin.noise_schedule, origin, "teacher")
    assert same(model.state_dict(), origin.unet.state_dict())
    with pytest.raises(ValueError, match="holds a UNet, and the model is a BasicUNet"):
        start_from(tiny_basic_unet(), origin.noise_schedule, origin, "teacher")


def test_the_noise_schedule_of_the_weights_is_kept(pictures, tmp_path):
    teacher = load_pretrained()
    teacher.register_modules(scheduler=DDPMScheduler(beta_schedule="linear", num_train_timesteps=500))
    teacher.save_pretrained(tmp_path / "linear")
    run = ParsedRun(["--data.source", str(pictures), "--init_from", str(tmp_path / "linear")])
    _, noise_schedule = run.build((1, 16, 16), 3)
    assert (noise_schedule.config.beta_schedule, noise_schedule.config.num_train_timesteps) == ("linear", 500)


def test_a_resumed_run_keeps_its_start(options, call, error_of):
    like_teacher = [*kept_network(options), "--model.block_out_channels", "[32,64,128]", "--data.channels", "1"]
    like_teacher += ["--data.size", "16"]
    call(train, *like_teacher)
    error = error_of(train, *like_teacher, "--init_from", "teacher", "--resume", "latest")
    assert "holds a run from other weights: init_from None, not teacher" in error


# what follows a run


def test_the_set_of_a_run_is_found_again(options, call, tmp_path):
    call(train, *options, "--data.size", "null", "--model.sample_size", "16", "--data.channels", "1")
    assert len(list((tmp_path / "sets").glob("pictures-*"))) == 1
    pipeline = tmp_path / "run" / "pipeline"
    call(evaluate, "--pipeline", pipeline, "--sections", "[memorisation]", "--num_images", "100", "--steps", "2")
    call(restore, "denoise", "--pipeline", pipeline, "--noise", "0.5", "--output", tmp_path / "restored.png")
    assert len(list((tmp_path / "sets").glob("pictures-*"))) == 1


def test_a_run_folder_in_the_folder_of_the_images(options, pictures, error_of):
    error = error_of(train, *options, "--output_dir", pictures / "run")
    assert "lies in" in error
    assert not (pictures / "run").exists()


def test_a_student_has_the_classes_of_its_teacher(options, pictures, call, error_of, tmp_path):
    call(train, *options)
    given = ["--distillation.teacher", tmp_path / "run" / "pipeline", "--tracking.mode", "disabled"]
    given += ["--output_dir", tmp_path / "student", "--training.max_steps", "1"]
    error = error_of(distill, *given, "--data.source", "fashion_mnist", "--data.root", DATA_ROOT)
    assert "the classes of fashion_mnist and of the pipeline differ (T-shirt/top, Trouser" in error


def test_a_class_is_named_by_a_number():
    reader = ClassReader(2, ("3", "7"))
    assert (reader.index("7"), reader.index("3"), reader.index(1)) == (1, 0, 1)


# FashionMNIST


def test_fashion_mnist_is_what_it_was(train_images, held_out, tmp_path):
    prepared = load_sets(DataConfig(root=str(DATA_ROOT), size=16))
    for ours, theirs in zip(prepared, (train_images, held_out), strict=True):
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.labels, theirs.labels)
        assert ours.class_names == theirs.class_names
        assert ours.sha256 == theirs.sha256
