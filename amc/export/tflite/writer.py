"""The TFLite file of a traced network."""

from collections.abc import Mapping

from torch import Tensor, fx

# Imported because they register their handlers.
from amc.export.tflite import activations, chains, layers, shapes  # noqa: F401
from amc.export.tflite.fusing import plan
from amc.export.tflite.graph import TfliteGraph
from amc.export.tflite.registry import handles
from amc.export.walk import walk


def write_model(module: fx.GraphModule, example: Tensor, metadata: Mapping[str, str]) -> bytes:
    """Translate a traced network in eval mode.

    Args:
        module: the network.
        example: one input [N, ...]; only its shape past the first axis matters.
        metadata: stored in the file as it is.

    Raises:
        Unsupported: an operation has no translation.
        UserError: the network does not accept the example, or ai-edge-litert is not installed.
    """
    g = TfliteGraph()
    return g.finish(walk(g, handles, module, plan(module), example, None), metadata)
