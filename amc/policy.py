"""`CompressionPolicy`: the decisions for all layers of one network, as versioned JSON.

The values are the executed integers (output channels, bits), relative to the original network, so that the
same file gives the same compressed network at search, fine-tuning and export.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from amc.errors import UserError
from amc.files import read_json, write_json

FORMAT, VERSION = "amc-policy", 1
ORIGINAL_OPERATOR = "original"
"""The operator of a layer that stays the Conv2d or Linear it was."""
REMOVED = "removed"
"""The operator of a layer that is left out with the whole residual block it belongs to."""


@dataclass(frozen=True)
class LayerDecision:
    """What is decided at one decision point.

    Attributes:
        point: name of the decision point, the layer's path in the network's module tree.
        operator: what replaces the layer; "original" keeps it, "removed" leaves it out, others are names in
            `amc.decomposition.registry`.
        values: knob name to executed integer: `width` (output channels kept), `weight_bits` and
            `activation_bits` (2 to 8, or 32 for not quantized), and where an operator replaces the layer its
            `amount` (a group size, a rank, a count of centroids).
    """

    point: str
    values: Mapping[str, int] = field(default_factory=dict)
    operator: str = ORIGINAL_OPERATOR

    @property
    def replaced(self) -> bool:
        """Whether an operator stands in the place of the layer."""
        return self.operator not in (ORIGINAL_OPERATOR, REMOVED)


@dataclass(frozen=True)
class CompressionPolicy:
    """The decisions of one network, in execution order.

    Attributes:
        network: fingerprint of the network that the decisions are relative to (`Network.fingerprint`).
        decisions: one a layer.
    """

    network: str
    decisions: tuple[LayerDecision, ...]

    def __getitem__(self, point: str) -> LayerDecision:
        return self._by_point[point]

    @cached_property
    def _by_point(self) -> dict[str, LayerDecision]:
        return {decision.point: decision for decision in self.decisions}

    def values(self, knob: str) -> dict[str, int]:
        """Point name to executed value of one knob, for the points that have it."""
        return {d.point: d.values[knob] for d in self.decisions if knob in d.values}

    @cached_property
    def removed(self) -> frozenset[str]:
        """Points of the layers that are left out."""
        return frozenset(d.point for d in self.decisions if d.operator == REMOVED)

    @property
    def only_prunes(self) -> bool:
        """Whether it leaves out channels and blocks, and changes nothing else."""
        untouched = {"weight_bits": 32, "activation_bits": 32}
        others = [
            (knob, value) for each in self.decisions for knob, value in each.values.items() if knob != "width"
        ]
        replaced = any(each.replaced for each in self.decisions)
        return not replaced and all(untouched.get(knob) == value for knob, value in others)

    def digest(self) -> str:
        """A short name of the executed policy: equal decisions, equal digest. The evaluation cache's key."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()[:16]

    def to_json(self) -> dict[str, Any]:
        """The JSON object that `from_json` reads."""
        decisions = [
            {"point": d.point, "operator": d.operator, "values": dict(d.values)} for d in self.decisions
        ]
        return {"format": FORMAT, "version": VERSION, "network": self.network, "decisions": decisions}

    @classmethod
    def from_json(cls, data: object, origin: str = "policy") -> "CompressionPolicy":
        """Read what `to_json` wrote.

        Raises:
            UserError: the object is not a policy, or of another version; `origin` names it in the sentence.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT:
            raise UserError(f'{origin} is not a compression policy: it lacks \'"format": "{FORMAT}"\'.')
        if data.get("version") != VERSION:
            raise UserError(
                f"{origin} has policy version {data.get('version')}; this release reads {VERSION}."
            )
        try:
            decisions = tuple(_decision(row) for row in data["decisions"])
            return cls(str(data["network"]), decisions)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{origin} is damaged: {error!r} while reading its decisions.") from error

    def save(self, path: Path) -> None:
        """Write the policy as JSON, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: Path) -> "CompressionPolicy":
        """Read a policy file.

        Raises:
            UserError: the file is missing, not JSON, or not a policy.
        """
        return cls.from_json(read_json(path), str(path))


def _decision(row: dict[str, Any]) -> LayerDecision:
    values = {str(name): value for name, value in row["values"].items()}
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{row['point']}: {name} = {value!r} is not a positive integer")
    return LayerDecision(str(row["point"]), values, str(row["operator"]))
