import pytest

from benchmarks.tables import (
    curves_of,
    profile_table,
    reach_table,
    sampler_table,
    seconds_to,
    speed_table,
    stock_table,
    train_table,
)


def trainings(**by_name):
    return [
        {"name": name, "seconds": seconds, "frechet": distance, "second_frechet": 10 * distance}
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
    table = reach_table(trainings(peer={100: 8, 900: 2}, ours={10: 10, 100: 1}), "peer")
    assert "distance of 2 and 20 by the two judges, peer's after 900 s" in table
    assert "| peer | 900 | 1 | 900 | 1 |" in table
    assert "| ours | 50 | 0.05556 | 50 | 0.05556 |" in table


def test_each_judge_has_a_time_of_its_own():
    rows = trainings(peer={100: 8, 900: 2}, ours={10: 10, 100: 1})
    rows[-1]["second_frechet"] = 40
    assert "| ours | 50 | 0.05556 | not reached in 100 |  |" in reach_table(rows, "peer")


def test_seeds_count_as_one_training_of_their_mean():
    assert curves_of([*trainings(net={10: 1}), *trainings(net={10: 4, 100: 1})]) == {"net": {10: 2, 100: 1}}


def test_the_shortest_training_is_an_upper_bound():
    table = reach_table(trainings(peer={100: 8}, ours={10: 7}), "peer")
    assert "| ours | at most 10 | at most 0.1 | at most 10 | at most 0.1 |" in table


def test_a_training_is_compared_with_the_baselines_in_the_same_race_only():
    facts = {"parameters": 1, "operations_per_image": 1e6, "precision": "no", "seconds": 10, "steps": 5, "seed": 0}
    figures = {"share_of_peak": 0.5, "held_out_loss": 1, "evaluation_images": 100, "frechet_floor": 0.1}
    figures["second_frechet_floor"] = 0.7
    rows = [
        {"name": name, "race": race, "images_per_second": speed, **facts, **figures}
        | {"frechet": distance, "second_frechet": distance**2}
        for name, race, speed, distance in (("peer", "a", 2, 8), ("ours", "a", 6, 2), ("late", "b", 6, 2))
    ]
    table = train_table(rows, "peer")
    assert "| ours | 1 | 1 | fp32 | 10 | 5 | 6 | 3 | 50% | 1 | 2 | 0.25 | 4 | 0.0625 |" in table
    assert "| late | 1 | 1 | fp32 | 10 | 5 | 6 |  | 50% | 1 | 2 |  | 4 |  |" in table
    assert "as many test images, are 0.1 and 0.7" in table


def test_speeds_at_equal_distance_are_ratios_to_the_stocks():
    facts = {"trained_seconds": 10, "images": 64, "frechet_floor": 1, "second_frechet_floor": 5}
    rows = [
        {"name": name, "steps": steps, "frechet": 3, "second_frechet": 9, "images_per_second": speed, **facts}
        for name, steps, speed in (("peer", 1000, 0.5), ("ours", 8, 200))
    ]
    assert "| peer in the stock DDPMPipeline | 10 | 1000 | 3 | 9 | 0.5 | 1 |" in stock_table(rows)
    assert "| ours | 10 | 8 | 3 | 9 | 200 | 400 |" in stock_table(rows)
    assert "the floors, as many test images, are 1 and 5." in stock_table(rows)


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


def test_each_network_is_compared_by_its_best_sampler():
    facts = {"trained_seconds": 10, "images": 64, "steps": 20, "frechet_floor": 1, "second_frechet_floor": 5}
    rows = [
        {"name": name, "sampler": sampler, "frechet": distance, "second_frechet": second, **facts}
        for name, sampler, distance, second in (
            ("peer", "ddim", 9, 50),
            ("peer", "unipc", 8, 60),
            ("ours", "ddim", 2, 20),
            ("ours", "unipc", 4, 10),
        )
    ]
    table, by_second = sampler_table(rows, "peer").split("By the second judge:")
    assert "| network | ddim, 20 steps | unipc, 20 steps | ratio of the best |" in table
    assert "| peer | 9 | **8** | 1 |" in table
    assert "| ours | **2** | 4 | 0.25 |" in table
    assert "| ours | **2** | 4 |  |" in sampler_table(rows[2:], "peer")
    assert "| peer | **50** | 60 | 1 |" in by_second
    assert "| ours | 20 | **10** | 0.2 |" in by_second
    assert "as many test images, are 1 and 5." in by_second


def test_a_profile_says_what_share_of_a_pass_each_kind_takes():
    convolution = {"convolution": "3x3", "direction": "forward", "calls": 2, "seconds": 2e-3, "operations": 1e8}
    row = {"name": "net", "precision": "no", "pass": "forward pass", "batch_size": 4, "share_of_peak": 0.3}
    row |= {"seconds": 0.008, "profiled_seconds": 0.01, "kinds": {"convolution": 0.004, "the rest": 0.006}}
    table = profile_table([row | {"bf16_matmul_peak": 4e11, "convolutions": [convolution]}])
    assert "net, fp32, without the sampler" in table
    assert "| convolution | 4.00 ms, 40% |" in table
    assert "| with the profiler | 10.00 ms, 100% |" in table
    assert "| without | 8.00 ms |" in table
    assert "| share of peak | 30% |" in table
    assert "| 3x3 | forward | 2 | 1000 | 100 | 25% |" in table


def test_a_distance_that_is_not_reached_is_told_with_the_length_of_the_training():
    assert "| ours | not reached in 10 |  |" in reach_table(trainings(peer={100: 8}, ours={10: 9}), "peer")
