"""Bits below 8 are never said to be faster."""

from pathlib import Path

import torch

from amc.compress import ActivationQuantization, WeightQuantization, apply
from amc.export import export_onnx
from amc.knobs import BITS, BitsKnob
from amc.policy import CompressionPolicy, LayerDecision
from amc.recovery.calibrate import calibrate
from scripts import benchmark, evaluate
from scripts.cli import exit_code
from scripts.low_bits import low_bits_note, weight_bits_of


def test_the_note_names_the_bits_and_the_reason():
    assert low_bits_note([8, 32]) is None
    assert "Weights of 4 bits save bytes" in str(low_bits_note([4, 8]))
    note = str(low_bits_note([2, 6, 32]))
    assert "2 to 6 bits" in note and "no runtime here has convolutions for fewer than 8 bits" in note


def test_exported_files_tell_their_bits(traced, tmp_path: Path):
    network = traced("digitsnet")
    knobs = [BitsKnob(f"{what}_bits", network, BITS) for what in ("weight", "activation")]
    bits = [3, *[8] * (len(network.layers) - 1)]
    decisions = [
        LayerDecision(layer.name, {"weight_bits": width, "activation_bits": 8})
        for layer, width in zip(network.layers, bits, strict=True)
    ]
    policy = CompressionPolicy(network.fingerprint, tuple(decisions))
    model = apply(policy, network, [WeightQuantization(knobs[0]), ActivationQuantization(knobs[1])])
    calibrate(model, [torch.rand(8, *network.example.shape[1:])])
    path = export_onnx(model, network.example, tmp_path / "model.onnx").path
    assert weight_bits_of(path) == [3, 8]
    assert weight_bits_of(tmp_path / "model.tflite") == [3, 8]  # whose ONNX file lies beside it
    assert weight_bits_of(tmp_path / "original.tflite") == []


def test_a_package_is_not_measured(tmp_path: Path, capsys):
    files = [str(tmp_path / "original.onnx"), str(tmp_path / "model.safetensors")]
    for file in files:
        Path(file).write_text("")
    # The data are never looked for.
    scored = ["--file", files[1], "--data", "cifar10", "--data-root", str(tmp_path)]
    compared = ["--file", files[0], "--reference", files[1]]
    for script, arguments in ((benchmark, files), (evaluate, scored), (evaluate, compared)):
        assert exit_code(script.main, arguments) == 2
        assert "fewer than 8 bits save bytes and no time" in capsys.readouterr().err
