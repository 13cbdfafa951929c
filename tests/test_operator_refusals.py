"""What cannot be chosen, or not be carried out, in place of a layer."""

import pytest
import torch
from torch import nn

from amc.compress import ChannelPruning, apply
from amc.decomposition.registry import get_operator
from amc.errors import UserError
from amc.network import Network, trace
from amc.policy import CompressionPolicy
from amc.pruning.importance import rank_channels
from envs.operators import make_operator_knobs
from envs.problem_config import ProblemConfig
from tests.operator_pieces import BOTH, compressors, mixed_network, policy_with, space_of


@pytest.fixture(scope="module")
def network() -> Network:
    return mixed_network()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operators": ("depthwise",)}, "no operator 'depthwise'"),
        ({"operators": ("filter-groups", "filter-groups")}, "names one twice"),
    ],
)
def test_bad_operators_are_refused_at_once(settings: dict, message: str):
    with pytest.raises(UserError, match=message):
        ProblemConfig(**settings)


def test_operators_beside_single_weights_are_refused(network: Network):
    config = ProblemConfig(budget=("nonzeros=0.5",), operators=("filter-groups",))
    with pytest.raises(UserError, match="cannot be chosen under nonzeros"):
        make_operator_knobs(config, network)


@pytest.mark.parametrize(
    ("operators", "message"),
    [
        ({"point.0": ("filter-groups", 2)}, "single element"),
        ({"wide.0": ("filter-groups", 3)}, "amount 3, which is not legal"),
    ],
)
def test_policies_that_cannot_be_are_refused(network: Network, operators: dict, message: str):
    with pytest.raises(UserError, match=message):
        apply(policy_with(network, operators), network, compressors(network))


def test_an_amount_that_the_search_does_not_know_is_refused():
    """Ranks come by the hundred, of which a search knows a few; between them is no other cost."""
    conv = nn.Conv2d(24, 24, 3, padding=1)
    network = trace(nn.Sequential(conv, nn.Flatten(), nn.Linear(24 * 16, 3)).eval(), torch.zeros(1, 24, 4, 4))
    space = space_of(network, ("channel-svd",))
    known, legal = space.choice.amounts["0"][1], get_operator("channel-svd").amounts(conv)
    foreign = next(amount for amount in legal if amount not in known)
    for amount in known:
        space.table(policy_with(network, {"0": ("channel-svd", amount)}))
    with pytest.raises(UserError, match=f"by channel-svd with amount {foreign}, which this search does not"):
        space.table(policy_with(network, {"0": ("channel-svd", foreign)}))


def test_bits_for_weights_that_are_not_there_are_refused(network: Network):
    policy = policy_with(network, BOTH).to_json()
    for decision in policy["decisions"]:
        decision["values"]["weight_bits"] = 4
    with pytest.raises(UserError, match="weight_bits = 4, but clustered-kernels leaves no weights"):
        apply(CompressionPolicy.from_json(policy, "a test"), network, compressors(network))


def test_a_policy_is_not_carried_out_without_its_operators(network: Network):
    pruning = ChannelPruning(rank_channels(network, "l2"))
    with pytest.raises(UserError, match="nothing here carries that out"):
        apply(policy_with(network, BOTH), network, [pruning])
