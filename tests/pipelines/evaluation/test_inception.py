"""The Fréchet Inception distance against the code of torchmetrics, torch-fidelity and clean-fid, on random weights."""

import pickle

import numpy as np
import pytest
import torch
from cleanfid import fid
from PIL import Image
from torch import nn
from torch_fidelity import feature_extractor_inceptionv3 as fidelity
from torchmetrics.image.fid import FrechetInceptionDistance

from pipelines.evaluation.distances import frechet_distance
from pipelines.evaluation.inception import ADDRESS, Inception, why_not
from tests.pipelines.evaluation.conftest import in_colours, noisy


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights, with which activations neither vanish nor grow."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *arguments, **options: {})
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda network, state: None)
        network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias, std=0.1)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def inception(weights):
    return Inception(weights)


@pytest.fixture(scope="module")
def sets(held_out):
    real = in_colours(held_out.images[:24])
    return real, noisy(real, 32)


@pytest.mark.slow
def test_with_its_resizing_it_is_the_distance_of_torchmetrics(inception, weights, sets):
    real, samples = sets
    metric = FrechetInceptionDistance(feature_extractor_weights_path=str(weights), antialias=False)
    metric.update(real, real=True)
    metric.update(samples, real=False)
    ours = inception.compare(real, [samples], samples)["distances"]["torch-fidelity"]
    assert ours["samples"] == [pytest.approx(metric.compute().item(), rel=1e-3)]
    assert ours["floor"] == pytest.approx(ours["samples"][0], rel=1e-9)  # of the same images


def test_its_features_are_those_of_torch_fidelity(inception, weights, sets):
    theirs = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))(sets[0][:4])[0]
    ours = next(inception.features("torch-fidelity", sets[0][:4]))
    assert theirs.std() > 0.01
    torch.testing.assert_close(ours.float(), theirs, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_with_its_resizing_it_is_the_distance_of_clean_fid(inception, weights, sets, tmp_path, monkeypatch):
    network = fidelity.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(weights))

    def model(resized):  # torch-fidelity's own network, without its resizing
        monkeypatch.setattr(fidelity, "interpolate_bilinear_2d_like_tensorflow1x", lambda images, **options: resized)
        return network(torch.zeros(len(resized), 3, 1, 1, dtype=torch.uint8))[0]

    moments = []
    for name, images in zip(("real", "samples"), sets, strict=True):
        paths = [tmp_path / f"{name}{index}.png" for index in range(len(images))]
        for path, image in zip(paths, images, strict=True):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
        features = fid.get_files_features(
            [*map(str, paths)], model, num_workers=0, batch_size=8, device=torch.device("cpu"), verbose=False
        ).astype(np.float64)
        moments += [features.mean(axis=0), np.cov(features, rowvar=False)]
    ours = frechet_distance(*(inception.moments("clean-fid", images) for images in sets))
    assert ours == pytest.approx(fid.frechet_distance(*moments), rel=1e-3)


def test_grey_images_are_seen_as_grey_colours(inception, held_out):
    grey = held_out.images[:2]
    for name in inception.resize:
        seen, expected = (next(inception.features(name, images)) for images in (grey, grey.repeat(1, 3, 1, 1)))
        assert torch.equal(seen, expected)


def test_what_inception_cannot_measure_is_told(weights, tmp_path):
    assert why_not(weights, 3) is why_not(weights, 1) is None
    assert "the images have 4 channels" in why_not(weights, 4)
    assert f"nowhere.pth is missing; put {ADDRESS} there" in why_not(tmp_path / "nowhere.pth", 3)


def test_other_weights_are_refused_and_a_pickle_is_not_opened(tmp_path):
    class Malicious:
        def __reduce__(self):
            return (open, (str(tmp_path / "opened"), "w"))

    (tmp_path / "cut.pth").write_bytes(b"PK")
    (tmp_path / "malicious.pth").write_bytes(pickle.dumps(Malicious()))
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    torch.save([1], tmp_path / "list.pth")
    for name in ("cut", "malicious", "other", "list"):
        with pytest.raises(ValueError, match=f"{name}.pth does not have Inception's weights"):
            Inception(tmp_path / f"{name}.pth")
    assert not (tmp_path / "opened").exists()
