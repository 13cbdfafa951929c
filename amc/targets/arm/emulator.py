"""Run the guest's Python under QEMU."""

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from amc.errors import UserError
from amc.targets.arm import guest
from amc.targets.arm.cores import Core
from amc.targets.arm.installation import GUEST_BYTECODE, GUEST_PYTHON, GUEST_SITE, Installation

GUEST_SCRIPT = Path(__file__).with_name("guest.py")
LOG = "qemu.log"

ENVIRONMENT = {
    "LC_ALL": "C",
    "PYTHONHASHSEED": "0",
    "PYTHONPATH": f"/{GUEST_SITE}",
    "PYTHONPYCACHEPREFIX": f"/{GUEST_BYTECODE}",
    "PYTHONDONTWRITEBYTECODE": "1",
}
"""Nothing of the caller's: the environment lies on the stack, and its size moves what lies below it."""


class EmulatorFailed(Exception):
    """What the guest said before it ended with an error.

    Attributes:
        index: of the file that it was about, if it counted.
    """

    def __init__(self, stderr: str):
        lines = [line.strip() for line in stderr.splitlines() if line.strip()]
        refused = [line for line in lines if line.startswith(guest.REFUSED)]
        reasons = [line.removeprefix(guest.REASON) for line in lines if line.startswith(guest.REASON)]
        others = [line for line in lines if line not in refused]
        super().__init__((reasons or others or ["the emulator said nothing"])[-1].strip().rstrip("."))
        self.index = int(refused[-1].removeprefix(guest.REFUSED)) if refused else None


@contextmanager
def working_directory() -> Iterator[Path]:
    """A directory for the files of one emulated process."""
    with tempfile.TemporaryDirectory(prefix="amc-arm-") as name:
        yield Path(name)


def emulate(
    installation: Installation,
    core: Core,
    directory: Path,
    arguments: list[str],
    timeout_s: float,
    environment: Mapping[str, str] = ENVIRONMENT,
) -> str:
    """Run guest.py in `directory` and return the plugin's log.

    Args:
        installation: prepared.
        core: the core to emulate.
        directory: holds the files that guest.py reads and writes.
        arguments: of guest.py.
        timeout_s: seconds after which the emulator is ended.
        environment: of the guest.

    Raises:
        EmulatorFailed: the guest ended with an error.
        UserError: it did not end in time.
    """
    (directory / "python").symlink_to(installation.guest / GUEST_PYTHON)
    try:
        code, stderr = _run([*command(installation, core), *arguments], directory, environment, timeout_s)
    except subprocess.TimeoutExpired as error:
        raise UserError(f"The emulated {core.name} did not end within {timeout_s:.0f} s.") from error
    finally:
        (directory / "python").unlink()
    if code != 0:
        raise EmulatorFailed(stderr.decode(errors="replace"))
    return (directory / LOG).read_text()


def _run(
    command: list[str], directory: Path, environment: Mapping[str, str], timeout_s: float
) -> tuple[int, bytes]:
    """Run with guest.py as standard input; returns the exit code and standard error."""
    with (
        GUEST_SCRIPT.open("rb") as script,
        subprocess.Popen(
            command,
            cwd=directory,
            env=environment,
            stdin=script,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        ) as process,
    ):
        try:
            _, stderr = process.communicate(timeout=timeout_s)
        except BaseException:  # also Ctrl-C, of which a session of its own hears nothing
            os.killpg(process.pid, signal.SIGKILL)  # with the process that the guest has forked for a file
            raise
    return process.returncode, stderr


def command(installation: Installation, core: Core) -> list[str]:
    """Return the command line up to the arguments of guest.py, which comes from standard input.

    Every path that the guest sees is the same wherever the installation lies: the script has none, Python is
    called by a link in the working directory, and modules are found below the emulated root.
    """
    libraries = [installation.host / name for name in ("lib", "usr/lib")]
    search = [str(path) for library in libraries for path in (library, *sorted(library.glob("*-linux-gnu*")))]
    qemu = [str(loader(installation)), "--library-path", ":".join(search)]
    qemu += [str(installation.host / "usr/bin/qemu-aarch64"), "-L", str(installation.root(core))]
    qemu += ["-cpu", core.name, "-0", f"/{GUEST_PYTHON}"]
    qemu += ["-plugin", str(installation.plugin), "-d", "plugin", "-D", LOG]
    return [*qemu, "./python", "-S", "-P", "-"]


def loader(installation: Installation) -> Path:
    """The dynamic loader that belongs to the unpacked QEMU, so that the host's C library need not be as new.

    Not the one under lib64: that is a link to an absolute path, which is the host's own loader.
    """
    return next(iter(sorted((installation.host / "lib").glob("*-linux-gnu*/ld-linux*.so.*"))))


def link_files(files: list[Path], directory: Path) -> None:
    """Give the files the names under which guest.py counts them."""
    for index, file in enumerate(files):
        (directory / f"{index:04d}.tflite").symlink_to(file)
