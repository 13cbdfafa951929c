"""What a problem's settings mean for channel pruning: the order of the channels, and what refits the rest."""

from collections.abc import Callable, Mapping, Sequence

import torch

from amc.compress import ChannelPruning, Compressor
from amc.network import Network
from amc.precision import computes_in_bfloat16
from amc.pruning.asymmetric import AsymmetricReconstruction
from amc.pruning.importance import rank_channels
from amc.pruning.reconstruction import (
    InputMoments,
    Reconstruction,
    SymmetricReconstruction,
    input_moments,
)
from amc.pruning.surgeon import eliminate_channels
from amc.tasks import Task
from envs.problem_config import ProblemConfig

TAYLOR_BATCHES, TAYLOR_BATCH_SIZE = 8, 128
REFIT_BATCHES, REFIT_BATCH_SIZE = 3, 200
"""Batches, and images of each, for the asymmetric reconstruction, which pays for them with every policy. All
five batches give the balanced policy of ResNet-56 at half of its MACs 0.4 points more on the reward split,
for half as much time again."""
FINAL_PIXELS = 32 * 32
"""Pixels of the images that `final_images` counts. All of them are in memory at once, layer by layer."""


def make_reconstruction(
    network: Network, calibration: Sequence[torch.Tensor], config: ProblemConfig, layerwise: bool = False
) -> Reconstruction | None:
    """What refits the layers that lose inputs, with what it learns from unlabeled images once.

    Policies are compressed on the CPU, wherever they are scored.

    Args:
        network: the traced network.
        calibration: unlabeled images.
        config: names the kind.
        layerwise: whether layers are replaced or quantized in its course.
    """
    if config.reconstruct == "asymmetric":
        return _asymmetric(network, calibration[:REFIT_BATCHES], config, layerwise)
    if config.reconstruct == "symmetric":
        return SymmetricReconstruction(input_moments(network, calibration))
    return None


def _asymmetric(
    network: Network, batches: Sequence[torch.Tensor], config: ProblemConfig, every: bool
) -> AsymmetricReconstruction:
    rounds = computes_in_bfloat16(config.precision, "cpu")
    return AsymmetricReconstruction.of(network, batches, rounds=rounds, every=every)


def make_delivery(
    network: Network,
    task: Task,
    config: ProblemConfig,
    compressors: Sequence[Compressor],
    layerwise: bool = False,
) -> Callable[[], Sequence[Compressor]] | None:
    """What carries out a policy whose network is to be kept, if not what does so in the search.

    Args:
        network: the traced network.
        task: its images.
        config: says how many of them.
        compressors: those of the search.
        layerwise: as of `make_reconstruction`.
    """
    height, width = task.example_input().shape[-2:]
    images = min(config.final_images, config.final_images * FINAL_PIXELS // (height * width))
    if config.reconstruct != "asymmetric" or images <= REFIT_BATCHES * REFIT_BATCH_SIZE:
        return None

    def made() -> Sequence[Compressor]:
        refits = _asymmetric(network, task.calibration(images), config, layerwise)
        return [one.refitting(refits) if isinstance(one, ChannelPruning) else one for one in compressors]

    return made


def rank(
    network: Network, task: Task, config: ProblemConfig, moments: Mapping[str, InputMoments] | None
) -> tuple[dict[str, torch.Tensor], dict[str, list[float]]]:
    """Channels of every prunable group, most important first, and what is lost with so many of them.

    Args:
        network: the traced network.
        task: its images.
        config: names the order.
        moments: of the layers' inputs, where they are known already.

    Returns:
        Group name to int64 [channels], and to errors [channels + 1] where the order predicts any.
    """
    if config.importance == "obs":
        known = moments or input_moments(network, task.calibration(config.calibration_images))
        found = eliminate_channels(network, known)
        return found.orders, {name: errors.tolist() for name, errors in found.errors.items()}
    if config.importance != "taylor":
        return rank_channels(network, config.importance), {}
    generator = torch.Generator().manual_seed(0)
    batches = task.data.batches("train", TAYLOR_BATCH_SIZE, generator)
    chosen = [batch for batch, _ in zip(batches, range(TAYLOR_BATCHES), strict=False)]
    return rank_channels(network, "taylor", chosen, task.loss), {}
