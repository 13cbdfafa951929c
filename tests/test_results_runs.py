"""Run directories behind rows: whose search they may hold, and what fine-tuning in them took."""

from dataclasses import replace
from pathlib import Path

import pytest

from agents.config import AgentConfig, SearchConfig
from agents.run_config import RunConfig, SourceConfig, continued, write_config
from amc.errors import UserError
from amc.files import write_json
from envs.problem_config import ProblemConfig
from scripts.results_runs import TUNING_SECONDS_FILE, check_same, counted, opened

WANTED = RunConfig(
    SourceConfig(),
    ProblemConfig(budget=("macs=0.5",), weight_bits=(4, 8)),
    AgentConfig(actor_learning_rate=1e-5),
    SearchConfig(evaluations=20),
)


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        (
            replace(WANTED, problem=replace(WANTED.problem, importance="l2")),
            "importance was l2, not obs",
        ),
        (replace(WANTED, agent=replace(WANTED.agent, candidates=1)), "candidates was 1, not 256"),
    ],
)
def test_a_search_with_other_settings_is_not_taken_for_a_row(tmp_path: Path, stored: RunConfig, said: str):
    write_config(tmp_path, stored, {})
    with pytest.raises(
        UserError, match=f"{tmp_path} holds .*{said}.* another folder as --runs, or delete it"
    ):
        opened(tmp_path, WANTED)


def test_where_a_search_runs_and_how_long_may_differ(tmp_path: Path):
    write_config(tmp_path, WANTED, {})
    elsewhere = SourceConfig(device="cpu", threads=2, data_root=Path("elsewhere"))
    check_same(tmp_path, replace(WANTED, source=elsewhere, search=SearchConfig(evaluations=40)), ())
    write_config(tmp_path, continued(WANTED, 40), {})  # it now knows its first schedule
    check_same(tmp_path, WANTED, ())
    other = replace(WANTED, problem=replace(WANTED.problem, budget=("macs=0.4",)))
    check_same(tmp_path, other, ("budget",))


def test_seconds_of_an_interrupted_fine_tuning_count(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt), counted(tmp_path):
        raise KeyboardInterrupt
    assert (tmp_path / TUNING_SECONDS_FILE).exists()
    write_json(tmp_path / TUNING_SECONDS_FILE, {"seconds": 100.0})
    with counted(tmp_path) as spent:
        assert 100 <= spent() < 110
