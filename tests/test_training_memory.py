"""Trainings that store activations value-aware until the backward pass."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from amc.data.digits import digits
from amc.quantization.training_memory import TrainingMemory, training_memory
from amc.recovery.fine_tune import fine_tune
from amc.tasks import ClassificationTask
from amc.training import Recipe, cross_entropy
from scripts import fine_tune as fine_tuning
from scripts import pretrain
from scripts.cli import exit_code


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(72, 10)),
    )


def gradients(net: nn.Module, memory: TrainingMemory | None) -> list[Tensor]:
    data, loss = digits(8), cross_entropy()
    images, labels = data.normalised("train")[:64], data.train.labels[:64]
    (loss if memory is None else memory.storing(loss))(net.train(), images, labels).backward()
    found = [p.grad.clone() for p in net.parameters() if p.grad is not None and p.dim() > 1]
    net.zero_grad()
    return found


@pytest.mark.parametrize("relu_aware", [False, True])
def test_gradients_are_close_and_bytes_fewer(relu_aware):
    net, memory = network(), TrainingMemory(relu_aware)
    plain, stored = gradients(net, None), gradients(net, memory)
    for one, other in zip(plain, stored, strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.97
    assert 0 < memory.bytes < 0.6 * memory.plain_bytes
    assert f"{memory.plain_bytes / 1e6:.1f} MB" in str(memory)


def test_a_student_is_fine_tuned_so_and_its_teacher_keeps_nothing():
    task, memory = ClassificationTask(digits(8)), TrainingMemory()
    student = network()
    recipe = Recipe(epochs=1, batch_size=64, lr=0.05)
    epochs = fine_tune(student, network(), task, recipe, precision="bfloat16", memory=memory)
    assert epochs[0].loss < 3 and memory.bytes < 0.6 * memory.plain_bytes
    maps = 64 * 8 * (64 + 9)
    images, flat = 64 * 64, 64 * 72
    # Two batch norms, two ReLUs, the inputs of three layers and the losses; a teacher would double them.
    assert 4 * (images + 2 * maps) < memory.plain_bytes < 4 * (images + 2 * maps + flat + 20_000)


def test_pretraining_learns_so_and_says_what_it_kept(tmp_path: Path, capsys):
    small = ["--side", "8", "--width", "0.25", "--epochs", "3", "--device", "cpu", "--threads", "1"]
    out = ["--out", str(tmp_path / "w.safetensors")]
    assert exit_code(pretrain.main, [*small, *out, "--saved-activations", "relu-aware"]) == 0
    said = capsys.readouterr().out
    assert "MB for its backward pass, in the place of" in said
    assert float(said.split("accuracy ")[1].split("%")[0]) > 50


@pytest.mark.parametrize("script", [pretrain, fine_tuning])
def test_rounded_activations_are_not_stored_so(script, tmp_path: Path, capsys):
    asked = ["--saved-activations", "value-aware", "--precision", "bfloat16", "--out", str(tmp_path / "o")]
    run = ["--run", str(tmp_path)] if script is fine_tuning else []
    assert exit_code(script.main, [*asked, *run]) == 2
    assert "drop --precision bfloat16" in capsys.readouterr().err
    assert training_memory("float", "bfloat16") is None
