"""The directory that `scripts/setup_arm.py` prepares: what is where, and whether it is whole."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

from amc.errors import UserError
from amc.files import read_json
from amc.targets.arm.cores import CORES, Core

LAYOUT = 1
"""Raised whenever files move within the prepared directory."""
SETUP_COMMAND = "python -m scripts.setup_arm"
LITERT_VERSION = "2.3.0"
NUMPY_VERSION = "2.4.6"
DEBIAN_SUITE = "bookworm"
PLUGIN_SOURCE = Path(__file__).with_name("count_instructions.c")
GUEST_PYTHON = "usr/bin/python3.11"
GUEST_SITE = "opt/site"
GUEST_BYTECODE = "opt/bytecode"


@functools.cache
def recipe() -> str:
    """Return a digest of what this version of AMC prepares; another one has to be prepared anew."""
    parts = (LAYOUT, LITERT_VERSION, NUMPY_VERSION, DEBIAN_SUITE, CORES, PLUGIN_SOURCE.read_text())
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Installation:
    """A prepared directory.

    Attributes:
        path: absolute.
    """

    path: Path

    @property
    def marker(self) -> Path:
        """The file that is written last: its presence says that everything else is there."""
        return self.path / "prepared.json"

    @property
    def host(self) -> Path:
        """Root of the packages of this machine's architecture: QEMU and its libraries."""
        return self.path / "host"

    @property
    def guest(self) -> Path:
        """Root of the arm64 packages: Python, wheels and compiled modules."""
        return self.path / "guest"

    @property
    def plugin(self) -> Path:
        """The compiled counting plugin."""
        return self.path / "count_instructions.so"

    def root(self, core: Core) -> Path:
        """The emulated system with this core: the guest's directories beside /proc and /sys of its own."""
        return self.path / "cores" / core.name

    def versions(self) -> dict[str, str]:
        """Return the packages by name.

        Raises:
            UserError: nothing is prepared, or another version of AMC prepared it.
        """
        if not self.marker.is_file():
            raise UserError(f"The emulated ARM core is not prepared in {self.path}: run {SETUP_COMMAND}.")
        marker = read_json(self.marker)
        if not isinstance(marker, dict) or marker.get("recipe") != recipe():
            raise UserError(f"{self.path} was prepared by another version of AMC: run {SETUP_COMMAND}.")
        return {str(name): str(version) for name, version in marker["versions"].items()}

    def is_ready(self) -> bool:
        """Whether everything is prepared, by this version of AMC."""
        try:
            return bool(self.versions())
        except UserError:
            return False
