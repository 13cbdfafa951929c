"""Latency of policies: export, measure beside the original in the same rounds, remember on disk."""

import hashlib
import tempfile
from pathlib import Path

from torch import fx

from amc.network import Network
from amc.policy import CompressionPolicy
from amc.targets.base import Target, Timing
from amc.targets.cache import LatencyCache


class LatencyMeter:
    """Measures compressed networks against the uncompressed fp32 network on one target.

    Args:
        network: the traced network; its fp32 export is the reference of every measurement.
        target: the runtime.
        cache: where timings are kept between runs.
        original: latency of the reference, where an earlier part of the run has measured it.

    Attributes:
        original: latency of the reference, in the target's unit.
        reference: its file.
        exported: what became of the reference; says whether the fallback exporter was needed.

    Raises:
        UserError: the network cannot be exported, or the target refuses it.
    """

    def __init__(
        self,
        network: Network,
        target: Target,
        cache: LatencyCache | None = None,
        original: float | None = None,
    ):
        self.network, self.target = network, target
        self.cache = cache or LatencyCache()
        self._folder = tempfile.TemporaryDirectory(prefix="amc-latency-")
        self.reference = Path(self._folder.name) / f"original{target.file_suffix}"
        self.exported = target.export(network.module, network.example, self.reference)
        self._digest = hashlib.sha256(self.reference.read_bytes()).hexdigest()[:16]
        # An unreliable timing is not cached, so a resumed run would otherwise measure another one, and its
        # logged rewards would no longer follow from its logged latencies.
        self.original = self._timing("original", None).best if original is None else original

    def timing(self, policy: CompressionPolicy, model: fx.GraphModule) -> Timing:
        """Time a policy's network, calibrated and in evaluation mode; it is moved to the CPU.

        Network and reference are measured in the same rounds, so the ratio is what counts: times `original`
        it is the latency in units of the reference's latency of this run.
        """
        return self._timing(policy.digest(), model)

    def _timing(self, name: str, model: fx.GraphModule | None) -> Timing:
        digest = f"{self._digest}-{name}"
        known = self.cache.get(digest, self.target)
        if known is not None:
            return known
        timing = self._measure(name, model)
        self.cache.put(digest, self.target, timing)
        return timing

    def _measure(self, name: str, model: fx.GraphModule | None) -> Timing:
        if model is None:
            return self.target.measure([self.reference])[0]
        file = Path(self._folder.name) / f"{name}{self.target.file_suffix}"
        try:
            self.target.export(model.cpu(), self.network.example, file)
            return self.target.measure([self.reference, file])[1]
        finally:
            file.unlink(missing_ok=True)

    def close(self) -> None:
        """Remove the exported files."""
        self._folder.cleanup()
