import numpy as np
import pytest
import torch

from pipelines import SamplingConfig, interpolated, named_grid, noising_stages, sample_images, slerp, stages_picture
from tests.pipelines.test_denoising import make_pipeline

CONFIG = SamplingConfig(num_images=5, steps=3, scheduler="ddim")


def test_noise_between_two_noises_is_as_large():
    one, other = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)).unbind()
    assert torch.equal(slerp(one, other, 0), one)
    assert torch.equal(slerp(one, other, 1), other)
    middle = slerp(one, other, 0.5)
    assert float(middle.norm()) == pytest.approx((float(one.norm()) + float(other.norm())) / 2, rel=0.02)
    assert torch.equal(slerp(one, one, 0.3), one)
    with pytest.raises(ValueError, match="opposite"):
        slerp(one, -one, 0.3)


def test_an_interpolation_goes_from_one_seeds_image_to_the_others():
    pipeline = make_pipeline(scheduler="ddim")
    arguments = {**CONFIG.arguments(), "class_labels": ["bag"]}
    ends = sample_images(pipeline, **{**arguments, "num_images": 2, "seed": [3, 17]})
    del arguments["seed"]
    images = interpolated(pipeline, [3, 17], **arguments)
    assert len(images) == 5
    assert torch.equal(images[[0, -1]], ends)
    distances = (images - images[0]).square().mean(dim=(1, 2, 3))
    assert (distances.diff() > 0).all()


@pytest.mark.parametrize(
    ("scheduler", "options", "seeds", "message"),
    [
        ("ddim", {}, [3], "1 seeds for an interpolation; give the first and the last"),
        ("ddim", {"num_images": 1}, [3, 4], "num_images is 1; an interpolation has at least 2"),
        ("ddim", {"eta": 0.5}, [3, 4], "adds noise in each step"),
        ("ddpm", {}, [3, 4], "adds noise in each step; choose ddim"),
        ("sde-dpmsolver++", {}, [3, 4], "adds noise in each step"),
        ("euler-ancestral", {}, [3, 4], "adds noise in each step"),
    ],
)
def test_what_cannot_be_interpolated_is_refused(scheduler, options, seeds, message):
    with pytest.raises(ValueError, match=message):
        interpolated(
            make_pipeline(scheduler=scheduler), seeds, **{"num_images": 3, "num_inference_steps": 2, **options}
        )


def test_noising_goes_from_the_image_to_noise(some_images, scheduler):
    images = (some_images.images[:50].float() / 255).clamp(0.4, 0.6)
    stages = noising_stages(images, scheduler, stages=6)
    torch.testing.assert_close(stages[0], 2 * images - 1)
    spreads = [float(stage.std()) for stage in stages]
    assert spreads == sorted(spreads)
    assert spreads[-1] == pytest.approx(1, abs=0.02)
    assert float((stages[-1] * stages[1]).mean()) > 0.1  # the same noise in each
    assert torch.equal(stages[-1], noising_stages(images, scheduler, stages=6)[-1])
    assert not torch.equal(stages[-1], noising_stages(images, scheduler, stages=6, seed=1)[-1])


def test_stages_are_columns_and_the_last_is_shown():
    stages = [torch.full((2, 1, 4, 4), float(value)) for value in np.linspace(-1, 1, 9)]
    picture = np.asarray(stages_picture(stages, columns=3, scale=2).convert("L"))
    assert picture.shape == (2 * 9 + 1, 3 * 9 + 1)
    row = [int(picture[5, 5 + 9 * column]) for column in range(3)]
    assert row[-1] == 255
    assert row == sorted(row)
    assert np.asarray(stages_picture(stages[:2], columns=3, scale=2)).shape[1] == 2 * 9 + 1


def test_names_stand_beside_rows_of_one_class_and_else_under_each_image():
    images = torch.zeros(4, 1, 16, 16)
    beside = named_grid(images, ["Bag", "Bag", "Ankle boot", "Ankle boot"], columns=2)
    plain_width, plain_height = 2 * 66 + 2, 2 * 66 + 2
    assert beside.height == plain_height
    assert beside.width > plain_width
    margin = np.asarray(beside.convert("L"))[:, : beside.width - plain_width]
    assert (margin[:66] < 128).any()
    assert (margin[66:] < 128).any()
    under = named_grid(images, ["Bag", "Coat", "Ankle boot", "a name that is much too long for it"], columns=2)
    assert under.size == (2 * 68, 2 * 84)
    strips = np.asarray(under.convert("L"))[68:84]
    assert (strips[:, :68] < 128).any()
    assert (strips[:, 68:] < 128).any()
