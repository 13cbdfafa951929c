"""SaaS by hand: the projection, the update, the loop, and that hidden labels stay hidden."""

import dataclasses
import functools
import json

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from torch import nn

from agents.report import write_report
from amc.data import ImageData, load_data
from amc.data.few_labels import FewLabels, draw_few_labels
from amc.errors import UserError
from amc.models import build_model
from amc.models.weights import read_weights
from amc.recovery.label_estimate import LabelEstimate, load_estimate, save_estimate
from amc.recovery.pseudo_labels import iterate_pseudo_labels, one_hot
from amc.recovery.saas import (
    LABEL_STEP,
    PAPER,
    InnerLoop,
    Saas,
    batches_of,
    infer_labels,
    speed_loss,
    updated,
)
from amc.recovery.saas_posterior import project, random_posterior
from amc.training import Recipe
from scripts import few_labels_page, few_labels_results, few_labels_tuning, fine_tune
from scripts.cli import exit_code

FLOOR = 0.05
SMALL = Saas(inner=2, outer=3, batch_size=16, labeled_batch=8)


@functools.cache
def digits() -> ImageData:
    return load_data("digits", side=8)


@functools.cache
def drawn(labels: int = 20, unlabeled: int = 48) -> tuple[FewLabels, torch.Tensor]:
    return draw_few_labels(digits(), labels, unlabeled, seed=0)


def network(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return build_model("digitsnet", 10, 1, 0.125)


def rows(count: int = 40, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(count, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# ---- the projection -------------------------------------------------------------------------------------


def test_projected_rows_are_feasible_and_stay_where_they_are():
    found = project(rows(spread=30.0), FLOOR)
    assert torch.allclose(found.sum(1), torch.ones(40, dtype=torch.float64))
    assert float(found.min()) >= FLOOR - 1e-12
    assert float(found.max()) <= 0.55 + 1e-12
    assert torch.allclose(project(found, FLOOR), found, atol=1e-12)


def test_a_feasible_row_is_its_own_projection():
    inside = 0.5 + 0.5 * torch.rand(7, 10, dtype=torch.float64)
    inside = FLOOR + (1 - 10 * FLOOR) * inside / inside.sum(1, keepdim=True)
    assert torch.allclose(project(inside, FLOOR), inside, atol=1e-12)


def test_the_projection_is_the_numerical_optimum():
    for row, found in zip(rows(12).numpy(), project(rows(12), FLOOR).numpy(), strict=True):
        solved = minimize(
            lambda u, row=row: ((u - row) ** 2).sum(),
            np.full(10, 0.1),
            jac=lambda u, row=row: 2 * (u - row),
            bounds=[(FLOOR, 1)] * 10,
            constraints={"type": "eq", "fun": lambda u: u.sum() - 1, "jac": lambda u: np.ones(10)},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        assert solved.success
        np.testing.assert_allclose(found, solved.x, atol=1e-6)


def test_a_floor_that_no_row_can_have_is_refused():
    with pytest.raises(UserError, match=r"10 shares of at least 0\.1"):
        project(rows(), 0.1)


def test_the_first_posterior_is_nine_to_one():
    found = random_posterior(200, 10, torch.Generator().manual_seed(0))
    assert torch.equal(found.sort(1).values[0], torch.tensor([1 / 18] * 9 + [0.5], dtype=torch.float64))
    assert len(found.argmax(1).unique()) == 10


# ---- the update -----------------------------------------------------------------------------------------


def test_evidence_is_minus_the_batch_size_times_the_accumulated_gradient():
    generator = torch.Generator().manual_seed(0)
    posterior = random_posterior(6, 10, generator).requires_grad_()
    labeled, labels = torch.randn(4, 10, generator=generator), torch.arange(4)
    evidence = torch.zeros(6, 10, dtype=torch.float64)
    for _ in range(3):
        logits = torch.randn(6, 10, generator=generator).double()
        loss, log_p = speed_loss(labeled, labels, logits, posterior)
        loss.backward()
        evidence += log_p
    assert posterior.grad is not None
    assert torch.allclose(posterior.grad, -evidence / 6)
    step = LABEL_STEP * 6 / 3  # eta, from eta T / B = 0.4
    expected = project((posterior - step * posterior.grad).detach(), FLOOR)
    assert torch.allclose(updated(posterior.detach(), evidence, 3), expected)


def test_the_papers_settings_have_a_step_of_one():
    assert LABEL_STEP * PAPER.batch_size / PAPER.inner == 1.0


def test_right_labels_are_learned_faster_than_wrong_ones():
    """The criterion itself: the mean loss along one training rises with the share of wrong labels."""
    few, hidden = drawn()
    losses = []
    for share in (0.0, 0.5, 1.0):
        labels = hidden.clone()
        wrong = torch.arange(len(labels)) < share * len(labels)
        labels[wrong] = (labels[wrong] + 1 + torch.arange(int(wrong.sum())) % 9) % 10
        posterior = project(one_hot(labels, 10), FLOOR)
        model = network()
        losses.append(InnerLoop(model, few, dataclasses.replace(SMALL, inner=20), 1).run(posterior, 0, None))
    assert losses[0] < losses[1] < losses[2]


# ---- the loop -------------------------------------------------------------------------------------------


def test_every_image_gathers_evidence_in_every_inner_epoch(monkeypatch):
    few, _ = drawn()
    loop = InnerLoop(network(), few, SMALL, 1)
    seen = torch.zeros(48)
    monkeypatch.setattr(
        loop, "step", lambda index, posterior: float(seen.index_add_(0, index, torch.ones(len(index)))[0])
    )
    loop.run(one_hot(torch.zeros(48, dtype=torch.int64), 10), 0, None)
    assert torch.equal(seen, torch.full((48,), 2.0))
    assert batches_of(48, 16) == 3


def test_inference_is_reproducible_and_gives_the_weights_back():
    few, _ = drawn()
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    one, other = (infer_labels(model, few, SMALL, seed=3) for _ in range(2))
    assert torch.equal(one.posterior, other.posterior)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not torch.equal(one.posterior, infer_labels(model, few, SMALL, seed=4).posterior)


def test_a_cut_inference_ends_as_an_uncut_one(tmp_path):
    few, _ = drawn()
    path, settings = tmp_path / "labels.safetensors", {"seed": 0}
    whole = infer_labels(network(), few, SMALL)

    def cut(estimate: LabelEstimate) -> None:
        save_estimate(path, estimate, settings)
        if estimate.rounds == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        infer_labels(network(), few, SMALL, on_round=cut)
    resumed = infer_labels(network(), few, SMALL, start=load_estimate(path, settings))
    assert torch.equal(resumed.posterior, whole.posterior)
    assert resumed.losses == whole.losses


def test_an_estimate_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "labels.safetensors"
    save_estimate(path, LabelEstimate(one_hot(torch.zeros(3, dtype=torch.int64), 10)), {"seed": 0})
    with pytest.raises(UserError, match=r"other settings \(seed was 0\)"):
        load_estimate(path, {"seed": 1})
    path.write_bytes(b"nonsense")
    with pytest.raises(UserError, match="holds no estimated labels"):
        load_estimate(path, {})


def test_pseudo_labels_are_the_last_networks_answers_and_are_reproducible():
    few, _ = drawn()
    recipe = Recipe(batch_size=16, lr=0.05)
    calls = {"rounds": 2, "images": 60}
    one, other = (iterate_pseudo_labels(network(), few, digits(), recipe, **calls) for _ in range(2))
    assert one.rounds == 2
    assert torch.equal(one.posterior, other.posterior)
    assert torch.equal(one.posterior.sum(1), torch.ones(48, dtype=torch.float64))


@pytest.mark.slow
def test_saas_finds_most_labels_of_digits():
    few, hidden = draw_few_labels(digits(), 100, 600, 0)
    torch.manual_seed(0)
    model = build_model("digitsnet", 10, 1, 0.5)
    found = infer_labels(model, few, Saas(10, 3, batch_size=25))
    assert float((found.labels == hidden).double().mean()) > 0.8


# ---- the choice of images -------------------------------------------------------------------------------


def test_labelled_images_are_balanced_and_apart_from_the_others():
    few, hidden = draw_few_labels(digits(), 24, 100, seed=5)
    counts = torch.bincount(few.labeled.labels, minlength=10)
    assert counts.tolist() == [3] * 4 + [2] * 6
    both = torch.cat([few.labeled.images, few.unlabeled]).flatten(1)
    assert len(both) == 124 and len(hidden) == 100
    assert len(draw_few_labels(digits(), 24, None, 5)[0].unlabeled) == len(digits().train) - 24
    again, _ = draw_few_labels(digits(), 24, 100, seed=5)
    assert torch.equal(again.unlabeled, few.unlabeled)


@pytest.mark.parametrize(
    ("labels", "unlabeled", "said"),
    [(5, 10, "10 classes"), (1000, 500, "more than the 1197"), (1197, None, "more than the 1197")],
)
def test_too_many_or_too_few_labels_are_refused(labels, unlabeled, said):
    with pytest.raises(UserError, match=said):
        draw_few_labels(digits(), labels, unlabeled, 0)


# ---- the script -----------------------------------------------------------------------------------------

GIVEN = ["--labels", "20", "--unlabeled", "40", "--side", "8", "--width", "0.125", "--inner", "1", "--device"]
GIVEN += ["cpu", "--outer", "2", "--final-epochs", "1"]


@pytest.fixture
def undrawn(monkeypatch):
    """Reports take longer to draw than these networks to train."""
    monkeypatch.setattr(few_labels_tuning, "write_report", lambda folders: folders)


def call(folder, *arguments: str) -> int:
    return exit_code(fine_tune.main, [*GIVEN, "--out", str(folder), *arguments])


def tensors(folder, name: str = few_labels_tuning.WEIGHTS_FILE) -> dict[str, torch.Tensor]:
    return read_weights(folder / name)


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("arm", ["saas", "pseudo", "supervised"])
def test_hidden_labels_are_never_read(arm, tmp_path, monkeypatch, undrawn):
    """Garbage in the place of all labels but the known ones changes the figures and not one bit else."""
    assert call(tmp_path / "true", "--arm", arm) == 0

    def garbled(data, *arguments):
        few, hidden = draw_few_labels(data, *arguments)
        data.train.labels.add_(3).remainder_(10)
        return few, (hidden + 3) % 10

    def garbled_data(*arguments):
        data = load_data(*arguments)
        splits = {
            name: dataclasses.replace(data.split(name), labels=(data.split(name).labels + 3) % 10)
            for name in ("reward", "test")
        }
        return dataclasses.replace(data, **splits)

    monkeypatch.setattr(few_labels_tuning, "draw_few_labels", garbled)
    monkeypatch.setattr(few_labels_tuning, "load_data", garbled_data)
    assert call(tmp_path / "garbage", "--arm", arm) == 0
    assert equal(tensors(tmp_path / "garbage"), tensors(tmp_path / "true"))
    if arm != "supervised":
        labels = few_labels_tuning.LABELS_FILE
        assert equal(tensors(tmp_path / "garbage", labels), tensors(tmp_path / "true", labels))
    told = [json.loads((tmp_path / name / "few_labels.json").read_text()) for name in ("true", "garbage")]
    assert told[0]["confusion"] != told[1]["confusion"]


def test_all_labels_teach_another_network_than_few(tmp_path, undrawn):
    assert call(tmp_path / "full", "--arm", "full") == 0
    assert call(tmp_path / "few", "--arm", "supervised") == 0
    assert not equal(tensors(tmp_path / "full"), tensors(tmp_path / "few"))


@pytest.mark.parametrize("stage", ["labels", "final"])
def test_an_interrupted_script_goes_on(stage, tmp_path, monkeypatch, capsys, undrawn):
    assert call(tmp_path / "whole") == 0
    name = "save_estimate" if stage == "labels" else "save_checkpoint"
    save = getattr(few_labels_tuning, name)

    def cut(*arguments):
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(few_labels_tuning, name, cut)
        assert call(tmp_path / "cut") == 130
    assert "--resume" in capsys.readouterr().err
    assert call(tmp_path / "cut") == 2
    assert "unfinished training" in capsys.readouterr().err
    assert call(tmp_path / "cut", "--resume") == 0
    assert equal(tensors(tmp_path / "cut"), tensors(tmp_path / "whole"))
    assert not list((tmp_path / "cut").glob("*checkpoint*"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--labels", "2000"], "more than the 1197"),
        (["--labels", "3"], "too few"),
        (["--run", "runs/a"], "more labels than --labels gives"),
        (["--alpha", "0.5"], "--alpha has no meaning with --labels"),
        (["--inner", "0"], "at least 1 inner"),
        (["--resume"], "to resume from"),
        (["--data", "shapes", "--side", "32"], "has boxes"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(arguments, said, tmp_path, capsys):
    assert call(tmp_path / "out", *arguments) == 2
    message = capsys.readouterr().err.splitlines()
    assert message[-1].startswith("error: ") and said in message[-1]
    assert not (tmp_path / "out").exists()


def test_options_of_few_labels_need_labels(tmp_path, capsys):
    assert exit_code(fine_tune.main, ["--run", str(tmp_path), "--arm", "full"]) == 2
    assert "--arm belongs to --labels" in capsys.readouterr().err
    assert exit_code(fine_tune.main, []) == 2
    assert "--run FOLDER" in capsys.readouterr().err


def test_the_report_draws_the_confusion_in_one_file(tmp_path):
    assert call(tmp_path) == 0
    html = (tmp_path / "report" / "index.html").read_text()
    assert "Which labels are confused" in html and html.count("<svg") == 2
    assert 'src="' not in html and "href=" not in html.replace("xlink:href=", "")
    assert (tmp_path / "report" / "confusion.png").is_file()
    found = json.loads((tmp_path / "few_labels.json").read_text())
    assert sum(map(sum, found["confusion"])) == 40
    right = sum(found["confusion"][label][label] for label in range(10))
    assert found["label_accuracy"] == pytest.approx(right / 40)
    assert write_report([tmp_path])[0] == tmp_path / "report" / "index.html"


# ---- rows and page --------------------------------------------------------------------------------------


def test_rows_are_made_once_and_shown(tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.setattr(few_labels_results, "load_data", lambda name, root: digits())
    monkeypatch.setattr(few_labels_tuning, "load_data", lambda name, root, side: digits())
    for name, value in {"MODEL": "digitsnet", "WIDTH": 0.125, "LABELS": 20, "UNLABELED": 40}.items():
        monkeypatch.setattr(few_labels_results, name, value)
    monkeypatch.setattr(few_labels_tuning.FewLabelsOptions, "saas", Saas(1, 1, labeled_batch=8))
    out = tmp_path / "tasks.json"
    out.write_text(json.dumps({"retrieval": [{"name": "kept"}]}))
    given = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--only", "saas/0"]
    (tmp_path / "runs").mkdir()
    assert exit_code(few_labels_results.main, given) == 0
    figures = json.loads(out.read_text())
    assert figures["retrieval"] == [{"name": "kept"}]
    (row,) = figures["few_labels"]
    assert row["name"] == "saas/0" and 0 <= row["test_accuracy"] <= 1
    capsys.readouterr()
    assert exit_code(few_labels_results.main, [*given, "--list"]) == 0
    assert capsys.readouterr().out.startswith("done")


def test_the_section_says_what_is_missing_and_compares_pairs():
    made = [
        {
            "arm": arm,
            "seed": seed,
            "data": "cifar10",
            "test_accuracy": 0.4 + 0.1 * (arm == "saas") + 0.01 * seed,
            "label_accuracy": 0.5,
            "cpu_seconds": 3600.0,
        }
        for arm in ("supervised", "saas")
        for seed in (0, 1)
    ]
    text = "\n".join(few_labels_page.section(made))
    assert "4 of 12 rows" in text and "4.0 CPU-hours" in text
    assert "| SaaS - the labelled images alone | 2 | +10.00 ± 0.00 | higher |" in text
    assert "50.50% ± 0.71" in text


def test_the_network_of_the_table_is_a_quarter_of_resnet20():
    small, whole = (build_model("resnet20", width=width) for width in (0.5, 1.0))
    sizes = [sum(p.numel() for p in model.parameters()) for model in (small, whole)]
    assert sizes[0] / sizes[1] == pytest.approx(0.25, abs=0.01)
    assert small(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
