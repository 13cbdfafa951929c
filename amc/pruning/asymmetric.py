"""Asymmetric reconstruction: each layer is refitted to the inputs that the pruned network really gives it.

He, Zhang and Sun (ICCV 2017, section 3.2) and ThiNet (Luo et al., ICCV 2017): with Z the inputs in the pruned
network and Y the outputs of the original on the same images and positions, W' minimises || Y - Z W'^T ||^2,
layer by layer in execution order, so that a layer also makes up for the errors of those before it. The
original gives Y once; Z, and with it Z^T Z and Z^T Y = (Z^T X) W^T, are new for every policy.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.groups import NORMS
from amc.network import Layer, Network
from amc.pruning.patches import POSITIONS_PER_IMAGE, PatchSampler
from amc.pruning.reconstruction import (
    Positions,
    has_intercept,
    refit,
    refittable,
    solve_weight,
    weight_columns,
)


def asymmetric_weight(
    inputs: Tensor, targets: Tensor, prior: Tensor, intercept: bool
) -> tuple[Tensor, Tensor]:
    """Least-squares weight from rows of inputs and targets.

    Args:
        inputs: of the pruned network, [rows, d].
        targets: of the original, [rows, out].
        prior: weight [out, d], for what the rows leave open.
        intercept: whether a shift of the outputs is free.

    Returns:
        float64 [out, d], and the shift that goes with it, [out]; zero without an intercept.
    """
    mean_z, mean_y = (v.mean(dim=0) if intercept else v.new_zeros(v.shape[1]) for v in (inputs, targets))
    # Products in float32 take half the time; centred first, they lose nothing that the ridge would keep.
    z, y = inputs - mean_z, targets - mean_y
    second, cross = (z.T @ z).double() / len(z), (z.T @ y).double() / len(z)
    weight = solve_weight(second, cross, prior.double())
    return weight, mean_y - weight @ mean_z.double()


@dataclass(frozen=True)
class AsymmetricReconstruction:
    """Matches the original outputs on the inputs of the pruned network, in execution order.

    Each policy takes one forward pass over the images in a single batch, as a layer is refitted when all its
    inputs are known and before any layer behind it runs. Batch norms use that batch's statistics meanwhile,
    since they will be re-estimated on the same images.

    Attributes:
        images: float32 [N, C, H, W].
        batch_sizes: how the images were split when the targets were drawn; they add up to N.
        targets: layer path to the original's outputs without bias at drawn positions, [rows, out].
        positions, seed: of the drawn positions (`PatchSampler`).
    """

    images: Tensor
    batch_sizes: tuple[int, ...]
    targets: dict[str, Tensor]
    positions: int
    seed: int

    @classmethod
    def of(
        cls, network: Network, batches: Sequence[Tensor], positions: int = POSITIONS_PER_IMAGE, seed: int = 0
    ) -> "AsymmetricReconstruction":
        """Draw the targets from the original network.

        Args:
            network: the original.
            batches: augmented unlabeled images.
            positions: output positions drawn for each batch.
            seed: draws them.
        """
        model, found = network.copy(), dict[str, list[Tensor]]()
        for layer in refittable(network):
            module = model.get_submodule(layer.name)
            patches = PatchSampler(module, positions, seed)
            rows = found.setdefault(layer.name, [])

            def draw(
                module: nn.Module,
                arguments: tuple[Tensor, ...],
                patches: PatchSampler = patches,
                rows: list[Tensor] = rows,
            ) -> None:
                rows.append(patches(arguments[0]) @ module.get_parameter("weight").flatten(1).T)

            module.register_forward_pre_hook(draw)
        with torch.no_grad():
            for batch in batches:
                model(batch)
        targets = {name: torch.cat(rows) for name, rows in found.items()}
        return cls(torch.cat(list(batches)), tuple(len(b) for b in batches), targets, positions, seed)

    def __call__(self, model: nn.Module, network: Network, positions: Positions) -> None:
        """Refit every layer of `model`, a sliced copy of the network, that lost inputs; in place.

        Where residual blocks are gone, every layer has other inputs than before.
        """
        lost = [layer for layer in network.layers if layer.name in self.targets]
        if not self.targets.keys() - {layer.name for layer in network.layers}:
            lost = [layer for layer in lost if (layer.name, "in") in positions]
        if not lost:
            return
        norms = [module for module in model.modules() if isinstance(module, NORMS)]
        handles = []
        for layer in lost:
            module = model.get_submodule(layer.name)
            original = network.module.get_submodule(layer.name).get_parameter("weight")
            hook = self._hook(layer, original, positions)
            handles.append(module.register_forward_pre_hook(hook))
        try:
            for norm in norms:
                norm.train()
            with torch.no_grad():
                model(self.images)
        finally:
            for norm in norms:
                norm.eval()
            for handle in handles:
                handle.remove()

    def _hook(
        self, layer: Layer, original: Tensor, positions: Positions
    ) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        """What refits a layer when its inputs arrive."""
        kept, rows = positions.get((layer.name, "in")), positions.get((layer.name, "out"))
        targets = self.targets[layer.name]
        if rows is not None:
            original, targets = original[rows], targets[:, rows]
        prior = (
            original.flatten(1) if kept is None else original.flatten(1)[:, weight_columns(original, kept)]
        )

        def refit_to(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            patches = PatchSampler(module, self.positions, self.seed)
            inputs = torch.cat([patches(part) for part in arguments[0].split(self.batch_sizes)])
            weight, shift = asymmetric_weight(inputs, targets, prior, has_intercept(layer))
            refit(module, weight.reshape(module.get_parameter("weight").shape), shift)

        return refit_to
