"""`export_model`: the files of one compressed network, each checked in its runtimes against torch."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, fx, nn

from amc.errors import UserError
from amc.export.check import Agree, Agreement, check_export
from amc.export.exporter import Exported, export_onnx, summarize
from amc.export.tflite import export_tflite
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear, with_plain_weight
from amc.quantization.protocol import PointQuantizer, Quantizer
from amc.quantization.uniform import NOT_QUANTIZED
from amc.recovery.calibrate import calibrate
from amc.slicing import clone_module
from amc.tasks.classification import same_class

FLOAT_FILE, INT8_FILE = "model.onnx", "model_int8.onnx"
ONNX, TFLITE = ".onnx", ".tflite"

FLOAT_TOLERANCE = 1e-4
"""Largest difference of any output, relative to the largest one."""
INT8_AGREEMENT = 0.99
"""Smallest share of its simulation's decisions, such as the classes of images, that an int8 file makes."""
COMPARABLE_DROP = 0.05
"""A network that lost more accuracy than this has narrow margins: its int8 agreement is only reported."""

Verdict = Literal["passed", "failed", "reported"]


@dataclass(frozen=True)
class CheckedFile:
    """One exported file and how it compares with the network in torch.

    Attributes:
        path: the file.
        size: bytes.
        exporter: "amc" or "torch" (`amc.export.Exported`).
        unsupported: the operator that our own exporter lacks, or None.
        quantization: bits to number of layers ("weights") and tensors ("activations").
        agreement: figures by runtime.
        verdict: whether every runtime keeps the bound; "reported" where there is none.
    """

    path: Path
    size: int
    exporter: str
    unsupported: str | None
    quantization: Mapping[str, Mapping[int, int]]
    agreement: Mapping[str, Agreement]
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON types; the path as the file's name."""
        return {**asdict(self), "path": self.path.name}


def export_model(
    model: fx.GraphModule,
    folder: Path | str,
    images: Tensor,
    *,
    calibration: Sequence[Tensor],
    drop: float,
    policy_digest: str = "",
    formats: Sequence[str] = (ONNX,),
    agree: Agree = same_class,
) -> list[CheckedFile]:
    """Write `model.onnx` in floats and, where anything is quantized, `model_int8.onnx`, and check both.

    What no runtime computes with in integers is written in floats; see `on_grids`.

    Args:
        model: compressed, calibrated, in evaluation mode; compared where it lies, on the CPU.
        folder: exists; files of these names are replaced.
        images: [N, C, H, W] to compare torch and the runtimes on, the test split's.
        calibration: unlabeled batches; re-estimate the statistics of the network in floats.
        drop: score that the network lost to the original, on the same images.
        policy_digest: stored in the files.
        formats: suffixes of the files to write; ".tflite" gives `model.tflite` and `model_int8.tflite`.
        agree: what the outputs decide, `Task.agreement`; by default the class of the largest logit.

    Returns:
        The files in the order in which they were written.

    Raises:
        UserError: the network cannot be exported.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder} to export to.")
    model = on_grids(model, calibration)
    quantized = any(summarize(model).values())
    floats = without_quantization(model, calibration) if quantized else model
    unlabeled = calibration[0] if calibration else None
    files = []
    for suffix in formats:
        plain, int8 = ((folder / name).with_suffix(suffix) for name in (FLOAT_FILE, INT8_FILE))
        files.append(_write(floats, plain, images, policy_digest, unlabeled, drop, agree))
        if quantized:
            files.append(_write(model, int8, images, policy_digest, unlabeled, drop, agree))
        else:
            int8.unlink(missing_ok=True)  # of an earlier policy
    return files


def formats_for(suffix: str) -> tuple[str, ...]:
    """The formats to export for a target that reads files of this suffix: always ONNX, TFLite if it does."""
    return (ONNX, TFLITE) if suffix == TFLITE else (ONNX,)


def write_file(
    model: fx.GraphModule,
    example: Tensor,
    path: Path,
    policy_digest: str = "",
    calibration: Tensor | None = None,
) -> Exported:
    """Write one file in the format of its suffix; see `export_onnx` and `export_tflite`."""
    if path.suffix == TFLITE:
        return export_tflite(model, example, path, policy_digest=policy_digest)
    return export_onnx(model, example, path, policy_digest=policy_digest, calibration=calibration)


def on_grids(model: fx.GraphModule, calibration: Sequence[Tensor]) -> fx.GraphModule:
    """What a file can hold of a network: only codes that int8 kernels know stay codes.

    Weights under other quantizers become floats with the same values; points under others quantize no more,
    and the batch-norm statistics are re-estimated without them.

    Args:
        model: compressed and calibrated; not changed, and returned as it is if there is nothing to do.
        calibration: unlabeled batches.
    """
    foreign = {
        name for name, part in model.named_modules() if isinstance(part, Quantizer) and not part.integer_codes
    }
    if not foreign:
        return model
    copy, dropped = clone_module(model), False
    for name, module in list(copy.named_modules()):
        if isinstance(module, QuantizedConv2d | QuantizedLinear) and f"{name}.quantizer" in foreign:
            copy.set_submodule(name, with_plain_weight(module))
        elif isinstance(module, PointQuantizer) and name in foreign:
            copy.set_submodule(name, nn.Identity())
            dropped |= module.enabled
    if dropped:
        calibrate(copy, calibration)
    return copy


def without_quantization(model: fx.GraphModule, calibration: Sequence[Tensor]) -> fx.GraphModule:
    """The same network in floats, its batch-norm statistics re-estimated; `model` is not changed."""
    floats = clone_module(model)
    for name, module in list(floats.named_modules()):
        if isinstance(module, PointQuantizer):
            module.bits, module.calibrating = NOT_QUANTIZED, False
        elif isinstance(module, QuantizedConv2d | QuantizedLinear):
            floats.set_submodule(name, _plain_layer(module))
    calibrate(floats, calibration)
    return floats


def _plain_layer(layer: QuantizedConv2d | QuantizedLinear) -> nn.Module:
    """The layer as it was before a quantizer was put in front of its weight; shares its parameters."""
    kind = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    plain = kind.__new__(kind)
    plain.__dict__.update(layer.__dict__)
    plain._modules = {name: part for name, part in layer._modules.items() if name != "quantizer"}
    return plain


def _write(
    model: fx.GraphModule,
    path: Path,
    images: Tensor,
    digest: str,
    unlabeled: Tensor | None,
    drop: float,
    agree: Agree,
) -> CheckedFile:
    exported = write_file(model, images[:1], path, digest, unlabeled)
    agreement = check_export(path, model, images, agree=agree)
    return CheckedFile(
        path,
        exported.size,
        exported.exporter,
        exported.unsupported,
        exported.quantization,
        agreement,
        judge(agreement, exported.quantized, drop),
    )


def judge(agreement: Mapping[str, Agreement], quantized: bool, drop: float) -> Verdict:
    """Whether every runtime computes what torch does.

    Args:
        agreement: figures by runtime.
        quantized: whether the file is int8; then the decisions count, otherwise the numbers.
        drop: score that the network lost to the original.
    """
    if not quantized:
        good = all(figures.relative_error <= FLOAT_TOLERANCE for figures in agreement.values())
    elif drop > COMPARABLE_DROP:
        return "reported"
    else:
        good = all(figures.same_decisions >= INT8_AGREEMENT for figures in agreement.values())
    return "passed" if good else "failed"
