"""What a task lets an agent decide besides widths and bits: the length of retrieval codes."""

from collections.abc import Mapping

from amc.compress import Compressor
from amc.costs.codes import CodeCost, StorageCost
from amc.costs.symbolic import Cost
from amc.errors import UserError
from amc.network import Network
from amc.retrieval.code_knob import CODE
from amc.space import Space
from amc.tasks.base import OwnCompressors, Task
from envs.problem_config import ProblemConfig

CODE_COSTS = ("code", "storage")
"""Costs under which the length of the codes is a choice."""


def own_compressors(task: Task, network: Network, config: ProblemConfig) -> tuple[Compressor, ...]:
    """What the task itself compresses, none where no budget asks for it.

    Raises:
        UserError: a budget asks for what the task or its network does not have.
    """
    asked = [name for name in CODE_COSTS if name in config.active_costs]
    if not asked:
        return ()
    if not isinstance(task, OwnCompressors):
        raise UserError(f"A budget on {asked[0]} bounds the codes of --task retrieval; {task.name} has none.")
    return tuple(task.compressors(network))


def code_costs(space: Space, costs: Mapping[str, Cost], config: ProblemConfig) -> dict[str, Cost]:
    """Costs that count codes, where their length is a choice."""
    if CODE not in [knob.name for knob in space.knobs]:
        return {}
    code = CodeCost(space)
    counted: dict[str, Cost] = {code.name: code}
    if config.database:
        counted["storage"] = StorageCost(costs["size"], code, config.database)
    return counted
