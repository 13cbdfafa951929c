"""The values that flow through a file under construction, whatever its format."""

from dataclasses import dataclass

from amc.export.grid import Grid


@dataclass(frozen=True)
class Value:
    """A tensor of the file.

    Attributes:
        name: its name in the file.
        shape: its shape in the traced network, batch first; in an ONNX handler () where nobody asks.
        grid: the grid that all its elements lie on, or None. TFLite stores such a tensor as int8 codes.
        stored: ONNX only: whether `name` is what a DequantizeLinear gives, as runtimes want it in front of
            an int8 kernel; a pooled or sliced tensor lies on the grid of its source without that.
    """

    name: str
    shape: tuple[int, ...] = ()
    grid: Grid | None = None
    stored: bool = False
