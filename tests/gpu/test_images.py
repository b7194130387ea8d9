"""Images from a GPU: beside a CPU's, compiled, and through the commands."""

import json

import pytest
import torch
from torch import nn

from denoiser.device import compile_for_sampling
from pipelines import load_pretrained, sample_images
from pipelines.commands import evaluate, restore, sample
from pipelines.images import quantised
from tests.conftest import DATA_ROOT

pytestmark = pytest.mark.gpu

COUNT = 128


def grey_levels(device, change=lambda network: None, **options):
    """Return the teacher's images of seed 0 as numbers from 0 to 255."""
    pipeline = load_pretrained().to(device)
    change(pipeline.unet)
    return quantised(sample_images(pipeline, COUNT, num_inference_steps=20, **options)).int()


def typical_difference(ours, theirs):
    """Return the mean difference of an image's pixels in grey levels, the median over the images."""
    return (ours - theirs).abs().float().mean(dim=(1, 2, 3)).median().item()


def test_a_seed_makes_the_image_of_a_cpu(device, record_property):
    """The first step multiplies rounding by thousands.

    Random errors of a relative 1e-5 in each convolution, which is more than float32 makes, change 0.7 % of the
    pixels, by a few levels at most. Products rounded to TF32 change a sixth of them, by up to 123 levels.
    """
    expected = grey_levels("cpu")
    difference = (grey_levels(device) - expected).abs()
    changed = (difference > 0).float().mean().item()
    record_property("float32", f"{changed:.2%} of the pixels differ, by {difference.max()} levels at most")
    torch.backends.cudnn.allow_tf32 = True
    rough = (grey_levels(device) - expected).abs()
    record_property("TF32", f"{(rough > 0).float().mean():.2%} of the pixels differ, by {rough.max()} levels at most")
    assert changed < 0.01
    assert difference.max() <= 8


def test_an_image_is_the_same_to_the_bit_in_any_batch(device):
    pipeline = load_pretrained().to(device)
    together = sample_images(pipeline, COUNT, num_inference_steps=5)
    alone = sample_images(pipeline, COUNT, num_inference_steps=5, indices=[3, 40])
    assert torch.equal(alone, together[[3, 40]])


def test_a_compiled_network_makes_nearly_the_same_images(device, record_property):
    """It computes in bf16, and is as near to float32 as the network is in bf16 that is not compiled.

    A step calls it twice, and the second call may not overwrite what the first returned.
    """
    exact = grey_levels(device)
    plain = grey_levels(device, lambda network: nn.Module.to(network, torch.bfloat16))
    compiled = grey_levels(device, lambda network: compile_for_sampling(network, device), batch_size=COUNT)
    differences = typical_difference(plain, exact), typical_difference(compiled, exact)
    record_property("levels from float32, plain and compiled", differences)
    assert 0 < differences[1] < 1.5 * differences[0]


def test_sampling_compiled_from_the_command_line(call, tmp_path):
    call(sample, "--pipeline", "teacher", "--num_images", "130", "--compile", "--output", tmp_path / "grid.png")
    assert (tmp_path / "grid.png").exists()


def test_an_evaluation(call, tmp_path):
    call(
        evaluate,
        *("--pipeline", "teacher", "--data.root", DATA_ROOT, "--output_dir", tmp_path, "--num_images", "2000"),
        *("--seeds", "1", "--steps", "20", "--sweep_images", "100", "--likelihood_timesteps", "1"),
        *("--sections", "[distances,classes,guidance,likelihood]"),
    )
    report = json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    columns = report["distances"]["judge"]["train"]
    floor, samples, ceiling = (columns[name]["frechet"]["mean"] for name in ("floor", "samples", "ceiling"))
    assert floor < samples < 0.1 * ceiling
    assert 1 < report["likelihood"]["bits_per_dimension"] < 8


@pytest.mark.parametrize(
    "mode",
    [
        ("denoise", "--noise", "0.5"),
        ("denoise",),
        ("inpaint", "--hole", "6"),
        ("change", "--labels", "bag"),
        ("invert",),
    ],
    ids=" ".join,
)
def test_a_restoration(call, tmp_path, mode):
    call(restore, *mode, "--data.root", DATA_ROOT, "--output", tmp_path / "restored.png")
    assert (tmp_path / "restored.png").exists()
