"""Every Python block of the documentation and of the README runs, and every command is one."""

import importlib
import importlib.util
import re
import shlex
import typing
from pathlib import Path

import pytest
import tyro

from amc.models import build_model
from amc.models.weights import save_weights
from tests.test_run import start

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SHELL = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(python (?:-m scripts\.|scripts/)[\w.]+ [^`]+)`")
LITERT = importlib.util.find_spec("ai_edge_litert") is not None


def run(page: str) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "docs"}
    for number, block in enumerate(BLOCK.findall((DOCS / page).read_text())):
        if LITERT or "tflite" not in block:
            exec(compile(block, f"{page}, block {number}", "exec"), namespace)
    return namespace


def commands(page: Path) -> list[str]:
    """The scripts' commands on a page, whole and with their shell variables put in; none with an ellipsis."""
    text, found = page.read_text(), []
    for block in SHELL.findall(text):
        variables: dict[str, str] = {}
        for line in block.replace("\\\n", " ").splitlines():
            for name, value in variables.items():
                line = line.replace(f"${name}", value)
            if assigned := re.fullmatch(r'(\w+)="(.*)"', line):
                variables[assigned[1]] = assigned[2]
            found.append(line)
    found += [command.replace("\n", " ") for command in INLINE.findall(text)]
    return [each for each in found if re.match(r"python (-m scripts\.|scripts/)", each) and "..." not in each]


COMMANDS = [(page.name, command) for page in PAGES for command in dict.fromkeys(commands(page))]


def test_the_tutorial_ends_with_a_file_that_knows_the_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("tutorial.md")
    original, *_, best = found["result"].outcomes
    assert best.costs["macs"] <= original.costs["macs"] / 2
    assert found["agreement"].relative_error < 1e-4
    assert not LITERT or (tmp_path / "model.tflite").stat().st_size > 1000
    assert (tmp_path / "model.onnx").is_file() and (tmp_path / "runs/tutorial/policy.json").is_file()


def test_the_environment_keeps_its_contract(capsys):
    found = run("environment.md")
    assert found["reward"] == 0.0 and not found["truncated"]  # the zero action is the reference
    assert found["info"]["evaluation"].costs["macs"] <= found["problem"].network.macs / 2
    assert "of the MACs" in capsys.readouterr().out


def test_measuring_calls_a_difference_within_the_noise_none_and_knows_its_arithmetic(capsys):
    run("measuring.md")
    assert capsys.readouterr().out == "no difference\nFalse True\n"


def test_the_log_holds_what_tensorboard_draws(capsys):
    assert len(run("tensorboard.md")["log"].rows) == 3
    assert capsys.readouterr().out.startswith("1 0.00 ")


def test_a_package_is_read_by_its_page_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    run("package.md")
    page = (DOCS / "package.md").read_text()
    said = re.findall(r"^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert capsys.readouterr().out == "".join(said) == "True True\nTrue\nTrue True\n"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_mentions_only_modules_that_exist(page: Path):
    for name in re.findall(r"\bpython (?:-m )(scripts\.\w+)", page.read_text()):
        assert (ROOT / f"{name.replace('.', '/')}.py").is_file(), name
    for name in re.findall(r"\bscripts/\w+\.py", page.read_text()):
        assert (ROOT / name).is_file(), name


def test_there_are_commands_to_check():
    assert len(COMMANDS) > 25 and {name for name, _ in COMMANDS} >= {"README.md", "transfer.md"}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_a_command_has_only_options_that_its_script_knows(page: str, command: str):
    words = shlex.split(command, comments=True)
    module, arguments = (words[2], words[3:]) if words[1] == "-m" else (words[1], words[2:])
    main = importlib.import_module(module.removesuffix(".py").replace("/", ".")).main
    (options,) = (kind for name, kind in typing.get_type_hints(main).items() if name != "return")
    assert isinstance(tyro.cli(options, args=arguments, config=(tyro.conf.OmitArgPrefixes,)), options)


def test_the_call_in_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    weights = Path("runs/demo-1/digitsnet.safetensors")
    weights.parent.mkdir(parents=True)
    save_weights(build_model("digitsnet", 10, 1), weights)
    block = next(each for each in BLOCK.findall((ROOT / "README.md").read_text()) if "compress(" in each)
    found: dict[str, typing.Any] = {}
    # Small images and one evaluation, for what is shown is not the figures.
    exec(block.replace("evaluations=40", "evaluations=1").replace('"digits")', '"digits", side=8)'), found)
    assert [row.name for row in found["result"].outcomes][:2] == ["original", "uniform"]


def test_the_environment_in_the_readme_is_made(tmp_path: Path):
    block = next(each for each in BLOCK.findall((ROOT / "README.md").read_text()) if "gymnasium.make" in each)
    found: dict[str, typing.Any] = {"problem": start(tmp_path / "run").problem}
    exec(block, found)
    assert found["env"].observation_space.contains(found["observation"])
    found["problem"].close()


@pytest.mark.extra("hub")
def test_the_network_of_timm_in_the_readme_is_halved(capsys: pytest.CaptureFixture[str]):
    pytest.importorskip("ai_edge_litert")
    block = next(each for each in BLOCK.findall((ROOT / "README.md").read_text()) if "timm:" in each)
    exec(block, {})
    assert "M MACs, " in capsys.readouterr().out
