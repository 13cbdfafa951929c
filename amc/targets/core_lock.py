"""One measurement at a time on a core, across all processes of a machine; cores that a job has to itself."""

import os
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from amc.errors import UserError
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


LEASE_RETRY_S = 0.2
"""Between two looks for free cores."""


@contextmanager
def leased_cores(count: int) -> Iterator[list[int]]:
    """Tie the calling thread, and all that it starts, to cores that no other lease of this machine has.

    Waits until so many are free; takes all or none, so that two that wait cannot block each other. The system
    releases a lease when its holder dies. Without `fcntl` or pinning (Windows, macOS) nothing is leased.

    Args:
        count: how many; at most those that this thread may use.

    Raises:
        UserError: there will never be so many.
    """
    before = allowed_cores()
    if count > len(before):
        raise UserError(f"This search wants {count} cores to itself, and there are {len(before)} to be used.")
    if not hasattr(os, "sched_setaffinity"):
        yield before[:count]
        return
    with ExitStack() as held:
        while len(cores := _take_free(held, before, count)) < count:
            held.close()
            time.sleep(LEASE_RETRY_S)
        os.sched_setaffinity(0, set(cores))
        try:
            yield cores
        finally:
            os.sched_setaffinity(0, set(before))


def _take_free(held: ExitStack, cores: list[int], count: int) -> list[int]:
    """Lease up to `count` of these cores, the last first; `held` gives them back."""
    import fcntl

    taken: list[int] = []
    for core in reversed(cores):
        if len(taken) == count:
            break
        handle = _open_lock_file(_lock_file(f"lease{core}"))
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(handle)
            continue
        held.callback(os.close, handle)
        taken.append(core)
    return sorted(taken)


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
    handle = _open_lock_file(_lock_file(f"core{core}"))
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _lock_file(what: str) -> Path:
    return Path(tempfile.gettempdir()) / f"amc-{platform.node()}-{what}.lock"


def _open_lock_file(path: Path) -> int:
    """Open the lock file for reading, which suffices for `flock` and works on another user's file."""
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return os.open(path, os.O_RDONLY | os.O_CREAT | os.O_NOFOLLOW, 0o644)
