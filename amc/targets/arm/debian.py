"""Debian packages without touching the system: a private apt that downloads, and dpkg that unpacks."""

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from amc.errors import UserError
from amc.targets.arm.installation import DEBIAN_SUITE

KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
"""Debian's keys; without them apt could not tell its packages from anybody's."""


def run_tool(arguments: list[str], purpose: str) -> str:
    """Run a program and return its output; raises UserError with its last line if it fails."""
    environment = os.environ | {"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", env=environment)
    if done.returncode != 0:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise UserError(f"{arguments[0]} could not {purpose}: {lines[-1].strip().rstrip('.')}.")
    return done.stdout


def own_architecture() -> str:
    """Debian's name of this machine's architecture, as in "amd64"."""
    return run_tool(["dpkg", "--print-architecture"], "name this machine's architecture").strip()


@dataclass(frozen=True)
class PrivateApt:
    """apt with lists, status and archives of its own; needs no privileges and changes nothing elsewhere.

    The system's settings hold (a proxy, say), its sources do not: they may be those of another release.

    Attributes:
        folder: everything it writes.
        mirror: base address of a Debian mirror.
    """

    folder: Path
    mirror: str

    def update(self) -> None:
        """Fetch the package lists of this machine's architecture and of arm64."""
        for name in ("lists/partial", "archives/partial", "sources.d"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / "status").write_text("")  # nothing is installed, so every dependency is downloaded
        architectures = ",".join(dict.fromkeys((own_architecture(), "arm64")))
        source = f"deb [arch={architectures} signed-by={KEYRING}] {self.mirror} {DEBIAN_SUITE} main\n"
        (self.folder / "sources.list").write_text(source)
        # Without the option apt calls a mirror that it cannot reach a warning.
        options = [*self._options(own_architecture()), "-o", "APT::Update::Error-Mode=any"]
        run_tool(["apt-get", *options, "update"], f"fetch the package lists from {self.mirror}")

    def download(self, packages: tuple[str, ...], architecture: str) -> list[Path]:
        """Download packages and all that they depend on; returns the .deb files."""
        archives = self.folder / f"archives-{architecture}-{packages[0]}"
        (archives / "partial").mkdir(parents=True)
        options = [*self._options(architecture), "-o", f"Dir::Cache::archives={archives}"]
        action = ["--yes", "--no-install-recommends", "--download-only", "install", *packages]
        run_tool(["apt-get", *options, *action], f"download {', '.join(packages)} for {architecture}")
        return sorted(archives.glob("*.deb"))

    def _options(self, architecture: str) -> list[str]:
        settings = {
            "Dir::State": self.folder,
            "Dir::State::Lists": self.folder / "lists",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder,
            "Dir::Etc::SourceList": self.folder / "sources.list",
            "Dir::Etc::SourceParts": self.folder / "sources.d",
            "Acquire::Languages": "none",
            "APT::Architecture": architecture,
            "APT::Sandbox::User": "root",  # as root it would otherwise change to a user who cannot write here
        }
        architectures = dict.fromkeys((architecture, own_architecture(), "arm64"))
        pairs = [f"{name}={value}" for name, value in settings.items()]
        pairs += ["APT::Architectures=", *(f"APT::Architectures::={name}" for name in architectures)]
        return [part for pair in pairs for part in ("-o", pair)]


def unpack(archives: list[Path], root: Path) -> None:
    """Unpack .deb files below a directory, their installation scripts left alone."""
    root.mkdir(parents=True, exist_ok=True)
    for archive in archives:
        run_tool(["dpkg", "-x", str(archive), str(root)], f"unpack {archive.name}")


def versions(archives: list[Path]) -> dict[str, str]:
    """Return the versions by package from file names such as zlib1g_1%3a1.2.13_arm64.deb."""
    parts = (unquote(archive.name).split("_") for archive in archives)
    return {name: version for name, version, *_ in parts}
