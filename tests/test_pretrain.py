import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from amc.data import load_data
from amc.errors import UserError
from amc.models import build_model, load_weights
from amc.tasks import ClassificationTask, Task, load_task
from amc.training import Recipe, accuracy, evaluating, fit, learning_rate
from scripts import pretrain
from scripts.cli import exit_code

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["--side", "8", "--width", "0.25", "--device", "cpu"]


def call(*arguments: object) -> int:
    return exit_code(pretrain.main, [str(argument) for argument in arguments])


def weights(path: Path) -> dict[str, torch.Tensor]:
    model = build_model("digitsnet", 10, 1, 0.25)
    load_weights(model, path)
    return model.state_dict()


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[key], other[key]) for key in one)


def test_learning_rate_rises_linearly_and_falls_along_a_cosine():
    values = [learning_rate(step, 12, peak=2.0, warmup=1 / 3) for step in range(12)]
    assert values[:4] == [0.5, 1.0, 1.5, 2.0]
    assert values[4] == 2.0
    assert values[8] == pytest.approx(1.0)  # half way down
    assert values[11] == pytest.approx(1 - 0.9238795, abs=1e-6)  # 1 + cos(7 pi / 8)


def test_learning_rate_without_warmup_starts_at_the_peak():
    assert learning_rate(0, 1, 0.3, 0.0) == 0.3


class Fixed(nn.Module):
    """Says class 0 for a dark image and 1 for a bright one."""

    def forward(self, x):
        bright = x.mean((1, 2, 3))
        return torch.stack([-bright, bright], dim=1)


def test_accuracy_counts_and_restores_modes():
    images = torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0])[:, None, None, None].expand(-1, 1, 2, 2)
    labels = torch.tensor([0, 1, 0, 0, 1])
    assert accuracy(Fixed(), images, labels, batch_size=2) == 4 / 5


def test_evaluating_restores_each_part():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Dropout())
    model[0].eval()
    with evaluating(model):
        assert not model[1].training
    assert [model.training, model[0].training, model[1].training] == [True, False, True]


def test_one_step_of_fit_is_sgd_by_hand():
    data = load_data("digits", side=8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    reference = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    reference.load_state_dict(model.state_dict())
    recipe = Recipe(1, len(data.train), 0.5, momentum=0.0, weight_decay=0.1, warmup=0.0, augment=False)
    fit(model, data, recipe)
    loss = nn.functional.cross_entropy(reference(data.normalised("train")), data.train.labels)
    loss.backward()
    for after, before in zip(model.parameters(), reference.parameters(), strict=True):
        expected = before - 0.5 * (before.grad + 0.1 * before)
        assert torch.allclose(after, expected, atol=1e-6)


def test_fit_takes_a_loss_of_the_callers_own_and_leaves_the_global_generator():
    data = load_data("digits", side=8)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(), nn.Linear(64, 10))
    before = torch.get_rng_state()
    steps = []
    done = fit(
        model,
        data,
        Recipe(epochs=2, batch_size=500, lr=0.1, weight_decay=0.0),
        loss=lambda model, x, y: model(x).square().mean() + 3,
        on_step=lambda step, total: steps.append((step, total)),
    )
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert [epoch.number for epoch in done] == [1, 2]
    assert 3 < done[1].loss < done[0].loss
    assert torch.equal(torch.get_rng_state(), before)
    assert not model.training


def test_fit_stops_when_the_loss_is_no_number():
    data = load_data("digits", side=8)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(UserError, match=r"became nan in epoch 1: lower the learning rate"):
        fit(model, data, Recipe(1), loss=lambda model, x, y: model(x).mean() * float("nan"))


@pytest.mark.parametrize(
    "wrong",
    [{"lr": 0}, {"lr": float("nan")}, {"batch_size": 1}, {"epochs": -1}, {"seed": -1}, {"momentum": 1}],
)
def test_a_recipe_refuses_what_cannot_train(wrong):
    with pytest.raises(UserError):
        Recipe(**wrong)


def test_pretrain_learns_digits_and_writes_what_it_learned(tmp_path, capsys):
    out = tmp_path / "new" / "w.safetensors"
    assert call(*SMALL, "--epochs", 4, "--out", out, "--store", "fp16") == 0
    said = capsys.readouterr().out
    model = build_model("digitsnet", 10, 1, 0.25)
    load_weights(model, out)
    data = load_data("digits", side=8)
    score = accuracy(model, data.normalised("test"), data.test.labels)
    assert score > 0.8  # chance is 0.1
    assert abs(float(said.split("%")[0].split()[-1]) / 100 - score) < 1e-4
    assert [path.name for path in out.parent.iterdir()] == ["w.safetensors"]


def test_an_interrupted_training_resumes_to_the_same_weights(tmp_path, monkeypatch, capsys):
    whole, parts = tmp_path / "whole.safetensors", tmp_path / "parts.safetensors"
    arguments = [*SMALL, "--epochs", 3, "--threads", torch.get_num_threads()]
    assert call(*arguments, "--out", whole) == 0
    keep = pretrain.save_checkpoint

    def keep_and_interrupt(path, model, epoch, settings):
        keep(path, model, epoch, settings)
        if epoch.number == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(pretrain, "save_checkpoint", keep_and_interrupt)
    capsys.readouterr()
    assert call(*arguments, "--out", parts) == 130
    assert capsys.readouterr().err.strip().endswith("interrupted; repeat the command with --resume to go on")
    assert not parts.exists()
    monkeypatch.setattr(pretrain, "save_checkpoint", keep)
    assert call(*arguments, "--out", parts) == 2
    assert "pass --resume" in capsys.readouterr().err
    assert call(*arguments, "--out", parts, "--lr", 0.2, "--resume") == 2
    assert "other settings (lr was 0.1)" in capsys.readouterr().err
    assert call(*arguments, "--out", parts, "--resume") == 0
    assert equal(weights(whole), weights(parts))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parts.safetensors", "whole.safetensors"]


def test_the_reward_split_is_scored_where_the_training_has_not_seen_it(tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    assert call(*SMALL, "--epochs", 0, "--out", out) == 0
    said = capsys.readouterr().out
    model = build_model("digitsnet", 10, 1, 0.25)
    load_weights(model, out)
    data = load_data("digits", side=8)
    score = accuracy(model, data.normalised("reward"), data.reward.labels)
    assert f"reward-split accuracy {score:.2%} on {len(data.reward)} images" in said
    assert call(*SMALL, "--epochs", 0, "--out", out, "--no-holdout", "--force") == 0
    assert "reward-split" not in capsys.readouterr().out


def test_the_reward_split_is_unseen_unless_asked(tmp_path, monkeypatch):
    sizes = []
    monkeypatch.setattr(pretrain, "fit", lambda model, data, *_, **__: sizes.append(len(data.train)))
    call(*SMALL, "--out", tmp_path / "a.safetensors")
    call(*SMALL, "--out", tmp_path / "b.safetensors", "--no-holdout")
    assert sizes == [1197, 1437]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "digitnet"], "did you mean 'digitsnet'?"),
        (["--model", "resnet32", "--side", "16", "--width", "2"], "has no width multiplier"),
        (["--model", "vgg16", "--side", "16"], "fails on an image of 1 x 16 x 16"),
        (["--data", "cifar10", "--side", "32", "--data-root", "absent"], "CIFAR-10 was looked for in absent"),
        (["--epochs", "-1"], "0 or more epochs"),
        (["--label-smoothing", "1"], "label smoothing must lie in [0, 1)"),
        (["--threads", "-1"], "--threads must be 0 or more"),
        (["--out", "w.pt"], "--out must end in .safetensors"),
        (["--resume"], "to resume from"),
        (["--lr", "1e30"], "lower the learning rate"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert call("--epochs", 1, "--side", 8, "--device", "cpu", *arguments) == 2
    message = capsys.readouterr().err.splitlines()
    assert message[-1].startswith("error: ")
    assert said in message[-1]
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_kept_unless_forced(tmp_path, capsys):
    out = tmp_path / "w.safetensors"
    out.write_text("precious")
    assert call(*SMALL, "--epochs", 0, "--out", out) == 2
    assert "exists already: pass --force" in capsys.readouterr().err
    assert out.read_text() == "precious"
    assert call(*SMALL, "--epochs", 0, "--out", out, "--force") == 0
    assert len(weights(out)) > 10


def test_a_foreign_checkpoint_is_refused(tmp_path, capsys):
    (tmp_path / "w.safetensors.checkpoint").write_bytes(b"not safetensors")
    assert call(*SMALL, "--out", tmp_path / "w.safetensors", "--resume") == 2
    assert "is not a training checkpoint" in capsys.readouterr().err


def test_both_ways_to_start_the_script(tmp_path):
    # From another folder the file must find the packages beside it; as a module it is found by the path.
    ways = (
        ([ROOT / "scripts" / "pretrain.py", "--help"], tmp_path),
        (["-m", "scripts.pretrain", "--no-such-option"], ROOT),
    )
    file, module = (
        subprocess.run([sys.executable, *way], cwd=cwd, capture_output=True, text=True) for way, cwd in ways
    )
    assert (file.returncode, module.returncode) == (0, 2)
    assert "--label-smoothing" in file.stdout and "Share of each label" in file.stdout
    assert "--no-such-option" in module.stderr


def test_classification_task_is_a_task():
    data = load_data("digits", side=8)
    task = load_task("classification", data)
    assert isinstance(task, Task)
    model = build_model("digitsnet", 10, 1, 0.25)
    assert task.score(model, "reward") == accuracy(model, data.normalised("reward"), data.reward.labels)
    assert task.traced(model) is model
    assert task.example_input().shape == (1, 1, 8, 8)
    assert [len(batch) for batch in task.calibration(300, 200)] == [200, 100]


def test_features_are_what_enters_the_last_linear_layer():
    task = ClassificationTask(load_data("digits", side=8))
    model = build_model("digitsnet", 10, 1, 0.25).eval()
    x = task.data.normalised("test")[:4]
    features = task.features(model, x)
    assert features.shape == (4, 16)
    assert torch.equal(model.linear(features), model(x))
    assert task.features(nn.Conv2d(1, 2, 1), x).shape == (4, 128)  # no linear layer: the output itself


def test_loss_of_equal_logits_is_the_logarithm_of_the_classes():
    task = ClassificationTask(load_data("digits", side=8))
    loss = task.loss(lambda x: torch.zeros(len(x), 10), torch.zeros(3, 1, 8, 8), torch.tensor([1, 2, 3]))
    assert loss.item() == pytest.approx(2.302585, abs=1e-6)


def test_a_task_of_the_users_own(tmp_path, monkeypatch):
    code = (
        "from amc.tasks import ClassificationTask\n"
        "def make(data):\n    return ClassificationTask(data, batch_size=7)\n"
        "def wrong(data):\n    return data\n"
    )
    (tmp_path / "own_task_for_test.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    data = load_data("digits", side=8)
    assert load_task("own_task_for_test:make", data).batch_size == 7
    with pytest.raises(UserError, match=r"returned a ImageData, which is not an amc\.tasks\.Task"):
        load_task("own_task_for_test:wrong", data)
    with pytest.raises(UserError, match="no task 'detect'"):
        load_task("detect", data)
