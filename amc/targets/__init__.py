"""Runtimes on a CPU that say how long an exported model takes: targets, measuring protocol, cache.

Importing this package imports no runtime and no torch; the measuring process relies on that to start fast.
"""

from amc.targets.base import Target, Timing
from amc.targets.cache import LatencyCache
from amc.targets.calibration import Profile
from amc.targets.machine import describe_machine
from amc.targets.protocol import compare
from amc.targets.registry import get_target, list_targets, register_target

__all__ = [
    "LatencyCache",
    "Profile",
    "Target",
    "Timing",
    "compare",
    "describe_machine",
    "get_target",
    "list_targets",
    "register_target",
]
