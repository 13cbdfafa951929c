"""The measuring protocol on a fake clock, and real measuring processes on tiny ONNX files."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from amc.errors import UserError
from amc.targets import LatencyCache, Target, Timing, compare, describe_machine, get_target, list_targets
from amc.targets.base import DEFAULT_TIME_LIMIT_S
from amc.targets.cache import JsonCache
from amc.targets.calibration import Profile
from amc.targets.core_lock import core_lock
from amc.targets.protocol import Settings, measure, noise, runs_per_round
from amc.targets.registry import register_target
from amc.targets.saturation import saturation_error, weight_bits_exact

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
    return Timing(best_ms=min(rounds), rounds_ms=tuple(rounds), ratio=ratio, reliable=reliable, attempts=1)


# ---------------------------------------------------------------- protocol


def test_minima_and_ratios_are_those_of_the_models():
    machine = FakeMachine()
    reference, half = measure([machine.model("a", 2e-3), machine.model("b", 1e-3)], machine.clock)
    assert reference.best_ms == pytest.approx(2.0) and half.best_ms == pytest.approx(1.0)
    assert reference.ratio == 1.0 and half.ratio == pytest.approx(0.5)
    assert reference.reliable and reference.attempts == 1
    assert len(half.rounds_ms) == Settings().rounds >= 10


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
    reference, half = measure(calls, machine.clock, reference_best_ms=2.0)
    assert reference.attempts == 2 and reference.reliable
    assert reference.best_ms == pytest.approx(2.0) and half.ratio == pytest.approx(0.5)


def test_a_slow_phase_that_ends_in_the_last_round_is_noticed():
    machine = FakeMachine(slow=lambda now: 1.5 if now < 1.0 else 1.0)
    calls = [machine.model("a", 2e-3), machine.model("b", 1e-3)]
    # An even number of rounds ends with the reference, which alone sees the end of the slow phase.
    reference, half = measure(calls, machine.clock, settings=Settings(rounds=16))
    assert reference.attempts == 2 and half.ratio == pytest.approx(0.5)


def test_drift_of_up_to_three_percent_is_accepted():
    for slow, attempts in ((1.02, 1), (1.04, 5)):
        machine = FakeMachine(slow=lambda now, slow=slow: slow)
        (result,) = measure([machine.model("a", 1e-3)], machine.clock, reference_best_ms=1.0)
        assert result.attempts == attempts and result.reliable == (attempts == 1)


def test_five_tries_then_unreliable_with_the_fastest_try():
    machine = FakeMachine(slow=lambda now: 1.3 if 1.0 < now < 2.0 else 1.5)
    calls = [machine.model("a", 2e-3), machine.model("b", 1e-3)]
    results = measure(calls, machine.clock, reference_best_ms=2.0)
    assert [r.attempts for r in results] == [5, 5] and not any(r.reliable for r in results)
    assert results[0].best_ms == pytest.approx(2.6) and results[1].ratio == pytest.approx(0.5)


def test_no_try_is_started_that_would_not_end_in_time():
    machine = FakeMachine()
    settings = Settings(time_limit_s=10.0)
    (result,) = measure([machine.model("a", 30e-3)], machine.clock, settings=settings, reference_best_ms=1.0)
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


# ---------------------------------------------------------------- cache


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


def test_cache_key_holds_runtime_and_protocol_versions_target_and_cpu(tmp_path, monkeypatch):
    cache, target = LatencyCache(tmp_path), FakeTarget()
    cache.put("policy", target, timing(0.5))
    for where, name, value in (
        (target, "runtime_version", "1.1"),
        (target, "name", "other"),
        ("amc.targets.cache.PROTOCOL_VERSION", None, 99),
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


# ---------------------------------------------------------------- registry, machine


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


def test_profiles_are_data_on_the_target():
    target = get_target("onnxruntime")
    assert (target.width_multiple, target.fast_bits) == (8, (8, 32))
    assert target.profile.multiple_for(32) == 16 and target.profile.multiple_for(8) == 8
    target.profile = Profile(width_multiple=4, source="measured")
    assert target.width_multiple == 4
    assert get_target("openvino").width_multiple == 8


def test_machine_description_is_json_and_complete():
    machine = json.loads(json.dumps(describe_machine()))
    assert machine["cpu"] and machine["cores"] >= 1 and "onnxruntime" in machine["versions"]
    assert {"int8_dot_product", "avx512", "bf16", "load_average"} <= machine.keys()


# ---------------------------------------------------------------- measuring process


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


def correlate(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))
    return np.einsum("nchwij,ocij->nohw", windows, weight)


@pytest.fixture(scope="module", params=RUNTIMES)
def target(request):
    with get_target(request.param) as target:
        yield target


def test_a_file_is_measured_in_another_process(target, tmp_path):
    convolution(tmp_path / "a.onnx")
    convolution(tmp_path / "b.onnx", channels=8)
    reference, candidate = target.measure([tmp_path / "a.onnx", tmp_path / "b.onnx"])
    assert reference.ratio == 1.0 and candidate.ratio == candidate.best_ms / reference.best_ms
    assert 0 < reference.best_ms == min(reference.rounds_ms) and 1 <= reference.attempts <= 5
    assert target.process.pid not in (None, os.getpid())


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="no pinning on this system")
def test_the_process_is_pinned_to_one_core(target, tmp_path):
    convolution(tmp_path / "a.onnx")
    target.run(tmp_path / "a.onnx", np.zeros((1, 4, 6, 6)))
    assert len(os.sched_getaffinity(target.process.pid)) == 1


@pytest.mark.parametrize("batch", [1, 3, "N"])
def test_run_equals_numpy(target, tmp_path, batch):
    weight = convolution(tmp_path / "a.onnx", batch=batch)
    x = np.random.default_rng(1).standard_normal((205, 4, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(target.run(tmp_path / "a.onnx", x), correlate(x, weight), atol=1e-4)


def test_run_in_chunks_equals_numpy(target, tmp_path, monkeypatch):
    monkeypatch.setattr("amc.targets.process_target.CHUNK_BYTES", 5 * 4 * 4 * 36)
    weight = convolution(tmp_path / "a.onnx")
    x = np.random.default_rng(1).standard_normal((12, 4, 6, 6)).astype(np.float32)
    np.testing.assert_allclose(target.run(tmp_path / "a.onnx", x), correlate(x, weight), atol=1e-4)


def test_a_file_that_was_written_again_is_loaded_again(target, tmp_path):
    file, x = tmp_path / "a.onnx", np.ones((1, 4, 6, 6), np.float32)
    convolution(file)
    assert target.run(file, x).shape == (1, 4, 4, 4)
    convolution(file, side=8)
    assert target.run(file, np.ones((1, 4, 8, 8), np.float32)).shape == (1, 4, 6, 6)


def test_bad_files_and_inputs_are_one_clear_sentence(target, tmp_path):
    (tmp_path / "bad.onnx").write_text("this is not a model")
    convolution(tmp_path / "good.onnx")
    convolution(tmp_path / "three.onnx", batch=3)
    pid = target.process.pid
    with pytest.raises(UserError, match="There is no model file"):
        target.measure([tmp_path / "missing.onnx"])
    with pytest.raises(UserError, match=rf"{target.name} cannot use .*bad.onnx: "):
        target.measure([tmp_path / "bad.onnx"])
    with pytest.raises(UserError, match="its input is 1x4x6x6, the data are 2x3x6x6"):
        target.run(tmp_path / "good.onnx", np.zeros((2, 3, 6, 6)))
    with pytest.raises(UserError, match="latency needs batch 1"):
        target.measure([tmp_path / "three.onnx"])
    with pytest.raises(UserError, match="at least one model file"):
        target.measure([])
    assert pid is None or target.process.pid == pid, "the process survives bad requests"


@pytest.mark.skipif(os.name == "nt", reason="needs SIGKILL")
def test_a_killed_process_is_started_again(target, tmp_path):
    weight = convolution(tmp_path / "a.onnx")
    x = np.ones((1, 4, 6, 6), np.float32)
    target.run(tmp_path / "a.onnx", x)
    first = target.process.pid
    os.kill(first, signal.SIGKILL)
    np.testing.assert_allclose(target.run(tmp_path / "a.onnx", x), correlate(x, weight), atol=1e-4)
    assert target.process.pid != first


def test_the_self_check_says_seven_or_eight_and_remembers_it(target, tmp_path, monkeypatch):
    cache = JsonCache(tmp_path)
    bits = weight_bits_exact(target, cache)
    assert bits == (8 if saturation_error(target) <= 1 else 7)
    monkeypatch.setattr("amc.targets.saturation.saturation_error", lambda target: pytest.fail("ran again"))
    assert weight_bits_exact(target, cache) == bits


def test_weights_of_seven_bits_are_exact(target, monkeypatch):
    from amc.targets import saturation

    full = saturation.full_range_weight()
    monkeypatch.setattr(saturation, "full_range_weight", lambda: np.clip(full, -64, 64))
    assert saturation_error(target) <= 1


def test_an_engine_that_dies_is_reported_with_its_last_words(tmp_path, monkeypatch):
    target = get_target("onnxruntime")
    convolution(tmp_path / "a.onnx")
    target.process._command[3] = "no_such_engine:load"
    with pytest.raises(UserError, match=r"died twice.*No module named 'no_such_engine'"):
        target.measure([tmp_path / "a.onnx"])


def test_no_answer_in_time_stops_the_process(tmp_path):
    target = get_target("onnxruntime")
    convolution(tmp_path / "a.onnx")
    request = {"op": "measure", "files": [str(tmp_path / "a.onnx")], "time_limit_s": 30}
    with pytest.raises(UserError, match="no answer within"):
        target.process.request(request, timeout_s=0.01)
    assert target.process.pid is None


def test_the_process_ends_with_its_parent(tmp_path):
    convolution(tmp_path / "a.onnx")
    code = (
        "import os, sys, numpy as np; from amc.targets import get_target; t = get_target('onnxruntime');"
        f"t.run({str(tmp_path / 'a.onnx')!r}, np.zeros((1, 4, 6, 6)));"
        "print(t.process.pid, flush=True); os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[1]
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert _gone(int(parent.stdout), within_s=10)


def test_a_missing_runtime_names_the_install_command(tmp_path, monkeypatch):
    convolution(tmp_path / "a.onnx")
    target = get_target("onnxruntime")
    monkeypatch.setattr("amc.targets.process_target.installed_version", lambda name: None)
    with pytest.raises(UserError, match="pip install onnxruntime"):
        target.measure([tmp_path / "a.onnx"])


def test_the_worker_imports_no_torch_and_no_runtime():
    code = "import sys, amc.targets.worker; print({'torch', 'onnx', 'openvino'} & set(sys.modules))"
    root = Path(__file__).parents[1]
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert result.stdout.strip() == "set()", result.stderr


def test_two_holders_of_a_core_take_turns():
    pytest.importorskip("fcntl")
    code = (
        "from amc.targets.core_lock import core_lock\n"
        "with core_lock(9999): print('has it', flush=True); input()"
    )
    root = Path(__file__).parents[1]
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root
    )
    assert other.stdin and other.stdout and other.stdout.readline().strip() == "has it"
    released = []

    def release():
        released.append(True)
        other.communicate("\n")

    threading.Timer(0.3, release).start()
    with core_lock(9999):
        assert released


def _gone(pid: int, within_s: float) -> bool:
    """Whether a process has ended (or is a zombie that nobody waits for)."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False
