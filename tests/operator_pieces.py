"""A small network and what the tests of operators ask of it."""

import numpy as np
import torch
from torch import Tensor, nn

from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.costs.budget import Budget, check_reachable
from amc.costs.symbolic import symbolic_costs
from amc.decomposition.knobs import AmountKnob, OperatorKnob
from amc.decomposition.registry import OPERATORS
from amc.decomposition.replacement import OperatorReplacement
from amc.inference import inference_form, take_calibration
from amc.knobs import BITS, BitsKnob, WidthKnob
from amc.network import Network, trace
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.importance import rank_channels
from amc.quantization.uniform import NOT_QUANTIZED
from amc.recovery.calibrate import calibrate
from amc.space import Space
from envs.walk import Walk

ALL = tuple(OPERATORS)
SIZE_BITS = (2, 3, 4, 5, 6, 7)
BOTH = {"inner.0": ("clustered-kernels", 4), "outer.0": ("filter-groups", 2), "wide.0": ("filter-groups", 4)}


class Mixed(nn.Module):
    """Every kind of layer, a residual sum and a stride."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.inner = nn.Sequential(nn.Conv2d(8, 6, 3, padding=1), nn.ReLU())
        self.outer = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.wide = nn.Sequential(
            nn.Conv2d(8, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU()
        )
        self.depth = nn.Sequential(nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU())
        self.point = nn.Sequential(nn.Conv2d(12, 10, 1), nn.ReLU())
        self.last = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = torch.relu(x + self.outer(self.inner(x)))
        return self.last(self.point(self.depth(self.wide(x))).mean((2, 3)))


def mixed_network() -> Network:
    """The traced network, with statistics that a trained one could have."""
    torch.manual_seed(0)
    model = Mixed()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.2)
    return trace(model.eval(), torch.zeros(1, 3, 8, 8))


def space_of(
    network: Network,
    operators: tuple[str, ...] = ALL,
    weight_bits: tuple[int, ...] = (NOT_QUANTIZED,),
    activation_bits: tuple[int, ...] = (NOT_QUANTIZED,),
) -> Space:
    choice = OperatorKnob(network, operators)
    bits = (
        BitsKnob("weight_bits", network, weight_bits),
        BitsKnob("activation_bits", network, activation_bits),
    )
    return Space(network, (choice, AmountKnob(choice), WidthKnob(), *bits))


def walk_under(space: Space, **fractions: float) -> Walk:
    costs = symbolic_costs(space)
    original = {name: cost.of(space.original()) for name, cost in costs.items()}
    budgets = [Budget(costs[n], share * original[n], original[n]) for n, share in fractions.items()]
    check_reachable(budgets, space)
    live = frozenset[str]().union(*(budget.cost.knobs for budget in budgets))
    return Walk(space, budgets, live, budgets[0].cost)


def random_policy(walk: Walk, rng: np.random.Generator) -> CompressionPolicy:
    walk.reset()
    for _ in range(walk.length):
        walk.step(rng.uniform(-1, 1, walk.action_size))
    return walk.policy()


def random_policies(walk: Walk, count: int) -> list[CompressionPolicy]:
    rng = np.random.default_rng(0)
    return [random_policy(walk, rng) for _ in range(count)]


def compressors(network: Network) -> list:
    pruning = ChannelPruning(rank_channels(network, "l2"))
    return [
        pruning,
        OperatorReplacement(pruning.kept),
        WeightQuantization(BitsKnob("weight_bits", network, BITS)),
        ActivationQuantization(BitsKnob("activation_bits", network, BITS)),
    ]


def policy_with(network: Network, operators: dict[str, tuple[str, int]], **values: int) -> CompressionPolicy:
    decisions = []
    for layer in network.layers:
        operator, amount = operators.get(layer.name, ("original", 0))
        own = {**values, **({"amount": amount} if amount else {})}
        if operator == "clustered-kernels":
            own["weight_bits"] = NOT_QUANTIZED
        decisions.append(LayerDecision(layer.name, own, operator))
    return CompressionPolicy(network.fingerprint, tuple(decisions))


def calibrated(network: Network, policy: CompressionPolicy) -> nn.Module:
    torch.manual_seed(1)
    model = apply(policy, network, compressors(network))
    fast = inference_form(model)
    calibrate(fast, [torch.randn(32, 3, 8, 8) for _ in range(3)])
    take_calibration(model, fast)
    return model


def executed_macs(model: nn.Module, x: Tensor) -> int:
    total = 0

    def count(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        total += layer.weight[0].numel() * output[0].numel()  # type: ignore[union-attr, index]

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        model(x[:1])
    return total
