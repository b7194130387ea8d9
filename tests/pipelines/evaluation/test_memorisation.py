import torch

from pipelines.evaluation.distances import closest_pairs, nearness, pairs_side_by_side


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
    samples = 255 - train_images.images[:20]
    panel = pairs_side_by_side(samples, train_images.images, [{"image": 3, "training_image": 7}])
    assert torch.equal(panel, torch.stack([samples[3], train_images.images[7]]))
