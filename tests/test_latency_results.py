"""The runner and the page of the latency results, on made-up rows."""

import json
from pathlib import Path

import numpy as np
import pytest

from amc.costs.latency.predictor import Sample
from amc.errors import UserError
from amc.targets.calibration import Curve, Profile
from scripts import latency_page, latency_results, latency_rows_search
from scripts.cli import exit_code
from scripts.latency_page_curves import out_of_reach, table_of
from scripts.latency_plots import styles_of
from scripts.latency_rows import (
    HEADLINE_EPOCHS,
    TUNED_EPOCHS,
    VARIANTS,
    LatencyResults,
    Spec,
    command,
    plan,
)
from scripts.latency_rows_search import affordable_depth
from scripts.latency_rows_targets import by_format, correlations, subject, weight_bits_of
from scripts.latency_words import of_older_files, originals, points_of, tuned_name, verdict, winners

POLICY = {
    "reward_accuracy": 0.95,
    "test_accuracy": 0.9,
    "latency_ratio": 0.29,
    "reliable": True,
    "within_budget": True,
    "int8_share": 1.0,
    "macs_fraction": 0.6,
}
PREDICTOR = {
    "mape": 0.06,
    "mape_int8": 0.04,
    "mape_mixed": 0.08,
    "mape_float": None,
    "margin": 0.1,
    "policies": 240,
    "sampling_seconds": None,
    "fitting_seconds": 0.1,
    "bits": [7, 8, 32],
}
TUNED = {
    "unit": "ms",
    "epochs": HEADLINE_EPOCHS,
    "processes": 12,
    "latency_ratio": 0.19,
    "latency_ratio_cv": 0.01,
    "test_accuracy_original": 0.9339,
    "test_accuracy_exported": 0.9201,
    "file": {"latency": 0.38},
    "original_file": {"latency": 2.0},
}
PROFILE = {
    **Profile(
        8,
        curves=tuple(
            Curve(kind, bits, {8: 0.01, 16: 0.02}) for kind in ("1x1", "3x3", "depthwise") for bits in (8, 32)
        ),
    ).to_json(),
    "runtime": "1.0",
    "unit": "ms",
}
ARM = {
    "of": "resnet20",
    "core": "1.0 on a core",
    "policies": 3,
    "instructions": [0.2, 0.4, 0.8],
    "latency": {"litert": [0.25, 0.4, 0.9], "openvino": [0.3, 0.5, 0.7]},
    "correlation": {
        "litert": {"pearson_log": 0.99, "spearman": 1.0},
        "openvino": {"pearson_log": 0.97, "spearman": 1.0},
    },
}


def made_up(options: LatencyResults, spec: Spec) -> dict:
    """Figures of the shape that the real rows have."""
    if spec.part == "curve" and not spec.variant:
        return {"joint": POLICY, "uniform": {**POLICY, "test_accuracy": 0.8}}
    if spec.variant == "prune":
        return {"unreachable": "The budget cannot be reached."}
    figures = {"predictor": PREDICTOR, "headline": TUNED, "profile": PROFILE, "arm": ARM, "joint": POLICY}
    return figures.get(spec.part, {**TUNED, "epochs": TUNED_EPOCHS})


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with weights and data that are only looked for."""
    for part in latency_results.MAKERS:
        monkeypatch.setitem(latency_results.MAKERS, part, made_up)
    (tmp_path / "weights.th").touch()
    (tmp_path / "results").mkdir()
    return tmp_path


def call(folder: Path, *arguments: str) -> int:
    given = ["--out", folder / "results" / "latency.json", "--data-root", folder, "--machine", "here"]
    given += ["--weights-20", folder / "weights.th", "--weights-56", folder / "weights.th", *arguments]
    return exit_code(latency_results.main, [str(argument) for argument in given])


def figures(folder: Path) -> dict:
    return json.loads((folder / "results" / "latency.json").read_text())


def test_every_row_has_an_id_of_its_own_and_its_command_makes_it_alone() -> None:
    specs = plan()
    assert len({spec.name for spec in specs}) == len(specs)
    assert {
        "predictor/mobilenet_v2/litert",
        "profile/onnxruntime",
        "joint/resnet56/openvino/0.2/prune-int8",
    } <= {spec.name for spec in specs}
    for spec in specs:
        only = command(LatencyResults(), spec).split("'")[1]
        assert latency_results.chosen(LatencyResults(only=only)) == [spec]
        changed = command(LatencyResults(evaluations=60, epochs=10), spec)
        assert "--evaluations 60" in changed and ("--epochs 10" in changed) == (spec.part == "headline")


def test_list_says_what_is_done_and_how_long_it_took(folder: Path, capsys) -> None:
    assert call(folder, "--only", "profile/litert") == 0
    assert call(folder, "--only", "profile/*", "--list") == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["missing", "profile/openvino@here"] in lines
    assert ["done", "0.0", "s", "profile/litert@here"] in lines


def test_a_cut_keeps_the_rows_before_it_and_a_repetition_makes_the_others(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []

    def cut(options: LatencyResults, spec: Spec) -> dict:
        if spec.target == "onnxruntime" and not made[3:]:
            raise KeyboardInterrupt
        made.append(spec.name)
        return made_up(options, spec)

    monkeypatch.setitem(latency_results.MAKERS, "profile", cut)
    assert call(folder, "--only", "profile/*") == 130
    assert list(figures(folder)["rows"]) == ["profile/openvino@here", "profile/litert@here"]
    made += ["cut", "cut"]
    assert call(folder, "--only", "profile/*") == 0
    assert made[4:] == ["profile/onnxruntime"] and len(figures(folder)["rows"]) == 3


def test_a_row_that_cannot_be_made_here_is_named_and_the_others_are_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    def refuse(options: LatencyResults, spec: Spec) -> dict:
        raise UserError("The emulator is not prepared.")

    monkeypatch.setitem(latency_results.MAKERS, "profile", refuse)
    assert call(folder, "--only", "*/litert") == 2
    said = capsys.readouterr().err
    assert "profile/litert: The emulator is not prepared." in said
    assert "1 of 4 rows could not be made: profile/litert." in said
    assert len(figures(folder)["rows"]) == 3


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--only", "nothing/*"), "No row matches"),
        (("--only", "joint/*", "--weights-56", "no.th"), "no.th: pass --weights-56"),
        (("--only", "joint/*", "--data-root", "nowhere"), "no folder nowhere"),
        (("--threads", "0"), "--threads and --epochs must be at least 1"),
        (("--epochs", "0"), "--threads and --epochs must be at least 1"),
    ],
)
def test_bad_input_is_refused_before_any_row(folder: Path, capsys, arguments, sentence: str) -> None:
    assert call(folder, *arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not (folder / "results" / "latency.json").exists()


def test_summary_keys_and_what_every_row_says_about_itself(folder: Path) -> None:
    assert call(folder) == 0
    found = figures(folder)
    assert found["predictor_mape"]["resnet56"] == {"openvino": 0.06, "litert": 0.06, "onnxruntime": 0.06}
    (first, *_) = found["headline"]
    assert (first["network"], first["target"], first["latency_ratio"]) == ("resnet56", "openvino", 0.19)
    assert {"latency_ratio_cv", "test_accuracy_original", "test_accuracy_exported"} <= set(first)
    assert {row["variant"] for row in found["joint"]} == set(VARIANTS)
    assert found["arm_correlation"] == 0.99
    assert len(found["rows"]) == len(plan())
    for key, row in found["rows"].items():
        assert key.endswith("@here") and row["command"] and row["seconds"] >= 0
        assert {"commit", "date", "machine"} <= set(row["origin"])


def test_of_two_machines_the_worse_prediction_error_is_the_summary() -> None:
    rows = [{"network": "n", "target": "t", "mape": mape} for mape in (0.02, 0.05, 0.03)]
    assert latency_results.predictor_mape(rows) == {"n": {"t": 0.05}}


def test_page_of_all_rows_and_of_few(folder: Path) -> None:
    arguments = ["--figures", str(folder / "results" / "latency.json"), "--images", str(folder / "images")]
    assert exit_code(latency_page.main, arguments) == 2  # nothing to show yet
    assert call(folder, "--only", "profile/litert") == 0
    assert exit_code(latency_page.main, arguments) == 0
    few = (folder / "results" / "latency.md").read_text()
    assert "* `headline/resnet56/openvino/0.2`" in few and "* `profile/litert`" not in few
    assert call(folder) == 0
    assert exit_code(latency_page.main, arguments) == 0
    page = (folder / "results" / "latency.md").read_text()
    assert "Not measured yet" not in page
    for part in ("cannot be reached", "**Goal of 5% missed** by resnet20 on openvino", "5.26x", "-1.38"):
        assert part in page
    drawn = {path.name for path in (folder / "images").iterdir()}
    assert drawn == {
        "latency_curves.png",
        "latency_arm.png",
        *(f"profile_{target}.png" for target in ("litert", "onnxruntime", "openvino")),
    }


def test_a_headline_is_judged_by_its_own_budget_and_by_a_point_of_accuracy() -> None:
    row = {**TUNED, "network": "resnet56", "target": "litert", "label": "here", "budget": "0.2"}
    assert "1.38 points are lost" in verdict(row) and "above" not in verdict(row)
    good = {**row, "test_accuracy_exported": 0.9240}
    assert verdict(good).startswith("goal met")
    assert "0.190 is above 0.125" in verdict({**good, "budget": "0.125"})


def test_a_headline_that_does_not_repeat_is_remarked_on() -> None:
    row = {**TUNED, "network": "resnet56", "target": "litert", "label": "here", "budget": "0.2"}
    assert "variation" not in verdict({**row, "latency_ratio_cv": 0.03})
    assert "variation over 12 processes, 4.8%, is above 3%" in verdict({**row, "latency_ratio_cv": 0.048})


def compared(**variants: float) -> list[dict]:
    """Rows of one setting by accuracy; a negative one is that of a network over the budget."""
    about = {"network": "net", "target": "openvino", "budget": "0.3", "label": "here", "part": "joint"}
    return [
        {**POLICY, **about, "variant": name, "test_accuracy": abs(score), "within_budget": score > 0}
        for name, score in variants.items()
    ]


def test_each_setting_of_the_comparison_has_a_verdict() -> None:
    rows = compared(joint=0.6, uniform=0.5, prune=0.2, int8=-0.9, blocks=0.99)
    title = "* net, openvino, budget 0.3 (here): "
    (said,) = winners([*rows, {**rows[0], "variant": "prune-int8", "importance": "obs"}])
    assert said.startswith(f"{title}`joint` and `prune-int8` tie: they keep the budget") and "60.00%" in said
    assert said.endswith("(one seed). Not all of them order channels in the same way.")
    first, other = winners([*rows, *({**row, "target": "litert"} for row in compared(int8=-0.9))])
    assert first == (
        f"{title}`joint` keeps the budget with the highest test accuracy, 60.00%, before `uniform` with "
        "50.00% (one seed). Not measured yet: `prune-int8`."
    )
    assert "litert" in other and "`int8` does not keep the budget (one seed)." in other


def test_plots_show_every_way_and_tell_series_apart() -> None:
    rows = [*compared(**{name: 0.5 for name in VARIANTS}), {**TUNED, "part": "headline", "network": "net"}]
    drawn = [name for row in rows for name, _ in points_of(row)]
    assert {"prune", "prune-int8", "blocks", "int8 only", tuned_name(HEADLINE_EPOCHS)} <= set(drawn)
    drawn += [tuned_name(epochs, blocks) for epochs in (3, 8) for blocks in (False, True)]
    looks = {(style["color"], style["marker"]) for style in styles_of(drawn).values()}
    assert len(looks) == len(set(drawn))
    assert originals(rows) == {"net": 0.9339}
    curve = {"part": "curve", "network": "n", "joint": {"test_accuracy_original": 0.8}}
    assert originals([curve, {"part": "profile"}]) == {"n": 0.8}


def test_errors_are_told_apart_by_the_bits_of_the_policies() -> None:
    from amc.targets.arm.target import ArmInstructionsTarget

    about = subject("resnet20", ArmInstructionsTarget(), (8, 32))
    table, column = about.space.smallest, about.space.column("weight_bits")
    floats, mixed = about.space.original(), table.copy()
    mixed[3, column:] = 32
    samples = [Sample(values, 1.0) for values in (table, floats, mixed, mixed)]
    assert weight_bits_of(about.space) == [8, 32]
    found = by_format(about.space, samples, np.array([0.1, -0.2, 0.3, -0.5]))
    assert (found["mape_int8"], found["mape_float"], found["mape_mixed"]) == pytest.approx((0.1, 0.2, 0.4))
    assert (found["policies_int8"], found["policies_float"], found["policies_mixed"]) == (1, 1, 2)
    assert by_format(about.space, samples[1:2], np.array([0.1]))["mape_int8"] is None


def test_correlation_of_a_power_law_is_perfect() -> None:
    counted = [0.1, 0.3, 0.7, 0.9]
    found = correlations(counted, [value**1.5 for value in counted])
    assert found["pearson_log"] == pytest.approx(1) and found["spearman"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("fastest", "budget", "depth"), [(0.27, "0.2", 0.67), (0.5, "0.2", 0.36), (0.1, "0.2", 1.0)]
)
def test_searches_without_blocks_start_from_the_depth_that_the_budget_affords(
    monkeypatch, fastest, budget, depth
):
    monkeypatch.setattr(latency_rows_search, "int8", lambda options, spec: {"latency_ratio": fastest})
    spec = Spec("headline", "resnet56", "litert", "0.2", "blocks")
    assert affordable_depth(LatencyResults(), spec) == depth


def test_where_int8_is_slower_the_depth_is_that_of_floats(monkeypatch):
    monkeypatch.setattr(latency_rows_search, "int8", lambda options, spec: {"latency_ratio": 1.2})
    spec = Spec("headline", "resnet56", "litert", "0.2", "blocks")
    assert affordable_depth(LatencyResults(), spec) == pytest.approx(0.18)


def test_rows_of_older_openvino_files_are_counted() -> None:
    row = {"part": "curve", "target": "openvino"}
    counted = [row, {**row, "part": "joint"}]
    others = [{**row, "target": "litert"}, {**row, "files": 2}, {**row, "unreachable": "no"}]
    others.append({**row, "part": "profile"})
    assert of_older_files([*counted, *others])[0].startswith("2 rows on OpenVINO")
    assert of_older_files(others) == []


def test_points_of_the_curves_say_their_budget_and_what_is_out_of_reach() -> None:
    row = {"network": "resnet20", "target": "litert", "label": "here", "part": "curve"}
    loose = {**row, "budget": "0.5", "joint": POLICY, "uniform": {**POLICY, "test_accuracy": 0.8}}
    tight = {**row, "budget": "0.2", "unreachable": "The budget cannot be reached."}
    whole = {**row, **POLICY, "part": "joint", "budget": "0.3", "variant": "int8", "latency_ratio": 0.4}
    twice = {**whole, "budget": "0.2"}
    panel = "resnet20, litert (here)"
    assert table_of([whole, loose, twice]) == [
        [panel, "int8 only", "", "0.400", "90.00%"],
        [panel, "joint", "0.5", "0.290", "90.00%"],
        [panel, "uniform", "0.5", "0.290", "80.00%"],
    ]
    assert out_of_reach([loose, tight]) == [
        "Out of reach of a network that keeps all of its layers, so that there is no point: "
        "resnet20, litert (here): 0.2."
    ]
    assert out_of_reach([loose]) == []
