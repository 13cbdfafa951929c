"""What trials of test sweeps name by import path, and a sweep's usual settings."""

import torch
from torch import nn

from agents.config import AgentConfig, SearchConfig
from agents.log import EvaluationLog
from agents.run_config import RunConfig, SourceConfig
from envs.problem_config import ProblemConfig

BASE = RunConfig(
    SourceConfig(model="tests.sweep_pieces:tiny_network", side=16, threads=1),
    ProblemConfig(budget=("macs=0.4",), reward_images=60, calibration_images=40),
    AgentConfig(algorithm="random"),
    SearchConfig(evaluations=6, checkpoint_every=2),
)


def tiny_network() -> nn.Module:
    """Three layers to decide, the same at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 12, 3, 2, 1),
            nn.BatchNorm2d(12),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(12, 10),
        )


def figures(log: EvaluationLog) -> list[object]:
    """All of a log that two equal searches have in common."""
    return [
        (row.digest, row.score, dict(row.costs), row.reward, row.cached, row.best_index) for row in log.rows
    ]
