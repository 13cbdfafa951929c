"""One core, one measurement at a time, across all processes of a machine."""

import os
import platform
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from amc.targets.machine import allowed_cores


def choose_core(core: int | None = None) -> int:
    """Return the core to measure on: the given one if it may be used, else the last that may.

    The last, because most other programs and interrupts gather on the first.
    """
    cores = allowed_cores()
    return core if core in cores else cores[-1]


def pin(core: int) -> None:
    """Tie this process, and every thread it starts from now on, to one core where the system allows it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


@contextmanager
def core_lock(core: int) -> Iterator[None]:
    """Hold the machine-wide lock of a core; waits for as long as another process holds it.

    The system releases it when its holder dies. Without `fcntl` (Windows) there is no lock.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = _open_lock_file(Path(tempfile.gettempdir()) / f"amc-{platform.node()}-core{core}.lock")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _open_lock_file(path: Path) -> int:
    """Open the lock file for reading, which suffices for `flock` and works on another user's file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
