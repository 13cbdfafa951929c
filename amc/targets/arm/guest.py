"""What runs inside the emulator: `guest.py count N` or `guest.py run`, in the directory of its files.

    count N: infers with 0000.tflite to N-1 .tflite and sets marks that the counting plugin sees.
    run: infers with model.tflite on the rows of inputs.npy and writes outputs.npy.

It is read from standard input by the Python of the emulated system and may import nothing of AMC.
"""

import contextlib
import gc
import os
import sys
from collections.abc import Callable
from typing import Any

SECTION = 0x7AC00000
"""First of the file descriptors whose closing begins a section; as in count_instructions.c."""
EMPTY_RUNS = 30
"""Pairs of marks with nothing between, counted first: what the marks themselves cost.

The first ones differ, because Python rewrites the bytecode of what it runs often; the inferences profit.
"""
RUNS = 5
"""Inferences with each file; counts.py says what becomes of them."""
REFUSED, REASON = "refused file", "reason:"
"""How lines of standard error begin that the process that started the emulator reads."""


def count(files: int) -> None:
    """Set marks around every inference with file k, in section k + 1; section 0 is empty.

    Each file has a child process of its own. Where data lie decides a few dozen instructions (of copies that
    start aligned or not); this way every file finds the same memory, whatever was counted before it.
    """
    import numpy
    from ai_edge_litert.interpreter import Interpreter

    gc.disable()
    _between_marks(_nothing, 0, EMPTY_RUNS)
    for index in range(files):
        child = os.fork()
        if child == 0:
            os._exit(_count_file(Interpreter, numpy.zeros, index))
        if os.waitpid(child, 0)[1] != 0:
            print(f"{REFUSED} {index}", file=sys.stderr)
            sys.exit(1)


def _count_file(interpreter: Callable[..., Any], zeros: Callable[..., Any], index: int) -> int:
    try:
        loaded = _load(interpreter, f"{index:04d}.tflite")
        detail = loaded.get_input_details()[0]
        loaded.set_tensor(detail["index"], zeros(detail["shape"], detail["dtype"]))
        # What invoke() calls. Its own Python code would have to be run a dozen times until it is steady.
        _between_marks(loaded._interpreter.Invoke, index + 1, RUNS)
    except Exception as error:  # whatever it is, the process that started the emulator shall know it
        print(f"{REASON} {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def run() -> None:
    """Infer with model.tflite, one row at a time: [N, C, H, W] outside, [N, H, W, C] in the file."""
    import numpy
    from ai_edge_litert.interpreter import Interpreter

    interpreter = _load(Interpreter, "model.tflite")
    source, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    outputs = []
    for row in numpy.load("inputs.npy", allow_pickle=False):
        interpreter.set_tensor(
            source["index"], numpy.moveaxis(row[None], 1, -1) if row.ndim == 3 else row[None]
        )
        interpreter.invoke()
        output = interpreter.get_tensor(result["index"])[0]
        outputs.append(numpy.moveaxis(output, -1, 0) if output.ndim == 3 else output)
    numpy.save("outputs.npy", numpy.stack(outputs), allow_pickle=False)


def _load(interpreter: Callable[..., Any], path: str) -> Any:
    loaded = interpreter(path, num_threads=1)
    detail = loaded.get_input_details()[0]
    loaded.resize_tensor_input(detail["index"], [1, *detail["shape"][1:]])
    loaded.allocate_tensors()
    return loaded


def _between_marks(call: Callable[[], object], section: int, times: int) -> None:
    with contextlib.suppress(OSError):
        os.close(SECTION + section)
    mark = os.sched_yield
    for _ in range(times):
        mark()
        call()
        mark()


def _nothing() -> None:
    pass


def main() -> None:
    """Do what the arguments say."""
    if sys.argv[1] == "count":
        count(int(sys.argv[2]))
    else:
        try:
            run()
        except Exception as error:
            print(f"{REASON} {error}", file=sys.stderr)
            sys.exit(1)


if __name__ == "__main__":
    main()
