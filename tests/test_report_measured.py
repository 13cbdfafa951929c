"""What a report says besides the log: milliseconds at the end, references, fine-tuning, files to deploy."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import tyro
from torch import nn

import tests.test_run as runs
from agents.compress import finish
from agents.config import AgentConfig, SearchConfig
from agents.figures import ORANGE
from agents.final_latency import measure_outcomes
from agents.log import EvaluationLog
from agents.report import write_report
from agents.report_commands import commands
from agents.report_data import load_record
from agents.report_figures import curve_figure, scatter_figure
from agents.report_references import warmup_rows, with_runs
from agents.run import OUTCOMES_FILE
from amc.errors import UserError
from amc.export import export_onnx
from amc.graph import trace_graph
from amc.network import trace
from scripts import report as script
from scripts.benchmark import Benchmark
from scripts.cli import exit_code
from scripts.evaluate import Evaluate
from tests.test_report import CONFIG, COSTS, Page, make_run, outcomes, report, sentences
from tests.test_run import FAKE, FakeTarget, call, config, start

# Found by name in the module that uses it.
_surroundings = runs._surroundings
DDPG = replace(CONFIG, agent=AgentConfig(), search=SearchConfig(evaluations=4))


def timed(folder: Path, best: float = 0.5, source: str = "measured") -> Path:
    """A run whose outcomes have milliseconds."""
    rows = outcomes(0.70)
    for row, latency in zip(rows, (1.0, 0.6, best), strict=True):
        row |= {"latency": latency, "latency_source": source}
    (folder / OUTCOMES_FILE).write_text(json.dumps(rows))
    return folder


def test_a_search_that_counts_macs_ends_with_milliseconds(tmp_path: Path):
    settings = config(4)
    run = start(tmp_path / "run", replace(settings, problem=replace(settings.problem, target=FAKE)))
    found, note = measure_outcomes(run, finish(run).outcomes)
    target = run.problem.target
    assert isinstance(target, FakeTarget) and target.measured == 1  # all files in the same rounds
    assert found[-1].latency is not None and found[0].latency is not None
    assert found[-1].latency < found[0].latency and "latency" not in found[0].costs
    assert note.startswith("milliseconds on fake, measured once and interleaved: original ")
    assert json.loads((run.folder / OUTCOMES_FILE).read_text())[0]["latency"] == found[0].latency


def test_a_runtime_that_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    settings = config(2)
    run = start(tmp_path / "run", replace(settings, problem=replace(settings.problem, target=FAKE)))
    before = finish(run).outcomes

    def refuse(*_: object, **__: object) -> None:
        raise UserError("openvino is not installed.")

    monkeypatch.setattr(FakeTarget, "measure", refuse)
    assert measure_outcomes(run, before) == (
        before,
        "No milliseconds were measured: openvino is not installed.",
    )
    monkeypatch.setattr(FakeTarget, "unit", "M instructions")
    assert measure_outcomes(run, before) == (before, "")


@pytest.mark.parametrize("quantizer", ["kmeans", "lq"])
def test_codes_that_no_runtime_knows_are_measured_as_floats(tmp_path: Path, quantizer: str):
    settings = config(2)
    problem = replace(settings.problem, target=FAKE, budget=("size=0.3",), weight_quantizer=quantizer)
    run = start(tmp_path / "run", replace(settings, problem=problem))
    found, note = measure_outcomes(run, finish(run).outcomes)
    assert note.startswith("milliseconds on fake") and all(each.latency for each in found)


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError("No space left on device")])
def test_nothing_that_fails_here_loses_what_the_search_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: BaseException
):
    settings = config(2)
    run = start(tmp_path / "run", replace(settings, problem=replace(settings.problem, target=FAKE)))
    before = finish(run).outcomes

    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(FakeTarget, "measure", fail)
    found, note = measure_outcomes(run, before)
    assert found == before and note == f"No milliseconds were measured: {str(failure) or 'interrupted.'}"


def test_milliseconds_are_told_and_noise_is_no_gain(tmp_path: Path):
    folder = timed(make_run(tmp_path / "run"))
    assert "beside each other: 0.500 ms instead of 1.000 ms, 2.00 times as fast." in sentences(folder)
    _, page = report(folder)
    assert "1.000 ms before, 2.00 times as fast" in page.text and "Last panel: milliseconds" in page.text
    assert "no difference that exceeds the noise" in sentences(timed(folder, best=0.985))
    assert "too slow, for this to be reliable" in sentences(timed(folder, source="unreliable"))
    assert "no difference that exceeds the noise" in sentences(timed(folder, best=0.92, source="unreliable"))
    panels = scatter_figure(load_record(folder)).axes
    assert len(panels) == 3 and panels[-1].get_xlabel() == "latency, measured (ms)"
    assert len(scatter_figure(load_record(make_run(tmp_path / "other"))).axes) == 2


def fronts(folder: Path) -> list[Any]:
    """The lines of the first panel that join what no evaluation beats."""
    lines = scatter_figure(load_record(folder)).axes[0].lines
    return [each for each in lines if each.get_drawstyle() == "steps-post"]


def test_the_front_joins_what_no_evaluation_beats(tmp_path: Path):
    assert fronts(make_run(tmp_path / "run")) == []  # the third has the best score and the lowest cost
    (line,) = fronts(make_run(tmp_path / "cheap", (0.60, 0.55, 0.50, 0.65)))
    assert line.get_ydata() == pytest.approx([50.0, 65.0]) and line.get_xdata() == pytest.approx([4.0, 5.0])


def test_the_curve_has_the_uniform_policy_and_the_random_ones(tmp_path: Path):
    folder = make_run(tmp_path / "run", config=DDPG, reference="balanced")
    rows = [
        {**row, "name": name}
        for row, name in zip(outcomes(0.70), ("original", "uniform", "ddpg"), strict=True)
    ]
    (folder / OUTCOMES_FILE).write_text(json.dumps(rows))
    record = load_record(folder)
    assert [row.index for row in warmup_rows(record)] == [1]  # two of four: the reference and a random one
    legend = curve_figure(record).axes[0].get_legend()
    assert legend is not None
    texts = [text.get_text() for text in legend.get_texts()]
    assert texts == ["best so far", "balanced", "uniform", "best of 1 random ones"]
    assert (
        warmup_rows(
            load_record(make_run(tmp_path / "random", config=replace(DDPG, agent=AgentConfig("random"))))
        )
        == []
    )


def test_a_search_is_drawn_against_another_for_the_same_thing(tmp_path: Path):
    first, other = make_run(tmp_path / "run"), make_run(tmp_path / "random", (0.60, 0.61))
    record = with_runs(load_record(first), [load_record(other)])
    lines = {str(line.get_label()): line for line in curve_figure(record).axes[0].lines}
    assert (
        list(lines["td3, random"].get_ydata()) == [60.0, 61.0] and lines["td3, random"].get_color() == ORANGE
    )
    page = write_report([first], tmp_path / "page.html", [other])[0]
    assert "Beside it: td3 (random)." in Page(page.read_text()).text


def test_what_cannot_be_drawn_together_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    problem = replace(CONFIG.problem, budget=("macs=0.3",))
    first, other = make_run(tmp_path / "a"), make_run(tmp_path / "b", config=replace(CONFIG, problem=problem))
    assert exit_code(script.main, [str(first), "--against", str(other)]) == 2
    assert "they differ in budget" in capsys.readouterr().err
    assert exit_code(script.main, [str(first), str(other), "--against", str(other)]) == 2
    assert "belongs to the report of one search" in capsys.readouterr().err


def tuned(folder: Path, digest: str | None = None) -> None:
    """The figures of a fine-tuning of a run's best policy, or of another one."""
    best = EvaluationLog(folder / "evaluations.jsonl").best()
    assert best is not None
    (folder / "fine_tuned").mkdir(exist_ok=True)
    figures = {
        "settings": {"policy": digest or best.policy.digest()},
        "scores": {"original": {}, "fine-tuned": {"reward": 0.91, "test": 0.90}},
        "costs": {name: value * 0.4 for name, value in COSTS.items()},
        "files": [{"path": "model_int8.onnx", "size": 9000, "runtime": "openvino", "test_score": 0.895}],
    }
    (folder / "fine_tuned" / "fine_tune.json").write_text(json.dumps(figures))


def test_fine_tuning_and_its_files_are_columns(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    (folder / OUTCOMES_FILE).write_text(json.dumps(outcomes(0.70)))
    tuned(folder)
    _, page = report(folder)
    for text in ("fine-tuned", "model_int8.onnx"):
        assert text in page.cells
    start = page.cells.index("accuracy, test split")
    assert page.cells[start + 6 : start + 9] == ["90.00 %", "\N{MINUS SIGN}4.00 points", "89.50 %"]
    said = "Fine-tuned: 90.00 % of accuracy on the test split, \N{MINUS SIGN}4.00 points from the original."
    assert f"{said} As files: model_int8.onnx 89.50 % in openvino." in page.text
    tuned(folder, digest="of another policy")
    assert "Fine-tuned" not in report(folder)[1].text
    (folder / "fine_tuned" / "fine_tune.json").write_text("{}")
    with pytest.raises(UserError, match="holds no figures of a fine-tuning"):
        report(folder)


def test_commands_to_deploy_are_what_the_scripts_understand(tmp_path: Path):
    folder = make_run(tmp_path / "my run")
    best = load_record(folder).best
    assert best is not None
    listed = dict(commands(CONFIG, folder, best.policy))
    _, file, *words = shlex.split(listed["Score the exported file in its runtime"])
    flat = (tyro.conf.OmitArgPrefixes,)
    scored = tyro.cli(Evaluate, args=words, config=flat)
    assert (file, scored.file) == ("scripts/evaluate.py", folder / "export/model_int8.onnx")
    assert (scored.data, scored.side, scored.target) == ("digits", 24, "openvino")
    _, file, *words = shlex.split(listed["Measure it beside the original, in fresh processes"])
    measured = tyro.cli(Benchmark, args=words, config=flat)
    assert (file, measured.files) == ("scripts/benchmark.py", (folder / "export",))
    assert "model.onnx" in dict(commands(CONFIG, folder))["Deploy it: what a program does with the file"]


def test_the_program_that_deploys_runs_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
    image = torch.zeros(1, 3, 8, 8)
    export_onnx(trace(model, image).module, image, folder / "export" / "model.onnx")
    *_, program = shlex.split(dict(commands(CONFIG, folder))["Deploy it: what a program does with the file"])
    exec(program, {})
    said = [float(word) for word in capsys.readouterr().out.strip("[]\n ").split()]
    assert said == pytest.approx(trace_graph(model)(image)[0].tolist(), abs=1e-4)


def test_the_script_says_the_milliseconds(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch):
    monkeypatch.setattr("agents.compress.measure_outcomes", measure_outcomes)
    options = (
        "--budget",
        "macs=0.5",
        "--evaluations",
        3,
        "--target",
        FAKE,
        "--runs",
        tmp_path,
        "--name",
        "run",
    )
    assert call(*options) == 0
    assert "milliseconds on fake, measured once and interleaved: original" in capsys.readouterr().out
    assert load_record(tmp_path / "run").networks[0].costs["latency"] > 0
