"""Training on a GPU: precisions, compilation, exact resume, FSDP."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from safetensors.torch import load_file

from denoiser import UNet
from pipelines import sample_images
from pipelines.commands import distill, train
from tests.conftest import DATA_ROOT, another_process
from tests.scripts.conftest import command

pytestmark = pytest.mark.gpu

AVERAGES, WEIGHTS = "ema.safetensors", "model.safetensors"
RUN = [
    *("--config", "configs/fashion_mnist.yaml", "--data.root", str(DATA_ROOT), "--tracking.mode", "disabled"),
    *("--training.max_minutes", "null", "--training.max_steps", "40", "--training.checkpoint_every", "20"),
    *("--training.evaluation_images", "100", "--sampling.num_images", "4"),
]
LAUNCH_SPLIT = [
    *("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/several_gpus_fsdp.yaml"),
    *("--num_processes", "1", "--main_process_port", "0"),
]


@pytest.fixture
def make_run(make_trainer, train_images):
    """Return a maker of trainers of the default `UNet` on FashionMNIST, for sixty steps unless told otherwise."""

    def make(name="run", **options):
        another_process()
        torch.manual_seed(0)
        defaults = {"max_steps": 60, "batch_size": 128, "warmup_steps": 10, "log_every": 10, "checkpoints_kept": 9}
        return make_trainer(name, UNet(num_class_embeds=10), images=train_images, **{**defaults, **options})

    return make


def losses(trainer):
    lines = trainer.folder.metrics.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["loss"] for line in lines]


def checkpoint(run_dir, step):
    return run_dir / "checkpoints" / f"step-{step:08d}"


@pytest.mark.parametrize("precision", ["no", "bf16", "fp16"])
def test_a_training_learns(make_run, device, precision, record_property):
    trainer = make_run(mixed_precision=precision)
    learner = trainer.learner
    assert learner.images.images.device.type == learner.accelerator.device.type == device.type
    trainer.train()
    curve = losses(trainer)
    record_property("losses", " ".join(f"{loss:.3f}" for loss in curve))
    assert curve[-1] < curve[0] / 2
    assert sample_images(trainer.pipeline(), 10, num_inference_steps=5).isfinite().all()


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_resumed_run_is_equal_to_the_bit(make_run, precision):
    options = {"mixed_precision": precision, "max_steps": 40, "checkpoint_every": 20}
    whole = make_run("whole", **options)
    whole.train()
    resumed = make_run("resumed", **options, resume=str(checkpoint(whole.folder.path, 20)))
    if precision == "fp16":
        assert resumed.accelerator.scaler.state_dict()["_growth_tracker"] > 0  # a new one's is 0
    resumed.train()
    for name in (WEIGHTS, AVERAGES):
        ours, theirs = (checkpoint(trainer.folder.path, 40) / name for trainer in (resumed, whole))
        assert ours.read_bytes() == theirs.read_bytes(), name


def test_a_run_resumed_in_another_process_is_equal_to_the_bit(tmp_path, device):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder, options in ((whole, []), (resumed, ["--resume", str(checkpoint(whole, 20))])):
        ended = command("scripts/train.py", *RUN, "--output_dir", str(folder), *options)
        assert ended.returncode == 0, ended.stderr
        assert f", {device}, precision " in ended.stdout
    assert ", from step 20" in ended.stdout
    for name in (WEIGHTS, AVERAGES):
        assert (checkpoint(resumed, 40) / name).read_bytes() == (checkpoint(whole, 40) / name).read_bytes(), name


def test_a_compiled_training_takes_nearly_the_same_steps(make_run, record_property):
    """Fused operations keep in float32 what separate ones round to bf16; on a CPU the losses differ by a thousandth."""
    curves, keys = [], []
    for name, compiled in (("plain", False), ("compiled", True)):
        trainer = make_run(name, mixed_precision="bf16", compile=compiled, max_steps=30)
        trainer.train()
        curves.append(losses(trainer))
        keys.append(load_file(checkpoint(trainer.folder.path, 30) / WEIGHTS).keys())
    record_property("losses", curves)
    assert curves[1] == pytest.approx(curves[0], rel=0.02)
    assert keys[0] == keys[1]


def test_fsdp_on_one_gpu_takes_the_steps_of_unsplit_weights(tmp_path, call, record_property):
    def split(precision):
        options = ["--training.mixed_precision", precision, "--output_dir", str(tmp_path / precision)]
        return command(*LAUNCH_SPLIT, "scripts/train.py", *RUN, "--training.channels_last", "false", *options)

    with ThreadPoolExecutor() as pool:
        for ended in pool.map(split, ("no", "bf16")):
            assert ended.returncode == 0, ended.stderr
    call(
        train,
        *(*RUN, "--training.channels_last", "false", "--training.mixed_precision", "no"),
        *("--output_dir", tmp_path / "unsplit"),
    )
    unsplit, in_float32, in_bf16 = (checkpoint(tmp_path / name, 40) for name in ("unsplit", "no", "bf16"))
    for folder in (in_float32, in_bf16):
        assert not (folder / WEIGHTS).exists()  # Accelerate saves what it has split under another name
    expected, averages, rough = (load_file(folder / AVERAGES) for folder in (unsplit, in_float32, in_bf16))
    difference = max((averages[name] - expected[name]).abs().max().item() for name in expected)
    record_property("largest difference of an average", difference)
    for name, average in expected.items():
        torch.testing.assert_close(averages[name], average, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(rough[name], average, rtol=0.1, atol=0.05)


def test_a_distillation_runs(tmp_path, call):
    options = [f"--training.{name}" for name in ("max_steps=5", "max_minutes=null", "evaluation_images=100")]
    call(
        distill,
        *("--config", "configs/distill.yaml", "--data.root", DATA_ROOT, "--tracking.mode", "disabled", *options),
        *("--sampling.num_images", "4", "--output_dir", tmp_path / "student"),
    )
    assert (tmp_path / "student" / "pipeline").is_dir()
