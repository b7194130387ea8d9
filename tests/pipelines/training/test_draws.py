import pytest
import torch

from pipelines.training.draws import Draws, draw


def some_draws(**options):
    defaults = {
        "seed": 0,
        "step": 7,
        "batch_size": 64,
        "image_shape": (1, 4, 4),
        "num_images": 1000,
        "num_timesteps": 1000,
        "label_dropout": 0.3,
    }
    return draw(**{**defaults, **options})


def equal(one: Draws, other: Draws) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_draws_are_a_function_of_seed_and_step_alone():
    torch.manual_seed(1)
    first = some_draws()
    torch.manual_seed(2)
    assert equal(first, some_draws())
    for other in (some_draws(seed=1), some_draws(step=8)):
        assert not any(torch.equal(getattr(first, name), getattr(other, name)) for name in vars(first))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    some_draws()
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_put_together_are_the_whole():
    whole = some_draws()
    parts = [whole.part(start, 16) for start in range(0, 64, 16)]
    joined = Draws(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(whole)))
    assert equal(whole, joined)


def test_every_epoch_visits_each_image_once_in_its_own_order():
    steps = [some_draws(step=step, batch_size=30, num_images=100).indices for step in range(10)]
    epochs = torch.cat(steps).view(3, 100)  # steps straddle the epochs' ends
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(100))
    assert not torch.equal(epochs[0], epochs[1])


def test_timesteps_are_stratified_and_in_random_order():
    timesteps = some_draws(batch_size=10).timesteps
    assert (timesteps.sort().values // 100).tolist() == list(range(10))
    assert timesteps.tolist() != timesteps.sort().values.tolist()


def test_timesteps_that_are_not_stratified_fall_where_they_will():
    counts = [
        len((some_draws(batch_size=10, step=step, stratified_timesteps=False).timesteps // 100).unique())
        for step in range(200)
    ]
    assert abs(sum(counts) / len(counts) - 10 * (1 - 0.9**10)) < 0.3  # parts of the range that are hit


@pytest.mark.parametrize("stratified", [True, False])
def test_timesteps_cover_the_whole_range_evenly(stratified):
    options = {"batch_size": 3, "num_timesteps": 10, "stratified_timesteps": stratified}
    timesteps = torch.cat([some_draws(step=step, **options).timesteps for step in range(2000)])
    counts = timesteps.bincount(minlength=10)
    assert len(counts) == 10
    assert (counts - 600).abs().max() < 100


def test_labels_are_dropped_at_the_rate_asked_for():
    assert not some_draws(label_dropout=0.0).label_dropped.any()
    assert some_draws(label_dropout=1.0).label_dropped.all()
    rate = torch.cat([some_draws(step=step).label_dropped for step in range(100)]).float().mean()
    assert abs(rate - 0.3) < 0.03
