"""Arithmetic in bfloat16: where it is used, and what stays in float32."""

import pytest
import torch
from torch import Tensor, nn

from amc import precision
from amc.precision import bfloat16, computes_in_bfloat16, loss_in_bfloat16
from amc.quantization.modules import ActivationQuantizer, pause_quantizers, quantizes
from amc.quantization.registry import ACTIVATION_QUANTIZERS
from amc.recovery.fine_tune import Distillation, fine_tune
from amc.recovery.saas import InnerLoop, Saas
from amc.training import Recipe
from tests.test_run import tiny_model, tiny_task
from tests.test_saas import drawn, network, one_hot


class Watched(nn.Module):
    """Notes the type that a convolution in front of the model computes in."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model, self.seen = model, set[torch.dtype]()
        first = next(module for module in model.modules() if isinstance(module, nn.Conv2d))
        first.register_forward_hook(lambda _, __, out: self.seen.add(out.dtype))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.model(x)
        return out


@pytest.mark.parametrize("native", [frozenset(), frozenset({"avx512_bf16"})])
def test_auto_follows_the_cpu(monkeypatch, native):
    monkeypatch.setattr(precision, "cpu_features", lambda: frozenset({"avx2"}) | native)
    assert computes_in_bfloat16("auto", "cpu") == bool(native)
    assert computes_in_bfloat16("bfloat16", "cpu") and not computes_in_bfloat16("float32", "cpu")
    assert not computes_in_bfloat16("auto", "cuda")


@pytest.mark.parametrize("enabled", [True, False])
def test_only_what_is_computed_inside_is_in_bfloat16(enabled):
    layer, x = nn.Conv2d(3, 4, 3), torch.randn(2, 3, 8, 8)
    with bfloat16(enabled):
        out = layer(x)
    assert out.dtype == (torch.bfloat16 if enabled else torch.float32)
    assert layer.weight.dtype == layer(x).dtype == torch.float32
    out.float().sum().backward()
    assert layer.weight.grad is not None and layer.weight.grad.dtype == torch.float32


def test_a_loss_is_rounded_where_it_is_wanted():
    seen = Watched(tiny_model())
    for wanted, types in ((False, {torch.float32}), (True, {torch.float32, torch.bfloat16})):
        loss = loss_in_bfloat16(lambda model, x, y: model(x).float().sum(), wanted)
        loss(seen, torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64))
        assert seen.seen == types


@pytest.mark.parametrize("arithmetic", ["float32", "bfloat16"])
def test_a_quantizing_training_computes_as_it_is_told(arithmetic):
    point = ActivationQuantizer(8)
    model = nn.Sequential(point, *tiny_model().children())
    point.fit(torch.rand(8))
    assert quantizes(model)
    pause_quantizers(model, True)
    assert not quantizes(model)
    pause_quantizers(model, False)
    seen, task = Watched(model), tiny_task()
    recipe = Recipe(epochs=1, batch_size=32, lr=0.01)
    types: list[set[torch.dtype]] = []
    fine_tune(
        seen,
        tiny_model(),
        task,
        recipe,
        Distillation(alpha=0.0),
        precision=arithmetic,
        on_step=lambda done, _: types.append({*seen.seen}),
    )
    assert (torch.bfloat16 in types[-1]) == (arithmetic == "bfloat16")
    assert all(parameter.dtype == torch.float32 for parameter in seen.parameters())


@pytest.mark.parametrize("name", list(ACTIVATION_QUANTIZERS))
def test_quantized_activations_stay_in_bfloat16_and_lie_on_the_levels(name):
    point = ACTIVATION_QUANTIZERS[name](3)
    exact = torch.rand(4, 5, 6, 6)
    point.fit(exact)
    rounded = exact.bfloat16().requires_grad_(True)
    point.train()
    values = point.quantized(rounded)
    assert values.dtype == torch.bfloat16
    # A number halfway between two levels may be rounded to the other one.
    same = torch.isclose(values.float(), point.eval().quantized(exact), rtol=1 / 128, atol=0)
    assert same.float().mean() > 0.98
    values.sum().backward()
    assert rounded.grad is not None and bool(rounded.grad.bool().any())


def test_evidence_for_labels_is_added_up_in_float64():
    few, _ = drawn()
    believed = one_hot(torch.zeros(len(few.unlabeled), dtype=torch.int64), 10)
    gathered = []
    for arithmetic in ("float32", "bfloat16"):
        loop = InnerLoop(network(), few, Saas(inner=1, batch_size=16, labeled_batch=10), 1, arithmetic)
        first = loop.step(torch.arange(16), believed)
        assert first > 0 and all(p.dtype == torch.float32 for p in loop.model.parameters())
        gathered.append(loop.evidence)
    exact, rounded = gathered
    assert rounded.dtype == torch.float64 and not torch.equal(exact, rounded)
    assert torch.allclose(exact, rounded, atol=0.2)
