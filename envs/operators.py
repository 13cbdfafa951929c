"""Which operators a search may choose from, and what a person should know about them."""

from amc.decomposition.knobs import AmountKnob, OperatorKnob
from amc.decomposition.registry import get_operator
from amc.errors import UserError
from amc.network import Network
from envs.problem_config import ProblemConfig

OperatorKnobs = tuple[OperatorKnob, AmountKnob] | tuple[()]


def make_operator_knobs(config: ProblemConfig, network: Network) -> tuple[OperatorKnobs, tuple[str, ...]]:
    """The knobs that choose operators, none where nothing takes part, and notes about them.

    Raises:
        UserError: an operator is unknown, or nothing bounds what operators change.
    """
    if not config.operators:
        return (), ()
    if "nonzeros" in config.active_costs:
        raise UserError(
            "--operators cannot be chosen under nonzeros: only weights of whole layers are counted there; "
            "search under macs, params, size, bops or latency."
        )
    useful = [name for name in config.operators if _lowers(name) & {*config.active_costs}]
    costs = " and ".join(dict.fromkeys(config.active_costs))
    notes = tuple(
        f"The operator {name} cannot lower {costs} and takes no part."
        for name in config.operators
        if name not in useful
    )
    choice = OperatorKnob(network, useful, "size" if "size" in config.active_costs else "macs")
    offering = sum(bool(amounts) for amounts in choice.amounts.values())
    if useful and not offering:
        notes += (f"No layer of this network can be replaced by {' or '.join(useful)}.",)
    if not offering:
        return (), notes
    notes += (
        f"{offering} of {len(network.layers)} layers may be replaced ({', '.join(useful)}); the others stay "
        "as they are.",
    )
    fitted = [name for name in useful if get_operator(name).uses_responses]
    if fitted and config.reconstruct == "none":
        notes += (
            f"--reconstruct none leaves what replaces a layer by {' or '.join(fitted)} as its weights give "
            "it, and does not fit it to the layer's responses.",
        )
    return (choice, AmountKnob(choice)), notes


def _lowers(name: str) -> frozenset[str]:
    """Costs that an operator can lower, on any target.

    Without parts the layer's own convolution runs, its kernels spelled out, and in floats: no runtime that a
    target stands for knows anything else. With parts, whether a target gains from them is measured.
    """
    operator = get_operator(name)
    return operator.lowers if operator.quantizes else operator.lowers - {"latency"}
