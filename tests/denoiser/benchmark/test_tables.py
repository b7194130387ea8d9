import pytest

from denoiser.benchmark.tables import curves_of, reach_table, seconds_to, speed_table


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


def test_a_speed_is_compared_with_the_baseline_at_the_same_batch_size():
    speeds = {("peer", 64): 10, ("ours", 64): 50, ("peer", 512): 20, ("ours", 512): 40}
    table = speed_table(
        [
            {"name": name, "batch_size": size, "images_per_second": speed, "slowest_round": 1, "fastest_round": 99}
            for (name, size), speed in speeds.items()
        ],
        "peer",
    )
    assert "| ours | 64 | 50 | 1 | 99 | 5 |" in table
    assert "| ours | 512 | 40 | 1 | 99 | 2 |" in table
