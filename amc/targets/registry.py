"""Targets by name."""

import difflib
from collections.abc import Callable

from amc.errors import UserError
from amc.plugins import call_factory, load_factory
from amc.targets.base import Target

TargetFactory = Callable[[], Target]
_FACTORIES: dict[str, TargetFactory] = {}


def register_target(name: str, factory: TargetFactory) -> None:
    """Make a target known by name; a later registration of the same name replaces the earlier one."""
    _FACTORIES[name] = factory


def list_targets() -> list[str]:
    """Return the names of the registered targets, sorted."""
    return sorted(_FACTORIES)


def get_target(spec: str) -> Target:
    """Create a target.

    Args:
        spec: a registered name, or "package.module:factory" where `factory()` returns a `Target`.

    Raises:
        UserError: the name is unknown, or the factory cannot be loaded or returns something else.
    """
    target = _FACTORIES[spec]() if spec in _FACTORIES else _load(spec)
    if not isinstance(target, Target):
        raise UserError(f"{spec} returned {type(target).__name__}, not an amc.targets.Target.")
    return target


def _load(spec: str) -> object:
    if ":" in spec:
        return call_factory(spec, load_factory(spec), {})
    close = difflib.get_close_matches(spec, list_targets(), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise UserError(
        f"There is no target {spec!r} (known: {', '.join(list_targets())}, or package.module:factory){hint}"
    )


def _onnxruntime() -> Target:
    from amc.targets.onnxruntime_cpu import OnnxRuntimeTarget

    return OnnxRuntimeTarget()


def _openvino() -> Target:
    from amc.targets.openvino_cpu import OpenVinoTarget

    return OpenVinoTarget()


def _litert() -> Target:
    from amc.targets.litert_cpu import LiteRtTarget

    return LiteRtTarget()


def _cortex_a76() -> Target:
    from amc.targets.arm.cores import CORTEX_A76
    from amc.targets.arm.target import ArmInstructionsTarget

    return ArmInstructionsTarget(CORTEX_A76)


def _cortex_a53() -> Target:
    from amc.targets.arm.cores import CORTEX_A53
    from amc.targets.arm.target import ArmInstructionsTarget

    return ArmInstructionsTarget(CORTEX_A53)


register_target("arm-instructions", _cortex_a76)
register_target("arm-instructions-a53", _cortex_a53)
register_target("litert", _litert)
register_target("onnxruntime", _onnxruntime)
register_target("openvino", _openvino)
