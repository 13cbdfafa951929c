"""Measured latencies on disk: one JSON file a key, so that nothing is measured twice and nothing locks."""

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from amc.files import write_json
from amc.targets.base import Target, Timing
from amc.targets.machine import cpu_model
from amc.targets.protocol import PROTOCOL_VERSION

FILES_VERSION = 2
"""Raised whenever exporters write other files for the same policy; part of every timing's key."""


def default_cache_directory() -> Path:
    """Return the directory for everything AMC caches: `AMC_CACHE_DIR`, or `~/.cache/amc`."""
    return Path(os.environ.get("AMC_CACHE_DIR") or Path.home() / ".cache" / "amc")


class JsonCache:
    """A directory of JSON objects, addressed by what identifies them.

    A corrupt or foreign entry counts as absent. A cache that cannot be written costs time, not the run: it
    warns and goes on.
    """

    def __init__(self, directory: Path | str):
        self.directory = Path(directory)

    def get(self, identity: dict[str, Any]) -> dict[str, Any] | None:
        """Return the stored object, or None if there is none that is whole and of this identity."""
        try:
            entry = json.loads(self.path(identity).read_text())
            return entry["value"] if entry["identity"] == identity else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def put(self, identity: dict[str, Any], value: dict[str, Any]) -> None:
        """Store an object in one atomic step."""
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            write_json(self.path(identity), {"identity": identity, "value": value})
        except OSError as error:
            warnings.warn(
                f"Cannot write the cache {self.directory} ({error.strerror}); set AMC_CACHE_DIR to a "
                "directory that can be written.",
                stacklevel=2,
            )

    def path(self, identity: dict[str, Any]) -> Path:
        """Return the file that holds, or would hold, the object of this identity."""
        text = json.dumps(identity, sort_keys=True)
        return self.directory / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"


class LatencyCache:
    """Timings by executed policy.

    Args:
        directory: where they are kept; default `latency` in `default_cache_directory()`.
    """

    def __init__(self, directory: Path | str | None = None):
        self.store = JsonCache(directory or default_cache_directory() / "latency")

    def get(self, digest: str, target: Target) -> Timing | None:
        """Return the timing of what `digest` names on this target, CPU, runtime and protocol, or None.

        Args:
            digest: names the executed policy, the network *and the reference*, on which the ratio depends.
            target: its name and runtime version are part of the key.
        """
        value = self.store.get(identity(digest, target))
        try:
            return None if value is None else Timing.from_json(value)
        except (KeyError, TypeError, ValueError):
            return None

    def put(self, digest: str, target: Target, timing: Timing) -> None:
        """Store a timing; an unreliable one is not kept, so that a quieter moment can replace it."""
        if timing.reliable:
            self.store.put(identity(digest, target), timing.to_json())


def identity(digest: str, target: Target) -> dict[str, Any]:
    """Return everything that a measured number depends on."""
    return {
        "digest": digest,
        "target": target.name,
        "cpu": cpu_model(),
        "runtime": target.runtime_version,
        "protocol": PROTOCOL_VERSION,
        "files": FILES_VERSION,
    }
