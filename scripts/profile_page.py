"""A target's profile as a person reads it: tables, sentences and a plot."""

import io
from collections.abc import Sequence
from typing import Any, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.table import Table

from amc.targets import Profile
from amc.targets.calibration import Curve
from amc.targets.profiling_decision import relative_latency, width_multiple
from amc.targets.profiling_probe import KINDS, SIDE

LINE: dict[str, Any] = {"marker": "o", "markersize": 3, "linewidth": 1.4}
CROSSES: dict[str, Any] = {"marker": "x", "markersize": 6, "linestyle": "none"}
COLORS = {32: "#8a8f98", 8: "#3b7dd8", 4: "#e8710a"}


class Runtime(Protocol):
    """What a page says of a target: one that is here, or one that was measured elsewhere."""

    @property
    def name(self) -> str:
        """The target's name."""

    @property
    def runtime_version(self) -> str:
        """Version of the runtime."""

    @property
    def unit(self) -> str:
        """What its costs count."""


def curve_table(profile: Profile, target: Runtime) -> Table:
    """Latency of one layer against its channels, one column a kind and number of bits."""
    curves = [curve for kind in KINDS for curve in _curves_of(profile, kind)]
    table = Table()
    table.add_column("channels", justify="right")
    for curve in curves:
        # A kind's name stands once, over its first column.
        over = curve.kind if curve.bits == 32 else ""
        table.add_column(f"{over}\n{_label(curve.bits)}", justify="right")
    for width in sorted({width for curve in curves for width in curve.latencies}):
        cells = [curve.latencies.get(width) for curve in curves]
        texts = ("" if cell is None else f"{cell * _scale(target):.2f}" for cell in cells)
        table.add_row(str(width), *texts)
    return table


def caption(target: Runtime) -> str:
    """What the figures of the table are."""
    return (
        f"{target.name} {target.runtime_version}, {unit(target)} a layer, as many input as output channels, "
        f"{SIDE}x{SIDE} pixels, batch 1 on one core"
    )


def sentences(profile: Profile, target: Runtime) -> list[str]:
    """What the curves come to, and how far they can be trusted."""
    steps = [_step_sentence(profile, target, bits) for bits in (8, 32)]
    bits = [_bits_sentence(profile, target, 8, 32)]
    fewer = sorted({curve.bits for curve in profile.curves} - {8, 32}, reverse=True)
    bits += [_bits_sentence(profile, target, few, 8) for few in fewer]
    doubt = "The machine was too busy for reliable timings: this profile is not remembered."
    return [*steps, *bits, *([] if profile.reliable else [doubt])]


def profile_png(profile: Profile, target: Runtime) -> bytes:
    """The curves as an image, one panel a kind and one line a number of bits."""
    figure = Figure(figsize=(8.0, 3.6), dpi=150, layout="constrained")
    for kind, axes in zip(KINDS, figure.subplots(1, len(KINDS)), strict=True):
        _panel(axes, kind, _curves_of(profile, kind), target)
    figure.axes[0].set_ylabel(f"one layer, {unit(target)}")
    figure.axes[0].legend(frameon=False, fontsize=9, loc="upper left")
    figure.suptitle(f"{target.name} {target.runtime_version}", fontsize=11)
    png = io.BytesIO()
    figure.savefig(png, format="png")
    return png.getvalue()


def _curves_of(profile: Profile, kind: str) -> list[Curve]:
    curves = [curve for curve in profile.curves if curve.kind == kind]
    return sorted(curves, key=lambda curve: -curve.bits)


def _step_sentence(profile: Profile, target: Runtime, bits: int) -> str:
    """The step of all kinds together, and that of each kind."""
    curves = [curve for curve in profile.curves if curve.bits == bits]
    steps = {curve.kind: width_multiple([curve]) for curve in curves}
    step = profile.multiple_for(bits)
    what = f"channels pay in steps of {step}" if step > 1 else "no step of channels suits all layers"
    each = ", ".join(f"{kind} {steps[kind]}" for kind in steps)
    return f"In {_label(bits)}, {what} on {target.name} ({each})."


def _bits_sentence(profile: Profile, target: Runtime, bits: int, wider: int) -> str:
    """Whether fewer bits are faster, with the figures of each kind."""
    found = {kind: relative_latency(profile.curves, kind, bits, wider) for kind in KINDS}
    ratios = ", ".join(f"{ratio:.2f} ({kind})" for kind, ratio in found.items() if ratio is not None)
    figures = f"{bits} bits take {ratios} times as long as {wider}"
    if bits in profile.fast_bits:
        return f"{bits} bits pay on {target.name}: {figures}."
    which = "weights below 8 bits" if bits < 8 else f"{bits} bits"
    return f"{which} bring nothing on {target.name}: {figures}."


def _panel(axes: Axes, kind: str, curves: Sequence[Curve], target: Runtime) -> None:
    """Latencies are logarithmic: a step is then as visible at 16 channels as at 64."""
    axes.set_yscale("log")
    for curve in curves:
        widths = sorted(curve.latencies)
        latencies = [curve.latencies[width] * _scale(target) for width in widths]
        style = LINE if curve.bits in (8, 32) else CROSSES
        axes.plot(widths, latencies, label=_label(curve.bits), color=COLORS.get(curve.bits), **style)
    _ticks(axes, max(width for curve in curves for width in curve.latencies))
    axes.set_title("depthwise 3x3" if kind == "depthwise" else kind, fontsize=10)
    axes.set_xlabel("channels")
    axes.spines[["top", "right"]].set_visible(False)


def _ticks(axes: Axes, widest: int) -> None:
    """A line at every multiple of 8 channels, and plain numbers on both axes."""
    axes.set_xticks(range(0, widest + 1, 16))
    axes.set_xticks(range(0, widest + 1, 8), minor=True)
    axes.grid(axis="x", which="both", alpha=0.35, linewidth=0.6)
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(NullLocator())


def _label(bits: int) -> str:
    return {32: "fp32", 8: "int8"}.get(bits, f"{bits} bits")


def unit(target: Runtime) -> str:
    """What the printed figures count."""
    return "microseconds" if target.unit == "ms" else target.unit


def _scale(target: Runtime) -> float:
    return 1e3 if target.unit == "ms" else 1.0
