"""The report: the figures of the log, said honestly, in a page that needs no other file."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import fields, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tyro
from PIL import Image

from agents.compress import compress
from agents.config import AgentConfig, SearchConfig
from agents.log import EvaluationLog
from agents.report import write_report
from agents.report_commands import commands, train_command
from agents.report_data import load_record
from agents.report_page import page_html
from agents.report_text import change, cost_text, duration, goal, percent, points, verdict
from agents.run_config import RunConfig, SourceConfig, write_config
from amc.data import load_data
from amc.errors import UserError
from amc.evaluate import Evaluation
from amc.policy import CompressionPolicy, LayerDecision
from envs.problem_config import ProblemConfig
from scripts import report as script
from scripts.cli import exit_code
from scripts.train_agent import TrainAgent
from tests.test_actor import PROBLEM, tiny_config, tiny_network

WIDTHS = {"conv1": 16, "conv2": 32, "linear": 10}
COSTS = {"macs": 10e6, "params": 5e3, "size": 20e3, "bops": 1e10}
FACTS: dict[str, Any] = {
    "machine": {"cpu": "A <small> CPU", "versions": {"torch": "2.13.0"}},
    "network": "f" * 16,
    "weights": "w" * 16,
    "original": {"score": 0.95, "costs": COSTS},
    "score_name": "accuracy",
    "widths": WIDTHS,
    "reward_images": 100,
}
CONFIG = RunConfig(
    SourceConfig(model="digitsnet", weights=Path("my weights.safetensors"), side=24),
    ProblemConfig(budget=("macs=0.5", "size=40KB")),
    AgentConfig(algorithm="td3", seed=3, hidden_sizes=(64, 32)),
    SearchConfig(evaluations=4, time_budget=60.0),
)


def make_run(
    folder: Path, scores: Sequence[float] = (0.60, 0.55, 0.70, 0.65), config: RunConfig = CONFIG, **facts: Any
) -> Path:
    """A run directory by hand: each policy costs half of the original, evaluation 2 a bit less."""
    folder.mkdir(parents=True)
    write_config(folder, config, {**FACTS, **facts})
    log = EvaluationLog(folder / "evaluations.jsonl")
    for index, score in enumerate(scores):
        values = [{"width": width - index - 1, "weight_bits": 4 + index % 3} for width in WIDTHS.values()]
        decisions = tuple(LayerDecision(name, each) for name, each in zip(WIDTHS, values, strict=True))
        costs = {name: value * (0.4 if index == 2 else 0.5) for name, value in COSTS.items()}
        evaluation = Evaluation(CompressionPolicy("f" * 16, decisions), score, costs, 0.5)
        reward, best = (score - scores[0]) / 0.1, log.best()
        log.add(evaluation, reward, {}, leads=best is None or reward > best.reward)
    return folder


class Page(HTMLParser):
    """What a page loads, says, and whether its elements nest."""

    VOID = {"meta", "br", "img", "hr"}  # noqa: RUF012

    def __init__(self, text: str):
        super().__init__()
        self.loaded: list[str] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.cells: list[str] = []
        self.drawings = 0
        self.feed(text)
        self.close()
        self.text = re.sub(r"[\s\N{NO-BREAK SPACE}]+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loaded += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        self.drawings += tag == "svg"
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            return
        self.texts.append(data)
        if self.open and self.open[-1] in ("td", "th", "small"):
            self.cells.append(data.replace("\N{NO-BREAK SPACE}", " "))


def report(*folders: Path) -> tuple[str, Page]:
    text = page_html([load_record(folder) for folder in folders])
    return text, Page(text)


def sentences(folder: Path) -> str:
    """The verdict on a run, with ordinary spaces."""
    return " ".join(verdict(load_record(folder))).replace("\N{NO-BREAK SPACE}", " ")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Page]:
    return report(make_run(tmp_path_factory.mktemp("runs") / "run"))


def test_page_is_whole_and_needs_no_other_file(made: tuple[str, Page]):
    text, page = made
    assert not page.open and page.drawings == 3
    assert page.loaded and all(target.startswith("#") for target in page.loaded)
    assert not re.findall(r"url\((?!#)", text) and "@import" not in text and "<script" not in text
    # What is left of addresses are names of vocabularies, which nothing fetches.
    assert set(re.findall(r"https?://[^\s\"'<]+", text)) <= {
        "http://www.w3.org/2000/svg",
        "http://www.w3.org/1999/xlink",
    }
    ids = re.findall(r' id="([^"]+)"', text)
    assert len(ids) == len(set(ids)) and {each[1:] for each in page.loaded} <= set(ids)


def test_drawings_follow_light_and_dark(made: tuple[str, Page]):
    text, _ = made
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    drawings = re.findall(r"<svg.*?</svg>", text, flags=re.DOTALL)
    assert all("#000000" not in each and "currentColor" in each for each in drawings)
    assert not any("fill: #ffffff" in each for each in drawings)


def test_page_has_the_figures_of_the_log(made: tuple[str, Page]):
    _, page = made
    # sqrt(0.6 x 0.4 / 100) = 0.049.
    assert (
        "+10.00 points of accuracy over the uniform policy on the reward split, whose standard error is "
        "4.90 points." in page.text
    )
    assert (
        "the best accuracy with at most 50 % of the multiply-accumulates and size of at most 40KB"
        in page.text
    )
    assert "finished: 4 evaluations, 2 s of measuring" in page.text
    start = page.cells.index("accuracy, reward split")
    expected = ["95.00 %", "60.00 %", "\N{MINUS SIGN}35.00 points", "70.00 %", "\N{MINUS SIGN}25.00 points"]
    assert page.cells[start + 1 : start + 6] == expected
    start = page.cells.index("multiply-accumulates")
    expected = ["10.00 MMACs", "5.00 MMACs", "\N{MINUS SIGN}50.00 %", "4.00 MMACs", "\N{MINUS SIGN}60.00 %"]
    assert page.cells[start + 1 : start + 6] == expected
    # Evaluation 3 keeps 13 of 16 channels at 6 bits.
    start = page.cells.index("conv1")
    assert page.cells[start + 1 : start + 4] == ["13 of 16", "81.25 %", "6"]


@pytest.mark.parametrize(
    ("best", "facts", "sentence"),
    [
        (0.62, {}, "A tie with the uniform policy: +2.00 points of accuracy is less than"),
        (0.60, {}, "No policy beat the uniform one in 4 evaluations."),
        (0.70, {"reward_images": None}, "whose number of images this run does not record: it may be chance"),
    ],
)
def test_gains_that_are_none_are_called_that(tmp_path: Path, best: float, facts: dict, sentence: str):
    assert sentence in sentences(make_run(tmp_path / "run", (0.60, 0.55, best, 0.50), **facts))


def test_smallest_cost_is_compared_with_the_original(tmp_path: Path):
    problem = ProblemConfig(goal="cost", minimize="size", max_drop=30.0)
    folder = make_run(tmp_path / "run", config=replace(CONFIG, problem=problem))
    asked = goal(load_record(folder)).replace("\N{NO-BREAK SPACE}", " ")
    assert asked == "the smallest size that costs at most 30.00 points of accuracy"
    assert (
        "Size 8.00 kB instead of 20.00 kB, 2.50 times less (uniform policy: 2.00 times), for "
        "\N{MINUS SIGN}25.00 points of accuracy on the reward split." in sentences(folder)
    )


def outcomes(best: float) -> list[dict[str, Any]]:
    rows = (("original", 0.95, 0.94), ("uniform", 0.60, 0.58), ("td3", best, 0.6789))
    return [
        {"name": name, "reward_score": reward, "test_score": test, "costs": COSTS}
        for name, reward, test in rows
    ]


def test_test_scores_come_from_the_outcomes_of_the_same_policy(tmp_path: Path):
    folder = make_run(tmp_path / "run")
    (folder / "outcomes.json").write_text(json.dumps(outcomes(0.70)))
    assert "On the test split: original 94.00 %, uniform 58.00 %, td3 67.89 %." in sentences(folder)
    cells = report(folder)[1].cells
    start = cells.index("accuracy, test split")
    assert cells[start + 4 : start + 6] == ["67.89 %", "\N{MINUS SIGN}26.11 points"]
    (folder / "outcomes.json").write_text(json.dumps(outcomes(0.66)))
    assert "outcomes.json tells of an earlier best policy" in sentences(folder)
    assert [network.test_score for network in load_record(folder).networks] == [0.94, None, None]


@pytest.mark.parametrize("content", ['{"name": 1}', '[{"name": "original"}]', "[1]", "[", "7"])
def test_damaged_outcomes_are_one_sentence(tmp_path: Path, content: str):
    folder = make_run(tmp_path / "run")
    (folder / "outcomes.json").write_text(content)
    with pytest.raises(UserError, match=r"outcomes\.json is not"):
        write_report([folder])
    assert not (folder / "report").exists()


def test_unfinished_and_interrupted_runs_have_a_report(tmp_path: Path):
    empty = make_run(tmp_path / "empty", ())
    written = write_report([empty])
    page = Page(written[0].read_text())
    assert "Nothing has been evaluated yet." in page.text and "not finished: 0 of 4" in page.text
    assert len(written) == 1 and page.drawings == 0
    first = make_run(tmp_path / "first", (0.60,))
    _, page = report(first)
    assert "not finished: 1 of 4" in page.text and page.drawings == 3
    torn = make_run(tmp_path / "torn")
    log = torn / "evaluations.jsonl"
    log.write_bytes(log.read_bytes()[:-30])
    before = log.read_bytes()
    _, page = report(torn)
    assert "not finished: 3 of 4 evaluations" in page.text and "+10.00 points" in page.text
    assert log.read_bytes() == before


def test_drawings_are_images_with_something_on_them(tmp_path: Path):
    _, *drawings = write_report([make_run(tmp_path / "run")])
    assert [path.name for path in drawings] == ["curve.png", "policy.png", "scatter.png"]
    for path in drawings:
        with Image.open(path) as image:
            colors = image.convert("RGB").getcolors(maxcolors=1 << 24)
            assert image.format == "PNG" and image.width > 1000 and colors is not None and len(colors) > 20


def test_everything_is_escaped(tmp_path: Path):
    source = replace(CONFIG.source, model="<b>&co</b>", data="<img src=x>")
    text, page = report(make_run(tmp_path / "run", config=replace(CONFIG, source=source)))
    assert "<b>&co" not in text and "<img" not in text
    assert "<b>&co</b>" in page.text and "A <small> CPU" in page.text


def test_train_command_starts_the_same_search(tmp_path: Path):
    flags = {each.name: not each.default for each in fields(ProblemConfig) if isinstance(each.default, bool)}
    config = replace(CONFIG, problem=replace(CONFIG.problem, **flags))
    command = train_command(config, "again", tmp_path)
    assert command is not None
    python, file, *arguments = shlex.split(command)
    assert (python, file) == ("python", "scripts/train_agent.py")
    options = tyro.cli(TrainAgent, args=arguments, config=(tyro.conf.OmitArgPrefixes,))
    assert options.config == config and options.folder == tmp_path / "again"
    listed = [text for _, text in commands(CONFIG, tmp_path / "my run")]
    assert f"python scripts/train_agent.py --resume '{tmp_path}/my run'" in listed
    assert train_command(CONFIG, "my run-again", tmp_path) in listed


def test_runs_are_compared(tmp_path: Path):
    first = make_run(tmp_path / "a" / "run")
    random = replace(CONFIG, agent=replace(CONFIG.agent, algorithm="random"))
    second = make_run(tmp_path / "b" / "run", (0.60, 0.62), random)
    unfinished = make_run(tmp_path / "c", ())
    written = write_report([first, second, unfinished, first])
    assert [path.name for path in written] == [
        "comparison.html",
        "comparison-curve.png",
        "comparison-pareto.png",
    ]
    page = Page(written[0].read_text())
    assert "3 searches compared" in page.text and not page.open
    assert page.cells[page.cells.index("td3") : page.cells.index("td3") + 3] == ["td3", "3, 3", "60.00 %"]
    start = page.cells.index(str(first))
    expected = ["td3, seed 3", "4", "60.00 %", "70.00 %", "+10.00 points", "4.00 MMACs", "8.00 kB"]
    assert page.cells[start + 1 : start + 8] == expected
    start = page.cells.index(str(second))
    assert page.cells[start + 1 : start + 6] == [
        "random, seed 3",
        "2",
        "60.00 %",
        "62.00 %",
        "+2.00 points (tie)",
    ]
    assert "not finished: 0 of 4 evaluations" in page.text
    assert "do not ask for the same thing" not in page.text


def test_runs_that_ask_for_different_things_are_told_apart(tmp_path: Path):
    problem = replace(CONFIG.problem, budget=("macs=0.3",))
    other = make_run(tmp_path / "b", config=replace(CONFIG, problem=problem))
    _, page = report(make_run(tmp_path / "a"), other)
    assert "do not ask for the same thing; they differ in budget" in page.text


def test_report_of_a_real_search(tmp_path: Path):
    folder = tmp_path / "run"
    data = load_data("digits", side=16)
    config = tiny_config()
    compress(tiny_network(), data, problem=PROBLEM, agent=config.agent, search=config.search, folder=folder)
    _, page = report(folder)
    best = EvaluationLog(folder / "evaluations.jsonl").best()
    assert best is not None and percent(best.score).replace("\N{NO-BREAK SPACE}", " ") in page.cells
    assert page.drawings == 3 and "On the test split: original" in page.text
    # It was started with Python objects, which no command line can name.
    assert "Repeat the search" not in page.text and "Continue it" in page.text


def test_script_prints_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "pages" / "mine.html"
    assert exit_code(script.main, [str(make_run(tmp_path / "run")), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.split()
    assert printed == [str(out), *(str(out.parent / f"mine-{n}.png") for n in ("curve", "policy", "scatter"))]
    assert all(Path(each).stat().st_size > 1000 for each in printed)
    assert exit_code(script.main, [str(tmp_path / "run"), "--out", str(out)]) == 0  # its own page, again


@pytest.mark.parametrize("target", ["policy.json", "notes.html", "."])
def test_nothing_that_is_not_a_report_is_replaced(tmp_path: Path, target: str):
    folder, out = make_run(tmp_path / "run"), tmp_path / target
    if target != ".":
        out.write_text("mine")
    assert exit_code(script.main, [str(folder), "--out", str(out)]) == 2
    assert target == "." or out.read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} <= {"run", target}


def test_folder_without_a_run_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert exit_code(script.main, [str(tmp_path)]) == 2
    assert f"error: {tmp_path} holds no run" in capsys.readouterr().err
    assert exit_code(script.main, []) == 2
    assert not list(tmp_path.iterdir())


def test_numbers():
    plain = {" ": "\N{NO-BREAK SPACE}", "-": "\N{MINUS SIGN}"}

    def text(readable: str) -> str:
        return readable.translate(str.maketrans(plain))

    assert percent(0.12345) == text("12.35 %") or percent(0.12345) == text("12.34 %")
    assert points(-0.03125) == text("-3.12 points") and points(-1e-9) == text("0.00 points")
    assert change(30.0, 40.0) == text("-25.00 %") and change(1.0, 0.0) == ""
    assert cost_text("macs", 1.2345e12, 1.2345e12) == text("1,234.50 GMACs")
    assert cost_text("size", 900.0, 900.0) == text("900 B")
    assert cost_text("params", 28641.0, 2e6) == text("0.03 M")
    assert cost_text("latency", 0.25, 1.5) == text("0.250 ms")
    assert [duration(s) for s in (42, 600, 7200)] == [text("42 s"), text("10.0 min"), text("2.0 h")]
