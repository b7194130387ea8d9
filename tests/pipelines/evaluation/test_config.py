import pytest

from pipelines.evaluation.config import SECTIONS, EvaluationConfig


def test_by_default_all_sections_are_made_that_can_be():
    config = EvaluationConfig()
    assert config.choose_sections(None, True, True) == list(SECTIONS)
    assert config.choose_sections(None, False, False) == ["distances", "likelihood", "memorisation", "samplers"]
    assert config.choose_sections("it is an image", False, False) == ["distances", "memorisation"]
    assert EvaluationConfig(sections=["likelihood", "distances"]).choose_sections(None, True, True) == [
        "distances",
        "likelihood",
    ]


@pytest.mark.parametrize(
    ("section", "kind", "message"),
    [
        ("classes", (None, False, False), "'classes' cannot be made: the images have no labels"),
        ("guidance", (None, False, False), "'guidance' cannot be made: the network has no classes, or no null label"),
        ("likelihood", ("it is distilled", True, True), "'likelihood' cannot be made: it is distilled"),
    ],
)
def test_a_section_that_cannot_be_made_is_refused_when_asked_for(section, kind, message):
    with pytest.raises(ValueError, match=message):
        EvaluationConfig(sections=[section]).choose_sections(*kind)


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
