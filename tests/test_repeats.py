"""What several measuring processes say together: pure arithmetic on made-up timings."""

from pathlib import Path

import pytest

from amc.targets import Target, Timing
from amc.targets.calibration import Profile
from amc.targets.repeats import measure_in_fresh_processes, summarize, verdict


def timings(*ratios: float, rounds: tuple[float, ...] = (1.0, 1.0), reliable: bool = True) -> list[Timing]:
    return [Timing(ratio, rounds, ratio, reliable, attempts=1) for ratio in ratios]


def originals(count: int, **settings: bool) -> list[Timing]:
    return timings(*[1.0] * count, **settings)


def test_median_ratio_and_its_coefficient_of_variation() -> None:
    found = summarize(timings(0.18, 0.2, 0.3, 0.21), originals(4))
    assert found.ratio == pytest.approx(0.205)
    # mean 0.2225, sample variance (0.0425^2 + 0.0225^2 + 0.0775^2 + 0.0125^2) / 3
    assert found.ratio_cv == pytest.approx((0.008475 / 3) ** 0.5 / 0.2225)


@pytest.mark.parametrize(
    ("ratios", "said"),
    [
        ((0.2, 0.2, 0.2), "faster"),
        ((1.3, 1.3, 1.3), "slower"),
        ((1.015, 1.015, 1.015), "no difference"),
        ((0.985, 0.985, 0.985), "no difference"),
        ((1.025, 1.025, 1.025), "slower"),
        # One process that was disturbed neither makes a difference nor hides one.
        ((1.0, 1.0, 1.0, 1.0, 1.5), "no difference"),
        ((1.1, 1.1, 1.1, 1.1, 1.0), "slower"),
        # The median is 5 % off, but the processes disagree by as much.
        ((1.0, 1.05, 1.1), "no difference"),
        ((1.049, 1.05, 1.051), "slower"),
        # 7 % off with a spread of 2.7 %: not enough from three processes, but from twelve.
        ((1.043, 1.073, 1.1), "no difference"),
        ((1.043, 1.073, 1.1) * 4, "slower"),
    ],
)
def test_a_difference_is_weighed_against_the_spread_between_processes(ratios, said) -> None:
    assert verdict(timings(*ratios), originals(len(ratios))) == said


def test_the_verdict_is_the_same_seen_from_the_other_side() -> None:
    ratios = (1.08, 1.1, 1.12, 1.09)
    assert verdict(timings(*ratios), originals(4)) == "slower"
    assert verdict(timings(*(1 / ratio for ratio in ratios)), originals(4)) == "faster"


def test_rounds_that_disagree_count_where_they_do_in_most_processes() -> None:
    # Even and odd rounds differ by 10 %, the processes by nothing.
    shaky = timings(1.05, 1.05, 1.05, rounds=(1.0, 1.1))
    assert verdict(shaky, originals(3)) == "no difference"
    assert verdict([*shaky[:1], *timings(1.05, 1.05)], originals(3)) == "slower"


def test_unreliable_timings_show_only_large_differences() -> None:
    original = originals(3, reliable=False)
    assert verdict(timings(1.15, 1.15, 1.15, reliable=False), original) == "no difference"
    assert verdict(timings(0.5, 0.5, 0.5, reliable=False), original) == "faster"
    one = [*originals(2), *originals(1, reliable=False)]
    assert verdict(timings(1.15, 1.15, 1.15), one) == "slower"


class Recorder(Target):
    """Writes down what happens to it."""

    name, profile, runtime_version = "recorder", Profile(width_multiple=8), "1.0"

    def __init__(self, events: list[str]):
        self.events = events
        events.append("new")

    def measure(self, files, *, time_limit_s=1.0):
        self.events.append("measured " + " ".join(map(str, files)))
        if "broken" in str(files[-1]):
            raise RuntimeError("broken")
        return timings(*[1.0] * len(files))

    def run(self, file, inputs):
        return inputs

    def close(self):
        self.events.append("closed")


def test_each_process_is_new_and_ends_before_the_next_starts() -> None:
    events: list[str] = []
    files = [Path("a"), Path("b")]
    runs = list(measure_in_fresh_processes(lambda: Recorder(events), files, processes=2))
    assert [len(run) for run in runs] == [2, 2]
    assert events == ["new", "measured a b", "closed"] * 2


def test_a_process_that_fails_is_ended() -> None:
    events: list[str] = []
    with pytest.raises(RuntimeError, match="broken"):
        list(measure_in_fresh_processes(lambda: Recorder(events), [Path("broken")], processes=2))
    assert events == ["new", "measured broken", "closed"]
