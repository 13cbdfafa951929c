"""The runner of all figures files: rows that are there stay, unless they are wanted again."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from amc.errors import UserError
from scripts.results_runner import Row, RowOptions, Runner


@dataclass(frozen=True)
class Named:
    name: str

    def to_json(self) -> Row:
        return {"part": self.name[0]}


SPECS = [Named(name) for name in ("a/1", "a/2", "b/1")]


def runner(out: Path, make: Callable[[Named], Row]) -> Runner[Named]:
    return Runner(
        out,
        key=lambda spec: spec.name,
        make=make,
        about=lambda spec: {},
        summary=lambda rows: {"count": len(rows)},
        prepare=lambda wanted: wanted,
    )


def figures(out: Path) -> dict[str, int]:
    return {name: row["figure"] for name, row in json.loads(out.read_text())["rows"].items()}


def test_rows_are_made_again_only_if_wanted_and_replaced_only_when_the_new_one_is_finished(tmp_path: Path):
    out = tmp_path / "figures.json"
    runner(out, lambda spec: {"figure": 1}).run(SPECS, RowOptions())
    seen: list[dict[str, int]] = []

    def second(spec: Named) -> Row:
        seen.append(figures(out))
        if spec.name == "a/2":
            raise UserError("There is nothing to make it from.")
        return {"figure": 2}

    rows = runner(out, second)
    rows.run(SPECS, RowOptions())
    assert not seen
    with pytest.raises(UserError, match="1 of 2 rows could not be made: a/2"):
        rows.run(rows.chosen(SPECS, "a/*"), RowOptions(again=True))
    assert seen == [{"a/1": 1, "a/2": 1, "b/1": 1}, {"a/1": 2, "a/2": 1, "b/1": 1}]
    assert list(figures(out).items()) == [("a/1", 2), ("a/2", 1), ("b/1", 1)]


def test_a_list_makes_nothing_even_with_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rows = runner(tmp_path / "figures.json", lambda spec: pytest.fail("a row was made"))
    rows.run(SPECS, RowOptions(list=True, again=True))
    assert capsys.readouterr().out.count("missing") == 3
