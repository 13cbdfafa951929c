"""Distillation by hand, what fine-tuning does to a compressed network, and the script around it."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from agents.config import AgentConfig, SearchConfig
from agents.run import start_run
from agents.run_config import RunConfig, SourceConfig
from amc.compress import ActivationQuantization, ChannelPruning, WeightQuantization, apply
from amc.data import ImageData, load_data
from amc.data.images import Split
from amc.errors import UserError
from amc.knobs import BITS, BitsKnob
from amc.models import build_model, save_weights
from amc.network import Network, trace
from amc.package import load_package
from amc.policy import CompressionPolicy, LayerDecision
from amc.pruning.importance import rank_channels
from amc.quantization import uniform
from amc.quantization.modules import ActivationQuantizer, QuantizedConv2d, QuantizedLinear
from amc.recovery.calibrate import calibrate
from amc.recovery.fine_tune import (
    Distillation,
    RememberingTeacher,
    distilled,
    fine_tune,
    refit_weight_scales,
    teaching_form,
    teaching_loss,
)
from amc.slicing import clone_module
from amc.tasks import ClassificationTask
from amc.training import Recipe, cross_entropy, fit
from envs.problem_config import ProblemConfig
from scripts import fine_tune as script
from scripts.cli import exit_code

SIDE, WIDTH = 8, 0.5


# ---- the loss -------------------------------------------------------------------------------------------


def test_teaching_loss_by_hand():
    """At T = 2 the student says (1/4, 3/4) and the teacher (1/2, 1/2): KL = ln(4/3) / 2, times T^2."""
    student = torch.tensor([[0.0, 2 * math.log(3)], [1.0, 1.0]])
    teacher = torch.zeros(2, 2)
    assert float(teaching_loss(student, teacher, 2.0)) == pytest.approx(4 * math.log(4 / 3) / 2 / 2)


class Counted(nn.Module):
    def __init__(self, logits: list[float]):
        super().__init__()
        self.logits, self.calls = nn.Parameter(torch.tensor([logits])), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.logits.expand(len(x), -1)


def test_distillation_weighs_teacher_and_labels_and_asks_each_network_once():
    student, teacher = Counted([0.0, math.log(3)]), Counted([0.0, 0.0])
    loss = distilled(teacher, cross_entropy(), Distillation(temperature=1.0, alpha=0.25))
    value = loss(student, torch.zeros(3, 1), torch.tensor([1, 1, 1]))
    assert float(value.detach()) == pytest.approx(0.25 * math.log(4 / 3) / 2 + 0.75 * math.log(4 / 3))
    assert student.calls == teacher.calls == 1
    value.backward()
    assert student.logits.grad is not None and teacher.logits.grad is None
    # softmax minus wanted, for each of the two: 0.25 (3/4 - 1/2) + 0.75 (3/4 - 1)
    assert float(student.logits.grad[0, 1]) == pytest.approx(0.25 * 0.25 - 0.75 * 0.25)


def test_without_a_share_the_teacher_is_not_asked():
    teacher = Counted([0.0, 0.0])
    distilled(teacher, cross_entropy(), Distillation(alpha=0.0))(
        Counted([1.0, 0.0]), torch.zeros(2, 1), torch.tensor([0, 0])
    )
    assert teacher.calls == 0


@pytest.mark.parametrize(
    "wrong", [{"temperature": 0}, {"temperature": math.inf}, {"alpha": 1.1}, {"alpha": -1}]
)
def test_a_distillation_without_meaning_is_refused(wrong):
    with pytest.raises(UserError):
        Distillation(**wrong)


def test_feature_maps_cannot_be_distilled():
    maps = nn.Identity()
    loss = distilled(maps, cross_entropy(), Distillation())
    with pytest.raises(UserError, match="--alpha 0"):
        loss(maps, torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64))


# ---- a compressed network -------------------------------------------------------------------------------


@functools.cache
def digits() -> ImageData:
    return load_data("digits", side=SIDE)


@functools.cache
def trained() -> nn.Module:
    """A small DigitsNet, trained for a few seconds."""
    torch.manual_seed(0)
    model = build_model("digitsnet", 10, 1, WIDTH)
    fit(model, digits(), Recipe(epochs=10))
    return model


@functools.cache
def original() -> Network:
    return trace(trained(), torch.zeros(1, 1, SIDE, SIDE))


def compressed(keep: float = 0.5, bits: int = 4) -> nn.Module:
    network = original()
    values = [
        LayerDecision(
            layer.name,
            {
                "width": max(1, round(keep * layer.out_channels))
                if layer.name in network.group_of and not network.group_of[layer.name].frozen
                else layer.out_channels,
                "weight_bits": bits,
                "activation_bits": bits,
            },
        )
        for layer in network.layers
    ]
    policy = CompressionPolicy(network.fingerprint, tuple(values))
    knobs = (BitsKnob(name, network, BITS) for name in ("weight_bits", "activation_bits"))
    compressors = (
        ChannelPruning(rank_channels(network)),
        WeightQuantization(next(knobs)),
        ActivationQuantization(next(knobs)),
    )
    model = apply(policy, network, compressors)
    calibrate(model, digits().calibration(200, 100))
    return model


def quantized_layers(model: nn.Module) -> list[QuantizedConv2d | QuantizedLinear]:
    return [m for m in model.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)]


def tune(model: nn.Module, epochs: int = 1, data: ImageData | None = None, **settings) -> list:
    recipe = Recipe(epochs, 64, 0.03, weight_decay=1e-4)
    return fine_tune(model, original().copy(), ClassificationTask(data or digits()), recipe, **settings)


def same(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_fine_tuning_recovers_a_pruned_and_quantized_network():
    task = ClassificationTask(digits())
    model = compressed()
    before, best = task.score(model, "test"), task.score(original().module, "test")
    tune(model, epochs=4)
    after = task.score(model, "test")
    assert best > 0.95 and before < best - 0.3, "the network must have something to recover"
    assert after > before + 0.7 * (best - before) and not model.training


def test_it_trains_on_the_train_split_alone():
    data = digits()
    nothing = Split(torch.zeros_like(data.test.images), torch.zeros_like(data.test.labels))
    blind = replace(data, test=nothing, reward=nothing, _normalised={})
    one, other = compressed(), compressed()
    tune(one)
    tune(other, data=blind)
    assert same(one, other)


def test_every_forward_pass_uses_weights_on_the_grid():
    model, seen = compressed(bits=3), []
    for layer in quantized_layers(model):
        layer.quantizer.register_forward_hook(
            lambda quantizer, _, output: seen.append(
                (output.detach() / uniform.per_channel(quantizer.scale, output)).clone()
            )
        )
    tune(model)
    codes = torch.cat([output.reshape(-1) for output in seen])
    assert (codes - codes.round()).abs().max() < 1e-4
    assert codes.round().unique().tolist() == [-3, -2, -1, 0, 1, 2, 3]
    layer = quantized_layers(model)[0]
    steps = layer.weight / uniform.per_channel(layer.quantizer.scale, layer.weight)
    assert (steps - steps.round()).abs().max() > 0.1, "the weights that are trained stay between the codes"


def test_scales_follow_the_weights_and_activation_grids_stay():
    model = compressed()
    points = [m for m in model.modules() if isinstance(m, ActivationQuantizer) and m.enabled]
    grids = [(float(m.scale), int(m.zero_point)) for m in points]
    scales = [layer.quantizer.scale.clone() for layer in quantized_layers(model)]
    tune(model, refit_every=1000)
    for layer, before in zip(quantized_layers(model), scales, strict=True):
        assert torch.equal(layer.quantizer.scale, uniform.fit_weight_scale(layer.weight, 4))
        assert not torch.equal(layer.quantizer.scale, before)
    assert [(float(m.scale), int(m.zero_point)) for m in points] == grids
    assert not any(m.calibrating for m in points)


@pytest.mark.parametrize("float_epochs", [0, 1, 2])
def test_an_interrupted_fine_tuning_goes_on_exactly(float_epochs: int):
    floats = {"float_epochs": float_epochs, "calibration": digits().calibration(200, 100)}
    whole, parts = compressed(), compressed()
    # 18 steps an epoch: 7 does not divide them, so the second part must not count from 0.
    tune(whole, 2, refit_every=7, **floats)

    class Interrupted(Exception):
        pass

    kept = []

    def interrupt(epoch):
        kept.append(epoch)
        raise Interrupted

    with pytest.raises(Interrupted):
        tune(parts, 2, refit_every=7, on_epoch=interrupt, **floats)
    assert not same(whole, parts)
    again = compressed()
    again.load_state_dict(parts.state_dict())
    tune(again, 2, refit_every=7, start_epoch=1, momentum=kept[0].momentum, **floats)
    assert same(whole, again)


def test_epochs_in_floats_come_first_and_their_ranges_are_fitted_anew():
    model, seen = compressed(), []
    layer = quantized_layers(model)[1]
    points = [m for m in model.modules() if isinstance(m, ActivationQuantizer) and m.enabled]
    grids = [float(m.scale) for m in points]
    layer.quantizer.register_forward_hook(lambda q, given, out: seen.append(torch.equal(given[0], out)))
    tune(model, epochs=2, float_epochs=1, calibration=digits().calibration(200, 100))
    steps = len(digits().train) // 64
    floats = seen.index(False)  # behind the steps, and a look at augmented images before them
    assert floats >= steps and not any(seen[floats:]) and len(seen) - floats >= steps
    assert [float(m.scale) for m in points] != grids and not any(m.calibrating or m.paused for m in points)


@pytest.mark.parametrize(("epochs", "batches"), [(3, [torch.zeros(1, 1, SIDE, SIDE)]), (1, ()), (-1, ())])
def test_epochs_in_floats_that_make_no_sense(epochs: int, batches: list[Tensor]):
    with pytest.raises(UserError, match=f"{epochs} of 2 epochs cannot be in floats"):
        tune(compressed(), epochs=2, float_epochs=epochs, calibration=batches)


def test_a_teacher_sees_each_view_once():
    asked = []
    teacher = original().copy()
    teacher.register_forward_hook(lambda *_: asked.append(1))
    recipe = Recipe(3, 64, 0.03, views=2)
    fine_tune(compressed(), teacher, ClassificationTask(digits()), recipe)
    assert len(asked) == 2 * (len(digits().train) // 64)


def test_a_remembering_teacher_says_what_the_teacher_says():
    teacher, batch = original().copy().eval(), digits().normalised("reward")[:8]
    knowing = RememberingTeacher(teacher)
    with torch.no_grad():
        assert torch.equal(knowing(batch), teacher(batch)) and torch.equal(knowing(batch), teacher(batch))
        assert torch.equal(knowing(batch.flip(0)), teacher(batch.flip(0)))
    assert len(knowing.answers) == 2


def test_refitting_never_raises_the_error_of_the_weights():
    model = compressed()
    layer = quantized_layers(model)[0]
    with torch.no_grad():
        layer.weight.mul_(3)
        before = float((layer.quantizer(layer.weight) - layer.weight).square().sum())
        refit_weight_scales(model)
        assert float((layer.quantizer(layer.weight) - layer.weight).square().sum()) < 0.5 * before


def test_scales_cannot_be_fitted_every_zero_steps():
    with pytest.raises(UserError, match="not every 0"):
        tune(clone_module(original().module), refit_every=0)


# ---- the script -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has found one policy: half of the MACs, 3 bits."""
    folder = tmp_path_factory.mktemp("runs")
    weights = folder / "weights.safetensors"
    save_weights(trained(), weights)
    config = RunConfig(
        SourceConfig("digitsnet", weights, WIDTH, "digits", side=SIDE, device="cpu"),
        ProblemConfig(weight_bits=(3,), activation_bits=(8,), target="onnxruntime"),
        AgentConfig(algorithm="uniform"),
        SearchConfig(evaluations=1),
    )
    run = start_run(folder / "run", config)
    run.search()
    run.problem.close()
    return folder / "run"


def call(*arguments: object) -> int:
    return exit_code(script.main, [str(argument) for argument in arguments])


def test_the_script_writes_package_files_and_figures(run_folder: Path, capsys) -> None:
    assert call("--run", run_folder, "--epochs", 6, "--lr", 0.01) == 0
    folder = run_folder / "fine_tuned"
    names = {"model.safetensors", "policy.json", "model.onnx", "model_int8.onnx", "fine_tune.json"}
    assert {path.name for path in folder.iterdir()} == names
    figures = json.loads((folder / "fine_tune.json").read_text())
    scores = figures["scores"]
    assert scores["fine-tuned"]["test"] > scores["compressed"]["test"]
    floats, int8 = figures["files"]
    assert floats["verdict"] == "passed" and int8["verdict"] != "reported"
    assert min(runtime["same_decisions"] for runtime in int8["agreement"].values()) > 0.97
    module = load_package(folder).module
    assert ClassificationTask(digits()).score(module, "test") == scores["fine-tuned"]["test"]
    assert f"{scores['fine-tuned']['test']:.2%}" in capsys.readouterr().out
    assert call("--run", run_folder) == 2
    assert "pass --force to overwrite it" in capsys.readouterr().err


def test_the_script_resumes_to_the_same_network(run_folder: Path, tmp_path: Path, monkeypatch, capsys):
    arguments = ["--run", run_folder, "--epochs", 2, "--refit-every", 7]
    assert call(*arguments, "--out", tmp_path / "whole") == 0
    keep = script.save_checkpoint

    def keep_and_interrupt(path, model, epoch, settings):
        keep(path, model, epoch, settings)
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "save_checkpoint", keep_and_interrupt)
    capsys.readouterr()
    assert call(*arguments, "--out", tmp_path / "parts") == 130
    assert "repeat the command with --resume" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["checkpoint.safetensors"]
    monkeypatch.setattr(script, "save_checkpoint", keep)
    assert call(*arguments, "--out", tmp_path / "parts") == 2
    assert call(*arguments, "--out", tmp_path / "parts", "--resume", "--alpha", 0.5) == 2
    assert "alpha was 0.9" in capsys.readouterr().err
    assert call(*arguments, "--out", tmp_path / "parts", "--resume") == 0
    whole, parts = (load_package(tmp_path / name).module for name in ("whole", "parts"))
    assert same(whole, parts)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--run", "nowhere"], "nowhere"),
        (["--run", "RUN", "--out", "OUT", "--resume"], "to resume from"),
        (["--run", "RUN", "--out", "OUT", "--alpha", "2"], "must lie in [0, 1]"),
        (["--run", "RUN", "--out", "OUT", "--lr", "0"], "positive learning rate"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(
    arguments, said, run_folder: Path, tmp_path: Path, capsys
):
    places = {"RUN": run_folder, "OUT": tmp_path / "out"}
    assert call(*(places.get(argument, argument) for argument in arguments)) == 2
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: ") and said in error and len(error.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_a_teacher_in_its_fast_form_says_the_same(traced):
    network = traced("resnet20")
    x = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(teaching_form(network.copy())(x), network.module(x), rtol=1e-4, atol=1e-4)
