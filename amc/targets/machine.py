"""Which machine a number was measured on."""

import functools
import os
import platform
from importlib import metadata
from pathlib import Path

# The instruction sets that decide which kernels a runtime picks, hence part of the CPU's identity: a virtual
# machine may report the same model name with and without AVX512.
KERNEL_FEATURES = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")
IDENTITY_FIELDS = ("cpu family", "model", "stepping", "CPU implementer", "CPU part")
RUNTIMES = ("torch", "numpy", "onnx", "onnxruntime", "openvino", "ai-edge-litert")


def describe_machine() -> dict[str, object]:
    """Return what a result file should say about the machine, as JSON types."""
    features = cpu_features()
    return {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "cores_allowed": len(allowed_cores()),
        "int8_dot_product": any(name in features for name in ("avx_vnni", "avx512_vnni", "asimddp")),
        "avx512": "avx512f" in features,
        "bf16": any("bf16" in name for name in features),
        "load_average": [round(value, 2) for value in _load_average()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version for name in RUNTIMES if (version := installed_version(name))},
    }


def cpu_model() -> str:
    """Return the CPU's name with the features that select kernels; part of every cache key."""
    fields = _cpuinfo()
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    numbers = [f"{key} {fields[key]}" for key in IDENTITY_FIELDS if key in fields]
    features = [name for name in KERNEL_FEATURES if name in cpu_features()]
    return f"{name} ({', '.join(numbers + features)})" if numbers or features else name


def cpu_features() -> frozenset[str]:
    """Return the CPU's feature flags as Linux names them; empty where they cannot be read."""
    fields = _cpuinfo()
    return frozenset((fields.get("flags") or fields.get("Features") or "").split())


def allowed_cores() -> list[int]:
    """Return the cores this process may use, in order."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution without importing it, or None."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


@functools.cache
def _cpuinfo() -> dict[str, str]:
    """Return the first processor's fields of /proc/cpuinfo; empty on systems without it."""
    try:
        first = Path("/proc/cpuinfo").read_text(errors="replace").split("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _load_average() -> tuple[float, ...]:
    return os.getloadavg() if hasattr(os, "getloadavg") else ()
