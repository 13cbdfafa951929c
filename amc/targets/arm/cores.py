"""The emulated cores, and the files by which programs recognise them."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Core:
    """One ARM core that QEMU emulates.

    Attributes:
        name: QEMU's name of it.
        part: its number in the MIDR_EL1 register, as in /proc/cpuinfo.
        variant: its major revision there.
        features: what Linux lists for it.
        level_2_cache: its size, as in /sys.
    """

    name: str
    part: str
    variant: str
    features: str
    level_2_cache: str


_ARMV8 = "fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"

# Arm's technical reference manuals: Cortex-A76 (100798) and Cortex-A53 (DDI 0500).
CORTEX_A76 = Core(
    "cortex-a76",
    part="0xd0b",
    variant="0x4",
    features=f"{_ARMV8} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp",
    level_2_cache="512K",
)
"""A large core of 2018: has the int8 dot product, as every large core since."""

CORTEX_A53 = Core("cortex-a53", part="0xd03", variant="0x0", features=_ARMV8, level_2_cache="512K")
"""A small core of 2012, still in cheap phones: no dot product and no half-precision arithmetic."""

CORES = (CORTEX_A76, CORTEX_A53)


def write_system_files(core: Core, root: Path) -> None:
    """Write the files of /proc and /sys that describe a machine with this core alone.

    QEMU passes both through to the host, and pytorch/cpuinfo, through which XNNPACK chooses its kernels,
    crashes on the processors of another architecture that it finds there.
    """
    for name, content in _system_files(core).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content + "\n")


def _system_files(core: Core) -> dict[str, str]:
    cpus, first = "sys/devices/system/cpu", "sys/devices/system/cpu/cpu0"
    return {
        "proc/cpuinfo": _cpuinfo(core),
        **{f"{cpus}/{name}": "0" for name in ("kernel_max", "possible", "present", "online")},
        f"{first}/topology/physical_package_id": "0",
        f"{first}/topology/core_id": "0",
        f"{first}/topology/cluster_cpus_list": "0",
        f"{first}/topology/core_siblings_list": "0",
        f"{first}/cpufreq/cpuinfo_max_freq": "2000000",
        f"{first}/cpufreq/cpuinfo_min_freq": "500000",
        f"{first}/cache/index2/level": "2",
        f"{first}/cache/index2/size": core.level_2_cache,
        f"{first}/cache/index2/shared_cpu_list": "0",
    }


def _cpuinfo(core: Core) -> str:
    lines = (
        "processor\t: 0",
        f"Features\t: {core.features}",
        "CPU implementer\t: 0x41",  # Arm Ltd.
        "CPU architecture: 8",
        f"CPU variant\t: {core.variant}",
        f"CPU part\t: {core.part}",
        "CPU revision\t: 0",
        "",
    )
    return "\n".join(lines)
