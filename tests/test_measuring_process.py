"""The measuring process: real runtimes in a process of their own."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from amc.errors import UserError
from amc.targets import get_target
from amc.targets.cache import JsonCache
from amc.targets.core_lock import core_lock
from amc.targets.saturation import saturation_error, weight_bits_exact
from tests.test_targets import RUNTIMES, convolution


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
    assert reference.ratio == 1.0 and candidate.ratio == candidate.best / reference.best
    assert 0 < reference.best == min(reference.rounds) and 1 <= reference.attempts <= 5
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
