import pytest

from pipelines.evaluation.config import (
    BY_DEFAULT,
    SECTIONS,
    EvaluationConfig,
    notes_on,
    reasons_of_images,
    reasons_of_pipeline,
    reasons_of_set,
)


def sections(reasons, **options):
    return EvaluationConfig(**options).choose_sections(reasons)


def test_by_default_all_sections_are_made_that_can_be():
    assert sections(reasons_of_pipeline(False, True, True)) == list(BY_DEFAULT)
    plain = reasons_of_pipeline(False, False, False)
    assert sections(plain) == ["distances", "likelihood", "memorisation", "samplers"]
    assert sections(reasons_of_images(False)) == ["distances", "memorisation"]
    assert sections(reasons_of_images(True)) == ["distances", "classes", "usefulness", "memorisation"]
    assert sections({}, sections=["likelihood", "distances"]) == ["distances", "likelihood"]


def test_inception_is_only_looked_through_when_it_is_asked_for():
    assert sections({}, sections=["inception"]) == ["inception"]
    assert sections({}, inception_weights="inception.pth") == list(SECTIONS)


@pytest.mark.parametrize(
    ("section", "reasons", "message"),
    [
        ("classes", reasons_of_pipeline(False, False, False), "'classes' cannot be made: the images have no labels"),
        ("guidance", reasons_of_pipeline(False, True, False), "the network has no classes, or no null label"),
        ("likelihood", reasons_of_pipeline(True, True, True), "'likelihood' cannot be made: the network is distilled"),
        ("usefulness", reasons_of_images(False), "'usefulness' cannot be made: the images have no labels"),
        ("classes", reasons_of_set(900, 100, False), "no classifiers yet; train them with scripts/train_judge.py"),
        ("distances", reasons_of_set(900, 99, True), "the set has 99 images held out, and a distance needs 100"),
        ("distances", reasons_of_set(50, 100, True), "the set has 50 images to train on"),
        ("likelihood", reasons_of_set(50, 0, True), "the set has 0 images held out, and the likelihood needs 2"),
    ],
)
def test_a_section_that_cannot_be_made_is_refused_when_asked_for(section, reasons, message):
    with pytest.raises(ValueError, match=message):
        sections(reasons, sections=[section])


def test_a_set_with_nothing_held_out_has_its_memorisation_measured():
    assert sections(reasons_of_set(300, 0, False)) == ["memorisation"]


@pytest.mark.parametrize(
    ("num_images", "held_out", "expected"),
    [
        (10_000, 10_000, (10_000, 1000)),  # FashionMNIST
        (10_001, 10_000, (10_001, 1000)),  # which is refused
        (10_000, 5000, (5000, 1000)),
        (10_000, 140, (1000, 140)),  # enough for the memorisation
        (300, 140, (300, 140)),
        (10_000, 0, (1000, 100)),
    ],
)
def test_images_are_as_many_as_the_held_out_ones_can_stand_beside(num_images, held_out, expected):
    config = EvaluationConfig(num_images=num_images).shrunk(held_out)
    assert (config.num_images, config.sweep_images) == expected


def test_without_distances_any_number_of_images_can_be_asked_for():
    assert EvaluationConfig(num_images=50_000, sections=["inception"]).shrunk(140).num_images == 50_000


def test_notes_say_what_a_small_set_cannot_have():
    assert notes_on(["distances"], {}, 10_000, 10_000) == []
    left_out = reasons_of_set(1260, 140, False)
    assert notes_on(["distances", "memorisation"], left_out, 1000, 140) == [
        "The distances are of 140 images a set, as many as are held out",
        "Left out: the kernel distance, which needs 2,000 images",
        "Left out: classes; the set has no classifiers yet; train them with scripts/train_judge.py",
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seeds": 0}, "seeds is 0"),
        ({"sections": ["distance"]}, "unknown section 'distance' .did you mean 'distances'"),
        ({"sweep_images": 99}, "sweep_images is 99; it must be from 100 to 10000"),
        ({"likelihood_timesteps": 0}, "likelihood_timesteps is 0"),
        ({"scheduler": "ddmp"}, "did you mean 'ddpm'"),
    ],
)
def test_settings_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(**options)
