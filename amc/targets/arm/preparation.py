"""Prepare the emulated ARM core, step by step."""

import importlib.util
import secrets
import shutil
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from amc.errors import UserError
from amc.files import write_json
from amc.targets.arm import counts, debian, emulator
from amc.targets.arm.cores import CORES, CORTEX_A76, write_system_files
from amc.targets.arm.installation import (
    GUEST_BYTECODE,
    GUEST_SITE,
    LITERT_VERSION,
    NUMPY_VERSION,
    PLUGIN_SOURCE,
    Installation,
    recipe,
)

NEEDED_BYTES = 1_000_000_000
"""Free space at the most, downloads included; about a third of it stays."""
TRIAL_LIMIT_S = 300.0
HOST_PACKAGES = ("qemu-user",)
GUEST_PACKAGES = ("python3.11-minimal", "libpython3.11-stdlib", "libstdc++6")
WHEELS = (f"ai-edge-litert=={LITERT_VERSION}", f"numpy=={NUMPY_VERSION}")
PLATFORMS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")
TOOLS = {"apt-get": "apt", "dpkg": "dpkg", "gcc": "gcc"}
"""Programs of the host, and the Debian packages that hold them."""


@dataclass(frozen=True)
class Step:
    """One step of the preparation.

    Attributes:
        title: what it does, in a few words.
        explanation: why, and with which means.
        act: does it.
    """

    title: str
    explanation: str
    act: Callable[[], None]


@dataclass
class Preparation:
    """Prepares an installation in a directory beside its place and moves it there when it is whole.

    Attributes:
        target: where it will be.
        mirror: base address of a Debian mirror.
        work: where it is made; a new directory each time, because programs that a killed preparation has
            started may still write to the old one.
        versions: of the packages, as they become known.
    """

    target: Installation
    mirror: str
    work: Installation = field(init=False)
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        path = self.target.path
        self.work = Installation(path.with_name(f"{self._prefix}{secrets.token_hex(4)}"))

    @property
    def _prefix(self) -> str:
        return f".{self.target.path.name}.partial-"

    @property
    def downloads(self) -> Path:
        """What is removed when all is unpacked."""
        return self.work.path / "downloads"

    def discard(self) -> None:
        """Remove what is half made; there is nothing to remove after the last step."""
        shutil.rmtree(self.work.path, ignore_errors=True)

    def steps(self) -> list[Step]:
        """Return what there is to do, in order."""
        apt = debian.PrivateApt(self.downloads / "apt", self.mirror)
        wheels = " and ".join(WHEELS)
        return [
            Step(
                "Fetch Debian's package lists",
                f"A private apt-get reads {self.mirror}, checks Debian's signature and keeps its state in "
                "the new directory. Nothing is installed on this system and no privileges are needed.",
                lambda: self._fetch_lists(apt),
            ),
            Step(
                "Unpack QEMU for this machine",
                f"{', '.join(HOST_PACKAGES)} and the libraries it needs, by dpkg -x. It emulates single ARM "
                "programs, not a whole machine, and takes plugins that see every block of instructions.",
                lambda: self._unpack_host(apt),
            ),
            Step(
                "Unpack a small ARM system",
                f"{', '.join(GUEST_PACKAGES)} for arm64 with their libraries: just enough to run Python.",
                lambda: self._unpack_guest(apt),
            ),
            Step(
                "Unpack LiteRT for ARM",
                f"pip downloads the aarch64 wheels {wheels}; the interpreter imports nothing else.",
                self._unpack_wheels,
            ),
            Step(
                "Describe the cores",
                f"/proc/cpuinfo and /sys as on a machine with one {' or '.join(c.name for c in CORES)}: "
                "LiteRT chooses its kernels by them, and would otherwise find this machine's.",
                self._describe_cores,
            ),
            Step(
                "Compile the counting plugin",
                f"gcc compiles {PLUGIN_SOURCE.name}, about a hundred lines: it adds up the instructions of "
                "every block that runs, and writes the sum down whenever the program sets a mark.",
                self._compile_plugin,
            ),
            Step(
                "Try it",
                "LiteRT is loaded in the emulator once, and the bytecode is kept, which saves seconds of "
                "every later start. Only then is the directory marked as prepared and moved to its place.",
                self._finish,
            ),
        ]

    def _fetch_lists(self, apt: debian.PrivateApt) -> None:
        for leftover in self.work.path.parent.glob(f"{self._prefix}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self.work.path.mkdir(parents=True)
        apt.update()

    def _unpack_host(self, apt: debian.PrivateApt) -> None:
        archives = apt.download(HOST_PACKAGES, debian.own_architecture())
        debian.unpack(archives, self.work.host)
        self.versions["qemu-user"] = debian.versions(archives)["qemu-user"]
        for program in (self.work.host / "usr/bin").iterdir():
            if program.name != "qemu-aarch64":  # the emulators of thirty other architectures, 85 MB
                program.unlink()
        shutil.rmtree(self.work.host / "usr/share")

    def _unpack_guest(self, apt: debian.PrivateApt) -> None:
        archives = apt.download(GUEST_PACKAGES, "arm64")
        debian.unpack(archives, self.work.guest)
        self.versions |= debian.versions(archives)
        shutil.rmtree(self.work.guest / "usr/share")
        # The emulated loader would find the host's cache of libraries otherwise; it ignores an empty one.
        (self.work.guest / "etc/ld.so.cache").write_bytes(b"")

    def _unpack_wheels(self) -> None:
        folder = self.downloads / "wheels"
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        pip += ["--python-version", "311", "--implementation", "cp", "--dest", str(folder)]
        pip += [part for platform in PLATFORMS for part in ("--platform", platform)]
        debian.run_tool([*pip, *WHEELS], f"download {' and '.join(WHEELS)} with pip")
        for wheel in folder.glob("*.whl"):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(self.work.guest / GUEST_SITE)

    def _describe_cores(self) -> None:
        for core in CORES:
            root = self.work.root(core)
            write_system_files(core, root)
            for directory in self.work.guest.iterdir():
                (root / directory.name).symlink_to(Path("../../guest") / directory.name)

    def _compile_plugin(self) -> None:
        options = ["-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-o", str(self.work.plugin)]
        debian.run_tool(["gcc", *options, str(PLUGIN_SOURCE)], "compile the counting plugin")

    def _finish(self) -> None:
        try_emulator(self.work)
        shutil.rmtree(self.downloads)
        write_json(self.work.marker, {"recipe": recipe(), "versions": self.versions})
        if self.target.path.exists():
            shutil.rmtree(self.target.path)
        self.work.path.replace(self.target.path)


def try_emulator(installation: Installation) -> None:
    """Load LiteRT in the emulator, keep the bytecode of the modules, and count nothing.

    Raises:
        UserError: that does not work.
    """
    # The real path: QEMU looks below its root for files to read, but creates files where the name says.
    bytecode = {
        "PYTHONPYCACHEPREFIX": str(installation.guest / GUEST_BYTECODE),
        "PYTHONDONTWRITEBYTECODE": "",
    }
    environment = emulator.ENVIRONMENT | bytecode
    try:
        with emulator.working_directory() as directory:
            arguments = ["count", "0"]
            log = emulator.emulate(installation, CORTEX_A76, directory, arguments, TRIAL_LIMIT_S, environment)
    except emulator.EmulatorFailed as error:
        raise UserError(f"The emulated Python does not run: {error}.") from error
    counts.inferences(log, 0)


def check_host(target: Installation) -> None:
    """Raise UserError if this machine lacks what the preparation needs, or its place is taken."""
    for program, package in TOOLS.items():
        if shutil.which(program) is None:
            raise UserError(
                f"The preparation needs {program}: install it, on Debian by apt-get install {package}."
            )
    if not debian.KEYRING.is_file():
        raise UserError(f"There is no {debian.KEYRING}: run apt-get install debian-archive-keyring.")
    if importlib.util.find_spec("pip") is None:
        raise UserError("The preparation needs pip in this Python: run python -m ensurepip.")
    if target.path.exists() and not target.marker.is_file() and _is_taken(target.path):
        raise UserError(f"{target.path} exists and was not made by this script: give another --out.")
    existing = next(parent for parent in target.path.parents if parent.exists())
    if shutil.disk_usage(existing).free < NEEDED_BYTES:
        raise UserError(f"The preparation needs {NEEDED_BYTES / 1e9:.0f} GB free in {existing}.")


def _is_taken(path: Path) -> bool:
    return not path.is_dir() or any(path.iterdir())
