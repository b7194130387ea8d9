"""Everything that a user can get wrong ends in one line, exit status 2 and nothing half-written."""

import functools
import shutil

import numpy as np
import pytest
import torch
import yaml
from diffusers import DDPMScheduler
from torchvision.datasets import FashionMNIST

from denoiser.data import CLASS_NAMES, fashion_mnist
from pipelines import DenoisingPipeline, make_scheduler, save_images
from pipelines.commands import distill, evaluate, parser, restore, sample, train
from pipelines.commands.parsed_run import ParsedRun
from pipelines.evaluation import judge
from pipelines.evaluation.judge import card_file, weights_file
from pipelines.evaluation.judge_networks import JUDGES
from scripts import train_judge
from tests.conftest import DATA_ROOT, ROOT, tiny_basic_unet, tiny_unet


@pytest.fixture
def train_error(error_of):
    base = ("--config", ROOT / "configs" / "smoke.yaml", "--data.root", DATA_ROOT, "--tracking.mode", "disabled")
    return lambda *arguments: error_of(train, *base, *arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--training.batchsize 3", "unknown option 'training.batchsize' (did you mean 'training.batch_size'?)"),
        ("--training.optimizer muon", "training.optimizer is a removed option; commit e7d8e90 is the last that has it"),
        ("--config smok", "config 'smok' is neither a file nor one of the package (did you mean 'smoke'?): basic_unet"),
        ("--outputdir x", "unknown option 'outputdir' (did you mean 'output_dir'?)"),
        ("--model.block_channels [16]", "unknown option 'block_channels' (did you mean 'block_out_channels'?)"),
        ("--scheduler.prediction v", "unknown option 'scheduler.prediction'"),
        ("--training.batch_size many", "training.batch_size: expected int, got many"),
        ("--training.learning_rate fast", "training.learning_rate: expected float, got fast"),
        ("--training.mixed_precision fp12", "expected 'auto', 'no', 'bf16', 'fp16', got fp12"),
        ("--model.sample_size 16.5", "sample_size: expected int or tuple, got 16.5"),
        ("--model denoiser.Unet", "module 'denoiser' has no attribute 'Unet'"),
        ("--model os.system", "does not correspond to a subclass of ModelMixin"),
        ("--config nowhere.yaml", "nowhere.yaml"),
        ("--data.size 17", "image height 17 is not divisible by 2 (patch_size * 2^(levels - 1)); use 16 or 18"),
        ("--model.block_out_channels [16,40]", "block_out_channels 40 is not divisible by 16 (norm_group_size)"),
        ("--model.in_channels 0", "in_channels is 0"),
        ("--model.in_channels 3", "the model wants (3, 16, 16)"),
        ("--model.out_channels 2", "the model has out_channels 2, the images have 1 channels"),
        ("--sampling.guidance_scale .nan", "guidance_scale is nan"),
        ("--model.num_class_embeds 7", "the model has num_class_embeds 7, the images have 10"),
        ("--training.batch_size 0", "batch_size is 0"),
        ("--training.batch_size 9999999999", "batch_size is 9999999999; it must be at most 2147483647"),
        ("--training.max_steps -1", "max_steps is -1"),
        ("--training.adam_betas [2,0.9]", "adam_betas are (2.0, 0.9)"),
        ("--training.weight_decay -1", "weight_decay is -1.0"),
        ("--training.learning_rate nan", "training.learning_rate: expected float, got nan"),
        ("--training.max_steps null", "give training.max_steps or training.max_minutes"),
        ("--training.learning_rate -1", "learning_rate is -1"),
        ("--training.label_dropout 2", "label_dropout is 2"),
        ("--training.mixed_precision fp16", "fp16 needs a GPU"),
        ("--training.seed -1", "seed is -1"),
        ("--sampling.num_images 0", "num_images is 0"),
        ("--sampling.scheduler ddpn", "unknown scheduler 'ddpn' (did you mean 'ddpm'?)"),
        ("--sampling.steps 2000", "2000 inference steps were asked for; the sampler takes 1 to 1000"),
        ("--model denoiser.BasicUNet --sampling.guidance_scale 2", "the network has no classes"),
        ("--scheduler.prediction_type score", "score"),
        ("--scheduler.num_train_timesteps 0", "num_train_timesteps is 0"),
        ("--scheduler.trained_betas [0.1,0.2]", "num_train_timesteps 1000 and 2 betas; make them agree"),
        ("--sampling.scheduler ddim --sampling.eta 2", "eta is 2.0; it must be from 0 to 1"),
        ("--scheduler.clip_sample_range 0 --sampling.scheduler ddim", "clip_sample_range is 0.0; it must be above 0"),
        ("--scheduler.beta_end 3", "betas go from 0.0001 to 3"),
        ("--scheduler.beta_schedule sigmoid", "scheduler 'sde-dpmsolver++' cannot take this noise schedule"),
        ("--scheduler.variance_type learned_range", "these networks predict no variance"),
        ("--scheduler.variance_type fixed_large_log", "with which diffusers samples nan; use fixed_large"),
        ("--scheduler.timestep_spacing trailing", "timestep_spacing is trailing, and changes nothing: a training uses"),
        ("--scheduler.steps_offset 1", "steps_offset is 1, and changes nothing: a training uses every timestep"),
        ("--scheduler.beta_schedule squaredcos_cap_v2 --scheduler.beta_end 0.1", "squaredcos_cap_v2 has no ends"),
        ("--scheduler.sample_max_value 2", "sample_max_value is 2.0, and changes nothing: thresholding is off"),
        ("--scheduler.dynamic_thresholding_ratio 0.9", "dynamic_thresholding_ratio is 0.9, and changes nothing"),
        ("--scheduler.clip_sample false --scheduler.clip_sample_range 2", "changes nothing: clip_sample is off"),
        (
            "--scheduler.thresholding true --scheduler.sample_max_value 2 --scheduler.clip_sample_range 2",
            "thresholding takes the place of clipping",
        ),
        ("--scheduler.rescale_betas_zero_snr true", "the share of noise goes from 0.0001 to 1; it must be above 0"),
        (
            "--scheduler.num_train_timesteps 2 --scheduler.trained_betas [0,0.5]",
            "the share of noise goes from 0 to 0.5",
        ),
        (
            "--scheduler.num_train_timesteps 2 --scheduler.trained_betas [0.1,0.5] --scheduler.beta_end 0.5",
            "beta_end is 0.5, and changes nothing: trained_betas are given",
        ),
        (
            "--model.num_class_embeds null --training.label_dropout 0.3",
            "label_dropout is 0.3, and the network takes no",
        ),
        (
            "--training.seed 99999999999999999999",
            "seed is 99999999999999999999; it must be a whole number from 0 to below 2^64",
        ),
        ("--training.weight_decay .nan", "weight_decay is nan"),
        ("--training.guide_at 1", "guide_at is 1.0; it must be above 0 and below 1, or null"),
        ("--training.autoguidance_scale .inf", "autoguidance_scale is inf; it must be a finite number"),
        ("--sampling.autoguidance_scale 2", "of finished pipelines; give training.autoguidance_scale"),
        ("--training.max_minutes .inf", "max_minutes is inf"),
        ("--output_dir=", "output_dir is empty"),
        ("--hub_repo first", "hub_repo is 'first'; it must be user/name, as the Hub names a repository"),
        ("--hub_repo=", "hub_repo is ''; it must be user/name"),
        ("--hub_repo https://huggingface.co/user/first", "it must be user/name, as the Hub names a repository"),
        ("--model 5", "model: '5' is not the import path of a class, such as denoiser.UNet"),
        (
            "--output_dir /proc/run",
            "/proc/run/config.yaml cannot be written (No such file or directory: /proc); give another place",
        ),
        ("--resume nowhere", "nowhere is not a checkpoint"),
    ],
)
def test_training(train_error, tmp_path, arguments, message):
    line = train_error(*arguments.split())
    assert message in line
    assert not set(line).intersection("\n\t{}")
    assert "Subtypes" not in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("output_dir: &name [run]\nresume: *name\n", "it has an alias (*); write out what that stands for"),
        ("training:\n", "'training:'; leave a section out if it is empty"),
        ("training:\n  optimizer: muon\n", "optimizer is muon, a removed option; commit e7d8e90 is the last"),
        ("training:\n  loss_weighting: noise\n", "loss_weighting is noise, a removed option; commit e7d8e90"),
        ("tracking:\n  optimizer: adamw\n", "unknown option 'optimizer'"),
        ("model:\n  init_args:\n    second_kernel_size: 1\n", "second_kernel_size is 1, a removed option"),
        ("training:\n  mixed_precision: no\n", 'got False (YAML reads a bare no as False: write "no")'),
    ],
)
def test_a_config_with_what_yaml_reads_otherwise(train_error, tmp_path, content, message):
    (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    assert message in train_error("--config", tmp_path / "config.yaml")


def test_the_config_of_an_earlier_run_has_removed_options_at_their_defaults(tmp_path):
    config = yaml.safe_load((ROOT / "configs" / "smoke.yaml").read_text(encoding="utf-8"))
    config["training"] |= {"optimizer": "adamw", "log_normal_levels": None, "stratified_timesteps": True}
    config["model"]["init_args"] |= {"middle_blocks": 0, "second_kernel_size": 3}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    ours, theirs = (
        ParsedRun(["--config", str(path)]) for path in (tmp_path / "config.yaml", ROOT / "configs" / "smoke.yaml")
    )
    assert ours.config == theirs.config
    assert ours.build((1, 16, 16), 10)[0].config == theirs.build((1, 16, 16), 10)[0].config


def test_a_network_of_your_own_may_have_an_argument_of_a_removed_option_s_name():
    text = "model:\n  class_path: mine.Net\n  init_args:\n    second_kernel_size: 5\n"
    assert parser._load(text) == yaml.safe_load(text)


def test_a_network_without_a_null_label(error_of):
    config = (
        "--config",
        ROOT / "configs" / "unet2dmodel.yaml",
        "--data.root",
        DATA_ROOT,
        "--tracking.mode",
        "disabled",
    )
    line = error_of(train, *config, "--data.labels", "true")
    assert "UNet2DModel has no null label to put in a label's place; give --training.label_dropout 0" in line


def test_a_config_that_is_not_utf8(train_error, tmp_path):
    (tmp_path / "config.yaml").write_bytes(b"output_dir: r\xfcn\n")
    assert "config.yaml is not UTF-8 text (invalid start byte at byte 13)" in train_error(
        "--config", tmp_path / "config.yaml"
    )


def test_training_that_diverges(train_error):
    message = train_error("--training.learning_rate", "1e30", "--training.warmup_steps", "1")
    assert "not finite in 10 steps up to 11; last good checkpoint: none yet; start anew with a lower" in message


def test_a_config_with_an_unknown_key(train_error, tmp_path):
    (tmp_path / "config.yaml").write_text("training:\n  learning_rat: 0.1\n", encoding="utf-8")
    message = train_error("--config", tmp_path / "config.yaml")
    assert "unknown option 'learning_rat' (did you mean 'learning_rate'?)" in message


def test_a_config_that_is_not_yaml(train_error, tmp_path):
    (tmp_path / "config.yaml").write_text("training: [", encoding="utf-8")
    assert "config" in train_error("--config", tmp_path / "config.yaml")


def test_a_run_folder_that_holds_another_run(train_error, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.yaml").write_text("someone else's\n", encoding="utf-8")
    assert "holds a run already" in train_error("--output_dir", tmp_path / "run")
    assert (tmp_path / "run" / "config.yaml").read_text(encoding="utf-8") == "someone else's\n"


def test_a_run_folder_that_cannot_be_made(train_error, tmp_path):
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert "file" in train_error("--output_dir", tmp_path / "file" / "run")


def test_data_that_is_nowhere_or_corrupt(error_of, tmp_path, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path)
    monkeypatch.setattr(FashionMNIST, "mirrors", [])
    base = ("--config", ROOT / "configs" / "smoke.yaml", "--output_dir", tmp_path / "run", "--data.root", tmp_path)
    name = "train-images-idx3-ubyte"
    assert f"{name} (SHA-256 {fashion_mnist.SHA256[name]}) was not found" in error_of(train, *base)
    (tmp_path / name).write_bytes(b"not the images")
    message = error_of(train, *base)
    assert f"{name} is corrupt" in message
    assert fashion_mnist.SHA256[name] in message
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    """A folder with a class-conditional pipeline, an unconditional one and a damaged one."""
    folder = tmp_path_factory.mktemp("pipelines")
    DenoisingPipeline(tiny_unet(), DDPMScheduler(), CLASS_NAMES).save_pretrained(folder / "classes")
    DenoisingPipeline(tiny_basic_unet(), DDPMScheduler()).save_pretrained(folder / "plain")
    DenoisingPipeline(tiny_unet(sample_size=32), DDPMScheduler()).save_pretrained(folder / "large")
    sigmoid = DDPMScheduler(beta_schedule="sigmoid")
    DenoisingPipeline(tiny_unet(), sigmoid, CLASS_NAMES).save_pretrained(folder / "sigmoid")
    student = {**DDPMScheduler(prediction_type="v_prediction").config, "original_inference_steps": 4}
    DenoisingPipeline(tiny_unet(), make_scheduler("lcm", student), CLASS_NAMES).save_pretrained(folder / "distilled")
    shutil.copytree(folder / "classes", folder / "damaged")
    (folder / "damaged" / "unet" / "config.json").write_text(
        '{"_class_name": "UNet", "sample_size": 18}', encoding="utf-8"
    )
    return folder


@pytest.mark.parametrize(
    ("pipeline", "arguments", "message"),
    [
        ("nowhere", "", "nowhere is not a saved pipeline"),
        ("damaged", "", "damaged cannot be loaded as a pipeline"),
        ("classes", "--scheduler dpm", "unknown scheduler 'dpm'"),
        ("classes", "--num_images 0", "num_images is 0"),
        ("classes", "--steps 0", "steps is 0"),
        ("classes", "--steps 1001", "1001"),
        ("classes", "--batch_size -5", "batch_size is -5"),
        ("classes", "--seed -1", "seed is -1"),
        ("classes", "--columns 0", "columns is 0"),
        ("classes", "--interpolate --scheduler ddim", "0 seeds for an interpolation"),
        ("classes", "--interpolate --seeds 1,2", "adds noise in each step; choose ddim"),
        ("classes", "--eta 0.5", "takes none; use ddim"),
        ("classes", "--predictions film.mp4", "film.mp4"),
        ("classes", "--noising /proc/noising.png", "/proc"),
        ("classes", "--predictions samples.png", "samples.png is named for two pictures"),
        ("classes", "--images_dir new --output new/grid.png", "new/grid.png is in new, the new folder for the images"),
        ("classes", "--steps 61", "61 inference steps were asked for, which diffusers rounds to one more"),
        ("classes", "--seeds 1-99999999999", "names more than 1,000,000; sample them in parts"),
        ("classes", "--seeds 99999999999999999999", "seed is 99999999999999999999"),
        ("classes", "--guidance_rescale 0.5", "do nothing without a guidance_scale other than 1"),
        ("classes", "--guidance_interval [0,2]", "do nothing without a guidance_scale other than 1"),
        ("classes", "--autoguidance_scale 2", "autoguidance_scale is 2.0, and the pipeline has no guide"),
        ("classes", "--autoguidance_interval [0,2]", "autoguidance_interval does nothing without"),
        ("classes", "--spacing log-snr --scheduler unipc", "UniPCMultistepScheduler chooses its timesteps itself"),
        ("classes", "--spacing log_snr", "log_snr"),
        ("classes", "--seeds 3,x", "seeds '3,x' cannot be read at 'x'"),
        ("classes", "--labels bag:x", "the weight 'x' is no number"),
        ("classes", "--guidance_rescale 2", "guidance_rescale is 2.0; it must be from 0 to 1"),
        ("classes", "--guidance_interval [1]", "guidance_interval: expected tuple with 2 elements, got [1]"),
        ("classes", "--guidance_interval [3,1]", "guidance_interval is (3.0, 1.0)"),
        ("classes", "--labels -1", "class label -1 is out of range"),
        ("classes", "--images_dir /proc", "/proc is not an empty folder"),
        ("classes", "--images_dir /proc/images", "/proc/images cannot be written"),
        ("classes", "--labels 10", "class label 10 is out of range; the labels are 0 to 9"),
        ("classes", "--labels 3,sneeker", "unknown class 'sneeker' (did you mean 'sneaker'?)"),
        ("plain", "--labels 3", "unconditional network"),
        ("plain", "--guidance_scale 2", "guidance_scale is 2.0 and the network has no classes"),
        ("classes", "--output /proc/grid.png", "/proc"),
        ("classes", "--output grid.xyz", ".xyz"),
        ("classes", "--gif film.mp4", "film.mp4"),
        ("classes", "--colums 3", "unknown option 'colums' (did you mean 'columns'?)"),
        ("classes", "--scheduler lcmm", "unknown scheduler 'lcmm' (did you mean 'lcm'?)"),
        ("classes", "--interpolate --seeds 1,2 --scheduler lcm", "adds noise in each step; choose ddim"),
        ("classes", "--seeds 1,2 --seed 3", "seed is 3, and is not used: seeds are given; leave it out"),
        ("plain", "--names", "names are those of classes, and the network has none"),
        ("distilled", "--steps 5", "5 inference steps were asked for; the sampler takes 1 to 4"),
        ("distilled", "--scheduler ddim", "cannot sample from a network distilled for 4 calls; use lcm"),
    ],
)
def test_sampling(error_of, pipelines, tmp_path, pipeline, arguments, message):
    before = sorted(pipelines.rglob("*"))
    given = ["--pipeline", pipelines / pipeline, "--steps", "2"]
    assert message in error_of(sample, *given, *arguments.split())
    assert list(tmp_path.iterdir()) == []
    assert sorted(pipelines.rglob("*")) == before


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder with an image, larger ones, masks, and what is no picture."""
    folder = tmp_path_factory.mktemp("pictures")
    save_images(torch.zeros(1, 1, 16, 16), folder / "right")
    save_images(torch.zeros(1, 1, 28, 28), folder / "large")
    save_images(torch.zeros(2, 1, 16, 16), folder / "two")
    np.savez(folder / "none.npz", images=np.zeros((0, 16, 16), np.uint8))
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize(
    ("task", "arguments", "message"),
    [
        ("denoise", "--pipeline nowhere", "nowhere is not a saved pipeline"),
        ("denoise", "--pipeline {}/distilled", "distilled is distilled, for a few noise levels only"),
        ("denoise", "--images nowhere", "nowhere is neither a PNG file"),
        ("denoise", "--images {}/large", "00000.png is 28x28 L; it must be 16x16 L"),
        ("denoise", "--images {}/broken.png", "broken.png cannot be read as a PNG"),
        ("denoise", "--num_images 0", "num_images is 0"),
        ("denoise", "--noise -1", "noise is -1.0; it must be above 0 and up to 1000"),
        ("denoise", "--noise 1e39", "noise is 1e+39; it must be above 0 and up to 1000"),
        ("denoise", "--images {}/none.npz", "none.npz has no images"),
        ("denoise", "--labels all", "labels is 'all'; name the classes"),
        ("denoise", "--images_dir new --output new/x.png", "new/x.png is in new, the new folder for the images"),
        ("denoise", "--sigma 0", "it must be above 0"),
        ("denoise", "--labels sneeker", "unknown class 'sneeker' (did you mean 'sneaker'?)"),
        ("denoise", "--noise 0.5 --seed -1", "seed is -1"),
        ("denoise", "--seed 5", "seed is 5, of noise to add; give noise too, or leave it out"),
        (
            "denoise",
            "--images {}/right --num_images 3",
            "num_images is 3, of the held-out ones; leave it out with images",
        ),
        ("denoise", "--output /proc/restored.png", "/proc"),
        ("denoise", "--images_dir /proc", "/proc is not an empty folder"),
        ("denoise", "--hole 3", "unknown option 'hole'"),
        ("inpaint", "", "give either mask"),
        ("inpaint", "--hole 0", "hole is 0; it must be from 1 to 16"),
        ("inpaint", "--hole 17", "hole is 17; it must be from 1 to 16"),
        ("inpaint", "--mask {}/large/00000.png", "00000.png is 28x28 L; it must be 16x16 L"),
        ("inpaint", "--mask {}/two", "has 2 masks"),
        ("inpaint", "--hole 16", "the mask leaves no known pixel"),
        ("inpaint", "--hole 3 --steps 0", "0 inference steps"),
        ("inpaint", "--hole 3 --steps 30", "steps is 30; it must divide the 1000 training timesteps, as 25 does"),
        ("inpaint", "--hole 3 --resamplings 0", "resamplings is 0"),
        ("change", "--strength 0", "strength is 0.0; it must be above 0"),
        ("change", "--scheduler dimm", "unknown scheduler 'dimm' (did you mean 'ddim'?)"),
        ("change", "--guidance_scale 2", "guidance_scale is 2.0 without class labels"),
        ("invert", "--pipeline {}/sigmoid", "sigmoid is not implemented for"),
        ("invert", "--steps 30", "steps is 30; it must divide the 1000 training timesteps, as 25 does"),
        ("invert", "--steps 1", "steps is 1; give at least 2"),
        ("invert", "--iterations 0", "iterations is 0"),
        ("invert", "--new_labels 10", "class label 10 is out of range"),
        ("polish", "", "polish"),
    ],
)
def test_restoring(error_of, pipelines, pictures, tmp_path, task, arguments, message):
    given = [] if "--pipeline" in arguments or task == "polish" else ["--pipeline", pipelines / "classes"]
    given += ["--data.root", DATA_ROOT] if task != "polish" else []
    folder = pipelines if "--pipeline" in arguments else pictures
    assert message in error_of(restore, task, *given, *arguments.format(folder).split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--distillation.teacher nowhere", "nowhere is not a saved pipeline"),
        ("--distillation.teacher {}/distilled", "the teacher is distilled itself"),
        ("--distillation.calls 0", "calls is 0"),
        ("--init_from teacher", "init_from is teacher, and a student starts from its teacher; leave it out"),
        ("--distillation.calls 21", "calls is 21; it must be up to 20"),
        ("--distillation.objective guidance", "sampling.scheduler is lcm, for students of sid; give --sampling.s"),
        (
            "--distillation.objective trajectories --distillation.own_starts true",
            "own_starts is True, and has no effect on trajectories; leave it out",
        ),
        (
            "--distillation.objective guidance --sampling.scheduler ddim",
            "the teacher has no guide, or an autoguidance_scale of 1; a student of guidance needs both",
        ),
        ("--distillation.calls 2", "4 inference steps were asked for; the sampler takes 1 to 2"),
        ("--sampling.scheduler unipc", "cannot sample from a network distilled for 4 calls; use lcm"),
        ("--distillation.objective trajectories", "for students of sid; give --sampling.scheduler ddim"),
        ("--distillation.objective gan", "expected 'sid', 'trajectories', 'guidance', got gan"),
        ("--distillation.critic_step 2", "unknown option 'distillation.critic_step'"),
        ("--training.gradient_accumulation_steps 2", "gradient_accumulation_steps must be 1 in a distillation"),
    ],
)
def test_distilling(error_of, pipelines, tmp_path, arguments, message):
    given = ["--config", ROOT / "configs" / "distill.yaml", "--distillation.teacher", pipelines / "classes"]
    given += ["--data.root", DATA_ROOT, "--tracking.mode", "disabled"]
    assert message in error_of(distill, *given, *arguments.format(pipelines).split())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("pipeline", "arguments", "message"),
    [
        ("nowhere", "", "nowhere is not a saved pipeline"),
        ("damaged", "", "damaged cannot be loaded as a pipeline"),
        (
            "large",
            "--data.size 16",
            "the images of fashion_mnist are (1, 16, 16) (channels, height, width), and the pipeline's (1, 32, 32)",
        ),
        ("classes", "--data.source nowhere", "nowhere is neither a folder, nor a file, nor a data set"),
        (
            "classes",
            "--data.labels false",
            "the classes of fashion_mnist and of the pipeline differ (none and T-shirt/top, Trouser",
        ),
        (
            "classes",
            "--inception_weights nowhere.pth",
            "the section 'inception' cannot be made: nowhere.pth is missing",
        ),
        ("classes", "--num_images 1999", "1999 images cannot be judged; give at least 2000"),
        ("classes", "--num_images 10001", "10001 images cannot be judged"),
        ("classes", "--seeds 0", "seeds is 0"),
        ("classes", "--steps 1001", "1001 inference steps"),
        ("classes", "--scheduler ddmp", "unknown scheduler 'ddmp' (did you mean 'ddpm'?)"),
        ("classes", "--sections [classs]", "unknown section 'classs' (did you mean 'classes'?)"),
        ("classes", "--images images.npz", "give either --pipeline or --images"),
        ("classes", "--output_dir /proc/report", "/proc/report/report.json cannot be written"),
        ("classes", "--num_image 2000", "unknown option 'num_image' (did you mean 'num_images'?)"),
        ("distilled", "--sections [likelihood]", "the section 'likelihood' cannot be made: the network is distilled"),
        ("plain", "--sections [classes]", "the section 'classes' cannot be made: the images have no labels"),
        ("plain", "--sections [guidance]", "the section 'guidance' cannot be made: the network has no classes"),
        ("plain", "--guidance_scale 2", "the network has no classes"),
    ],
)
def test_evaluating(error_of, pipelines, tmp_path, pipeline, arguments, message):
    before = sorted(pipelines.rglob("*"))
    given = ["--pipeline", pipelines / pipeline, "--data.root", DATA_ROOT]
    assert message in error_of(evaluate, *given, *arguments.split())
    assert list(tmp_path.iterdir()) == []
    assert sorted(pipelines.rglob("*")) == before


def test_evaluating_images_that_cannot_be(error_of, tmp_path):
    np.savez(tmp_path / "few.npz", images=np.zeros((1999, 16, 16), np.uint8))
    given = ["--data.root", DATA_ROOT, "--images"]
    assert "1999 images cannot be judged" in error_of(evaluate, *given, "few.npz")
    assert "nowhere is neither a PNG file" in error_of(evaluate, *given, "nowhere")
    assert "the images have no labels" in error_of(evaluate, *given, "few.npz", "--sections", "[classes]")
    unused = "steps is 5, and is not used: the images are given; leave it out"
    assert unused in error_of(evaluate, *given, "few.npz", "--steps", "5")
    assert [path.name for path in tmp_path.iterdir()] == ["few.npz"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("data: {source: [", "config.yaml cannot be read (while parsing"),
        ("data: {size: 3}", "config.yaml cannot be read (size is 3; it must be from 8 to 256); mend it, or move"),
        ("[1]", "config.yaml cannot be read ("),
    ],
)
def test_evaluating_beside_a_config_that_cannot_be_read(error_of, pipelines, tmp_path, content, message):
    (tmp_path / "config.yaml").write_text(content, encoding="utf-8")
    shutil.copytree(pipelines / "classes", tmp_path / "pipeline")
    assert message in error_of(evaluate, "--pipeline", "pipeline", "--data.root", DATA_ROOT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--data.source plain.npy", "plain.npy has no classes; a set without them is evaluated without a classifier"),
        (
            "--data.source labelled.npz --data.held_out 0",
            "too few held-out images to test a classifier; give --data.held",
        ),
        ("--data.source labelled.npz --epochs 0", "epochs is 0"),
        ("--data.source nowhere", "nowhere is neither a folder, nor a file, nor a data set"),
        ("--package true --data.size 32", "of the set's options, --package takes data.root alone"),
    ],
)
def test_training_a_judge(error_of, held_out, tmp_path, arguments, message):
    images = held_out.images[:20].numpy()
    np.save(tmp_path / "plain.npy", images)
    np.savez(tmp_path / "labelled.npz", images=images, labels=np.arange(20) % 2)
    assert message in error_of(train_judge, "--data.root", "data", *arguments.split())
    assert list(tmp_path.rglob("*judge.*")) == []


@pytest.mark.parametrize("kind", JUDGES)
def test_evaluating_with_a_judge_that_was_altered_or_lost(error_of, pipelines, tmp_path, monkeypatch, kind):
    for path in (place(each) for each in JUDGES for place in (weights_file, card_file)):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(judge, "PACKAGE", tmp_path)
    monkeypatch.setattr(judge, "load_judges", functools.partial(judge.load_judges, tmp_path))
    given = ["--pipeline", pipelines / "classes", "--data.root", DATA_ROOT]
    weights = weights_file(kind, tmp_path)
    content = weights.read_bytes()
    weights.unlink()
    assert f"{kind}.safetensors is missing: install the package again" in error_of(evaluate, *given)
    weights.write_bytes(content[:-1] + b"?")
    assert f"{kind}.safetensors was altered: its SHA-256 should be" in error_of(evaluate, *given)
    assert not (pipelines / "report.json").exists()
