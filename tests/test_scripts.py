"""Bad input to the scripts: exit code 2, one sentence, and nothing made or overwritten."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from agents.config import AgentConfig
from agents.run_config import SourceConfig
from amc.costs.symbolic import KNOBS_OF
from amc.errors import UserError
from amc.models import build_model, save_weights
from amc.targets.registry import list_targets
from envs.problem import ProblemConfig
from scripts import apply_agent, pretrain, profile_target, train_agent
from scripts.cli import exit_code
from scripts.train_agent import SearchOptions, TrainAgent
from tests.test_run import ROOT, TINY

PRETRAINED = ("--model", "digitsnet", "--width", "0.25", "--data", "digits", "--side", "8")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path_factory.getbasetemp() / "amc-cache"))
    monkeypatch.chdir(ROOT)


def content(folder: Path) -> dict[Path, bytes | None]:
    """Everything below a folder."""
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


Check = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Check:
    """Calls train_agent on the tiny network with more options, and returns the one sentence."""

    def check(*arguments: object) -> str:
        before = content(tmp_path)
        given = [*TINY, "--evaluations", "3", "--runs", str(tmp_path / "runs"), *map(str, arguments)]
        assert exit_code(train_agent.main, given) == 2
        return one_sentence(capsys, tmp_path, before)

    return check


def one_sentence(
    capsys: pytest.CaptureFixture[str], folder: Path, before: dict[Path, bytes | None] | None = None
) -> str:
    said = capsys.readouterr()
    assert re.fullmatch(r"error: [^\n]+\n", said.err), said.err
    assert said.out == "" and content(folder) == (before or {})
    return said.err


def weights(path: Path, change: Callable[[torch.nn.Module], None] = lambda model: None) -> Path:
    model = build_model("digitsnet", 10, 1, 0.25)
    change(model)
    save_weights(model, path)
    return path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--budget", "macs=0"), "above 0 and at most 1"),
        (("--budget", "macs=2"), "above 0 and at most 1"),
        (("--budget", "macs=1e-6"), r"cannot be reached: the smallest legal network costs \d+"),
        (("--budget", "macs=nan"), "macs=nan"),
        (("--budget", "speed=0.5"), "no cost 'speed' to put a budget on; there are macs, params, size, bops"),
        (("--budget", "0.5"), "'0.5' is not a budget"),
        (("--budget", "latency=2"), "a fraction of the original.s latency lies above 0"),
        (("--target", "openvin"), "no target 'openvin' .*did you mean 'openvino'"),
        (("--algorithm", "ppo"), "no searcher 'ppo'; choose one of balanced, bayes, cbo"),
        (("--model", "resnet21"), "no model 'resnet21'"),
        (("--model", "digitsnet"), "needs trained weights: pass --weights FILE"),
        (("--model", "tests.test_run:"), "no model"),
        (("--model", "no.such:factory"), "no module 'no'"),
        (("--model", "tests.test_run:nothing"), "has no 'nothing'"),
        (("--model", "tests.test_run:TINY"), "a function or class is needed"),
        (("--data", "tests.test_run:tiny_model"), "not an amc.data.ImageData"),
        (("--data", "cifar10", "--data-root", "nowhere"), "nowhere"),
        (("--data", "nowhere/images"), "no data set 'nowhere/images'"),
        (("--task", "segmentation"), "no task 'segmentation'"),
        (("--weights", "nowhere.pt"), "no weights file nowhere.pt"),
        (("--weight-bits", "9"), "must be 2 to 8, or 32"),
        (("--activation-bits", "1"), "must be 2 to 8, or 32"),
        (("--min-keep", "2"), r"smallest keep in \[0, 1\]"),
        (("--min-channels", "0"), "at least 1"),
        (("--width-multiple", "0"), "at least 1"),
        (("--freeze", "layer9.*"), r"--freeze layer9\.\* matches no layer; the layers are 0, 3, 6"),
        (("--freeze", "*"), "cannot be reached: the smallest legal network costs"),
        (("--freeze", "*", "--budget", "macs=1"), "Nothing is left to decide"),
        (("--evaluations", "0"), "evaluations cannot be 0"),
        (("--time-budget", "-1"), r"time_budget cannot be -1"),
        (("--seed", "-1"), "seed cannot be -1"),
        (("--threads", "-1"), "--threads must be 0 or more"),
        (("--minimize", "macs"), "needs --goal cost"),
    ],
)
def test_bad_options(refused: Check, arguments: tuple[str, ...], words: str):
    assert re.search(words, refused(*arguments))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu(refused: Check):
    assert "no GPU" in refused("--device", "cuda")


def test_what_can_be_known_is_refused_before_the_data_are_read(
    refused: Check, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def read(*_: object) -> None:
        raise AssertionError("the data were read")

    monkeypatch.setattr("agents.source.load_data", read)
    (tmp_path / "file").write_text("")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes(b"not weights")
    for arguments in (
        ("--target", "tflite"),
        ("--algorithm", "ppo"),
        ("--budget", "macs=2"),
        ("--weight-bits", "9"),
        ("--runs", tmp_path / "file"),
        ("--weights", damaged),
        ("--device", "cuda") if not torch.cuda.is_available() else ("--seed", "-1"),
    ):
        refused(*arguments)


def test_weights_that_do_not_fit_or_are_not_numbers(refused: Check, tmp_path: Path):
    def poison(model: torch.nn.Module) -> None:
        with torch.no_grad():
            next(model.parameters())[0] = float("nan")

    narrow = weights(tmp_path / "narrow.safetensors")
    assert "does not fit this model" in refused(*PRETRAINED, "--width", "0.5", "--weights", narrow)
    assert "holds NaN or infinite weights" in refused(
        *PRETRAINED, "--weights", weights(tmp_path / "nan.safetensors", poison)
    )
    foreign = tmp_path / "weights.pt"
    torch.save({"epoch": 3}, foreign)
    assert "is not a state dict" in refused(*PRETRAINED, "--weights", foreign)
    foreign.write_bytes(b"\x80garbage")
    assert "cannot be read as a PyTorch weights file" in refused(*PRETRAINED, "--weights", foreign)


def test_run_directories_that_cannot_be_made(refused: Check, tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    assert "cannot be made" in refused("--runs", tmp_path / "file")
    assert "file is not empty: choose another --name" in refused("--runs", tmp_path, "--name", "file")
    assert "cannot be made" in refused("--name", "x" * 300)


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a file system that nobody may write to")
def test_run_directories_on_a_file_system_that_cannot_be_written(refused: Check):
    assert "The run directory /proc/runs/run cannot be made" in refused(
        "--runs", "/proc/runs", "--name", "run"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_run_directories_without_permission(refused: Check, tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o500)
    assert "cannot be made" in refused("--runs", tmp_path / "closed")


def test_run_directories_in_use(refused: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [*TINY, "--evaluations", "3", "--runs", str(tmp_path / "runs"), "--name", "first"]
    assert exit_code(train_agent.main, arguments) == 0
    capsys.readouterr()
    said = refused("--name", "first")
    assert "is not empty: continue it with --resume, or choose another --name" in said
    (tmp_path / "runs" / "notes").mkdir()
    (tmp_path / "runs" / "notes" / "mine.txt").write_text("mine")
    assert "is not empty: choose another --name" in refused("--name", "notes")


def test_resume_of_what_is_no_run(refused: Check, tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "nowhere", tmp_path / "empty", tmp_path / "file"):
        assert "holds no run: there is no config.yaml in it" in refused("--resume", folder)


def test_resume_with_other_settings_or_damaged_files(
    refused: Check, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = [*TINY, "--evaluations", "6", "--runs", str(tmp_path), "--name", "run"]
    assert exit_code(train_agent.main, arguments) == 0
    capsys.readouterr()
    run = tmp_path / "run"
    said = refused("--resume", run, "--seed", "3", "--budget", "macs=0.4", "--proposals-per-round", "2")
    assert "--budget, --seed, --proposals-per-round cannot be given with --resume" in said
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text("a: [\n  b")
    assert "config.yaml cannot be read" in refused("--resume", run)
    (run / "config.yaml").write_text(config.replace("tiny_model", "wider_model"))
    assert "has no 'wider_model'" in refused("--resume", run, "--model", "tests.test_run:wider_model")
    (run / "config.yaml").write_text(config)
    assert exit_code(train_agent.main, ["--resume", str(run), "--evaluations", "8"]) == 0
    assert len((run / "evaluations.jsonl").read_text().splitlines()) == 8
    assert "search ended (budget) after 8 evaluations" in capsys.readouterr().out


def test_damaged_log_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arguments = [*TINY, "--evaluations", "3", "--runs", str(tmp_path), "--name", "run"]
    assert exit_code(train_agent.main, arguments) == 0
    capsys.readouterr()
    log = tmp_path / "run" / "evaluations.jsonl"
    first, *rest = log.read_text().splitlines(keepends=True)
    foreign = json.dumps({**json.loads(first), "policy": {"layers": [8, 8]}}) + "\n"
    log.write_text(foreign + "".join(rest))
    assert exit_code(train_agent.main, ["--resume", str(tmp_path / "run")]) == 2
    said = capsys.readouterr().err
    assert "line 1 of" in said and "is not a compression policy" in said and said.count("\n") == 1
    assert log.read_text() == foreign + "".join(rest)


def test_dry_run_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert exit_code(train_agent.main, [*TINY, "--dry-run", "--freeze", "3", "--runs", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
    for words in (
        "4 layers",
        "3: 8 channels of 3; frozen: asked for by --freeze 3",
        "0: 8 channels of 0; widths 1..8 in 8 steps",
        "knob width: live",
        "knob weight_bits: dead 32",
        "smallest reachable macs:",
        "s per evaluation, 2 decisions",
    ):
        assert words in said


@pytest.mark.parametrize(
    ("options", "name"),
    [
        (
            TrainAgent(problem=ProblemConfig(budget=("macs=0.3", "size=0.06"))),
            "digitsnet-macs0.3-size0.06-ddpg-seed0",
        ),
        (TrainAgent(agent=AgentConfig(algorithm="sac", seed=2)), "digitsnet-macs0.5-sac-seed2"),
        (TrainAgent(problem=ProblemConfig(goal="cost")), "digitsnet-min-latency-ddpg-seed0"),
        (
            TrainAgent(
                source=SourceConfig(model="my.nets:small"), problem=ProblemConfig(budget=("size=9KB",))
            ),
            "my.nets.small-size9KB-ddpg-seed0",
        ),
        (TrainAgent(name="mine"), "mine"),
    ],
)
def test_name_of_a_run(options: TrainAgent, name: str):
    assert options.folder == Path("runs") / name


def test_help_of_train_agent_says_a_sentence_about_every_option(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as leaving:
        exit_code(train_agent.main, ["--help"])
    assert leaving.value.code == 0
    said = re.sub(r"[│╭╮╰╯─\s]+", " ", capsys.readouterr().out)
    own = {field.name for field in dataclasses.fields(TrainAgent)} - {"source", "problem", "agent", "search"}
    parts = (SourceConfig, ProblemConfig, AgentConfig, SearchOptions)
    names = own | {field.name for part in parts for field in dataclasses.fields(part)}
    for name in names:
        flag = "--" + name.replace("_", "-")
        texts = re.findall(rf"{flag}[ ,]((?:(?!\(default: ).)+)\(default: ", said)
        assert any(re.search(r"(\S+ ){4,}\S+\.", text) for text in texts), f"{flag} has no sentence"
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "resnet21"), "no model 'resnet21'"),
        (("--data", "cifar10", "--side", "32", "--data-root", "nowhere"), "nowhere"),
        (("--data", "nowhere/images"), "no data set"),
        (("--model", "no.such:factory"), "no module 'no'"),
        (("--lr", "0"), "learning rate"),
        (("--epochs", "-1"), "epochs"),
        (("--width", "0"), "width multiplier"),
        (("--threads", "-1"), "--threads must be 0 or more"),
        (("--resume",), "to resume from"),
    ],
)
def test_bad_options_of_pretrain(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], words: str
):
    out = tmp_path / "weights.safetensors"
    given = ["--side", "8", "--width", "0.25", "--epochs", "1", "--out", str(out), *arguments]
    assert exit_code(pretrain.main, given) == 2
    assert words in one_sentence(capsys, tmp_path)


def test_pretrain_overwrites_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "weights.safetensors"
    out.write_bytes(b"mine")
    given = ["--side", "8", "--epochs", "1", "--out"]
    for path, words in (
        (out, "exists already"),
        (tmp_path / "w.pt", "must end in"),
        (tmp_path, "must end in"),
    ):
        assert exit_code(pretrain.main, [*given, str(path)]) == 2
        assert words in one_sentence(capsys, tmp_path, {out: b"mine"})


def test_a_library_message_of_several_lines_becomes_one(capsys: pytest.CaptureFixture[str]):
    def main(options: SearchOptions) -> None:
        """Fail."""
        raise UserError("It failed:\n  because\n\tof this.")

    assert exit_code(main, []) == 2
    assert capsys.readouterr().err == "error: It failed: because of this.\n"


def test_a_real_process_ends_with_code_2_and_one_sentence(tmp_path: Path):
    command = [
        sys.executable,
        "scripts/train_agent.py",
        *TINY,
        "--budget",
        "macs=1e-6",
        "--runs",
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: The budget macs = [^\n]+ cannot be reached: [^\n]+\.\n", done.stderr)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("script", [train_agent.main, profile_target.main, apply_agent.main])
def test_the_help_names_every_target_and_cost(
    script: Callable[..., None], capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(SystemExit):
        exit_code(script, ["--help"])
    said = re.sub(r"[\s│]+", " ", capsys.readouterr().out)
    assert all(f" {name}" in said for name in list_targets())
    assert script is not train_agent.main or all(
        f" {name} " in re.sub(r"[,;]", " ", said) for name in KNOBS_OF
    )
