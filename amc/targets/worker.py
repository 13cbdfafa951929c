"""The measuring process: `python -m amc.targets.worker ENGINE [CORE]`.

It reads one JSON request a line from standard input and writes one JSON reply a line to standard output:

    {"op": "measure", "files": [...], "time_limit_s": 30}             -> {"timings": [...]}
    {"op": "run", "file": ..., "inputs": "x.npy", "outputs": "y.npy"} -> {"shape": [...]}
    anything that fails                                               -> {"error": "..."}

It ends when its standard input does, hence with its parent. It imports no torch, and the runtime only after
it has pinned itself: threads that the runtime starts inherit the pinning.
"""

import functools
import gc
import json
import os
import signal
import sys
import time
from collections import defaultdict, deque
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from amc.targets.base import Timing
from amc.targets.core_lock import choose_core, core_lock, pin
from amc.targets.protocol import Settings, measure

if TYPE_CHECKING:
    from amc.targets.engine import Load, Session

RUN_BATCH = 100
"""Images at once when a model with a free batch dimension is scored."""
SESSIONS_KEPT = 8
REFERENCE_MEMORY = 20
"""The reference's best is taken over so many measurements: a machine that slows down for good is believed."""

FileKey = tuple[str, int, int]


class Worker:
    """Loaded models, and what is known about each reference.

    Args:
        load: the runtime's loader.
        core: the core this process is pinned to.
    """

    def __init__(self, load: "Load", core: int):
        self.core = core
        self._reference_best: dict[FileKey, deque[float]] = defaultdict(
            lambda: deque(maxlen=REFERENCE_MEMORY)
        )
        # The reference is used in every measurement, so it is never the one that is dropped.
        self._session = functools.lru_cache(maxsize=SESSIONS_KEPT)(lambda key, batch: load(key[0], batch))

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one request; whatever goes wrong becomes the reply's `error`."""
        try:
            if request["op"] == "measure":
                timings = self.measure(request["files"], float(request["time_limit_s"]))
                return {"timings": [timing.to_json() for timing in timings]}
            return {"shape": self.run(request["file"], request["inputs"], request["outputs"])}
        except Exception as error:
            return {"error": _one_line(error)}

    def measure(self, files: list[str], time_limit_s: float) -> list[Timing]:
        """Time the files at batch 1; the first is the reference."""
        keys = [_file_key(file) for file in files]
        sessions = [self._session(key, 1) for key in keys]
        calls = [session.bind(_noise_input(session)) for session in sessions]
        memory = self._reference_best[keys[0]]
        with core_lock(self.core):
            timings = measure(
                calls,
                time.perf_counter,
                settings=Settings(time_limit_s=time_limit_s),
                reference_best=min(memory, default=None),
            )
        memory.append(timings[0].best)
        return timings

    def run(self, file: str, inputs: str, outputs: str) -> list[int]:
        """Read `[N, ...]` from one .npy file, write the model's outputs to another, return their shape."""
        data = np.load(inputs, allow_pickle=False)
        session = self._session(_file_key(file), RUN_BATCH)
        if len(session.shape) != data.ndim or not _fits(session.shape[1:], data.shape[1:]):
            wanted, given = _shape_text(session.shape), _shape_text(data.shape)
            raise ValueError(f"its input is {wanted}, the data are {given}")
        with core_lock(self.core):
            result = _run_in_batches(session, data, session.shape[0] or min(RUN_BATCH, len(data)))
        np.save(outputs, result, allow_pickle=False)
        return list(result.shape)


def _run_in_batches(session: "Session", data: np.ndarray, batch: int) -> np.ndarray:
    """Run `[N, ...]` in batches of exactly `batch`; the last one is filled up with its own last image."""
    parts = []
    for start in range(0, len(data), batch):
        part = data[start : start + batch]
        missing = batch - len(part)
        filled = np.concatenate([part, part[-1:].repeat(missing, axis=0)]) if missing else part
        # The runtime may reuse its output memory in the next call: copy.
        parts.append(np.array(session.bind(np.ascontiguousarray(filled))())[: len(part)])
    return np.concatenate(parts)


def _file_key(file: str) -> FileKey:
    """Identify a file's content cheaply: a file that was written again must be loaded again."""
    status = Path(file).stat()
    return file, status.st_mtime_ns, status.st_size


def _noise_input(session: "Session") -> np.ndarray:
    """Return a fixed random input of batch 1; zeros would let denormals and sparsity change the time."""
    shape = [1, *(size for size in session.shape[1:] if size is not None)]
    if session.shape[0] not in (1, None) or len(shape) != len(session.shape):
        raise ValueError(f"its input is {_shape_text(session.shape)}; latency needs batch 1 and fixed sizes")
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _fits(expected: tuple[int | None, ...], actual: tuple[int, ...]) -> bool:
    return all(want in (None, have) for want, have in zip(expected, actual, strict=True))


def _shape_text(shape: tuple[int | None, ...]) -> str:
    return "x".join("N" if size is None else str(size) for size in shape)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return (text or type(error).__name__)[:400]


def _serve(worker: Worker, requests: IO[str], replies: IO[str]) -> None:
    for line in requests:
        gc.disable()
        reply = worker.answer(json.loads(line))
        gc.enable()
        replies.write(json.dumps(reply) + "\n")
        replies.flush()


def main(arguments: list[str]) -> None:
    """Serve requests until standard input ends."""
    import importlib

    # Ctrl-C reaches the whole terminal group; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Runtimes print: keep their words out of the replies.
    replies = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    core = choose_core(int(arguments[1]) if len(arguments) > 1 else None)
    pin(core)
    module, _, name = arguments[0].partition(":")
    worker = Worker(getattr(importlib.import_module(module), name), core)
    try:
        _serve(worker, sys.stdin, replies)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
