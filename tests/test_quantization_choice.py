"""What a choice among quantizers can win at given bytes."""

from itertools import product
from types import SimpleNamespace

import torch

from amc.data.digits import digits
from amc.package_form import packed_form
from amc.package_tensors import flat_tensors
from amc.pruning.asymmetric import AsymmetricReconstruction
from amc.quantization.registry import WEIGHT_QUANTIZERS
from scripts import quantization_choice as choice
from scripts import quantization_page as page
from scripts import quantization_rows as rows
from scripts import quantization_untrained as untrained


def option(size: float, error: float, quantizer: str = "uniform") -> choice.Option:
    return choice.Option(quantizer, 2, size, error)


def test_bytes_go_where_they_save_most_error():
    ways = {
        "a": [option(10, 0.9), option(20, 0.3), option(40, 0.1), option(16, 0.35, "kmeans")],
        "b": [option(100, 0.8), option(200, 0.5), option(110, 0.6, "kmeans")],
    }
    for quantizers in ({"uniform"}, {"uniform", "kmeans"}):
        offered = [[one for one in layer if one.quantizer in quantizers] for layer in ways.values()]
        for limit in (110, 120, 140, 160, 220, 240):
            found = choice.allocated(ways, quantizers, limit)
            assert found is not None and sum(one.size for one in found.values()) <= limit
            pairs = [pair for pair in product(*offered) if sum(one.size for one in pair) <= limit]
            error = sum(one.error for one in found.values())
            # No other way with as few bytes has a smaller error.
            size = sum(one.size for one in found.values())
            as_small = [sum(o.error for o in pair) for pair in pairs if sum(o.size for o in pair) <= size]
            assert error <= min(as_small) + 1e-12
    assert choice.allocated(ways, {"uniform"}, 109) is None


def test_bytes_of_whole_bits_are_those_of_the_file_and_others_lie_between(traced):
    network = traced("digitsnet")
    ways = choice.layer_options(network)
    assert choice.bytes_of(ways, 2.5) == (choice.bytes_of(ways, 2) + choice.bytes_of(ways, 3)) / 2
    chosen = {
        name: next(one for one in layer if (one.quantizer, one.bits) == ("uniform", 3))
        for name, layer in ways.items()
    }
    refits = AsymmetricReconstruction.of(network, [torch.randn(8, *network.example.shape[1:])], every=True)
    tensors = flat_tensors(packed_form(choice.quantized(network, chosen, refits), network))
    biases = sum(layer.out_channels for layer in network.layers) * 4
    stored = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    assert choice.bytes_of(ways, 3) == stored - biases


def test_a_row_compares_each_quantizer_alone_with_all_of_them(traced, monkeypatch):
    data = digits(8)
    monkeypatch.setattr(untrained, "FEW_IMAGES", (9,))
    monkeypatch.setattr(choice, "CHOICES", (2, 3))
    network = traced("digitsnet")
    bench = untrained.Bench(network, data)
    monkeypatch.setattr(choice, "bench_of", lambda options, network: bench)
    spec = rows.Spec("choice", "resnet20", "2.5")
    row = choice.choice_row(SimpleNamespace(), spec)
    arms = row["arms"]
    assert {"uniform", "kmeans", choice.ALL} <= {*arms} <= {*WEIGHT_QUANTIZERS, choice.ALL}
    assert all(arm["bytes"] <= row["limit"] for arm in arms.values())
    assert arms[choice.ALL]["error"] <= min(arm["error"] for arm in arms.values())
    assert all(0 <= arm["test"] <= 100 for arm in arms.values())
    assert sum(arms[choice.ALL]["layers"].values()) == len(network.layers)
    torch.testing.assert_close(row["original"], bench.original)
    made = {**row, "part": "choice", "network": "resnet20", "budget": "2.5"}
    lines = page.tables([{**made, "command": "x --only 'choice/resnet20/2.5'"}])["choice"]
    assert [line["quantizer"] for line in lines] == [*arms] and lines[0]["bits"] == "2.5"


def test_the_page_says_whether_the_choice_wins():
    def said(alone: float, chosen: float) -> str:
        arms = {"uniform": {"test": 80.0}, "kmeans": {"test": alone}, choice.ALL: {"test": chosen}}
        return page.choice_verdict([{"network": "resnet20", "budget": "3", "arms": arms}])[0]

    assert "+0.20 points beside kmeans alone, a tie (standard error of one accuracy 0.30)" in said(90.0, 90.2)
    assert "+0.40 points beside kmeans alone, better" in said(90.0, 90.4)
    assert "-0.40 points beside kmeans alone, worse" in said(90.0, 89.6)
    assert page.choice_verdict([]) == []
