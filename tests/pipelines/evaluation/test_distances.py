import numpy as np
import pytest
import torch
from prdc import compute_prdc
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.kid import maximum_mean_discrepancy, poly_kernel

from pipelines.evaluation.distances import (
    Cloud,
    Moments,
    _block_distance,
    fidelity,
    frechet_distance,
    kernel_distance,
    nearest,
    radii,
    sliced_wasserstein,
)


def gaussian(count, features=8, mean=0.0, scale=1.0, seed=0):
    return mean + scale * torch.randn(count, features, generator=torch.Generator().manual_seed(seed))


def test_the_frechet_distance_of_gaussians_is_the_known_one():
    real, samples = (Moments(torch.full((8,), mean), torch.eye(8) * var) for mean, var in ((0.0, 1.0), (1.0, 2.25)))
    real, samples = (Moments(entry.mean.double(), entry.covariance.double()) for entry in (real, samples))
    assert frechet_distance(real, samples) == pytest.approx(8 * (1.0**2 + 0.5**2), rel=1e-9)
    assert frechet_distance(real, real) == pytest.approx(0, abs=1e-9)


def test_the_frechet_distance_of_moments_is_that_of_the_features_they_are_of():
    mix = torch.randn(8, 8, generator=torch.Generator().manual_seed(5))
    real, samples = gaussian(500) @ mix, gaussian(300, mean=0.3, seed=1)
    passing_on = torch.nn.Identity()
    passing_on.num_features = 8
    metric = FrechetInceptionDistance(passing_on).set_dtype(torch.float64)
    metric.update(real.double(), real=True)
    metric.update(samples.double(), real=False)
    assert frechet_distance(Moments.of(real), Moments.of(samples)) == pytest.approx(metric.compute().item(), rel=1e-9)


def test_a_set_that_comes_class_by_class_has_the_kernel_distance_of_the_shuffled_one():
    means = (-3.0, -1.0, 1.0, 3.0)
    samples, others = (
        torch.cat([gaussian(1000, mean=mean, seed=seed + index) for index, mean in enumerate(means)]) for seed in (0, 9)
    )
    shuffled = others[torch.randperm(4000, generator=torch.Generator().manual_seed(1))]
    value, error = kernel_distance(shuffled, samples)
    assert abs(value) < 4 * error


def test_the_kernel_distance_is_unbiased_and_its_error_honest():
    same = [kernel_distance(gaussian(4000, seed=seed), gaussian(4000, seed=seed + 99)) for seed in range(20)]
    values, errors = np.array(same).T
    assert abs(values.mean()) < 3 * values.std() / 20**0.5  # zero on average, so below zero as often as above
    assert values.min() < 0 < values.max()
    assert 0.5 < errors.mean() / values.std() < 2
    value, error = kernel_distance(gaussian(4000), gaussian(4000, mean=0.3, seed=1))
    assert value > 10 * error


def test_the_kernel_distance_of_a_block_is_that_of_torchmetrics():
    real, samples = gaussian(1000).double(), gaussian(1000, mean=0.3, seed=1).double()
    products = [poly_kernel(*pair) for pair in ((real, real), (real, samples), (samples, samples))]
    expected = maximum_mean_discrepancy(*products)
    assert _block_distance(real, samples).item() == pytest.approx(expected.item(), rel=1e-9)


def test_too_few_images_for_the_kernel_distance_are_refused():
    with pytest.raises(ValueError, match="1999 images are too few"):
        kernel_distance(gaussian(5000), gaussian(1999))


@pytest.mark.parametrize(("mean", "scale"), [(0.0, 1.0), (0.5, 1.0), (0.0, 0.5), (0.0, 2.0)])
def test_fidelity_is_that_of_the_package_prdc(mean, scale):
    real, samples = gaussian(1300), gaussian(1100, mean=mean, scale=scale, seed=1)
    expected = compute_prdc(real.double().numpy(), samples.double().numpy(), nearest_k=5)
    ours = fidelity(Cloud(real.double()), Cloud(samples.double()))
    for name, value in expected.items():
        assert ours[name] == pytest.approx(value, abs=1e-12), name


def test_the_sliced_wasserstein_distance_of_a_shift_is_its_squared_length_over_the_number_of_features():
    real = gaussian(5000)
    assert sliced_wasserstein(real, real) == pytest.approx(0, abs=1e-9)
    assert sliced_wasserstein(real, real + 2.0) == pytest.approx(2.0**2, rel=0.4)  # of 128 directions, three deviations
    assert sliced_wasserstein(real, real + 2.0, seed=3) != sliced_wasserstein(real, real + 2.0)


def test_nearest_finds_what_sorting_all_distances_finds():
    queries, references = gaussian(1200), gaussian(700, seed=1)
    distances, indices = nearest(queries, references, 3)
    everything = (queries[:, None].double() - references[None].double()).norm(dim=2)
    expected, order = everything.sort(dim=1)
    assert torch.equal(indices, order[:, :3])
    torch.testing.assert_close(distances, expected[:, :3].float())


def test_small_distances_are_not_lost_to_rounding():
    far = gaussian(50) + 1000
    distances, indices = nearest(far + 1e-3, far, 1)
    assert indices.flatten().tolist() == list(range(50))
    torch.testing.assert_close(distances.flatten(), torch.full((50,), 1e-3 * 8**0.5), rtol=0.1, atol=0)


def test_a_point_is_not_its_own_neighbour_but_its_double_is():
    features = torch.cat([gaussian(20), gaussian(20)])
    assert radii(features, 1).max() == 0
    assert radii(features[:20], 1).min() > 0
