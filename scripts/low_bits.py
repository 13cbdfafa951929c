"""What bits below 8 bring, and what they do not: said wherever a person could expect speed of them."""

import json
from collections.abc import Iterable
from pathlib import Path

import onnx

from amc.errors import UserError
from amc.export.exporter import QUANTIZATION_KEY
from amc.package import MODEL_FILE


def low_bits_note(bits: Iterable[int]) -> str | None:
    """Why weights of fewer than 8 bits are not faster; None where there are none.

    Args:
        bits: of the weights of all layers.
    """
    low = sorted({width for width in bits if width < 8})
    if not low:
        return None
    said = f"{low[0]} bits" if len(low) == 1 else f"{low[0]} to {low[-1]} bits"
    return (
        f"Weights of {said} save bytes in {MODEL_FILE} and no time: no runtime here has convolutions for "
        "fewer than 8 bits; they compute with such codes in 8-bit integers."
    )


def weight_bits_of(file: Path) -> list[int]:
    """Bits of weights that an exported ONNX file says it has; a TFLite file asks the one beside it."""
    told = file.with_suffix(".onnx")
    if not told.is_file():
        return []
    said = {entry.key: entry.value for entry in onnx.load(told, load_external_data=False).metadata_props}
    return [int(bits) for bits in json.loads(said.get(QUANTIZATION_KEY, "{}")).get("weights", {})]


def refuse_packages(files: Iterable[Path]) -> None:
    """Refuse to measure packed weights.

    Raises:
        UserError: one of the files is no model that a runtime reads.
    """
    for file in files:
        if file.suffix == ".safetensors":
            raise UserError(
                f"{file} holds packed weights, with which no runtime computes: codes of fewer than 8 bits "
                "save bytes and no time. Measure the ONNX or TFLite files that were exported beside it."
            )
