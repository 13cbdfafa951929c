"""The parent's end of the measuring process: start it, talk to it, start it again when it dies."""

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from pathlib import Path
from typing import IO, Any

from amc.errors import UserError

ANSWER_TIMEOUT_S = 600.0
PACKAGE_ROOT = Path(__file__).resolve().parents[2]


class WorkerDied(Exception):
    """The measuring process ended before it answered; the message quotes its last words."""


class RequestFailed(Exception):
    """The measuring process answered that it could not do what was asked."""


class MeasuringProcess:
    """A `python -m amc.targets.worker`, started at the first request.

    Args:
        engine: "package.module:load", imported in the process (see `amc.targets.engine`).
        core: the core to pin it to; by default the last one allowed.
        python: the interpreter; another one if the runtime lives in a virtual environment of its own.
    """

    def __init__(self, engine: str, core: int | None = None, python: str = sys.executable):
        self._command = [python, "-m", "amc.targets.worker", engine, *([] if core is None else [str(core)])]
        self._python = python
        self._process: subprocess.Popen[str] | None = None
        self._words: IO[str] | None = None
        self._owner = 0
        self._turn = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Process id while it runs, None otherwise."""
        return self._process.pid if self._alive() and self._process else None

    def request(self, message: dict[str, Any], timeout_s: float = ANSWER_TIMEOUT_S) -> dict[str, Any]:
        """Send a request and wait for its reply; a process that dies is started again once.

        Raises:
            RequestFailed: the worker answered with an error.
            UserError: it died twice over this request, or gave no answer in time.
        """
        with self._turn:
            try:
                reply = self._exchange(message, timeout_s)
            except WorkerDied:
                reply = self._second_try(message, timeout_s)
        if "error" in reply:
            raise RequestFailed(reply["error"])
        return reply

    def close(self) -> None:
        """End the process; a later request starts a new one."""
        if self._process and self._owner == os.getpid():
            _stop(self._process)
        self._process = None

    def _second_try(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        try:
            return self._exchange(message, timeout_s)
        except WorkerDied as error:
            raise UserError(f"The measuring process died twice over the same request: {error}.") from error

    def _exchange(self, message: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        if not self._alive():
            self._start()
        process = self._process
        assert process and process.stdin and process.stdout
        late = threading.Timer(timeout_s, process.kill)
        late.start()
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        except BaseException:
            # Ctrl-C: the reply to this request would be taken for the next one's.
            self.close()
            raise
        finally:
            timed_out = late.finished.is_set()
            late.cancel()
        if not line:
            self._give_up(timed_out, timeout_s)
        return json.loads(line)

    def _give_up(self, timed_out: bool, timeout_s: float) -> None:
        """Say why there was no reply; raises UserError after a time-out and WorkerDied otherwise."""
        process = self._process
        self.close()
        if timed_out:
            raise UserError(f"The measuring process gave no answer within {timeout_s:g} s and was stopped.")
        raise WorkerDied(f"exit code {process.returncode if process else None}{self._last_words()}")

    def _start(self) -> None:
        # A temporary file, not a pipe: nobody reads along, and a full pipe would stop the worker.
        self._words = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - lives as long as the process
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._words,
            text=True,
            env=self._environment(),
        )
        self._owner = os.getpid()
        weakref.finalize(self, _stop_if_owner, self._process, self._owner)

    def _environment(self) -> dict[str, str]:
        """One thread for every numerical library, and `amc` importable from any working directory."""
        roots = [str(PACKAGE_ROOT)]
        if self._python == sys.executable:
            roots += [path for path in sys.path if path]
        one = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        return {**os.environ, **one, "PYTHONPATH": os.pathsep.join(roots)}

    def _alive(self) -> bool:
        """Whether there is a process of ours; after a fork, the parent's is not ours to talk to."""
        return self._process is not None and self._owner == os.getpid() and self._process.poll() is None

    def _last_words(self) -> str:
        if self._words is None:
            return ""
        self._words.seek(0)
        lines = [line.strip() for line in self._words.read().splitlines() if line.strip()]
        return f", last words: {lines[-1][:300]}" if lines else ""


def _stop(process: "subprocess.Popen[str]") -> None:
    """Close the worker's input, which ends it, and make sure."""
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(OSError):
                pipe.close()
    try:
        process.wait(timeout=2)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _stop_if_owner(process: "subprocess.Popen[str]", owner: int) -> None:
    if owner == os.getpid():
        _stop(process)
