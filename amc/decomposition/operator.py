"""What every operator declares.

An operator replaces a convolution by a module that computes nearly the same. How far it goes is one whole
number, its *amount* (a group size, a rank, a count of centroids), written down relative to the original
layer; channels are removed before, so the convolution that is replaced may be narrower by then.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar, cast

from torch import Tensor, nn

from amc.decomposition.responses import Responses
from amc.network import Layer

LayerKind = TypeVar("LayerKind", nn.Conv2d, nn.Linear)
AMOUNT = "amount"
"""Key of a decision's values that holds the operator's number."""


@dataclass(frozen=True)
class Part:
    """One convolution of what replaces a layer.

    Attributes:
        inputs: channels that it reads.
        channels: its outputs, each with a scale of its own where weights are quantized.
        kernel: elements of one kernel.
        pixels: of one output channel.
        groups: in which it runs; they divide both kinds of channels.
    """

    inputs: int
    channels: int
    kernel: int
    pixels: int
    groups: int = 1

    @property
    def weights(self) -> int:
        """Elements of its weight."""
        return self.inputs // self.groups * self.channels * self.kernel

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one input."""
        return self.weights * self.pixels


@dataclass(frozen=True)
class OperatorCost:
    """What the module costs that replaces a layer.

    Attributes:
        macs: multiply-accumulates for one input.
        params: elements of its parameters, the bias included.
        size: bytes in a file, packed, the weights not quantized, the bias in 32 bits.
        parts: the convolutions that run one after the other, whose weights the layer's bits are for; none
            where bits mean nothing, and the layer's own convolution runs in floats.
    """

    macs: int
    params: int
    size: int
    parts: tuple[Part, ...] = ()


class SelfPacking(nn.Module):
    """A module that says how a package stores it, where that is not simply its parameters.

    Its bias, if it has one, is stored by the package, and so is the batch norm behind it.
    """

    def packed(self) -> dict[str, Tensor]:
        """Flat tensors by the name of what they hold: "codes" (uint8, packed bits), or their type."""
        raise NotImplementedError

    def unpack(self, parts: Mapping[str, Tensor]) -> None:
        """Take over what `packed` gave; raises ValueError if it cannot be."""
        raise NotImplementedError


class Operator(ABC):
    """One way to replace a convolution.

    Attributes:
        name: what a `LayerDecision` and the command line call it.
        lowers: costs that it can lower; under any other budget it has nothing to offer. Without parts it
            lowers no latency.
        quantizes: whether the weights of its module can be quantized; its costs then have parts.
        uses_responses: whether `fit` looks at responses; they are not computed otherwise.
    """

    name: ClassVar[str]
    lowers: ClassVar[frozenset[str]] = frozenset({"macs", "params", "size", "bops", "latency"})
    quantizes: ClassVar[bool] = True
    uses_responses: ClassVar[bool] = True

    def obstacle(self, module: nn.Module) -> str | None:
        """Why it cannot replace this module, or None."""
        return convolution_obstacle(module)

    @abstractmethod
    def amounts(self, conv: nn.Conv2d) -> tuple[int, ...]:
        """Legal amounts for a layer in order of cost, all cheaper than the layer itself."""

    @abstractmethod
    def cost(self, layer: Layer, amount: int, inputs: int, outputs: int) -> OperatorCost:
        """Cost for a layer that has `inputs` and `outputs` channels left; never falls with either."""

    def prepare(self, conv: nn.Conv2d, amount: int) -> Any:
        """What fits of a layer that has lost channels can start from; made once a layer and amount.

        Args:
            conv: the layer with all of its channels.
            amount: that will be asked for.
        """
        return None

    @abstractmethod
    def fit(
        self, conv: nn.Conv2d, amount: int, responses: Responses | None = None, start: Any = None
    ) -> nn.Module:
        """The module for a convolution, from its weights and, where they are known, its responses.

        Its shapes follow from those of the convolution and the amount alone. A Conv2d or a
        `amc.decomposition.chain.Chain` of them needs no other code, neither for bits nor for export.

        Args:
            conv: the layer, its lost channels removed.
            amount: how far to go.
            responses: of the original network; None where the operator uses none.
            start: what `prepare` gave.
        """


def convolution_obstacle(module: nn.Module) -> str | None:
    """What keeps every operator from a module: there is no kernel to simplify."""
    if not isinstance(module, nn.Conv2d):
        return f"a {type(module).__name__} has no kernel"
    if module.groups > 1:
        return "it is a convolution in groups already"
    if module.kernel_size == (1, 1):
        return "its kernel is a single element"
    if module.padding_mode != "zeros" or isinstance(module.padding, str):
        return "only zero padding by numbers is supported"
    return None


def legal_amounts(operator: Operator, module: nn.Module) -> tuple[int, ...]:
    """Legal amounts of an operator for any module; none where it does not apply."""
    if operator.obstacle(module) is not None:
        return ()
    return operator.amounts(cast(nn.Conv2d, module))  # or what else the operator accepts


def spelled_out(layer: nn.Module, kind: type[LayerKind]) -> LayerKind:
    """A layer that computes its weight, as one of a plain kind that holds it; shares the bias."""
    new = kind.__new__(kind)
    new.__dict__.update(layer.__dict__)
    weight = nn.Parameter(cast(Tensor, layer.weight).detach())
    new._parameters = {"weight": weight, "bias": layer._parameters["bias"]}
    new._buffers, new._modules = {}, {}
    return new
