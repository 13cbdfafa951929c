"""What the arguments of an operation mean, in terms that every file format can use."""

from math import prod
from typing import Any

from torch import nn

from amc.export.registry import Call


def mean_axes(call: Call) -> list[int]:
    """The axes of a mean, sorted and counted from the front."""
    rank, dims = len(call.x.shape), call.get("dim", 1)
    call.require(dims is not None, "over everything")
    return sorted(d % rank for d in ([dims] if isinstance(dims, int) else dims))


def tile(call: Call) -> tuple[int, ...]:
    """Height and width of the equal tiles of an adaptive pooling; raises Unsupported if they differ."""
    sizes = list(zip(call.x.shape[2:], call.shape[2:], strict=True))
    call.require(all(source % target == 0 for source, target in sizes), "of unequal tiles")
    return tuple(source // target for source, target in sizes)


def require_batch_kept(call: Call) -> None:
    """Refuse a reshaping that mixes images; raises Unsupported."""
    batch = call.x.shape[0]
    call.require(
        call.shape[:1] == (batch,) and prod(call.shape[1:]) == prod(call.x.shape[1:]), "across the batch"
    )


def new_order(call: Call) -> list[int]:
    """Which axis comes where, of a transposition or permutation that leaves the batch first."""
    rank = len(call.x.shape)
    call.require(len(call.args) > 1, "by keywords")
    given = call.args[1:] if not isinstance(call.args[-1], list | tuple) else call.args[-1]
    order = [int(axis) % rank for axis in given]
    if len(order) == 2 and rank != 2:
        first, second = order
        order = list(range(rank))
        order[first], order[second] = second, first
    call.require(len(order) == rank and order[0] == 0, "that moves the batch axis")
    return order


def slices(call: Call) -> list[tuple[int, slice]]:
    """The axes that an index cuts, and where; the batch is not among them."""
    source, index = call.args
    given = index if isinstance(index, tuple) else (index,)
    if Ellipsis in given:
        at = given.index(Ellipsis)
        missing = len(source.shape) - len(given) + 1
        given = (*given[:at], *[slice(None)] * missing, *given[at + 1 :])
    call.require(all(isinstance(s, slice) for s in given), "with an index that is not a slice")
    cut = [(axis, s) for axis, s in enumerate(given) if s != slice(None)]
    call.require(all(axis != 0 for axis, _ in cut), "along the batch")
    call.require(all((s.step or 1) > 0 for _, s in cut), "with a negative step")
    return cut


def padding(call: Call) -> tuple[list[int], list[int], float]:
    """How much of a constant comes before and after each axis, and the constant.

    Torch counts the axes from the last one.
    """
    amounts: Any = call.module.padding if isinstance(call.module, nn.ZeroPad2d) else call.get("pad", 1)
    mode, value = call.get("mode", 2, "constant"), call.get("value", 3) or 0
    call.require(mode == "constant" and all(a >= 0 for a in amounts), f"with mode {mode} or negative amounts")
    before, after = [0] * len(call.shape), [0] * len(call.shape)
    for axis, (low, high) in enumerate(zip(amounts[::2], amounts[1::2], strict=True), start=1):
        before[-axis], after[-axis] = low, high
    return before, after, float(value)
