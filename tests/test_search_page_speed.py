"""What the page of the search results says about time, and the network that the authors' code is timed on."""

from typing import Any

import pytest
import torch
from torch import nn

from amc.costs.symbolic import original_table, symbolic_costs
from amc.knobs import WidthKnob
from amc.models import build_model
from amc.network import trace
from amc.space import Space
from envs.walk import Walk
from scripts.search_page_speed import speed, workers


def timed(**others: Any) -> dict[str, Any]:
    """A row as the runner writes it."""
    cores, load = others.pop("cores", 4), others.pop("load", 0.2)
    return {
        "part": "seconds",
        "network": "resnet56",
        "seconds_per_evaluation": 0.5,
        "efficiency": 0.9,
        "workers": 4,
        "threads": 3,
        "phases": {"least squares": 700.25, "scoring": 90.0},
        "in_process": 0.8,
        "one_worker": 1.8,
        "all_workers": 0.5,
        "load": [load, 4.1],
        "reward_images": 2000,
        "calibration_images": 1000,
        "origin": {"machine": {"cores": 64, "cores_allowed": cores}},
        **others,
    }


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.split("|")[1:-1]]


def test_the_table_of_an_evaluation_names_its_circumstances_and_its_parts() -> None:
    page = speed([timed(), timed(variant="symmetric", phases={"scoring": 90.0, "calibration": 5.0})])
    _, _, times, _, parts, shown = page
    numbers = ["2000", "1000", "0.80 (3)", "1.80", "0.50 (4)", "4", "0.2", "0.50", "0.6", "met"]
    assert cells(times.splitlines()[2]) == ["resnet56", "asymmetric", *numbers]
    head, _, *lines = map(cells, parts.splitlines())
    assert head == ["network", "refitted", "least squares", "scoring", "calibration"]
    assert lines[0][2:] == ["700.2", "90.0", ""] and lines[1][2:] == ["", "90.0", "5.0"]
    assert "seconds/*" in shown


@pytest.mark.parametrize(
    ("others", "said"),
    [
        ({}, "met"),
        ({"seconds_per_evaluation": 0.7, "efficiency": 0.8}, "**missed**"),
        ({"cores": 2, "workers": 2}, "not judged: 2 cores"),
        ({"cores": 8}, "not judged: 8 cores"),
        ({"workers": 2}, "not judged: 2 workers"),
        ({"load": 1.0}, "not judged: load 1.0"),
    ],
)
def test_only_four_idle_cores_are_judged(others: dict[str, Any], said: str) -> None:
    times = speed([timed(**others)])[2]
    efficiency = workers([timed(part="workers", **others)])[1]
    assert cells(times.splitlines()[2])[-1] == said
    assert cells(efficiency.splitlines()[2])[-1] == said


def test_the_mobilenet_of_the_speed_goal_has_46_million_macs_and_15_stops() -> None:
    network = trace(build_model("mobilenet_v1", small_input=True), torch.zeros(1, 3, 32, 32))
    space = Space(network, (WidthKnob(),))
    macs = symbolic_costs(space)["macs"]
    assert round(macs.of(original_table(network, space)) / 1e6) == 46
    first = network.module.get_submodule(network.layers[0].name)
    assert isinstance(first, nn.Conv2d) and first.stride == (1, 1)
    # The authors' agent stops at 15 layers and decides their inputs, which for the first is the image; ours
    # decides the outputs, so it has no stop at the last. The channels that may go are the same 14 times.
    stops = [each for each in network.layers if not is_depthwise(network.module.get_submodule(each.name))]
    assert len(stops) == 15
    assert Walk(space, (), frozenset({"width"}), macs).length == len(stops) - 1


def is_depthwise(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.groups == layer.in_channels > 1
