"""Closed-form calibration: the last factor of a decomposition is fitted to the layer's original responses.

With H = X A^T the responses of the first factor A and Y = X_0 W^T the original ones, the second factor is
P = argmin || Y - H P^T ||^2 = Y^T H (H^T H)^-1 (response reconstruction after Zhang, Zou, He and Sun, 2016).
Both products follow from the second moments of the original inputs, which are computed once a network, so
that no policy needs another forward pass.

The asymmetric reconstruction replaces layers in execution order, with H what the compressed layers in front
give, as Peng et al. (ECCV 2018) calibrate filter groups (`amc.pruning.asymmetric`). With the symmetric one
the inputs are those of the original network, and what the layers in front do to them is not seen. Without
either the fit is that of the weights.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc.pruning.reconstruction import InputMoments, weight_columns

REPLACED = "amc_replaced"
"""Key of a module's `meta`: the layers that the reconstruction has replaced or quantized in its course; it is
there whenever something was refitted."""
RIDGE = 1e-6
"""Added to the diagonal of H^T H, relative to its mean."""


@dataclass(frozen=True)
class Responses:
    """The original responses of the output channels that are left, as far as a fit needs them.

    Attributes:
        second: second moment of the inputs that are left, float64 [d, d]; d = kept inputs x kernel.
        cross: moment of those inputs and the original outputs, float64 [d, out].
        mean: of the inputs that are left, float64 [d]; zero where no intercept is free.
        wanted: mean of the outputs, without the bias that the layer has by then, float64 [out].
    """

    second: Tensor
    cross: Tensor
    mean: Tensor
    wanted: Tensor

    @classmethod
    def of(
        cls,
        weight: Tensor,
        moments: InputMoments,
        inputs: Tensor | None,
        outputs: Tensor | None,
        current: Tensor | None = None,
    ) -> "Responses":
        """From the original weight [out, in, ...], its input moments and the channels that are left.

        Args:
            weight, moments: of the original layer.
            inputs, outputs: positions of the channels that are left; None for all.
            current: the weight that the layer's bias belongs to by then, [out, in, ...] of what is left; by
                default the bias is the original's.
        """
        kept = torch.arange(weight.shape[1]) if inputs is None else inputs
        columns = weight_columns(weight, kept)
        rows = weight.detach() if outputs is None else weight.detach()[outputs]
        flat = rows.reshape(len(rows), -1).double().cpu()
        seen = moments.second[columns]
        mean, wanted = moments.mean[columns], flat @ moments.mean
        if current is not None:
            wanted = current.detach().reshape(len(current), -1).double().cpu() @ mean
        return cls(seen[:, columns], seen @ flat.T, mean, wanted)

    def of_inputs(self, inputs: int) -> "Responses":
        """With the order of rows (`amc.pruning.patches`) turned into that of a weight with so many inputs."""
        order = torch.arange(len(self.mean)).reshape(-1, inputs).T.flatten()
        return Responses(self.second[order][:, order], self.cross[order], self.mean[order], self.wanted)

    def fit(self, basis: Tensor) -> tuple[Tensor, Tensor]:
        """The best second factor for a first one.

        Args:
            basis: kernels of the first factor, float64 [m, in, kh, kw].

        Returns:
            P, float64 [out, m], and what a bias must gain to keep the mean output, [out].
        """
        flat = basis.reshape(len(basis), -1)
        normal = flat @ self.second @ flat.T
        # A component that never responds would make the matrix singular; its column becomes 0.
        ridge = RIDGE * normal.diagonal().mean().clamp_min(1e-12)
        normal = normal + ridge * torch.eye(len(normal), dtype=normal.dtype)
        mixing = torch.linalg.solve(normal, flat @ self.cross).T
        return mixing, self.wanted - mixing @ (flat @ self.mean)

    def error(self, weight: Tensor) -> float:
        """Mean squared difference from the original responses, up to a constant that no weight changes.

        Args:
            weight: [out, in, kh, kw] of the channels that are left.
        """
        flat = weight.detach().reshape(len(weight), -1).double().cpu()
        return float((flat @ self.second * flat).sum() - 2 * (flat.T * self.cross).sum())


Replace = Callable[[nn.Module, Responses | None], nn.Module]
"""From a layer, its lost channels removed, and its responses where they are known to what replaces it.

They come in the order of rows: only who uses them pays for `Responses.of_inputs`."""
