"""Proving the channel groups of a network once, at tracing.

Every group is pruned by torch-pruning in a copy of the network, by our own index tables in a second copy,
and masked in a third; the three must give the same output. A group that fails is frozen with its reason,
so that a wrong coupling can never reach a search. Weights and input are random: a trained channel that is
always dead, or an example of zeros, would hide a wrong coupling.
"""

import copy
import math
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, fx

from amc.graph import ChannelPad
from amc.groups import COMPRESSIBLE, NORMS, Group, build_dependency, pruning_function
from amc.slicing import apply_slices, clone_module, kept_positions, mask_group, sizes_of

TOLERANCE = 1e-4
"""Largest difference allowed, relative to the largest output."""


def prove_groups(graph: fx.GraphModule, groups: Sequence[Group], example: Tensor) -> list[Group]:
    """The groups with every one that cannot be pruned correctly frozen.

    Groups are pruned one after the other in the same copies (tracing a copy for each would take minutes);
    after a failure the rest continues in new copies. The last round prunes together all that are left.
    """
    proved = list(groups)
    graph, example = _randomised(graph, example)
    # Nearly always all is well, and one comparison of all groups together says so.
    whole = _Trial(graph, example).prune_all(proved)
    while not whole:
        whole, trial = True, _Trial(graph, example)
        for index, group in enumerate(proved):
            problem = None if group.frozen else trial.prune(group)
            if problem is not None:
                proved[index] = group.freeze(problem)
                whole, trial = False, _Trial(graph, example)
    return proved


def _randomised(graph: fx.GraphModule, example: Tensor) -> tuple[fx.GraphModule, Tensor]:
    """A copy of the network in which every channel is alive, and an input to match."""
    generator = torch.Generator().manual_seed(0)
    graph = clone_module(graph)
    for module in graph.modules():
        if isinstance(module, COMPRESSIBLE) and not isinstance(module, ChannelPad):
            scale = math.sqrt(2.0 / module.weight[0].numel())
            module.weight.data.normal_(0.0, scale, generator=generator)
        elif isinstance(module, NORMS):
            for name in ("weight", "running_var"):
                _fill(getattr(module, name), 0.5, 1.5, generator)
            for name in ("bias", "running_mean"):
                _fill(getattr(module, name), -0.5, 0.5, generator)
    return graph, torch.randn(example.shape, generator=generator).to(example.dtype)


def _fill(tensor: Tensor | None, low: float, high: float, generator: torch.Generator) -> None:
    if tensor is not None:
        tensor.data.uniform_(low, high, generator=generator)


class _Trial:
    """Three copies of a network that lose the same channels in three ways."""

    def __init__(self, graph: fx.GraphModule, example: Tensor):
        self.graph, self.example = graph, example
        self.generator = torch.Generator().manual_seed(0)
        self.masked = clone_module(graph)
        self.pruned = copy.deepcopy(graph)
        self.dependency = build_dependency(self.pruned, example)
        self.groups: list[Group] = []
        self.kept: dict[str, Tensor] = {}

    def prune_all(self, groups: Sequence[Group]) -> bool:
        """Whether all groups that are not frozen lose channels together without a difference."""
        alive = [group for group in groups if not group.frozen]
        return all(self.prune(group, compare=group is alive[-1]) is None for group in alive)

    def prune(self, group: Group, compare: bool = True) -> str | None:
        """Drop about a third of the group's channels everywhere; what went wrong, or None."""
        units = torch.arange(group.channels)[:, None] if group.units is None else group.units
        keep = max(1, len(units) - max(1, len(units) // 3)) * group.step
        order = units[torch.randperm(len(units), generator=self.generator)].reshape(-1)
        self.kept[group.name] = order[:keep].sort().values
        self.groups.append(group)
        mask_group(self.masked, group, order[keep:])
        root = self.pruned.get_submodule(group.name)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                dropped = order[keep:].tolist()
                self.dependency.get_pruning_group(root, pruning_function(root), dropped).prune()
            return self._difference() if compare else None
        except Exception as error:
            return f"pruning it breaks the network ({str(error).strip().splitlines()[0]})"

    def _difference(self) -> str | None:
        sliced = clone_module(self.graph)
        sizes = sizes_of(self.graph, self.groups)
        apply_slices(sliced, kept_positions(self.groups, self.kept, sizes))
        with torch.no_grad():
            expected = self.masked(self.example)
            for name, model in (("torch-pruning", self.pruned), ("slicing", sliced)):
                error = float((model(self.example) - expected).abs().max())
                if not error <= TOLERANCE * max(float(expected.abs().max()), 1e-6):
                    return f"{name} and masking disagree by {error:.2g}"
        return None
