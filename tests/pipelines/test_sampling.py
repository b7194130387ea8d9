import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler
from PIL import Image

from pipelines import SamplingConfig, image_grid, make_scheduler, sample_images, save_gif, save_images
from pipelines.commands.inputs import parse_labels, parse_seeds
from pipelines.sampling import spread_labels
from tests.conftest import tiny_unet
from tests.pipelines.test_denoising import make_pipeline


def test_batches_are_put_together_in_order():
    pipeline = make_pipeline()
    whole = sample_images(pipeline, **SamplingConfig(num_images=7, steps=3, batch_size=7).arguments())
    parts = sample_images(pipeline, **SamplingConfig(num_images=7, steps=3, batch_size=3).arguments())
    assert torch.equal(parts, whole)


def test_a_seed_for_each_image_makes_what_it_makes_alone():
    pipeline, options = make_pipeline(), {"class_labels": [4], "num_inference_steps": 3, "batch_size": 2}
    picked = sample_images(pipeline, 3, seed=[7, 3, 8], **options)
    assert len(picked) == 3
    assert torch.equal(picked[1], sample_images(pipeline, 1, seed=3, **options)[0])
    with pytest.raises(ValueError, match="2 seeds for 3 images"):
        sample_images(pipeline, 3, seed=[7, 3])


def test_labels_are_read_as_names_numbers_and_mixtures():
    assert parse_labels("all") is None
    assert parse_labels("T-shirt/top, 8") == ["T-shirt/top", "8"]
    assert parse_labels("coat:2 + bag,ankle boot+sneaker:0.5") == [
        {"coat": 2.0, "bag": 1.0},
        {"ankle boot": 1.0, "sneaker": 0.5},
    ]
    assert parse_labels("bag+bag:2+coat") == [{"bag": 3.0, "coat": 1.0}]
    with pytest.raises(ValueError, match="label 'coat:much.bag': the weight 'much' is no number"):
        parse_labels("coat:much+bag")


def test_seeds_are_read_as_numbers_and_ranges():
    assert parse_seeds("3,17, 100-103") == [3, 17, 100, 101, 102, 103]


@pytest.mark.parametrize("text", ["", "3,", "a", "-3", "3-", "1-2-3", "9-3"])
def test_seeds_that_cannot_be_read_are_refused(text):
    with pytest.raises(ValueError, match=f"seeds '{text}'"):
        parse_seeds(text)


def test_without_labels_the_images_spread_over_all_classes():
    assert spread_labels(6, 3) == [0, 0, 1, 1, 2, 2]
    labels = spread_labels(64, 10)
    assert labels == sorted(labels)
    assert {labels.count(label) for label in range(10)} == {6, 7}
    pipeline = make_pipeline()
    config = SamplingConfig(num_images=10, steps=2)
    assert torch.equal(
        sample_images(pipeline, **config.arguments()),
        sample_images(pipeline, **config.arguments(), class_labels=list(range(10))),
    )


def test_given_labels_are_repeated_over_the_images():
    pipeline = make_pipeline()
    config = SamplingConfig(num_images=4, steps=2)
    repeated = sample_images(pipeline, **config.arguments(), class_labels=["bag", 3])
    assert torch.equal(repeated, sample_images(pipeline, **config.arguments(), class_labels=[8, 3, 8, 3]))


def test_an_unconditional_network_needs_no_labels():
    assert sample_images(make_pipeline(tiny_unet(num_class_embeds=None)), **SamplingConfig(3, 2).arguments()).shape == (
        3,
        1,
        16,
        16,
    )


@pytest.mark.parametrize("field", ["num_images", "steps", "batch_size"])
def test_zero_counts_are_refused(field):
    with pytest.raises(ValueError, match=f"{field} is 0"):
        SamplingConfig(**{field: 0})


def test_a_grid_lays_images_out_row_by_row():
    images = torch.arange(6).view(6, 1, 1, 1).expand(6, 1, 4, 4) / 10
    grid = np.asarray(image_grid(images, columns=3, scale=2).convert("L"))
    assert grid.shape == (2 * 9 + 1, 3 * 9 + 1)
    assert [grid[5, 5], grid[5, 14], grid[14, 23]] == [0, 26, 128]  # 25.5 and 127.5, to the even level


def test_a_film_has_a_frame_for_each_step_and_ends_on_the_last(tmp_path):
    frames = [Image.new("L", (8, 8), color=40 * step) for step in range(5)]
    save_gif(frames, tmp_path / "film.gif")
    with Image.open(tmp_path / "film.gif") as film:
        assert film.n_frames == 5
        film.seek(4)
        assert film.convert("L").getpixel((0, 0)) == 160


def test_one_picture_an_image(tmp_path):
    images = torch.rand(3, 1, 16, 16)
    save_images(images, tmp_path / "images")
    names = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert names == ["00000.png", "00001.png", "00002.png"]
    pixels = np.asarray(Image.open(tmp_path / "images" / "00002.png")) / 255
    np.testing.assert_allclose(pixels, images[2, 0].numpy(), atol=1 / 255)
    with pytest.raises(FileExistsError, match="not an empty folder"):
        save_images(images, tmp_path / "images")


@pytest.mark.parametrize("name", ["dpmsolver++", "sde-dpmsolver++", "unipc", "deis"])
def test_few_step_samplers_clip_the_predicted_image_to_the_data(name):
    scheduler = make_scheduler(name, DDPMScheduler().config)
    assert scheduler.config.timestep_spacing == "trailing"
    assert scheduler._threshold_sample(torch.tensor([[[[-3.0, 0.5, 2.0]]]])).flatten().tolist() == [-1, 0.5, 1]
