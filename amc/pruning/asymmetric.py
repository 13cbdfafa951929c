"""Asymmetric reconstruction: each layer is refitted to the inputs that the pruned network really gives it.

He, Zhang and Sun (ICCV 2017, section 3.2) and ThiNet (Luo et al., ICCV 2017): with Z the inputs in the pruned
network and Y the outputs of the original on the same images and positions, W' minimises || Y - Z W'^T ||^2,
layer by layer in execution order, so that a layer also makes up for the errors of those before it. The
original gives Y once; Z, and with it Z^T Z and Z^T Y = (Z^T X) W^T, are new for every policy.

What an operator puts in the place of a layer is made when the layer's turn comes, from its refitted weight
and from Z^T Z and Z^T Y, so that it is fitted to what the compressed network gives it (as filter groups are
in Peng et al., ECCV 2018). Weights are quantized then, too, and activations on the way. So the layers behind
make up for all of those errors.

A layer that ends in a sum (`amc.pruning.sums`) also makes up for the other summand: with S that summand in
the original and S' in the pruned network, its batch norm of scale gamma / sigma between, it is fitted to
Y + (S - S') sigma / gamma. Its batch norm then maps about as the original's did, although its inputs vary
differently. So does the one in front of a ReLU, which decides what of the outputs has to be met
(`amc.pruning.fits`), unless the layer is replaced, quantized or thinned; elsewhere, re-normalization alone is
left to set that right.
"""

import copy
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor, fx, nn

from amc.decomposition.responses import REPLACED, Replace
from amc.groups import NORMS
from amc.network import Layer, Network
from amc.precision import bfloat16, rounded_products
from amc.pruning.fits import grouped_fits
from amc.pruning.outcomes import Affine, Outcome, outcomes
from amc.pruning.patches import (
    POSITIONS_PER_IMAGE,
    PatchSampler,
    by_group,
    design,
    from_design,
    outputs_of,
)
from amc.pruning.reconstruction import (
    NOTHING_REPLACED,
    RIDGE,
    Positions,
    has_intercept,
    refit,
    refittable,
)
from amc.pruning.sums import Values, WatchedRun, summands
from amc.quantization.modules import QuantizedConv2d, QuantizedLinear, quantizes
from amc.recovery.restate import restate_norms
from amc.slicing import slice_module

Watcher = Callable[[Tensor, Values], None]
REPLACED_RIDGE = 1e-3
"""Of layers that are replaced or quantized then. Along what its inputs hardly do, a weight can grow without
any effect on the outputs, but what is stored of it then has to reach that far for all others, too."""


@dataclass(frozen=True)
class AsymmetricReconstruction:
    """Matches the original outputs on the inputs of the pruned network, in execution order.

    Each policy takes one forward pass over the images in a single batch, as a layer is refitted when all its
    inputs are known and before any layer behind it runs. Batch norms use that batch's statistics, and keep
    them: behind layers that are final by then, they are those of the finished network. The norms themselves
    are those of the original in terms of the same images.

    Attributes:
        images: float32 [N, C, H, W], channels last in memory.
        batch_sizes: how the images were split when the targets were drawn; they add up to N.
        targets: layer path to the original's outputs without bias at drawn positions, [rows, out].
        others: path of a layer that ends in a sum to the other summand at the same positions, [rows, out].
        norms: the original's batch norms by path, in terms of the images (`amc.recovery.restate`).
        positions, seed: of the drawn positions (`PatchSampler`).
        rounds: whether the pruned network, and the products of the fits, are computed in bfloat16; rounding
            rows to 8 bits of mantissa changes the fits as little as the ridge does.
    """

    images: Tensor
    batch_sizes: tuple[int, ...]
    targets: dict[str, Tensor]
    others: dict[str, Tensor]
    norms: dict[str, nn.Module]
    positions: int
    seed: int
    rounds: bool = False

    @classmethod
    def of(
        cls,
        network: Network,
        batches: Sequence[Tensor],
        positions: int = POSITIONS_PER_IMAGE,
        seed: int = 0,
        rounds: bool = False,
        every: bool = False,
    ) -> "AsymmetricReconstruction":
        """Draw the targets from the original network.

        Args:
            network: the original.
            batches: unlabeled images.
            positions: output positions drawn for each batch.
            seed: draws them.
            rounds: whether pruned networks compute in bfloat16.
            every: whether layers will be replaced, so that also those have targets that never lose inputs;
                depthwise ones have none.
        """
        ends, targets, others = summands(network), dict[str, list[Tensor]](), dict[str, list[Tensor]]()

        def drawer(name: str) -> Watcher:
            module, groups = network.module.get_submodule(name), network.layer_groups(name)
            patches = PatchSampler(module, positions, seed)

            def draw(x: Tensor, values: Values) -> None:
                rows = outputs_of(patches(x), module.get_parameter("weight"), groups)
                targets.setdefault(name, []).append(rows)
                if name in ends:
                    others.setdefault(name, []).append(patches.outputs(values(ends[name].other)).clone())

            return draw

        dense = [layer for layer in network.layers if layer.kind != "depthwise"]
        drawn = dense if every else refittable(network)
        watchers = {layer.name: drawer(layer.name) for layer in drawn}
        with torch.no_grad():
            for batch in batches:
                WatchedRun(network.module, watchers).run(batch)
        stated = network.copy()
        restate_norms(stated, batches)
        return cls(
            torch.cat(list(batches)).contiguous(memory_format=torch.channels_last),
            tuple(len(batch) for batch in batches),
            {name: torch.cat(rows) for name, rows in targets.items()},
            {name: torch.cat(rows) for name, rows in others.items()},
            {name: module for name, module in stated.named_modules() if isinstance(module, NORMS)},
            positions,
            seed,
            rounds,
        )

    def __call__(
        self,
        model: fx.GraphModule,
        network: Network,
        positions: Positions,
        replace: Mapping[str, Replace] = NOTHING_REPLACED,
        final: bool = True,
    ) -> bool:
        """Refit every layer of `model`, a sliced copy of the network, that lost inputs; in place.

        Where residual blocks are gone, every layer has other inputs than before; so has every one behind a
        layer that is replaced.

        Returns:
            Whether that has re-normalized the batch norms: not if nothing was to be refitted, nor if one is
            called more than once, whose statistics are then those of the last call.
        """
        refitted = self._refitted(network, positions, replace)
        if not refitted and not replace:
            return False
        found, watchers = outcomes(network), dict[str, Watcher]()
        for layer in network.layers:
            name, way = layer.name, replace.get(layer.name)
            if name in refitted:
                # What does not stay as it is fitted misses less of what matters if it aims at all outputs.
                outcome = found[name] if way is None and final else found[name].unclipped
                watchers[name] = self._refitter(layer, model, network, positions, outcome, way)
            elif way is not None:
                watchers[name] = partial(_put_in, model, name, way)
        model.meta[REPLACED] = frozenset(replace)
        self._put_in_terms(model, positions)
        norms = {module: module.momentum for module in model.modules() if isinstance(module, NORMS)}
        try:
            for norm in norms:
                norm.train()
                norm.momentum = 1.0  # the running statistics become the batch's
            # Codes of 8 bits need more of a mantissa.
            with torch.no_grad(), bfloat16(self.rounds and not quantizes(model)):
                WatchedRun(model, watchers).run(self.images)
        finally:
            for norm, momentum in norms.items():
                norm.eval()
                norm.momentum = momentum
        called = (node for node in model.graph.nodes if node.op == "call_module")
        calls = Counter(model.get_submodule(str(node.target)) for node in called)
        return bool(norms) and all(calls[norm] <= 1 for norm in norms)

    def _put_in_terms(self, model: fx.GraphModule, positions: Positions) -> None:
        """Let the batch norms of a sliced model be those that are in terms of the images, in place."""
        kept: dict[str, list[tuple[str, Tensor]]] = {}
        for (name, side), keep in positions.items():
            kept.setdefault(name, []).append((side, keep))
        for name in [name for name, _ in model.named_modules() if name in self.norms]:
            norm = copy.deepcopy(self.norms[name])
            for side, keep in kept.get(name, ()):
                slice_module(norm, side, keep)
            model.set_submodule(name, norm)

    def _refitted(
        self, network: Network, positions: Positions, replace: Mapping[str, Replace]
    ) -> frozenset[str]:
        """The layers whose inputs are not what they were."""
        names = [layer.name for layer in network.layers]
        known = [name for name in names if name in self.targets]
        if self.targets.keys() - {*names}:
            return frozenset(known)
        first = min((names.index(name) for name in replace), default=len(names))
        return frozenset(n for n in known if (n, "in") in positions or names.index(n) >= first)

    def _refitter(
        self,
        layer: Layer,
        model: fx.GraphModule,
        network: Network,
        positions: Positions,
        outcome: Outcome,
        way: Replace | None,
    ) -> Watcher:
        """What refits a layer when its inputs arrive, and the batch norm whose mapping has to stay.

        Args:
            layer, model, network, positions: which layer of what.
            outcome: what happens to its outputs.
            way: what replaces it then.
        """
        module, original = (each.get_submodule(layer.name) for each in (model, network.module))
        whole = original.get_parameter("weight")
        rows = positions.get((layer.name, "out"), torch.arange(len(whole)))
        kept = positions.get((layer.name, "in"), torch.arange(whole.shape[1]))
        prior, targets = design(whole[rows][:, kept]), self.targets[layer.name][:, rows]
        norm, groups = outcome.norm, network.layer_groups(layer.name)
        affine = Affine.of(original, network.module.get_submodule(norm) if norm else None, rows)

        def refit_to(x: Tensor, values: Values) -> None:
            other = values(outcome.end.other) if outcome.end else None
            with bfloat16(False), rounded_products(self.rounds):
                inputs, now = self._rows(module, x, other)
                wanted, live = targets, None
                if now is not None:
                    wanted = targets + (self.others[layer.name][:, rows] - now) / affine.used
                if outcome.ceiling is not None:
                    live = affine.live(outcome.ceiling, now)
                weight = module.get_parameter("weight")
                parts = by_group(inputs, weight, groups)
                ridge = RIDGE if way is None else REPLACED_RIDGE
                fits = grouped_fits(parts, wanted, prior, has_intercept(layer), ridge, live)
                solution = torch.cat([fit.weight for fit in fits])
                shift = torch.cat([fit.shift for fit in fits])
                refit(module, from_design(solution, weight.shape), shift)
                if way is not None:
                    model.set_submodule(layer.name, way(module, fits[0].responses))
                if norm:
                    variance = _variance(model.get_submodule(layer.name), weight.shape, parts, x)
                    mean = torch.cat([fit.mean for fit in fits])
                    affine.keep_in(model.get_submodule(norm), mean, variance)

        return refit_to

    def _rows(self, module: nn.Module, x: Tensor, other: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Rows of a layer's inputs and of what its outputs are added to, at the positions of the targets."""
        patches = PatchSampler(module, self.positions, self.seed)
        inputs, others = list[Tensor](), list[Tensor]()
        added = () if other is None else other.split(self.batch_sizes)
        for part, beside in zip_longest(x.split(self.batch_sizes), added):
            inputs.append(patches(part))
            if beside is not None:
                others.append(patches.outputs(beside))
        return torch.cat(inputs).float(), torch.cat(others).float() if others else None


def _put_in(model: fx.GraphModule, name: str, way: Replace, x: Tensor, values: Values) -> None:
    """Replace a layer that nothing was drawn of, as of depthwise ones."""
    with bfloat16(False):
        model.set_submodule(name, way(model.get_submodule(name), None))


def _variance(module: nn.Module, shape: torch.Size, parts: Tensor, x: Tensor) -> Tensor:
    """Variance of a layer's outputs, [channels].

    Args:
        module: the layer, or what has replaced it.
        shape: of the layer's weight, [out, in / groups, ...].
        parts: rows of its inputs, [groups, rows, d]; centred.
        x: its inputs, for modules that have no such weight.
    """
    dense = getattr(module, "weight", None)  # a chain has none
    if isinstance(module, QuantizedConv2d | QuantizedLinear):
        dense = module.quantizer(module.weight)
    if isinstance(dense, Tensor) and dense.shape == shape:
        chunks = zip(parts, design(dense.float()).chunk(len(parts)), strict=True)
        return torch.cat([(part @ own.T).square().mean(dim=0) for part, own in chunks])
    outputs = module(x.float())
    channels = 1 if len(shape) > 2 else outputs.ndim - 1
    return outputs.var(dim=[d for d in range(outputs.ndim) if d != channels], correction=0)
