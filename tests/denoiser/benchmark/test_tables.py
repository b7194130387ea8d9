import pytest

from denoiser.benchmark.tables import curves_of, reach_table, seconds_to, speed_table, stock_table, train_table


def rows(**by_name):
    return [
        {"name": name, "seconds": seconds, "frechet": distance}
        for name, points in by_name.items()
        for seconds, distance in points.items()
    ]


def test_the_way_between_two_trainings_is_a_power_law():
    # distance = 100 / seconds
    assert seconds_to(2, {10: 10, 100: 1}) == pytest.approx(50)


def test_a_distance_that_is_never_reached_takes_no_time_that_could_be_named():
    assert seconds_to(0.5, {10: 10, 100: 1}) is None


def test_the_shortest_training_is_the_answer_where_it_reaches_the_distance_already():
    assert seconds_to(20, {10: 10, 100: 1}) == 10


def test_the_distance_to_reach_is_that_of_the_baselines_longest_training():
    table = reach_table(rows(peer={100: 8, 900: 2}, ours={10: 10, 100: 1}), "peer")
    assert "distance of 2, peer's after 900 s" in table
    assert "| peer | 900 | 1 |" in table
    assert "| ours | 50 | 0.05556 |" in table


def test_seeds_count_as_one_training_of_their_mean():
    assert curves_of([*rows(net={10: 1}), *rows(net={10: 4, 100: 1})]) == {"net": {10: 2, 100: 1}}


def test_the_shortest_training_is_an_upper_bound():
    assert "| ours | at most 10 | at most 0.1 |" in reach_table(rows(peer={100: 8}, ours={10: 7}), "peer")


def test_a_training_is_compared_with_the_baselines_in_the_same_race_only():
    facts = {"parameters": 1, "operations_per_image": 1e6, "precision": "no", "seconds": 10, "steps": 5, "seed": 0}
    figures = {"share_of_peak": 0.5, "held_out_loss": 1, "evaluation_images": 100, "frechet_floor": 0.1}
    rows = [
        {"name": name, "race": race, "images_per_second": speed, "frechet": distance, **facts, **figures}
        for name, race, speed, distance in (("peer", "a", 2, 8), ("ours", "a", 6, 2), ("late", "b", 6, 2))
    ]
    table = train_table(rows, "peer")
    assert "| ours | 1 | 1 | fp32 | 10 | 5 | 6 | 3 | 50% | 1 | 2 | 0.25 |" in table
    assert "| late | 1 | 1 | fp32 | 10 | 5 | 6 |  | 50% | 1 | 2 |  |" in table


def test_speeds_at_equal_distance_are_ratios_to_the_stocks():
    facts = {"trained_seconds": 10, "images": 64, "frechet_floor": 1}
    rows = [
        {"name": name, "steps": steps, "frechet": 3, "images_per_second": speed, **facts}
        for name, steps, speed in (("peer", 1000, 0.5), ("ours", 8, 200))
    ]
    assert "| peer in the stock DDPMPipeline | 10 | 1000 | 3 | 0.5 | 1 |" in stock_table(rows)
    assert "| ours | 10 | 8 | 3 | 200 | 400 |" in stock_table(rows)
    assert "the floor, as many test images, is 1." in stock_table(rows)


def test_a_speed_is_compared_with_the_baseline_at_the_same_batch_size():
    speeds = {("peer", 64): 10, ("ours", 64): 50, ("peer", 512): 20, ("ours", 512): 40}
    table = speed_table(
        [
            {
                "name": name,
                "batch_size": size,
                "steps": 20,
                "images_per_second": speed,
                "slowest_round": 1,
                "fastest_round": 99,
                "first_round_seconds": 30.25,
            }
            for (name, size), speed in speeds.items()
        ],
        "peer",
    )
    assert "| ours | 64 | 20 | 50 | 1 | 99 | 5 | 30.2 |" in table
    assert "| ours | 512 | 20 | 40 | 1 | 99 | 2 | 30.2 |" in table
