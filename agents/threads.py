"""One torch thread for a while: small models learn faster so, and alike on every machine."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run with one torch thread, then with as many as before.

    Models this small learn faster on one core, and the result no longer depends on the machine's.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
