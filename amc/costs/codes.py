"""Costs of retrieval codes: bits of one code, and bytes of a network together with its database of codes."""

import numpy as np

from amc.costs.symbolic import Cost
from amc.retrieval.code_knob import CODE, CodeKnob
from amc.space import Partial, Space


class CodeCost:
    """Bits of the code of one image.

    Args:
        space: policies with the knob "code".
    """

    name = "code"
    knobs = frozenset({CODE})

    def __init__(self, space: Space):
        self.space = space
        knob = space.knobs[space.column(CODE)]
        assert isinstance(knob, CodeKnob)
        self._entry = space.row(knob.codebooks.layer), space.column(CODE)

    def of(self, table: np.ndarray) -> float:
        """The bits of a complete table [points, knobs]."""
        return float(table[self._entry])

    def lower_bound(self, partial: Partial) -> float:
        """Bits of the shortest code that is left."""
        return self.of(self.cheapest(partial))

    def upper_bound(self, partial: Partial) -> float:
        """Bits of the longest code that is left."""
        return self.of(partial.filled(self.space.largest))

    def cheapest(self, partial: Partial) -> np.ndarray:
        """The smallest completion, int64 [points, knobs]."""
        return partial.filled(self.space.smallest)


class StorageCost:
    """Bytes of a network's package and of the codes of all images in a database, packed.

    Args:
        size: bytes of the package.
        code: bits of one code.
        images: in the database.
    """

    name = "storage"

    def __init__(self, size: Cost, code: CodeCost, images: int):
        self.size, self.code, self.images = size, code, images
        self.knobs = size.knobs | code.knobs

    def of(self, table: np.ndarray) -> float:
        """The bytes of a complete table [points, knobs]."""
        return self.size.of(table) + self._database(self.code.of(table))

    def lower_bound(self, partial: Partial) -> float:
        """The smallest network with the shortest code: one completion has both."""
        return self.size.lower_bound(partial) + self._database(self.code.lower_bound(partial))

    def upper_bound(self, partial: Partial) -> float:
        """The largest network with the longest code."""
        return self.size.upper_bound(partial) + self._database(self.code.upper_bound(partial))

    def cheapest(self, partial: Partial) -> np.ndarray:
        """A completion that costs the lower bound, int64 [points, knobs]."""
        return self.size.cheapest(partial)

    def _database(self, bits: float) -> float:
        return float(np.ceil(self.images * bits / 8))
