"""What a problem leaves to decide, and who carries it out and scores it: knobs, compressors, evaluator."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from amc.compress import ActivationQuantization, ChannelPruning, Compressor, WeightQuantization
from amc.costs.symbolic import Cost
from amc.decomposition.replacement import OperatorReplacement
from amc.errors import UserError
from amc.evaluate import Evaluator
from amc.knobs import BitsKnob, BlockKnob, WidthKnob
from amc.network import Network
from amc.pruning.block_importance import deepest_blocks
from amc.pruning.fine_grained import DensityKnob, FineGrainedPruning
from amc.pruning.reconstruction import SymmetricReconstruction, input_moments
from amc.quantization.uniform import NOT_QUANTIZED
from amc.recovery.brief_tuning import BriefTuning
from amc.space import Space
from amc.targets import Target
from amc.tasks.base import Task
from envs.bit_balance import balanced_bits
from envs.bits import make_knobs
from envs.operators import make_operator_knobs
from envs.own_choices import own_compressors
from envs.problem_config import ProblemConfig
from envs.pruning import make_delivery, make_reconstruction, rank


@dataclass(frozen=True)
class Choices:
    """What there is to decide, and who carries it out.

    Attributes:
        space: all knobs in their order.
        knobs: widths, bits of weights and bits of activations.
        own: compressors that the task or the configuration brings, with knobs of their own.
    """

    space: Space
    knobs: tuple[WidthKnob, BitsKnob, BitsKnob]
    own: Sequence[Compressor]

    def balanced(self, errors: Mapping[str, Sequence[float]], bits: tuple[BitsKnob, BitsKnob]) -> "Choices":
        """The same choices; widths of the reference policy are a matter of errors, its bits are these."""
        knobs = (self.knobs[0].with_errors(errors), *bits)
        space = self.space
        for knob in knobs:
            space = space.with_knob(knob)
        return Choices(space, knobs, self.own)


def make_choices(
    network: Network, task: Task, config: ProblemConfig, target: Target
) -> tuple[Choices, tuple[str, ...]]:
    """Every knob that the configuration asks for, with what a person should know about them.

    Raises:
        UserError: the network or the target has nothing to decide there.
    """
    knobs, notes = make_knobs(config, network, target)
    operators, said = make_operator_knobs(config, network)
    blocks, densities = _block_knobs(network, task, config), _density_knobs(config)
    own = own_compressors(task, network, config)
    extra = (knob for compressor in own for knob in compressor.knobs)
    return Choices(
        Space(network, (*blocks, *operators, *extra, *knobs, *densities)), knobs, own
    ), notes + said


def _density_knobs(config: ProblemConfig) -> tuple[DensityKnob, ...]:
    """The knob of fine-grained pruning, under a budget that it alone can meet; other policies lack it."""
    return (DensityKnob(),) if "nonzeros" in config.active_costs else ()


def _block_knobs(network: Network, task: Task, config: ProblemConfig) -> tuple[BlockKnob, ...]:
    """The knob that leaves residual blocks out, where it is wanted.

    Raises:
        UserError: the network has no block that can be left out.
    """
    if not config.drop_blocks:
        return ()
    if not network.blocks:
        raise UserError("--drop-blocks: this network has no residual block that could be left out.")
    images = task.calibration(config.calibration_images)[:1]
    return (BlockKnob(network, deepest_blocks(network, config.reference_depth, images)),)


def _layerwise(choices: Choices) -> bool:
    """Whether layers are replaced or quantized one after the other, in the course of a reconstruction.

    Not where single weights go, or outputs that a code no longer needs: both happen to layers of floats,
    when all of them are refitted.
    """
    later = bool(choices.own) or any(isinstance(knob, DensityKnob) for knob in choices.space.knobs)
    return not later and (choices.space.chooses or min(choices.knobs[1].choices) < NOT_QUANTIZED)


def make_evaluator(
    choices: Choices, task: Task, config: ProblemConfig, costs: dict[str, Cost], device: str
) -> tuple[Choices, Evaluator]:
    """What compresses and scores policies, without any latency, and the choices in the light of it."""
    network, calibration = choices.space.network, task.calibration(config.calibration_images)
    layerwise = _layerwise(choices)
    refits = make_reconstruction(network, calibration, config, layerwise)
    moments = refits.moments if isinstance(refits, SymmetricReconstruction) else None
    orders, errors = rank(network, task, config, moments)
    if config.balanced:
        bits = balanced_bits(choices.knobs[1:], network, config, calibration)
        choices = choices.balanced(errors, bits)
    space, knobs, own = choices.space, choices.knobs, choices.own
    pruning = ChannelPruning(orders, knobs[0], refits)
    if space.chooses and not layerwise and config.reconstruct == "asymmetric":
        moments = input_moments(network, calibration)  # of the original: nothing is replaced in the course
    operators = [OperatorReplacement(pruning.kept, moments)] if space.chooses else []
    weights = WeightQuantization(knobs[1], config.weight_quantizer)
    activations = ActivationQuantization(knobs[2], config.activation_quantizer)
    compressors: list[Compressor] = [
        pruning.along_with(*operators, weights, activations) if layerwise else pruning,
        *own,
        *operators,
        *(FineGrainedPruning(knob) for knob in space.knobs if isinstance(knob, DensityKnob)),
        weights,
        activations,
    ]
    precision = config.precision
    evaluator = Evaluator(network, space, task, compressors, costs, calibration, None, device, precision)
    evaluator.delivery = make_delivery(network, task, config, compressors, layerwise)
    if config.tune_steps:
        teacher = network.copy().to(device)
        evaluator.tuning = BriefTuning(teacher, task, config.tune_steps, evaluator.calibration, precision)
    return choices, evaluator
