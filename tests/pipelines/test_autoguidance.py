import pytest
import torch

from pipelines import DenoisingPipeline, Guidance, SamplingConfig, check_sampling
from pipelines.predictor import Predictor
from tests.conftest import tiny_basic_unet, tiny_unet
from tests.pipelines.test_denoising import draw, make_pipeline


def guided_pipeline(scale=2.0, **options):
    """Return a pipeline with a guide of another architecture."""
    plain = make_pipeline(tiny_unet(**options))
    guide = tiny_unet(block_out_channels=(16, 16), attention_levels=(), **options)
    pipeline = DenoisingPipeline(plain.unet, plain.scheduler, plain.config.class_names, guide, scale)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def test_the_prediction_goes_from_the_guides_past_the_networks(noise):
    pipeline = guided_pipeline()
    classes, timesteps = pipeline.classes.read([0, 1, 2, 3], 4), torch.full((4,), 500)
    ours, weaker = (
        network(noise, timesteps, class_labels=torch.arange(4)).sample for network in (pipeline.unet, pipeline.guide)
    )

    def predict(**guidance):
        predictor = Predictor(pipeline.unet, pipeline.scheduler, classes, Guidance(**guidance), guide=pipeline.guide)
        return predictor(noise, torch.tensor(500))

    torch.testing.assert_close(predict(auto_scale=3.0), weaker + 3 * (ours - weaker))
    assert torch.equal(predict(auto_scale=1.0), ours)
    free = pipeline.unet(noise, timesteps).sample
    both = predict(scale=2.0, auto_scale=3.0)
    torch.testing.assert_close(both, ours + (ours - free) + 2 * (ours - weaker))


def test_a_pipelines_own_scale_is_its_default():
    pipeline = guided_pipeline(2.0)
    assert torch.equal(draw(pipeline), draw(pipeline, autoguidance_scale=2.0))
    plain = make_pipeline()
    assert torch.equal(draw(pipeline, autoguidance_scale=1.0), draw(plain))
    assert not torch.equal(draw(pipeline), draw(plain))


def test_a_guide_without_classes_guides_a_network_without():
    pipeline = guided_pipeline(num_class_embeds=None)
    assert not torch.equal(draw(pipeline), draw(pipeline, autoguidance_scale=1.0))


def test_the_network_as_its_own_guide_changes_nothing():
    plain = make_pipeline()
    pipeline = DenoisingPipeline(plain.unet, plain.scheduler, plain.config.class_names, plain.unet, 3.0)
    torch.testing.assert_close(draw(pipeline), draw(plain))


def test_a_guide_may_have_another_precision():
    pipeline = guided_pipeline()
    expected = draw(pipeline)
    pipeline.guide.to(torch.bfloat16)
    assert (draw(pipeline) - expected).abs().mean() < 0.05


def test_an_image_does_not_depend_on_its_batch():
    pipeline = guided_pipeline()
    together, alone = draw(pipeline, batch_size=3), draw(pipeline, batch_size=1)
    assert torch.equal(together[:1], alone)


def test_the_guide_is_called_in_its_interval_only():
    pipeline, calls = guided_pipeline(), []
    pipeline.guide.register_forward_pre_hook(lambda module, inputs: calls.append(int(inputs[1][0])))
    draw(pipeline, num_inference_steps=10)
    assert len(calls) == 10
    sigma = ((1 - pipeline.scheduler.alphas_cumprod[500]) / pipeline.scheduler.alphas_cumprod[500]).sqrt()
    del calls[:]
    draw(pipeline, num_inference_steps=10, autoguidance_interval=(0.0, float(sigma)))
    assert calls
    assert max(calls) <= 500


def test_it_is_saved_loaded_and_taken_over(tmp_path):
    pipeline = guided_pipeline(1.5)
    pipeline.save_pretrained(tmp_path / "guided")
    expected = draw(pipeline)
    assert torch.equal(draw(DenoisingPipeline.from_pretrained(tmp_path / "guided")), expected)
    copied = DenoisingPipeline.from_pipe(pipeline)
    copied.set_progress_bar_config(disable=True)
    assert copied.guide is pipeline.guide
    assert torch.equal(draw(copied), expected)


def test_a_pipeline_without_a_guide_is_saved_without(tmp_path):
    make_pipeline().save_pretrained(tmp_path / "plain")
    assert not (tmp_path / "plain/guide").exists()
    assert DenoisingPipeline.from_pretrained(tmp_path / "plain").guide is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"autoguidance_scale": float("nan")}, "autoguidance_scale is nan; it must be a finite number"),
        ({"autoguidance_interval": (2.0, 1.0)}, "give the lower noise level first"),
        ({"autoguidance_scale": 1.0, "autoguidance_interval": (0.0, 1.0)}, "autoguidance_interval does nothing"),
    ],
)
def test_settings_of_no_use_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(guided_pipeline(), **options)


def test_a_scale_without_a_guide_is_refused():
    with pytest.raises(ValueError, match=r"autoguidance_scale is 2\.0, and the pipeline has no guide"):
        draw(make_pipeline(), autoguidance_scale=2.0)
    config = SamplingConfig(autoguidance_scale=2.0)
    with pytest.raises(ValueError, match="no guide"):
        check_sampling(config, tiny_unet(), make_pipeline().scheduler)
    check_sampling(config, tiny_unet(), make_pipeline().scheduler, 1.5)


def test_a_guide_of_other_images_or_classes_is_refused():
    plain = make_pipeline()
    for guide in (tiny_basic_unet(), tiny_unet(in_channels=3, out_channels=3), tiny_unet(sample_size=32)):
        with pytest.raises(ValueError, match="a guide has the same"):
            DenoisingPipeline(plain.unet, plain.scheduler, guide=guide)
