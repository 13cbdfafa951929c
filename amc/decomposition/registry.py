"""From a name on the command line and in a policy to an operator; a new one is a file and a line here.

An operator outside of the package is named by its import path, `package.module:Class`.
"""

from functools import cache

from amc.decomposition.additive_linear import AdditiveCodes
from amc.decomposition.clustered_conv import ClusteredKernels
from amc.decomposition.filter_groups import FilterGroups
from amc.decomposition.low_rank import ChannelSVD, SpatialSVD
from amc.decomposition.operator import Operator
from amc.errors import UserError
from amc.plugins import is_import_path, load_factory

_OPERATORS: tuple[type[Operator], ...] = (
    FilterGroups,
    ClusteredKernels,
    ChannelSVD,
    SpatialSVD,
    AdditiveCodes,
)
OPERATORS = {kind.name: kind for kind in _OPERATORS}


@cache
def get_operator(name: str) -> Operator:
    """The operator of this name or import path.

    Raises:
        UserError: there is none.
    """
    if name in OPERATORS:
        return OPERATORS[name]()
    if ":" not in name or not is_import_path(name):
        raise UserError(
            f"There is no operator {name!r}; there are {', '.join(OPERATORS)}, and your own as "
            "package.module:Class."
        )
    operator = load_factory(name)()
    if not isinstance(operator, Operator):
        raise UserError(f"{name!r} gives no amc.decomposition.operator.Operator.")
    return operator
