"""What both backbones promise: the call contract of `UNet2DModel`, and what comes with being a diffusers model."""

import inspect

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

from denoiser import BasicUNet, UNet
from tests.conftest import tiny_basic_unet, tiny_unet

BOTH = pytest.mark.parametrize("make", [tiny_unet, tiny_basic_unet])


@BOTH
def test_arguments_of_forward_are_those_of_unet2dmodel(make):
    ours = inspect.signature(make().forward).parameters
    theirs = inspect.signature(UNet2DModel.forward).parameters
    assert list(ours) == [name for name in theirs if name != "self"]
    assert ours["return_dict"].default is True


@BOTH
def test_return_dict_false_gives_the_same_prediction_in_a_tuple(make, noise):
    model = make()
    (prediction,) = model(noise, 3, return_dict=False)
    assert torch.equal(prediction, model(noise, 3).sample)
    assert prediction.shape == noise.shape


@BOTH
def test_a_scalar_timestep_stands_for_the_whole_batch(make, noise):
    model = make()
    expected = model(noise, torch.full((4,), 500)).sample
    for timestep in (500, 500.0, torch.tensor(500), torch.tensor([500])):
        assert torch.equal(model(noise, timestep).sample, expected)


@BOTH
def test_timesteps_matter_and_each_image_has_its_own(make, noise):
    model = make()
    both = model(noise, torch.tensor([0, 999, 0, 999])).sample
    assert not torch.allclose(both[1], model(noise, 0).sample[1])
    torch.testing.assert_close(both[1], model(noise, 999).sample[1])


@BOTH
def test_the_wrong_number_of_timesteps_is_refused(make, noise):
    with pytest.raises(ValueError, match="3 timesteps for 4 images"):
        make()(noise, torch.tensor([1, 2, 3]))


@BOTH
def test_images_of_a_batch_do_not_see_each_other(make, noise):
    model = make()
    changed = noise.clone()
    changed[0] += 1
    before, after = model(noise, 10).sample, model(changed, 10).sample
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1:], after[1:])


@BOTH
def test_every_parameter_gets_a_gradient(make, noise):
    model = make().train()
    labels = {"class_labels": torch.tensor([0, 3, 9, 10])} if isinstance(model, UNet) else {}
    model(noise, torch.tensor([0, 10, 500, 999]), **labels).sample.square().mean().backward()
    missing = [
        name for name, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()
    ]
    assert missing == []


@BOTH
def test_a_saved_model_reloads_to_the_same_prediction(make, noise, tmp_path):
    model = make()
    model.save_pretrained(tmp_path)
    assert [path.suffix for path in tmp_path.iterdir() if "model" in path.name] == [".safetensors"]
    reloaded = type(model).from_pretrained(tmp_path)
    assert torch.equal(reloaded(noise, 7).sample, model(noise, 7).sample)
    assert {key: model.config[key] for key in model.config if key[0] != "_"} == {
        key: reloaded.config[key] if not isinstance(reloaded.config[key], list) else tuple(reloaded.config[key])
        for key in reloaded.config
        if key[0] != "_"
    }


def test_gradient_checkpointing_changes_no_gradient_and_is_refused_for_batch_norms(noise):
    plain, saving = tiny_unet().train(), tiny_unet().train()
    saving.enable_gradient_checkpointing()
    for model in (plain, saving):
        model(noise, 3).sample.square().mean().backward()
    for ours, theirs in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad)
    with pytest.raises(ValueError, match="BasicUNet does not support gradient checkpointing"):
        tiny_basic_unet().enable_gradient_checkpointing()


@pytest.mark.parametrize("make", [lambda: tiny_unet(num_class_embeds=None), tiny_basic_unet])
def test_diffusers_stock_ddpm_pipeline_runs_it(make):
    pipeline = DDPMPipeline(unet=make(), scheduler=DDPMScheduler())
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
    assert images.shape == (2, 16, 16, 1)


@BOTH
def test_bfloat16_weights_predict_about_the_same(make, noise):
    model = make()
    expected = model(noise, 3).sample
    half = model.to(torch.bfloat16)(noise.bfloat16(), 3).sample
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("backbone", [UNet, BasicUNet])
@pytest.mark.parametrize("options", [{"in_channels": 0}, {"out_channels": -1}, {"sample_size": 0}, {"sample_size": -4}])
def test_zero_and_negative_counts_are_refused(backbone, options):
    with pytest.raises(ValueError, match=str(next(iter(options.values())))):
        backbone(**options)


@pytest.mark.parametrize("backbone", [UNet, BasicUNet])
def test_a_size_that_does_not_fit_is_refused_with_the_sizes_that_do(backbone):
    with pytest.raises(ValueError, match="18 is not divisible by 4.*16 or 20"):
        backbone(sample_size=18)
