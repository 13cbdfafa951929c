"""A target whose latency is a formula, and problems under latency budgets on it, for tests."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents.run import Run
from amc.graph import module_of
from amc.quantization.modules import ActivationQuantizer
from amc.quantization.uniform import NOT_QUANTIZED
from amc.targets import Profile, Target, Timing
from envs.problem import Problem, build_problem
from envs.problem_config import ProblemConfig
from tests.test_run import config, start, tiny_model, tiny_task

FAKE = f"{__name__}:FormulaTarget"


class FormulaTarget(Target):
    """A layer costs its weights, a third of them in integers; entering integers costs a conversion.

    Attributes:
        border: what a layer in integers costs more, as a share of the original's latency.
        excess: by which factor policies are slower than the formula that the predictor was fitted to.
    """

    name = "formula"
    profile = Profile(width_multiple=2)
    runtime_version = "1"
    reliable = True
    border, excess = 0.0, 1.0

    def __init__(self) -> None:
        self.single = self.many = 0

    def export(self, module: Any, example: torch.Tensor, path: Path) -> Any:
        """Write the latency itself."""
        weights = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        quantized = {
            str(user.target)
            for node in module.graph.nodes
            for quantizer in (module_of(node),)
            if isinstance(quantizer, ActivationQuantizer) and quantizer.bits < NOT_QUANTIZED
            for user in node.users
        }
        cost = 0.0
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                integer = name in quantized
                cost += layer.weight.numel() * (1 / 3 if integer else 1.0) + 20.0
                cost += self.border * 1500.0 if integer else 0.0
        assert weights
        path.write_text(json.dumps(cost))
        return type("Exported", (), {"exporter": "amc", "unsupported": ""})()

    def measure(self, files: Sequence[Path | str], *, time_limit_s: float = 30.0) -> list[Timing]:
        """The first file is the reference; a single candidate is a policy of the search."""
        self.single += len(files) == 2
        self.many += len(files) > 2
        costs = [float(Path(file).read_text()) * 1e-3 for file in files]
        if len(files) == 2:
            costs[1] *= self.excess
        return [Timing(cost, (cost,), cost / costs[0], self.reliable, 1) for cost in costs]

    def run(self, file: Path | str, inputs: np.ndarray) -> np.ndarray:
        """Never asked for."""
        raise NotImplementedError


SMALL: dict[str, Any] = {"reward_images": 60, "calibration_images": 40, "target": FAKE}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, _surroundings: None) -> None:
    """Tests that change the target must not share its timings; few samples do for a formula."""
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "amc-cache"))
    monkeypatch.setattr("amc.costs.latency.sampling.MOST_SAMPLES", 42)


def make(*budget: str, **settings: Any) -> Problem:
    made = ProblemConfig(budget=budget, **{**SMALL, **settings})
    return build_problem(tiny_model(), tiny_task(), made)


@pytest.fixture
def problem() -> Iterator[Problem]:
    made = make("latency=0.3")
    yield made
    made.close()


def target_of(problem: Problem) -> FormulaTarget:
    assert isinstance(problem.target, FormulaTarget)
    return problem.target


def begin(folder: Path, budget: str = "latency=0.3", evaluations: int = 12, **agent: Any) -> Run:
    settings = config(evaluations, **agent)
    return start(folder, replace(settings, problem=ProblemConfig(budget=(budget,), **SMALL)))
