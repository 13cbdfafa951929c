import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from amc.data.shapes import shapes
from amc.detection.features import changed_features, maps_and_features
from amc.detection.regions import pool_regions, regions_of
from amc.errors import UserError
from amc.models import build_model
from amc.recovery.mimic import (
    Mimic,
    MimicStudent,
    Teaching,
    matching_share,
    mimic_loss,
    mimicking,
    prepare_teacher,
    quantize_features,
)
from amc.tasks import DetectionTask
from amc.training import Recipe, fit
from scripts import mimic_results, tasks_page
from scripts.cli import exit_code
from scripts.mimic_comparison import comparisons

pytest.importorskip("pycocotools")
RECIPE = Recipe(epochs=1, batch_size=8, lr=0.02, weight_decay=1e-4)


@pytest.fixture(scope="module")
def data():
    whole = shapes()
    counts = {"train": 40, "reward": 8, "test": 8}
    cut = {name: whole.split(name).take(torch.arange(count)) for name, count in counts.items()}
    return replace(whole, **cut, _normalised={})


@pytest.fixture(scope="module")
def teaching(data) -> Teaching:
    torch.manual_seed(1)
    teacher = build_model("detector", 3, 3, 0.25)
    fit(teacher, data, RECIPE, loss=lambda model, x, y: mimicking(NOBODY, Mimic("alone"))(alone(model), x, y))
    return prepare_teacher(teacher, data, bits=3)


NOBODY = Teaching(nn.Identity(), 0, 1.0, 1.0)


def alone(model: nn.Module) -> MimicStudent:
    return MimicStudent(model, 1, 1)


def student(seed: int = 0) -> MimicStudent:
    torch.manual_seed(seed)
    return MimicStudent(build_model("detector", 3, 3, 0.125), 8, 16)


# ---- quantizer and loss ---------------------------------------------------------------------------------


def test_quantizer_rounds_to_multiples_of_its_stride():
    x = torch.linspace(-2, 4, 601)
    q = quantize_features(x, 0.5)
    assert torch.equal(quantize_features(q, 0.5), q)
    assert (q[x < 0.249] == 0).all()
    assert ((q - x.clamp(min=0)).abs() <= 0.25 + 1e-6).all()
    assert (q.diff() >= 0).all()
    assert torch.allclose(q / 0.5, (q / 0.5).round())


def test_gradient_passes_straight_through_below_zero_too():
    x = torch.tensor([-3.0, -0.1, 0.1, 0.7, 9.0], requires_grad=True)
    (quantize_features(x, 0.5) * torch.arange(1.0, 6.0)).sum().backward()
    assert x.grad.tolist() == [1, 2, 3, 4, 5]


def test_gradient_of_the_loss_is_the_residual_at_the_quantized_points():
    generator = torch.Generator().manual_seed(0)
    wanted = torch.randn(4, 2, 3, 3, generator=generator)
    said = torch.randn(4, 2, 3, 3, generator=generator, requires_grad=True)
    mimic_loss(wanted, said, 2.0, 0.5).backward()
    residual = quantize_features(said, 0.5) - quantize_features(wanted, 0.5)
    assert torch.allclose(said.grad, residual.detach() / (2.0 * said.numel()))


def test_a_vanishing_stride_is_plain_mimic():
    generator = torch.Generator().manual_seed(0)
    wanted, said = (torch.rand(4, 2, 3, 3, generator=generator) for _ in range(2))
    grads = []
    for stride in (None, 1e-6):
        x = said.clone().requires_grad_()
        mimic_loss(wanted, x, 1.0, stride).backward()
        grads.append(x.grad)
    assert torch.allclose(grads[0], grads[1], atol=1e-6)
    assert mimic_loss(wanted, said, 1.0, None) == pytest.approx(float((wanted - said).square().mean()) / 2)


@pytest.mark.parametrize("values", [{"mode": "half"}, {"weight": -1.0}, {"bits": 0}, {"jitter": 0.5}])
def test_what_has_no_meaning_is_refused(values):
    with pytest.raises(UserError):
        Mimic(**values)


# ---- regions --------------------------------------------------------------------------------------------


def test_regions_are_the_boxes_and_their_jittered_copies():
    labels = torch.tensor([[[0, 10.0, 10, 20, 30], [-1, 0, 0, 0, 0]], [[2, 0, 0, 8, 8], [1, 4, 4, 8, 8]]])
    plain = regions_of(labels, 0.0)
    assert plain[:, 0].tolist() == [0, 1, 1]
    assert plain[0].tolist() == [0, 10, 10, 20, 30]
    both = regions_of(labels, 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(both[:3], plain) and both.shape == (6, 5)
    size = (plain[:, 3:] - plain[:, 1:3]).repeat(1, 2)
    moved = (both[3:, 1:] - plain[:, 1:]).abs()
    assert (moved <= 0.2 * size).all() and (moved > 0).any()


def test_pooling_reads_the_places_of_a_region():
    """On a map whose values are its coordinates, cells say where they lie; images keep their order."""
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    ramp = torch.stack([x, y])
    features = torch.stack([ramp, ramp + 100])
    regions = torch.tensor([[1, 8.0, 8, 20, 20], [0, 8, 4, 20, 28], [1, 4, 8, 28, 20]])
    pooled = pool_regions(features, regions, 32)
    # Pixel p lies at p / 4 - 0.5 on the map; the middle cell of the first region at pixel 14.
    assert pooled[0, :, 1, 1].tolist() == pytest.approx([103, 103])
    assert pooled[1, 0, 1].tolist() == pytest.approx([2, 3, 4])
    assert pooled[1, 1, :, 1].tolist() == pytest.approx([1.5, 3.5, 5.5])
    assert pooled[2, 0, 0].tolist() == pytest.approx([101.5, 103.5, 105.5])
    assert pool_regions(features, regions[:0], 32).shape == (0, 2, 3, 3)


# ---- training -------------------------------------------------------------------------------------------


def weights(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_without_weight_the_student_is_the_one_that_learns_alone(data, teaching):
    ends = []
    for mimic in (Mimic("alone"), Mimic("quantized", weight=0.0)):
        learner = student()
        fit(learner, data, RECIPE, loss=mimicking(teaching, mimic))
        ends.append(weights(learner.student))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))


def test_the_modes_differ_and_the_teacher_stays(data, teaching):
    before, ends = weights(teaching.model), []
    for mode in ("alone", "mimic", "quantized"):
        learner = student()
        fit(learner, data, RECIPE, loss=mimicking(teaching, Mimic(mode)))
        ends.append(torch.cat([value.flatten().float() for value in weights(learner.student)]))
    assert not torch.equal(ends[0], ends[1]) and not torch.equal(ends[1], ends[2])
    assert all(torch.equal(a, b) for a, b in zip(before, weights(teaching.model), strict=True))


def test_imitation_raises_the_share_of_matching_features_and_lowers_the_loss(data, teaching):
    learner = student()
    before = matching_share(learner.eval(), teaching, data, "test")
    recipe = replace(RECIPE, epochs=4)
    epochs = fit(learner, data, recipe, loss=mimicking(teaching, Mimic("quantized", weight=4.0)))
    assert epochs[-1].loss < 0.9 * epochs[0].loss
    assert matching_share(learner, teaching, data, "test") > before + 0.02


def test_the_teacher_matches_itself(data, teaching):
    same = MimicStudent(copy.deepcopy(teaching.model), 16, 16)
    assert isinstance(same.adapter, nn.Identity)
    assert matching_share(same, teaching, data, "test") == 1.0


def test_a_batch_without_objects_can_be_learned_from(data, teaching):
    learner = student().train()
    x = data.normalise(data.train.images[:4])
    loss = mimicking(teaching, Mimic())(learner, x, torch.full((4, 2, 5), -1.0))
    loss.backward()
    assert torch.isfinite(loss)


def test_a_dead_teacher_is_refused(data):
    dead = build_model("detector", 3, 3, 0.125)
    nn.init.constant_(dead.get_submodule("bn2").bias, -100.0)
    with pytest.raises(UserError, match="zero on all objects"):
        prepare_teacher(dead, data, 3)


def test_changed_features_reach_the_head_and_go_away_again(data):
    model = build_model("detector", 3, 3, 0.125).eval()
    x = data.normalise(data.train.images[:2])
    plain, features = maps_and_features(model, x)
    with changed_features(model, torch.zeros_like):
        assert torch.equal(model(x), model.get_submodule("head")(torch.zeros_like(features)))
    assert torch.equal(model(x), plain)


# ---- figures --------------------------------------------------------------------------------------------


def test_paired_differences_against_values_by_hand():
    def row(mode, seed, score):
        return {"part": "student", "data": "shapes", "mode": mode, "seed": seed, "mAP": score}

    scores = {"alone": (0.10, 0.20, 0.30), "mimic": (0.14, 0.26, 0.35), "quantized": (0.09, 0.21, 0.30)}
    rows = [row(mode, seed, score) for mode, values in scores.items() for seed, score in enumerate(values)]
    found = {(r["mode"], r["against"]): r for r in comparisons(rows)}
    # Differences 0.04, 0.06, 0.05: mean 0.05, deviation 0.01, t(0.975, 2) = 4.3027.
    assert found["mimic", "alone"]["difference"] == pytest.approx(0.05)
    assert found["mimic", "alone"]["half_interval"] == pytest.approx(4.3027 * 0.01 / 3**0.5, rel=1e-4)
    assert found["mimic", "alone"]["verdict"] == "higher"
    assert found["quantized", "alone"]["verdict"] == "no difference"
    assert found["quantized", "mimic"]["verdict"] == "lower"


def test_rows_are_made_once_and_shown(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(mimic_results, "load", lambda options, name: data)
    monkeypatch.setattr(mimic_results, "SETTINGS", {"shapes": mimic_results.Setting(RECIPE, False)})
    monkeypatch.setattr(mimic_results, "TEACHER_WIDTH", 0.25)
    out = tmp_path / "mimic.json"
    given = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--only", "*/shapes*", "--device", "cpu"]
    monkeypatch.setattr(mimic_results, "SEEDS", (0, 1))
    assert exit_code(mimic_results.main, given) == 0
    rows = {row["name"]: row for row in json.loads(out.read_text())["detection"]}
    names = [f"student/shapes/{mode}/{seed}" for seed in (0, 1) for mode in ("alone", "mimic", "quantized")]
    assert list(rows) == ["teacher/shapes", *names]
    assert "matching" not in rows["student/shapes/alone/0"]
    assert 0 < rows["student/shapes/quantized/1"]["matching"] < 1
    assert {row["verdict"] for row in comparisons(list(rows.values()))} <= {
        "higher",
        "lower",
        "no difference",
    }
    assert not list((tmp_path / "runs").glob("*.checkpoint"))
    capsys.readouterr()
    assert exit_code(mimic_results.main, [*given, "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["done"] * 7
    assert exit_code(tasks_page.main, ["--figures", str(out)]) == 0
    page = out.with_suffix(".md").read_text()
    assert "## Detection and quantization mimic" in page and "### Paired differences" in page


def test_rows_without_data_are_refused(tmp_path, capsys):
    given = ["--out", str(tmp_path / "m.json"), "--data-root", str(tmp_path / "no"), "--only", "teacher/bccd"]
    assert exit_code(mimic_results.main, [*given, "--runs", str(tmp_path / "runs")]) == 2
    assert "There is no folder" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_cut_training_ends_as_an_uncut_one(data, teaching, tmp_path, monkeypatch):
    monkeypatch.setattr(
        mimic_results, "SETTINGS", {"shapes": mimic_results.Setting(replace(RECIPE, epochs=2), False)}
    )
    task, spec = DetectionTask(data), mimic_results.Spec("student", "shapes", "quantized", 0)
    plain = mimicking(teaching, Mimic())
    steps = 0

    def cut(model, x, y):
        nonlocal steps
        steps += 1
        if steps == 8:  # in the second epoch of five batches
            raise KeyboardInterrupt
        return plain(model, x, y)

    ends = []
    for folder, loss in (("uncut", plain), ("cut", cut), ("cut", plain)):
        options = mimic_results.MimicResults(runs=tmp_path / folder, device="cpu")
        options.runs.mkdir(exist_ok=True)
        learner = student()
        try:
            mimic_results.train(options, spec, learner, task.data, loss)
            ends.append(weights(learner))
        except KeyboardInterrupt:
            assert options.weights(spec).with_suffix(".checkpoint").is_file()
            assert not options.weights(spec).exists()
    assert len(ends) == 2
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
