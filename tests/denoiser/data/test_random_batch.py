import torch

from denoiser.data.image_set import RandomBatch, drop_labels, random_batch


def some_batch(**options):
    defaults = {
        "seed": 0,
        "step": 7,
        "batch_size": 64,
        "image_shape": (1, 4, 4),
        "num_images": 1000,
        "num_timesteps": 1000,
        "label_dropout": 0.3,
    }
    return random_batch(**{**defaults, **options})


def equal(one: RandomBatch, other: RandomBatch) -> bool:
    return all(torch.equal(getattr(one, name), getattr(other, name)) for name in vars(one))


def test_batches_are_a_function_of_seed_and_step_alone():
    torch.manual_seed(1)
    first = some_batch()
    torch.manual_seed(2)
    assert equal(first, some_batch())
    for other in (some_batch(seed=1), some_batch(step=8)):
        assert not any(torch.equal(getattr(first, name), getattr(other, name)) for name in vars(first))


def test_the_global_generator_is_left_alone():
    before = torch.get_rng_state()
    some_batch()
    assert torch.equal(torch.get_rng_state(), before)


def test_parts_put_together_are_the_whole():
    for batch_size, length in ((64, 16), (300, 100), (1024, 256)):  # within, across and over blocks of noise
        whole = some_batch(batch_size=batch_size)
        rows = [range(start, start + length) for start in range(0, batch_size, length)]
        parts = [some_batch(batch_size=batch_size, rows=own) for own in rows]
        joined = RandomBatch(*(torch.cat([getattr(part, name) for part in parts]) for name in vars(whole)))
        assert equal(whole, joined)
        assert len(whole.noise.unique()) > 0.99 * whole.noise.numel()


def test_every_epoch_visits_each_image_once_in_its_own_order():
    steps = [some_batch(step=step, batch_size=30, num_images=100).indices for step in range(10)]
    epochs = torch.cat(steps).view(3, 100)  # steps straddle the epochs' ends
    for epoch in epochs:
        assert epoch.sort().values.tolist() == list(range(100))
    assert not torch.equal(epochs[0], epochs[1])


def test_timesteps_are_stratified_and_in_random_order():
    timesteps = some_batch(batch_size=10).timesteps
    assert (timesteps.sort().values // 100).tolist() == list(range(10))
    assert timesteps.tolist() != timesteps.sort().values.tolist()


def test_timesteps_cover_the_whole_range_evenly():
    options = {"batch_size": 3, "num_timesteps": 10}
    timesteps = torch.cat([some_batch(step=step, **options).timesteps for step in range(2000)])
    counts = timesteps.bincount(minlength=10)
    assert len(counts) == 10
    assert (counts - 600).abs().max() < 100


def test_labels_are_dropped_at_the_rate_asked_for():
    assert not some_batch(label_dropout=0.0).label_dropped.any()
    assert some_batch(label_dropout=1.0).label_dropped.all()
    rate = torch.cat([some_batch(step=step).label_dropped for step in range(100)]).float().mean()
    assert abs(rate - 0.3) < 0.03


def test_dropped_labels_become_the_null_label_and_the_others_stay():
    labels = drop_labels(torch.tensor([3, 4, 5]), 10, torch.tensor([False, True, False]))
    assert labels.tolist() == [3, 10, 5]
