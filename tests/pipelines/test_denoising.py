import json
import math

import diffusers
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.schedulers import KarrasDiffusionSchedulers
from safetensors.torch import load_file, save_file

from denoiser.data import CLASS_NAMES
from denoiser.randomness import SAMPLING, seeded_generator
from pipelines import SCHEDULERS, DenoisingPipeline, Guidance, load_pipeline, make_scheduler
from pipelines.predictor import Predictor
from tests.conftest import tiny_basic_unet, tiny_unet


def make_pipeline(unet=None, scheduler="ddim", **scheduler_options):
    """Return a pipeline with a named sampler, its progress bar off."""
    unet = unet or tiny_unet()
    names = CLASS_NAMES if unet.config.get("num_class_embeds") else None
    pipeline = DenoisingPipeline(unet, make_scheduler(scheduler, DDPMScheduler(**scheduler_options).config), names)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw(pipeline, **options):
    defaults = {"batch_size": 3, "num_inference_steps": 4, "seed": 0, "output_type": "pt"}
    return pipeline(**{**defaults, **options}).images


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("make_unet", [tiny_unet, tiny_basic_unet])
def test_every_sampler_draws_images_of_the_right_shape_and_range(name, make_unet):
    images = draw(make_pipeline(make_unet(), name), num_inference_steps=5)
    assert images.shape == (3, 1, 16, 16)
    assert 0 <= images.min() < images.max() <= 1
    assert not torch.equal(images[0], images[1])


# Those that need no package beyond diffusers: the others are stand-ins that name what they lack.
AVAILABLE = [
    entry.name for entry in KarrasDiffusionSchedulers if not hasattr(getattr(diffusers, entry.name), "_backends")
]


@pytest.mark.parametrize("name", [*AVAILABLE, "LCMScheduler", "TCDScheduler"])
def test_diffusers_other_schedulers_work_too(name):
    pipeline = make_pipeline()
    pipeline.scheduler = getattr(diffusers, name).from_config(DDPMScheduler().config)
    assert draw(pipeline, num_inference_steps=5).isfinite().all()


def test_a_network_whose_weights_are_stored_in_eight_bits_draws_about_the_same():
    unet = tiny_unet()
    expected = draw(make_pipeline(unet))
    unet.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    assert unet.stem.weight.dtype == torch.float8_e4m3fn
    assert (draw(make_pipeline(unet)) - expected).abs().mean() < 0.1


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_it_draws_what_diffusers_stock_pipeline_draws(prediction_type):
    unet, scheduler = tiny_unet(num_class_embeds=None), DDPMScheduler(prediction_type=prediction_type)
    stock, ours = DDPMPipeline(unet, scheduler), DenoisingPipeline(unet, scheduler)
    results = []
    for pipeline in (stock, ours):
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(3)
        results.append(pipeline(4, generator=generator, num_inference_steps=10, output_type="np").images)
    np.testing.assert_allclose(*results, atol=1e-6)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_it_draws_what_a_plain_loop_with_the_sampler_draws(name):
    pipeline = make_pipeline(scheduler=name)
    ours = draw(pipeline, class_labels=[1, 2, 3])
    scheduler = make_scheduler(name, DDPMScheduler().config)
    assert scheduler.config.timestep_spacing == "trailing"
    generators = [seeded_generator(SAMPLING, 0, index) for index in range(3)]
    scheduler.set_timesteps(4)
    sample = torch.stack([torch.randn(1, 16, 16, generator=generator) for generator in generators])
    sample = sample * scheduler.init_noise_sigma
    takes_generator = name not in ("dpmsolver++", "unipc", "deis", "heun")
    for timestep in scheduler.timesteps:
        with torch.no_grad():
            prediction = pipeline.unet(
                scheduler.scale_model_input(sample, timestep), timestep, class_labels=torch.tensor([1, 2, 3])
            ).sample
        options = {"generator": generators} if takes_generator else {}
        sample = scheduler.step(prediction, timestep, sample, **options).prev_sample
    torch.testing.assert_close(ours, (sample / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=0)  # in calls of another size


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_an_image_is_the_same_to_the_last_bit_whatever_else_is_drawn(name, guidance_scale):
    pipeline = make_pipeline(scheduler=name)
    labels = [index % 10 for index in range(70)]
    many = draw(pipeline, batch_size=70, class_labels=labels, guidance_scale=guidance_scale)
    few = draw(pipeline, batch_size=2, class_labels=labels[:2], guidance_scale=guidance_scale)
    assert torch.equal(few, many[:2])
    generator = [seeded_generator(SAMPLING, 0, 69)]
    alone = draw(
        pipeline, batch_size=1, class_labels=labels[69:], guidance_scale=guidance_scale, seed=None, generator=generator
    )
    assert torch.equal(alone, many[69:])
    assert not torch.allclose(draw(pipeline, class_labels=[0, 1, 2], guidance_scale=guidance_scale, seed=1), many[:3])


def test_the_number_of_threads_changes_no_bit():
    pipeline, threads = make_pipeline(), torch.get_num_threads()
    images = draw(pipeline)
    try:
        torch.set_num_threads(1)
        assert torch.equal(draw(pipeline), images)
    finally:
        torch.set_num_threads(threads)


def test_the_callback_is_told_the_clean_image_that_the_network_predicts():
    for prediction_type in ("epsilon", "v_prediction", "sample"):
        pipeline, told = make_pipeline(), []
        pipeline.scheduler = DDIMScheduler(prediction_type=prediction_type, clip_sample=False)
        images = draw(
            pipeline, callback_on_step_end=lambda pipe, step, t, tensors, told=told: told.append(tensors) or {}
        )
        assert len(told) == 4
        torch.testing.assert_close((told[-1]["clean"] / 2 + 0.5).clamp(0, 1), images, atol=0.02, rtol=0)
        assert not torch.allclose(told[0]["clean"], told[0]["sample"], atol=0.1)


def test_eta_adds_noise_to_ddim_only():
    pipeline = make_pipeline(scheduler="ddim")
    assert not torch.allclose(draw(pipeline, eta=1.0), draw(pipeline), atol=1e-3)
    assert torch.equal(draw(pipeline, eta=1.0), draw(pipeline, eta=1.0))
    with pytest.raises(ValueError, match="eta is 0.5, and BoundedHeunScheduler takes none; use ddim"):
        draw(make_pipeline(scheduler="heun"), eta=0.5)
    with pytest.raises(ValueError, match="eta is 2.0; it must be from 0 to 1"):
        draw(pipeline, eta=2.0)


def test_noise_to_start_from_can_be_given(noise):
    pipeline = make_pipeline(scheduler="ddim")
    images = draw(pipeline, batch_size=4, noise=noise)
    assert torch.equal(images, draw(pipeline, batch_size=4, noise=noise, seed=9))
    with pytest.raises(ValueError, match=r"noise is \(4, 1, 16, 16\); expected \(3, 1, 16, 16\)"):
        draw(pipeline, noise=noise)


def test_seeds_pick_images():
    pipeline = make_pipeline()
    picked = draw(pipeline, batch_size=None, class_labels=3, seed=[5, 0])
    assert len(picked) == 2
    assert torch.equal(picked[1:], draw(pipeline, batch_size=1, class_labels=3, seed=0))
    assert torch.equal(picked[:1], draw(pipeline, batch_size=1, class_labels=3, seed=5))


def test_classes_without_a_name_go_by_their_index():
    pipeline = DenoisingPipeline(tiny_unet(), DDPMScheduler(), CLASS_NAMES[:2])
    assert [pipeline.classes.name(label) for label in (1, 2)] == [CLASS_NAMES[1], "2"]


def test_by_default_a_distilled_network_takes_its_own_steps():
    taken = []
    pipeline = make_pipeline(scheduler="lcm")
    student = {**DDPMScheduler().config, "original_inference_steps": 2}
    for scheduler in (pipeline.scheduler, make_scheduler("lcm", student)):
        pipeline.scheduler = scheduler
        draw(pipeline, num_inference_steps=None, callback_on_step_end=lambda _, step, *__: taken.append(step) or {})
    assert taken == [*range(50), 0, 1]


@pytest.mark.parametrize("scheduler", [None, *SCHEDULERS])
def test_a_saved_pipeline_reloads_to_the_same_pixels(tmp_path, scheduler):
    pipeline = make_pipeline()
    if scheduler:
        pipeline.scheduler = make_scheduler(scheduler, DDPMScheduler(beta_schedule="squaredcos_cap_v2").config)
    pipeline.save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text(encoding="utf-8"))
    assert index["unet"] == ["denoiser.unet", "UNet"]
    reloaded = load_pipeline(tmp_path)
    assert torch.equal(draw(reloaded, class_labels="bag"), draw(pipeline, class_labels="bag"))


def test_a_saved_unconditional_pipeline_opens_in_diffusers_stock_pipeline(tmp_path):
    DenoisingPipeline(tiny_unet(num_class_embeds=None), DDPMScheduler()).save_pretrained(tmp_path)
    stock = DDPMPipeline.from_pretrained(tmp_path)
    stock.set_progress_bar_config(disable=True)
    assert len(stock(batch_size=2, num_inference_steps=2).images) == 2


def diffusers_own_unet(**options):
    """Return a small `UNet2DModel` of 8x8 images."""
    return UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        block_out_channels=(32,),
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        **options,
    )


def test_diffusers_own_network_runs_in_it():
    unet = diffusers_own_unet()
    assert draw(make_pipeline(unet)).shape == (3, 1, 8, 8)


def test_output_types_hold_the_same_images():
    pipeline = make_pipeline()
    tensor, array, pictures = (draw(pipeline, output_type=kind) for kind in ("pt", "np", "pil"))
    assert array.shape == (3, 16, 16, 1)
    np.testing.assert_array_equal(array, tensor.permute(0, 2, 3, 1).numpy())
    assert [picture.mode for picture in pictures] == ["L"] * 3
    np.testing.assert_array_equal(np.asarray(pictures[1]), (array[1, :, :, 0] * 255).round())
    assert torch.equal((draw(pipeline, output_type="latent") / 2 + 0.5).clamp(0, 1), tensor)
    (as_tuple,) = pipeline(3, num_inference_steps=4, seed=0, output_type="pt", return_dict=False)
    assert torch.equal(as_tuple, tensor)


def test_labels_go_by_index_or_by_name_and_one_stands_for_all():
    pipeline = make_pipeline()
    expected = draw(pipeline, class_labels=[7, 7, 7])
    for labels in (
        7,
        "sneaker",
        "Sneaker",
        "7",
        ["sneaker", 7, "SNEAKER"],
        torch.tensor([7, 7, 7]),
        np.full(3, 7),
        [np.int64(7)] * 3,
    ):
        assert torch.equal(draw(pipeline, class_labels=labels), expected)
    assert len(draw(pipeline, batch_size=None, class_labels=["bag", "dress"])) == 2
    assert not torch.allclose(draw(pipeline, class_labels="bag"), expected)


def calls(pipeline):
    """Return a list that gets the batch size of every network call."""
    sizes = []
    pipeline.unet.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
    return sizes


def test_guidance_costs_one_call_of_twice_the_batch_and_scale_one_a_single_one():
    pipeline = make_pipeline()
    sizes = calls(pipeline)
    source = {"seed": None, "generator": torch.Generator()}
    draw(pipeline, class_labels=3, **source)
    assert sizes == [3] * 4
    sizes.clear()
    draw(pipeline, class_labels=3, guidance_scale=2.5, **source)
    assert sizes == [6] * 4
    sizes.clear()
    draw(pipeline, class_labels={3: 1, 4: 1}, guidance_scale=2.5, **source)
    assert sizes == [9] * 4
    sizes.clear()
    draw(pipeline, class_labels=3)
    draw(pipeline, class_labels=3, guidance_scale=2.5)
    assert sizes == [64] * 4 + [128] * 4  # images with generators of their own


def predict(pipeline, noise, labels, timestep=500, **guidance):
    classes = pipeline.classes.read(labels, len(noise))
    predictor = Predictor(pipeline.unet, pipeline.scheduler, classes, Guidance(**guidance))
    with torch.no_grad():
        return predictor(noise, torch.tensor(timestep))


def test_scale_one_is_the_plain_conditional_network(noise):
    pipeline = make_pipeline()
    plain = pipeline.unet(noise, 500, class_labels=torch.tensor([0, 1, 2, 3])).sample
    assert torch.equal(predict(pipeline, noise, [0, 1, 2, 3]), plain)


def test_guidance_goes_from_the_unconditional_prediction_past_the_conditional_one(noise):
    pipeline = make_pipeline()
    conditional = predict(pipeline, noise, [0, 1, 2, 3])
    unconditional = pipeline.unet(noise, 500).sample
    guided = predict(pipeline, noise, [0, 1, 2, 3], scale=3.0)
    torch.testing.assert_close(guided, unconditional + 3 * (conditional - unconditional))


def test_rescaled_guidance_has_the_contrast_of_the_conditional_prediction(noise):
    pipeline, pixels = make_pipeline(), (1, 2, 3)
    conditional, guided = (predict(pipeline, noise, [0, 1, 2, 3], scale=scale) for scale in (1.0, 4.0))
    rescaled = predict(pipeline, noise, [0, 1, 2, 3], scale=4.0, rescale=1.0)
    torch.testing.assert_close(rescaled.std(pixels), conditional.std(pixels))
    torch.testing.assert_close(rescaled / rescaled.std(pixels, keepdim=True), guided / guided.std(pixels, keepdim=True))
    half = predict(pipeline, noise, [0, 1, 2, 3], scale=4.0, rescale=0.5)
    torch.testing.assert_close(half, (rescaled + guided) / 2)


def test_guidance_acts_in_its_interval_of_noise_levels_only(noise):
    pipeline = make_pipeline()
    signal = float(pipeline.scheduler.alphas_cumprod[500])
    sigma = ((1 - signal) / signal) ** 0.5
    plain, guided = (predict(pipeline, noise, 3, scale=scale) for scale in (1.0, 4.0))
    sizes = calls(pipeline)
    assert torch.equal(predict(pipeline, noise, 3, scale=4.0, interval=(sigma * 0.9, sigma * 1.1)), guided)
    assert torch.equal(predict(pipeline, noise, 3, scale=4.0, interval=(sigma * 1.1, 99.0)), plain)
    assert torch.equal(predict(pipeline, noise, 3, scale=4.0, interval=(0.0, sigma * 0.9)), plain)
    assert sizes == [8, 4, 4]


def test_a_mixture_has_the_predictions_of_its_classes_in_proportion(noise):
    pipeline = make_pipeline()
    sneaker, bag = (predict(pipeline, noise, label) for label in ("sneaker", "bag"))
    torch.testing.assert_close(predict(pipeline, noise, {"sneaker": 3, "bag": 1}), 0.75 * sneaker + 0.25 * bag)
    some = predict(pipeline, noise, [{"sneaker": 3, "bag": 1}, "sneaker", {"bag": 2}, 8])
    torch.testing.assert_close(some[1], sneaker[1])
    torch.testing.assert_close(some[2:], bag[2:])


def test_a_mixture_beside_an_image_changes_no_bit_of_it():
    pipeline = make_pipeline()
    alone = draw(pipeline, batch_size=1, class_labels=["bag"])
    mixed = draw(pipeline, batch_size=2, class_labels=["bag", {"bag": 1, "sneaker": 1, "coat": 1}])
    assert torch.equal(mixed[:1], alone)


def test_the_callback_sees_every_step_and_can_change_the_images():
    pipeline, seen = make_pipeline(), []

    def watch(pipe, step, timestep, tensors):
        seen.append((step, int(timestep), tensors["sample"].shape))
        return {"sample": torch.zeros_like(tensors["sample"])} if step == 3 else {}

    images = draw(pipeline, callback_on_step_end=watch)
    assert [step for step, _, _ in seen] == [0, 1, 2, 3]
    assert [timestep for _, timestep, _ in seen] == pipeline.scheduler.timesteps.tolist()
    assert seen[0][2] == (3, 1, 16, 16)
    assert (images == 0.5).all()


def test_the_progress_bar_is_diffusers_own(capsys):
    pipeline = make_pipeline()
    pipeline.set_progress_bar_config(disable=False)
    draw(pipeline)
    assert "4/4" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_inference_steps": 0}, "0 inference steps.*takes 1 to 1000"),
        ({"num_inference_steps": 1001}, "1001 inference steps"),
        ({"class_labels": 10}, "class label 10 is out of range; the labels are 0 to 9"),
        ({"class_labels": -1}, "out of range"),
        ({"class_labels": "sneeker"}, "unknown class 'sneeker' .did you mean 'sneaker'"),
        ({"class_labels": [1, 2]}, "2 class labels for 3 images"),
        ({"guidance_scale": 2.0}, "guidance_scale is 2.0 without class labels"),
        ({"guidance_scale": math.nan, "class_labels": 3}, "guidance_scale is nan"),
        ({"guidance_rescale": 1.5}, "guidance_rescale is 1.5; it must be from 0 to 1"),
        ({"guidance_interval": (3.0, 1.0)}, r"guidance_interval is \(3.0, 1.0\); give the lower"),
        ({"class_labels": {}}, "has no weights to go by"),
        ({"class_labels": {3: 0, 4: 0}}, "has no weights to go by"),
        ({"class_labels": {3: -1, 4: 2}}, "has no weights to go by"),
        ({"class_labels": {3: 1, "sneeker": 2}}, "unknown class 'sneeker'"),
        ({"generator": torch.Generator()}, "seed and generator"),
        ({"seed": [1, 2]}, "2 seeds for 3 images"),
        ({"seed": [1, 2, -1]}, "seed is -1"),
        ({"seed": None, "generator": [torch.Generator()]}, "1 generators for 3 images"),
        ({"class_labels": 1.9}, "class label 1.9 is neither an index nor a name"),
        ({"class_labels": torch.tensor([1.0, 2.0, 1.9])}, "class label 1.0 is neither"),
        ({"class_labels": True}, "class label True is neither"),
        ({"class_labels": {1: "x"}}, "weights that are no numbers"),
        ({"eta": "1"}, "eta is 1; it must be from 0 to 1"),
        ({"num_inference_steps": 2.5}, "num_inference_steps is 2.5; it must be a whole number"),
        ({"num_inference_steps": True}, "num_inference_steps is True"),
        ({"noise": torch.zeros(3)}, "noise is a list; give a tensor"),
        ({"image": torch.zeros(3, 1, 16, 16, dtype=torch.uint8)}, "image is torch.uint8; give a tensor in"),
        ({"image": torch.zeros(3, 1, 16, 16), "strength": "a"}, "strength is a; it must be"),
        ({"guidance_rescale": 0.5}, "do nothing without a guidance_scale other than 1"),
        ({"callback_on_step_end": lambda *_: torch.ones(2)}, "callback_on_step_end returned a Tensor"),
        ({"output_type": "jpg"}, "'jpg'; it is one of pil, np, pt, latent"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        draw(make_pipeline(), **options)


def test_more_names_than_classes_are_refused():
    with pytest.raises(ValueError, match="11 class_names for a network of 10 classes"):
        DenoisingPipeline(tiny_unet(), DDPMScheduler(), [*CLASS_NAMES, "glove"])


def test_a_tuple_of_generators_is_a_list_of_them():
    images = [
        draw(make_pipeline(), seed=None, generator=kind(torch.Generator().manual_seed(each) for each in range(3)))
        for kind in (list, tuple)
    ]
    assert torch.equal(*images)


def test_labels_for_an_unconditional_network_are_refused():
    with pytest.raises(ValueError, match="unconditional"):
        draw(make_pipeline(tiny_basic_unet()), class_labels=3)


def test_a_sampler_that_cannot_take_the_prediction_type_says_so():
    config = DDPMScheduler(prediction_type="sample").config
    for name in SCHEDULERS:
        if name != "euler-ancestral":
            assert make_scheduler(name, config).config.prediction_type == "sample"
    with pytest.raises(ValueError, match="'euler-ancestral' cannot .*: prediction_type not implemented yet: sample"):
        make_scheduler("euler-ancestral", config)


def test_an_unknown_sampler_is_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"'dpmsolver'.*did you mean 'dpmsolver\+\+'.*known: ddpm, ddim"):
        make_scheduler("dpmsolver", DDPMScheduler().config)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("other", SCHEDULERS)
def test_a_sampler_is_the_same_whichever_sampler_the_pipeline_had_before(name, other):
    trained = DDPMScheduler(prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", num_train_timesteps=500)
    before = make_scheduler(other, trained.config)
    after, expected = make_scheduler(name, before.config).config, make_scheduler(name, trained.config).config
    assert {**after, "_use_default_values": None} == {**expected, "_use_default_values": None}
    assert (after.prediction_type, after.beta_schedule) == ("v_prediction", "squaredcos_cap_v2")


@pytest.mark.parametrize("name", ["deis", "heun"])
def test_a_sampler_that_cannot_take_the_noise_schedule_is_refused(name):
    with pytest.raises(ValueError, match=f"'{name}' cannot .*: .* knows no rescale_betas_zero_snr"):
        make_scheduler(name, DDPMScheduler(rescale_betas_zero_snr=True).config)


def test_guidance_needs_a_null_label():
    unet = diffusers_own_unet(num_class_embeds=10)
    pipeline = make_pipeline(unet)
    assert draw(pipeline, class_labels=[1, 2, 3]).shape == (3, 1, 8, 8)
    with pytest.raises(ValueError, match="UNet2DModel has no null label"):
        draw(pipeline, class_labels=[1, 2, 3], guidance_scale=2.0)


def test_what_is_not_a_saved_pipeline_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"is not a saved pipeline: it has no model_index\.json"):
        load_pipeline(tmp_path)
    make_pipeline().save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_pipeline(tmp_path / "saved")


@pytest.mark.parametrize("damage", ["missing weight", "another network's", "no weights", "empty index"])
def test_a_damaged_pipeline_is_refused(tmp_path, damage):
    make_pipeline().save_pretrained(tmp_path)
    weights = tmp_path / "unet" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    match damage:
        case "missing weight":
            save_file(dict(list(tensors.items())[1:]), weights)
        case "another network's":
            save_file(tiny_basic_unet().state_dict(), weights)
        case "no weights":
            weights.unlink()
        case "empty index":
            (tmp_path / "model_index.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot be loaded as a pipeline"):
        load_pipeline(tmp_path)
