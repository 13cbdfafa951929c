"""Every Python block of the documentation runs, in order and in one namespace a page."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[1] / "docs"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def run(page: str) -> dict[str, object]:
    namespace: dict[str, object] = {"__name__": "docs"}
    for number, block in enumerate(BLOCK.findall((DOCS / page).read_text())):
        exec(compile(block, f"{page}, block {number}", "exec"), namespace)
    return namespace


def test_the_tutorial_ends_with_a_file_that_knows_the_digits(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = run("tutorial.md")
    original, *_, best = found["result"].outcomes
    assert best.costs["macs"] <= original.costs["macs"] / 2
    assert found["agreement"].relative_error < 1e-4
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


@pytest.mark.parametrize(
    "page", ["tutorial.md", "environment.md", "measuring.md", "tensorboard.md", "transfer.md", "package.md"]
)
def test_a_page_mentions_only_modules_that_exist(page):
    root = DOCS.parent
    for name in re.findall(r"\b(?:python -m )(scripts\.\w+)", (DOCS / page).read_text()):
        assert (root / f"{name.replace('.', '/')}.py").is_file()
