"""Leases of cores: each to one job at a time, given back even by a job that is killed."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from amc.errors import UserError
from amc.targets import core_lock
from amc.targets.core_lock import leased_cores

if not hasattr(os, "sched_setaffinity"):
    pytest.skip("this system pins no processes", allow_module_level=True)


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lock files of this test: a sweep on the same machine is not waited for."""
    monkeypatch.setattr(core_lock, "_lock_file", lambda what: tmp_path / what)
    monkeypatch.setattr(core_lock, "LEASE_RETRY_S", 0.01)


def test_a_lease_pins_the_thread_and_what_it_starts():
    before = os.sched_getaffinity(0)
    code = "import os; print(sorted(os.sched_getaffinity(0)))"
    with leased_cores(1) as cores:
        assert os.sched_getaffinity(0) == set(cores) and len(cores) == 1
        child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert child.stdout.strip() == str(cores)
    assert os.sched_getaffinity(0) == before


def test_a_core_that_is_leased_is_waited_for(monkeypatch: pytest.MonkeyPatch):
    one = sorted(os.sched_getaffinity(0))[:1]
    monkeypatch.setattr(core_lock, "allowed_cores", lambda: one)
    order: list[str] = []

    def second() -> None:
        with leased_cores(1):
            order.append("second")

    thread = threading.Thread(target=second)
    with leased_cores(1):
        thread.start()
        thread.join(0.2)
        order.append("first gives back")
    thread.join(10)
    assert order == ["first gives back", "second"]


def test_two_leases_have_different_cores(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(core_lock, "allowed_cores", lambda: [0, 1, 2])
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: None)
    with leased_cores(1) as last, leased_cores(2) as others:
        assert last == [2] and others == [0, 1]


def test_a_killed_holder_gives_back(tmp_path: Path):
    code = (
        "import sys; from pathlib import Path; from amc.targets import core_lock\n"
        "core_lock._lock_file = lambda what: Path(sys.argv[1]) / what\n"
        "lease = core_lock.leased_cores(len(core_lock.allowed_cores())); lease.__enter__()\n"
        "print('has them', flush=True); input()"
    )
    root = Path(__file__).parents[1]
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root)
    assert other.stdout and other.stdout.readline().strip() == "has them"
    other.kill()
    other.communicate()
    with leased_cores(1) as cores:
        assert cores


def test_more_cores_than_there_are_is_one_sentence():
    with pytest.raises(UserError, match="wants 10000 cores"), leased_cores(10_000):
        pass
