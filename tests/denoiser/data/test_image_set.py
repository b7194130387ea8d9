import numpy as np
import pytest
import torch

from denoiser.data import ImageSet

IMAGES = torch.zeros(3, 1, 16, 16, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 1])
NAMES = ("shirt", "bag")


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.rand(3, 1, 16, 16) * 2 - 1, r"images are float32, \(3, 1, 16, 16\); give uint8, 0 to 255"),
        (IMAGES.long(), "images are int64"),
        (IMAGES.bool(), "images are bool"),
        (IMAGES[:, 0], r"images are uint8, \(3, 16, 16\)"),
        (IMAGES[:0], r"images are uint8, \(0, 1, 16, 16\)"),
        (IMAGES[:, :0], r"images are uint8, \(3, 0, 16, 16\)"),
        (IMAGES.numpy(), "images are of type ndarray"),
        (None, "images are of type NoneType"),
    ],
)
def test_images_of_another_type_or_shape_are_refused(images, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(images, LABELS, NAMES)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (LABELS[:2], r"labels are int64, \(2,\); give int64, \(3,\), one for each image"),
        (LABELS[:, None], r"labels are int64, \(3, 1\)"),
        (LABELS.float(), "labels are float32"),
        (LABELS.int(), "labels are int32"),
        (LABELS.tolist(), "labels are of type list"),
        (np.array([0, 1, 1]), "labels are of type ndarray"),
        (LABELS + 1, "labels go from 1 to 2; with 2 class names they go from 0 to 1"),
        (LABELS - 1, "labels go from -1 to 0"),
    ],
)
def test_labels_of_another_type_number_or_range_are_refused(labels, message):
    with pytest.raises(ValueError, match=message):
        ImageSet(IMAGES, labels, NAMES)


@pytest.mark.parametrize("names", [(), ("shirt",), "ab", (1, 2), None])
def test_class_names_that_do_not_name_the_labels_are_refused(names):
    with pytest.raises(ValueError, match="class_names are|with . class names they go"):
        ImageSet(IMAGES, LABELS, names)


def test_a_list_of_names_is_as_good_as_a_tuple():
    assert ImageSet(IMAGES, LABELS, ["shirt", "bag"]).class_names == NAMES


def test_a_batch_spans_minus_one_to_one():
    images, labels = ImageSet(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1), LABELS[:2], NAMES).batch(
        torch.tensor([1, 0])
    )
    assert images.flatten().tolist() == [1.0, -1.0]
    assert labels.tolist() == [1, 0]
