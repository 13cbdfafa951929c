"""The report of a search in rounds: compared within its last round, with a table of all of them."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from agents.config import CoolingConfig, SearchConfig
from agents.cooling_product import CooledLog, summarise
from agents.log import Row
from agents.report_cooling import rounds_figure
from agents.report_curves import group_figure
from agents.report_data import load_record
from agents.report_groups import grouped
from agents.run_config import RunConfig, write_config
from amc.errors import UserError
from amc.policy import CompressionPolicy, LayerDecision
from tests.test_report import CONFIG, COSTS, FACTS, make_run, report, sentences

ROUNDS = ((0.90, 0.92), (0.80, 0.85), (0.60, 0.66))
"""Scores of each round: of its reference policy, and of the one that is best."""
SHARES = (0.7, 0.45, 0.3)
"""Of the original's costs that those of a round have."""


def cooled_config(**cooling: int) -> RunConfig:
    settings = CoolingConfig("linear", **{"rounds": 3, "round_epochs": 2, **cooling})
    problem = replace(CONFIG.problem, budget=("macs=0.3",))
    return replace(CONFIG, problem=problem, search=SearchConfig(evaluations=6), cooling=settings)


def cooled(folder: Path, rounds: Sequence[Sequence[float]] = ROUNDS, ended: int = 3, **cooling: int) -> Path:
    """A cooled run by hand, two evaluations a round; the second is the best of its round."""
    config = cooled_config(**cooling)
    folder.mkdir(parents=True)
    write_config(folder, config, FACTS)
    log = CooledLog(folder / "evaluations.jsonl")
    for number, (scores, share) in enumerate(zip(rounds, SHARES, strict=False), 1):
        here, start = folder / f"round-{number}", len(log)
        here.mkdir()
        name = "balanced" if number == 3 else "uniform"
        write_config(here, replace(config, cooling=CoolingConfig()), {**FACTS, "reference": name})
        costs = {name: value * share for name, value in COSTS.items()}
        for place, score in enumerate(scores):
            policy = CompressionPolicy("f" * 16, (LayerDecision("conv1", {"width": 16 - len(log)}),))
            log.append(
                Row(start + place, policy, score, costs, place, 0.5, False, start + place, "", share <= 0.3)
            )
        if number <= ended:
            tuned = {"tuned_score": scores[-1] + 0.01, "tuned_test_score": 0.5} if number < 3 else {}
            row = {"round": number, "evaluations": len(scores), "test_score": scores[-1] - 0.02, **tuned}
            summarise(folder, vars(config.cooling), row)
    return folder


def test_the_verdict_compares_within_the_last_round(tmp_path: Path):
    folder = cooled(tmp_path / "run")
    assert sentences(folder) == (
        "+6.00 points of accuracy over the balanced policy on the reward split, whose standard error is "
        "4.90 points."
    )
    _, page = report(folder)
    assert (
        "This is about round 3 of 3 alone, under the final budgets: its policies are compared with each "
        "other, in the network that the rounds before have left, fine-tuned for 2 epochs after each of them."
    ) in page.text
    assert "The best of 2 policies was chosen" in page.text
    assert (
        "before a last fine-tuning, in a network that is fine-tuned for 2 epochs between rounds" in page.text
    )
    start = page.cells.index("accuracy, reward split")
    assert page.cells[start + 1 : start + 4 : 2] == ["95.00 %", "\N{MINUS SIGN}35.00 points"]


def test_a_tie_in_the_last_round_is_one_whatever_the_first_began_with(tmp_path: Path):
    folder = cooled(tmp_path / "tie", (*ROUNDS[:2], (0.60, 0.62)))
    assert "A tie with the balanced policy: +2.00 points of accuracy" in sentences(folder)
    folder = cooled(tmp_path / "none", (*ROUNDS[:2], (0.60,)))
    assert sentences(folder) == "No policy beat the balanced one in 1 evaluation."


def test_every_round_is_a_row(tmp_path: Path):
    _, page = report(cooled(tmp_path / "run"))
    start = page.cells.index("fine-tuned, test") + 1
    assert page.cells[start : start + 10] == [
        *("1", "76.67 %", "70.00 %", "2", "90.00 %", "uniform", "92.00 %", "93.00 %", "90.00 %", "50.00 %"),
    ]
    # Nothing is tuned after the last.
    assert page.cells[start + 20 : start + 28] == [
        *("3", "30.00 %", "30.00 %", "2", "60.00 %", "balanced", "66.00 %", "64.00 %"),
    ]
    assert "After each round but the last its best network was fine-tuned for 2 epochs" in page.text
    _, page = report(cooled(tmp_path / "plain", round_epochs=0))
    assert "Nothing was trained between the rounds" in page.text and "without fine-tuning" in page.text


def test_rounds_that_go_on_are_not_taken_for_the_result(tmp_path: Path):
    folder = cooled(tmp_path / "run", ROUNDS[:2], ended=1)
    assert sentences(folder).startswith("+5.00 points of accuracy over the uniform policy")
    _, page = report(folder)
    assert "The rounds have not come to their end. This is about round 2 of 3 alone" in page.text
    assert "under its own, looser budgets" in page.text
    assert "not finished: 4 of 6 evaluations" in page.text
    _, page = report(cooled(tmp_path / "none", ()))
    assert "Nothing has been evaluated yet." in page.text


def test_drawings_measure_each_round_by_its_own_reference(tmp_path: Path):
    record = load_record(cooled(tmp_path / "run"))
    dashed = [line for line in rounds_figure(record).axes[0].lines if line.get_linestyle() == "--"]
    assert [list(line.get_ydata()) for line in dashed] == [[90.0, 90.0], [80.0, 80.0], [60.0, 60.0]]
    axes = group_figure(grouped([record])[0]).axes[0]
    assert [line.get_ydata()[-1] for line in axes.lines] == [66.0, 60.0]


def test_a_comparison_and_its_own_page_understand_rounds(tmp_path: Path):
    one_shot = make_run(tmp_path / "once", config=replace(cooled_config(), cooling=CoolingConfig()))
    _, page = report(one_shot, cooled(tmp_path / "rounds"))
    assert "What was searched in rounds has been fine-tuned between them." in page.text
    assert "Of a search in rounds the last one alone is drawn" in page.text
    # Each run's own section is there too: what a cooled search has divided cannot be searched on.
    assert page.text.count("Search on") == page.text.count("The rounds") == 1


def test_a_damaged_summary_is_one_sentence(tmp_path: Path):
    folder = cooled(tmp_path / "run")
    (folder / "cooling.json").write_text('{"rounds": [1]}')
    with pytest.raises(UserError, match=r"cooling\.json is not a summary of rounds"):
        load_record(folder)
