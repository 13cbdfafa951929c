"""Whether a policy belongs to a network."""

from collections.abc import Iterable, Sequence

from torch import nn

from amc.decomposition.operator import AMOUNT, legal_amounts
from amc.decomposition.registry import get_operator
from amc.errors import UserError
from amc.network import Layer, Network
from amc.policy import REMOVED, CompressionPolicy, LayerDecision
from amc.quantization.uniform import NOT_QUANTIZED
from amc.retrieval.code import WORD_BITS


def check_policy(policy: CompressionPolicy, network: Network) -> None:
    """Refuse a policy that does not belong to a network.

    Raises:
        UserError: fingerprint, layers, operators, widths or bits do not fit.
    """
    if policy.network != network.fingerprint:
        raise UserError(
            f"The policy was made for another network (fingerprint {policy.network}, "
            f"this one is {network.fingerprint})."
        )
    layers, points = [v.name for v in network.layers], [d.point for d in policy.decisions]
    unequal = sorted(name for name in {*layers, *points} if layers.count(name) != points.count(name))
    if unequal:
        raise UserError(f"The policy must decide every layer once, which fails at {', '.join(unequal)}.")
    for layer in network.layers:
        _check_decision(policy[layer.name], layer, network)
    whole = {layer for b in network.blocks if b.name in policy.removed for layer in b.layers}
    if whole != policy.removed:
        raise UserError(
            f"The policy leaves out {', '.join(sorted(policy.removed ^ whole))}; layers can go only with all "
            "others of their residual block."
        )
    _check_shared(policy, "width", [group.producers() for group in network.groups if not group.frozen])
    readers: dict[str, list[str]] = {}
    for layer in network.layers:
        readers.setdefault(layer.input_tensor, []).append(layer.name)
    _check_shared(policy, "activation_bits", readers.values())


def _check_shared(policy: CompressionPolicy, knob: str, sets: Iterable[Sequence[str]]) -> None:
    """Refuse layers that must share a value and do not."""
    values = policy.values(knob)
    for names in sets:
        decided = {name: values[name] for name in names if name in values}
        if len(set(decided.values())) > 1:
            said = ", ".join(f"{value} in {name}" for name, value in decided.items())
            raise UserError(f"The policy gives {knob} that must be equal different values: {said}.")


def _check_decision(decision: LayerDecision, layer: Layer, network: Network) -> None:
    if decision.operator == REMOVED:
        return
    if decision.replaced:
        _check_operator(decision, network.module.get_submodule(layer.name))
    width = decision.values.get("width", layer.out_channels)
    group = network.group_of.get(layer.name)
    if not 1 <= width <= layer.out_channels:
        raise UserError(f"The policy keeps {width} of {layer.out_channels} channels in {layer.name}.")
    if group is not None and width % group.step:
        raise UserError(
            f"The policy keeps {width} channels in {layer.name}; its groups need a multiple of {group.step}."
        )
    if width != layer.out_channels and (group is None or group.frozen):
        raise UserError(f"The policy prunes {layer.name}, whose channels cannot be pruned in this network.")
    for name in ("weight_bits", "activation_bits"):
        bits = decision.values.get(name, 32)
        if bits != 32 and not 2 <= bits <= 8:
            raise UserError(f"The policy gives {layer.name} {name} = {bits}; legal are 2 to 8, or 32.")
    most = WORD_BITS * network.layer_groups(layer.name)
    code = decision.values.get("code", most)
    if code % WORD_BITS or not WORD_BITS <= code <= most:
        raise UserError(
            f"The policy gives {layer.name} a code of {code} bits; legal are multiples of {WORD_BITS} "
            f"up to {most}."
        )
    if not 1 <= (density := decision.values.get("density", 100)) <= 100:
        raise UserError(f"The policy keeps {density} % of the weights in {layer.name}; legal are 1 to 100.")


def _check_operator(decision: LayerDecision, module: nn.Module) -> None:
    operator, amount = get_operator(decision.operator), decision.values.get(AMOUNT)
    obstacle = operator.obstacle(module)
    if obstacle is not None:
        raise UserError(
            f"The policy replaces {decision.point} by {decision.operator}, which cannot be: {obstacle}."
        )
    if amount not in legal_amounts(operator, module):
        raise UserError(
            f"The policy replaces {decision.point} by {decision.operator} with amount {amount}, which is not "
            "legal there."
        )
    bits = decision.values.get("weight_bits", NOT_QUANTIZED)
    if not operator.quantizes and bits != NOT_QUANTIZED:
        raise UserError(
            f"The policy gives {decision.point} weight_bits = {bits}, but {decision.operator} leaves no "
            "weights that could be quantized."
        )
