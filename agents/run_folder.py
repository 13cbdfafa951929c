"""The directory of a run: may it be made, and is somebody searching in it?"""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from agents.run_config import CONFIG_FILE
from amc.errors import UserError


def check_new_folder(folder: Path) -> None:
    """Refuse a run directory that cannot be written, or that holds something already.

    Raises:
        UserError: says which.
    """
    missing: list[Path] = []
    try:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            hint = "continue it with --resume, or " if (folder / CONFIG_FILE).exists() else ""
            raise UserError(f"{folder} is not empty: {hint}choose another --name.")
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        # Tried and not asked: permissions do not tell of read-only file systems or of names too long.
        folder.mkdir(parents=True, exist_ok=True)
        Path(tempfile.mkdtemp(prefix=".amc-", dir=folder)).rmdir()
    except OSError as error:
        raise UserError(f"The run directory {folder} cannot be made: {error.strerror}.") from error
    finally:
        for path in missing:
            with contextlib.suppress(OSError):
                path.rmdir()


@contextlib.contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold a run directory while searching in it; reading a run needs no lock.

    The lock lies on the directory itself, so it leaves no file, and the system releases it when its holder
    dies. Without `fcntl` (Windows), or on a file system that cannot lock, there is none.

    Raises:
        UserError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f"Another process is searching in {folder}: wait for its end, or stop it."
            ) from error
        except OSError:
            pass  # a file system without locks
        yield
    finally:
        os.close(handle)
