import numpy as np
import torch

from pipelines.evaluation.distances import closest_pairs, nearness
from pipelines.evaluation.plots import memorisation_panel
from pipelines.evaluation.samples import Samples


def test_copies_of_training_images_are_found_and_real_test_images_are_not_copies(in_judge, train_images, held_out):
    copies = in_judge.features["train"][1000:1500]
    samples = torch.cat([in_judge.features["test"][:500], copies])
    distances, indices = in_judge.nearest_training_images(samples)
    assert torch.equal(indices[500:, 0], torch.arange(1000, 1500))
    honest, copied = nearness(distances[:500]), nearness(distances[500:])
    assert copied["share_of_ratios_below_half"] == 1
    assert copied["median_distance"] < 0.01 < honest["median_distance"]
    assert honest["share_of_ratios_below_half"] < 0.02
    pairs = closest_pairs(distances, indices)
    assert len(pairs) == 12
    assert all(pair["image"] >= 500 and pair["training_image"] == pair["image"] + 500 for pair in pairs)


def test_a_panel_shows_sample_and_training_image_in_turn(train_images):
    samples = Samples([255 - train_images.images[:20]])
    panel = np.array(memorisation_panel([{"image": 3, "training_image": 7}], samples, train_images).convert("L"))
    for position, image in enumerate((samples.sets[0][3], train_images.images[7])):
        left = 4 + position * (16 * 8 + 4)  # frames of 4, images enlarged 8 times
        assert (panel[4 : 4 + 16 * 8 : 8, left : left + 16 * 8 : 8] == image[0].numpy()).all()
