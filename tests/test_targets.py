"""The measuring protocol on a fake clock, and real measuring processes on tiny ONNX files."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from amc.errors import UserError
from amc.targets import LatencyCache, Target, Timing, compare, describe_machine, get_target, list_targets
from amc.targets.base import DEFAULT_TIME_LIMIT_S
from amc.targets.calibration import Profile
from amc.targets.protocol import Settings, measure, noise, runs_per_round
from amc.targets.registry import register_target

RUNTIMES = ("onnxruntime", "openvino")


class FakeMachine:
    """A clock that only models advance; `slow(seconds)` says how much slower the machine is at a time."""

    def __init__(self, slow=lambda now: 1.0):
        self.now, self.slow, self.order = 0.0, slow, []

    def clock(self):
        return self.now

    def model(self, name, seconds):
        def call():
            self.order.append(name)
            self.now += seconds * self.slow(self.now)

        return call


def timing(ratio, rounds=(1.0, 1.0), reliable=True):
    return Timing(best=min(rounds), rounds=tuple(rounds), ratio=ratio, reliable=reliable, attempts=1)


def test_minima_and_ratios_are_those_of_the_models():
    machine = FakeMachine()
    reference, half = measure([machine.model("a", 2e-3), machine.model("b", 1e-3)], machine.clock)
    assert reference.best == pytest.approx(2.0) and half.best == pytest.approx(1.0)
    assert reference.ratio == 1.0 and half.ratio == pytest.approx(0.5)
    assert reference.reliable and reference.attempts == 1
    assert len(half.rounds) == Settings().rounds >= 10


def test_at_least_150_runs_in_rounds_that_interleave_and_alternate():
    machine = FakeMachine()
    measure([machine.model("a", 15e-3), machine.model("b", 15e-3)], machine.clock)
    timed = machine.order[6:]  # three warm-up runs each
    assert timed.count("a") == timed.count("b") == 150
    blocks = [timed[i] for i in range(0, len(timed), 10)]
    assert blocks[:6] == ["a", "b", "b", "a", "a", "b"]


def test_run_counts_adapt_to_the_cost():
    settings = Settings()
    assert runs_per_round(0.4e-3, settings) == (40, True)  # short: 600 runs, 0.24 s
    assert runs_per_round(2e-3, settings) == (34, True)  # 500 runs, 1 s
    assert runs_per_round(30e-3, settings) == (10, True)  # long: 150 runs, 4.5 s
    per_round, complete = runs_per_round(1.0, settings)  # too long for 150 runs within the limit
    assert per_round * settings.rounds <= DEFAULT_TIME_LIMIT_S and not complete


def test_drift_of_the_reference_triggers_another_try():
    machine = FakeMachine(slow=lambda now: 1.5 if now < 1.0 else 1.0)
    calls = [machine.model("a", 2e-3), machine.model("b", 1e-3)]
    reference, half = measure(calls, machine.clock, reference_best=2.0)
    assert reference.attempts == 2 and reference.reliable
    assert reference.best == pytest.approx(2.0) and half.ratio == pytest.approx(0.5)


def test_a_slow_phase_that_ends_in_the_last_round_is_noticed():
    machine = FakeMachine(slow=lambda now: 1.5 if now < 1.0 else 1.0)
    calls = [machine.model("a", 2e-3), machine.model("b", 1e-3)]
    # An even number of rounds ends with the reference, which alone sees the end of the slow phase.
    reference, half = measure(calls, machine.clock, settings=Settings(rounds=16))
    assert reference.attempts == 2 and half.ratio == pytest.approx(0.5)


def test_drift_of_up_to_three_percent_is_accepted():
    for slow, attempts in ((1.02, 1), (1.04, 5)):
        machine = FakeMachine(slow=lambda now, slow=slow: slow)
        (result,) = measure([machine.model("a", 1e-3)], machine.clock, reference_best=1.0)
        assert result.attempts == attempts and result.reliable == (attempts == 1)


def test_five_tries_then_unreliable_with_the_fastest_try():
    machine = FakeMachine(slow=lambda now: 1.3 if 1.0 < now < 2.0 else 1.5)
    calls = [machine.model("a", 2e-3), machine.model("b", 1e-3)]
    results = measure(calls, machine.clock, reference_best=2.0)
    assert [r.attempts for r in results] == [5, 5] and not any(r.reliable for r in results)
    assert results[0].best == pytest.approx(2.6) and results[1].ratio == pytest.approx(0.5)


def test_no_try_is_started_that_would_not_end_in_time():
    machine = FakeMachine()
    settings = Settings(time_limit_s=10.0)
    (result,) = measure([machine.model("a", 30e-3)], machine.clock, settings=settings, reference_best=1.0)
    assert result.attempts == 2 and not result.reliable and machine.now <= 10.0


def test_too_slow_for_the_minimum_number_of_runs_is_unreliable():
    machine = FakeMachine()
    (result,) = measure([machine.model("a", 1.0)], machine.clock)
    assert not result.reliable and result.attempts == 1 and machine.now < DEFAULT_TIME_LIMIT_S + 5


def test_compare_identical_models_is_no_difference():
    machine = FakeMachine(slow=lambda now: 1.0 + 0.01 * np.sin(1e3 * now))
    a, b = measure([machine.model("a", 1e-3), machine.model("b", 1e-3)], machine.clock)
    assert compare(a, b) == compare(b, a) == "no difference"


def test_compare_twice_as_slow_is_slower():
    machine = FakeMachine()
    a, b = measure([machine.model("a", 1e-3), machine.model("b", 2e-3)], machine.clock)
    assert compare(b, a) == "slower" and compare(a, b) == "faster"


def test_compare_weighs_a_difference_against_the_noise():
    assert compare(timing(1.015), timing(1.0)) == "no difference"
    assert compare(timing(1.05), timing(1.0)) == "slower"
    noisy = timing(1.05, rounds=(1.0, 1.08))  # even and odd rounds disagree by 8 %
    assert noise(noisy) == pytest.approx(0.08) and compare(noisy, timing(1.0)) == "no difference"
    assert compare(timing(1.05, reliable=False), timing(1.0)) == "no difference"


class FakeTarget(Target):
    name, profile, runtime_version = "fake", Profile(width_multiple=8), "1.0"

    def measure(self, files, *, time_limit_s=1.0):
        return [timing(1.0) for _ in files]

    def run(self, file, inputs):
        return inputs


def test_cache_round_trip(tmp_path):
    cache, target, stored = LatencyCache(tmp_path), FakeTarget(), timing(0.25, (0.1, 0.2))
    assert cache.get("policy", target) is None
    cache.put("policy", target, stored)
    assert LatencyCache(tmp_path).get("policy", target) == stored
    assert cache.get("other policy", target) is None


def test_cache_key_holds_runtime_protocol_and_file_versions_target_and_cpu(tmp_path, monkeypatch):
    cache, target = LatencyCache(tmp_path), FakeTarget()
    cache.put("policy", target, timing(0.5))
    for where, name, value in (
        (target, "runtime_version", "1.1"),
        (target, "name", "other"),
        ("amc.targets.cache.PROTOCOL_VERSION", None, 99),
        ("amc.targets.cache.FILES_VERSION", None, 99),
        ("amc.targets.cache.cpu_model", None, lambda: "another CPU"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, value) if name is None else patch.setattr(where, name, value)
            assert cache.get("policy", target) is None
    assert cache.get("policy", target) is not None


@pytest.mark.parametrize("content", ["", "{", "[]", "null", '{"identity": 1, "value": {}}'])
def test_cache_ignores_corrupt_entries(tmp_path, content):
    cache, target = LatencyCache(tmp_path), FakeTarget()
    cache.put("policy", target, timing(0.5))
    (entry,) = tmp_path.iterdir()
    entry.write_text(content)
    assert cache.get("policy", target) is None
    cache.put("policy", target, timing(0.5))
    assert cache.get("policy", target) == timing(0.5)


def test_cache_ignores_an_entry_whose_timing_is_not_one(tmp_path):
    cache, target = LatencyCache(tmp_path), FakeTarget()
    cache.put("policy", target, timing(0.5))
    (entry,) = tmp_path.iterdir()
    entry.write_text(entry.read_text().replace('"reliable": true', '"reliable": "yes"'))
    assert cache.get("policy", target) is None


def test_cache_does_not_keep_unreliable_timings(tmp_path):
    cache, target = LatencyCache(tmp_path), FakeTarget()
    cache.put("policy", target, timing(0.5, reliable=False))
    assert cache.get("policy", target) is None


def test_cache_directory_from_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path))
    assert LatencyCache().store.directory == tmp_path / "latency"


def test_cache_that_cannot_be_written_warns_and_goes_on(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(UserWarning, match="AMC_CACHE_DIR"):
        LatencyCache(tmp_path / "file" / "below").put("policy", FakeTarget(), timing(0.5))
    assert LatencyCache(tmp_path / "file" / "below").get("policy", FakeTarget()) is None


def test_registry_knows_the_built_in_targets_and_import_paths():
    assert {"onnxruntime", "openvino"} <= set(list_targets())
    assert get_target(f"{__name__}:FakeTarget").name == "fake"
    register_target("fake", FakeTarget)
    assert isinstance(get_target("fake"), FakeTarget)


def test_unknown_target_names_the_closest():
    with pytest.raises(UserError, match="did you mean 'openvino'"):
        get_target("openvina")
    with pytest.raises(UserError, match="not an amc"):
        get_target("builtins:dict")


def test_a_target_may_declare_its_profile():
    target = FakeTarget()
    assert (target.width_multiple, target.fast_bits) == (8, (8, 32))
    assert target.profile.multiple_for(8) == 8 and target.profile.source == "declared"
    assert Profile(width_multiple=8, width_multiple_at={32: 16}).multiple_for(32) == 16


def test_a_target_without_a_profile_is_refused():
    class Bare(FakeTarget):
        profile = Target.profile

    with pytest.raises(TypeError, match="profile"):
        Bare()


def test_machine_description_is_json_and_complete():
    machine = json.loads(json.dumps(describe_machine()))
    assert machine["cpu"] and machine["cores"] >= 1 and "onnxruntime" in machine["versions"]
    assert {"int8_dot_product", "avx512", "bf16", "load_average"} <= machine.keys()


def convolution(path: Path, channels=4, side=6, batch=1) -> np.ndarray:
    """Write a 3x3 convolution without padding; return its weight."""
    weight = np.random.default_rng(0).standard_normal((channels, channels, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], kernel_shape=[3, 3])],
        "convolution",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, channels, side, side])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, channels, side - 2, side - 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return weight
