"""CPU seconds of a training that may be cut and resumed: a small file beside its checkpoints."""

import time
from pathlib import Path

from amc.files import read_json, write_json

CPU_FILE = "cpu_seconds.json"


class CpuClock:
    """CPU time of this process, behind that of the interrupted calls that it goes on from.

    What a call did after its last checkpoint is lost and done again, so its seconds do not count.

    Args:
        folder: of the training; an earlier call's seconds lie there.
        resume: whether those count.
    """

    def __init__(self, folder: Path, resume: bool) -> None:
        self.path = folder / CPU_FILE
        stored = read_json(self.path) if resume and self.path.exists() else {}
        self._before = float(stored["cpu_seconds"]) if isinstance(stored, dict) and stored else 0.0
        self._since = time.process_time()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._before + time.process_time() - self._since

    def keep(self) -> None:
        """Write them down; to be called with every checkpoint."""
        write_json(self.path, {"cpu_seconds": round(self.seconds, 1)})

    def forget(self) -> None:
        """Delete the file of a training that has ended."""
        self.path.unlink(missing_ok=True)
