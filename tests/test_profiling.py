"""Calibration of a target: what is read off latency curves, and how they are measured and remembered."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import tests.test_run as runs
from amc.export import Exported, export_onnx
from amc.quantization.modules import ActivationQuantizer, QuantizedConv2d
from amc.targets import Profile, Target, Timing, get_target
from amc.targets.cache import JsonCache
from amc.targets.process_target import ProcessTarget
from amc.targets.profiling import BATCH, WIDTHS, calibrate, measured_profile, probes_of
from amc.targets.profiling_decision import decide, relative_latency
from amc.targets.profiling_probe import KINDS, LAYERS, Probe
from envs.problem import build_problem
from scripts import profile_target
from scripts.cli import exit_code
from tests.test_export import optimized_operators
from tests.test_profiling_decision import curves, plateaus
from tests.test_run import PROBLEM, tiny_model, tiny_task
from tests.test_targets import RUNTIMES

# Fixtures are found by name in the module that uses them.
_surroundings = runs._surroundings

POWERS = {"1x1": 2, "3x3": 2, "depthwise": 1}
Shape = Callable[[int], float]


# ---- how curves are measured ----------------------------------------------------------------------------


class FakeTarget(Target):
    """Layers cost what their blocks of 8 channels do, half of it in int8; files say what is in them."""

    name, runtime_version = "fake", "1"
    profile = Profile(width_multiple=2)
    file_suffix = ".json"

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.slow: Callable[[int], float] = lambda call: 1.0
        self.slow_candidates: Callable[[int], float] = lambda call: 1.0
        self.reliable: Callable[[int], bool] = lambda call: True

    def export(self, module: fx.GraphModule, example: Tensor, path: Path) -> Exported:
        path.write_text(json.dumps([latency_of(layer) for layer in convolutions(module)]))
        return Exported(path, "amc", None, path.stat().st_size, {})

    def measure(self, files: Sequence[Path | str], *, time_limit_s: float = 30.0) -> list[Timing]:
        call = len(self.calls)
        self.calls.append([Path(file).read_text() for file in files])
        alone, *others = [self.slow(call) * sum(json.loads(text)) for text in self.calls[-1]]
        costs = [alone, *(self.slow_candidates(call) * each for each in others)]
        return [Timing(cost, (cost, cost), cost / costs[0], self.reliable(call), 1) for cost in costs]

    def run(self, file: Path | str, inputs: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def convolutions(module: nn.Module) -> list[nn.Conv2d]:
    return [each for each in module.modules() if isinstance(each, nn.Conv2d)]


def latency_of(layer: nn.Conv2d) -> float:
    """Milliseconds of one layer."""
    blocks = plateaus(8)(layer.out_channels)
    macs = blocks * (1 if layer.groups > 1 else blocks) * layer.kernel_size[0] ** 2
    return macs * 1e-6 * (0.5 if isinstance(layer, QuantizedConv2d) else 1.0)


@pytest.fixture(scope="module")
def whole() -> tuple[FakeTarget, Profile]:
    """A calibration over all widths, which takes seconds, and the target that it was of."""
    target = FakeTarget()
    return target, calibrate(target)


def test_calibration_finds_what_the_target_does(whole: tuple[FakeTarget, Profile]):
    _, found = whole
    assert (found.width_multiple, dict(found.width_multiple_at)) == (8, {8: 8, 32: 8})
    assert found.fast_bits == (8, 32) and found.reliable and found.source.startswith("calibration of 20")
    layers = {(each.kind, each.bits): each.latencies for each in found.curves}
    assert set(layers) == {(kind, bits) for kind in KINDS for bits in (32, 8, 4)}
    assert layers["3x3", 32][12] == pytest.approx(16 * 16 * 9e-6)
    assert layers["depthwise", 8][24] == pytest.approx(0.5 * 24 * 9e-6)
    assert list(layers["1x1", 32]) == list(WIDTHS)


def test_files_are_measured_in_few_rounds_beside_one_reference(whole: tuple[FakeTarget, Profile]):
    target, _ = whole
    assert len(target.calls) == math.ceil((len(probes_of(WIDTHS)) - 1) / (BATCH - 1))
    assert max(map(len, target.calls)) <= 8  # that many models the measuring process keeps loaded
    assert len({call[0] for call in target.calls}) == 1


def test_slow_phases_of_the_machine_leave_no_trace():
    quiet, noisy = FakeTarget(), FakeTarget()
    noisy.slow = lambda call: 1.5 if call % 3 else 1.0
    pair = (calibrate(target, (8, 16)).curves for target in (quiet, noisy))
    for calm, shaken in zip(*pair, strict=True):
        assert shaken.latencies == pytest.approx(calm.latencies)


def test_a_batch_that_was_slow_beside_a_fast_reference_is_measured_again():
    calm, shaken = FakeTarget(), FakeTarget()
    shaken.slow_candidates = lambda call: 1.25 if call == 1 else 1.0
    pair = [calibrate(target, (8, 16)).curves for target in (calm, shaken)]
    assert len(shaken.calls) > len(calm.calls)
    for one, other in zip(*pair, strict=True):
        assert other.latencies == pytest.approx(one.latencies) and other.noise == 0.0


def test_unreliable_timings_are_measured_again_and_otherwise_said():
    target = FakeTarget()
    target.reliable = lambda call: call != 1
    assert calibrate(target, (8,)).reliable
    assert target.calls[-1][1:] == target.calls[1][2:]  # the first was measured in the call before, too
    target.reliable = lambda call: False
    found = calibrate(target, (8,))
    assert not found.reliable and min(each.noise for each in found.curves) >= 0.1


def test_progress_counts_files():
    heard: list[tuple[int, int]] = []
    total = len(probes_of((8, 12)))
    calibrate(FakeTarget(), (8, 12), lambda *counts: heard.append(counts))
    assert (
        heard[0] == (0, total) and heard[-1] == (total, total) and len(heard) == 1 + math.ceil(total / BATCH)
    )


@pytest.mark.parametrize("kind", KINDS)
def test_probes_stay_in_int8_from_layer_to_layer(kind: str, tmp_path: Path):
    for bits, largest in ((8, 63), (4, 7)):
        probe = Probe(kind, bits, 12)
        network = probe.build(weight_bits_exact=7)
        layers = [each for each in convolutions(network) if isinstance(each, QuantizedConv2d)]
        assert len(layers) == LAYERS[kind] and layers[0].quantizer.codes(layers[0].weight).max() <= largest
        path = export_onnx(network, probe.example(), tmp_path / "probe.onnx").path
        operators = optimized_operators(path)
        assert operators["QLinearConv"] == LAYERS[kind]
        assert operators["QuantizeLinear"] == operators["DequantizeLinear"] == 1
        assert not {"Conv", "FusedConv", "Relu"} & set(operators)


def test_float_probes_hold_no_quantizers():
    network = Probe("3x3", 32, 6).build(weight_bits_exact=7)
    assert not any(isinstance(each, QuantizedConv2d) for each in network.modules())
    assert not any(each.enabled for each in network.modules() if isinstance(each, ActivationQuantizer))
    assert torch.isfinite(network(torch.ones(1, 6, 16, 16))).all()


# ---- what is remembered ---------------------------------------------------------------------------------


def test_a_profile_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target, cache = FakeTarget(), JsonCache(tmp_path)
    found = measured_profile(target, cache, widths=(8,))
    calls = len(target.calls)
    heard: list[tuple[int, int]] = []
    assert measured_profile(target, cache, on_progress=lambda *counts: heard.append(counts)) == found
    assert len(target.calls) == calls and heard == []
    for where, value in (("runtime_version", "2"), ("name", "other")):
        with monkeypatch.context() as patch:
            patch.setattr(target, where, value)
            measured_profile(target, cache, widths=(8,))
        assert len(target.calls) > calls
        calls = len(target.calls)


@pytest.mark.parametrize("name", ["CALIBRATION_VERSION", "PROTOCOL_VERSION", "cpu_model"])
def test_a_profile_belongs_to_its_cpu_and_the_way_of_measuring(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    target, cache = FakeTarget(), JsonCache(tmp_path)
    measured_profile(target, cache, widths=(8,))
    calls = len(target.calls)
    value = (lambda: "another CPU") if name == "cpu_model" else 99
    monkeypatch.setattr(f"amc.targets.profiling.{name}", value)
    measured_profile(target, cache, widths=(8,))
    assert len(target.calls) == 2 * calls


def test_an_unreliable_profile_is_not_remembered(tmp_path: Path):
    target, cache = FakeTarget(), JsonCache(tmp_path)
    target.reliable = lambda call: False
    assert not measured_profile(target, cache, widths=(8,)).reliable
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("broken", ["null", "[]", '{"width_multiple": 8}'])
def test_a_broken_entry_is_measured_again(broken: str, tmp_path: Path):
    target, cache = FakeTarget(), JsonCache(tmp_path)
    found = measured_profile(target, cache, widths=(8,))
    (entry,) = tmp_path.iterdir()
    content = json.loads(entry.read_text())
    entry.write_text(json.dumps({**content, "value": json.loads(broken)}))
    assert measured_profile(target, cache, widths=(8,)) == found


def test_a_target_is_calibrated_when_its_profile_is_first_read(monkeypatch: pytest.MonkeyPatch):
    asked: list[Target] = []

    def measured(target: Target, on_progress: object) -> Profile:
        assert on_progress is target.on_calibration
        asked.append(target)
        return Profile(width_multiple=4, fast_bits=(32,), reliable=False)

    monkeypatch.setattr("amc.targets.profiling.measured_profile", measured)
    target = get_target("openvino")
    target.on_calibration = lambda done, total: None
    assert isinstance(target, ProcessTarget) and asked == []
    assert (target.width_multiple, target.fast_bits, target.profile.multiple_for(8)) == (4, (32,), 4)
    assert asked == [target]  # once, though nothing was remembered on disk


def test_nothing_is_calibrated_where_latency_does_not_count(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ProcessTarget, "profile", property(lambda self: pytest.fail("was calibrated")))
    problem = build_problem(tiny_model(), tiny_task(), replace(PROBLEM, budget=("macs=0.5", "bops=0.1")))
    assert problem.target.name == "openvino"
    problem.close()


# ---- the script -----------------------------------------------------------------------------------------

FAKE = f"{__name__}:FakeTarget"


def call(*arguments: object) -> int:
    return exit_code(profile_target.main, [*map(str, arguments)])


def test_script_prints_a_table_and_what_it_comes_to(
    whole: tuple[FakeTarget, Profile],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(profile_target, "calibrate", lambda *rest: whole[1])
    assert call("--target", FAKE, "--out", tmp_path) == 0
    said = capsys.readouterr().out
    assert "depthwise" in said and "4 bits" in said
    assert "│       12 │ 0.26 │ 0.13 │        │  2.30 │  1.15 │" in said  # microseconds
    assert "In int8, channels pay in steps of 8 on fake (1x1 8, 3x3 8, depthwise 8)." in said
    assert "8 bits pay on fake: 8 bits take 0.50 (1x1), 0.50 (3x3), 0.50 (depthwise)" in said
    assert "weights below 8 bits bring nothing on fake: 4 bits take 1.00 (1x1)" in said
    stored = json.loads((tmp_path / "profile_fake.json").read_text())
    assert stored["machine"]["cpu"] and stored["target"] == "fake" and stored["unit"] == "ms"
    assert Profile.from_json(stored).width_multiple == 8
    assert (tmp_path / "profile_fake.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(tmp_path.iterdir())) == 2


def test_script_measures_anew_and_remembers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(profile_target, "WIDTHS", (8, 12, 16))
    remembered = measured_profile(FakeTarget(), widths=(8,))
    assert call("--target", FAKE, "--out", tmp_path) == 0
    found = measured_profile(FakeTarget())
    assert found != remembered and list(found.curves[0].latencies) == [8, 12, 16]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--out", "missing"), "There is no folder missing to write profile_fake.json to"),
        (("--target", "openvine"), "did you mean 'openvino'"),
        ((), "profile_fake.png exists: pass --force"),
    ],
)
def test_script_refuses_before_it_measures(
    arguments: tuple[str, ...],
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(profile_target, "calibrate", lambda *rest: pytest.fail("measured"))
    (tmp_path / "profile_fake.png").write_bytes(b"old")
    given = ["--target", FAKE, "--out", tmp_path, *arguments]
    assert call(*given) == 2
    assert words in capsys.readouterr().err
    assert (tmp_path / "profile_fake.png").read_bytes() == b"old"


def test_script_replaces_only_when_forced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(profile_target, "WIDTHS", (8, 16))
    (tmp_path / "profile_fake.png").write_bytes(b"old")
    assert call("--target", FAKE, "--out", tmp_path, "--force") == 0
    assert (tmp_path / "profile_fake.png").read_bytes() != b"old"


def test_script_says_when_the_machine_was_too_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(profile_target, "WIDTHS", (8, 16))
    monkeypatch.setattr(
        profile_target, "calibrate", lambda *rest: decide(curves(plateaus(8)), "test", reliable=False)
    )
    assert call("--target", FAKE, "--out", tmp_path) == 0
    assert "too busy for reliable timings" in capsys.readouterr().out


def test_ctrl_c_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def interrupted(self: Target, files: Sequence[Path | str], **settings: float) -> list[Timing]:
        raise KeyboardInterrupt

    monkeypatch.setattr(FakeTarget, "measure", interrupted)
    assert call("--target", FAKE, "--out", tmp_path) == 130
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNTIMES)
def test_real_runtimes_gain_from_channels_and_not_from_four_bits(name: str):
    with get_target(name) as target:
        found = calibrate(target, (8, 16, 32))
    for each in found.curves:
        assert each.latencies[8] < each.latencies[32]
    for kind in KINDS:
        ratio = relative_latency(found.curves, kind, 4, 8)
        assert ratio == pytest.approx(1.0, abs=0.1)
