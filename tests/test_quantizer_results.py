"""The comparison of quantizers without training."""

import json

import pytest
import torch

from amc.models import build_model, save_weights
from amc.policy import CompressionPolicy
from scripts.cli import exit_code
from scripts.quantizer_results import main, middle_policy


def test_it_prints_and_writes_a_row_for_each_quantizer_and_bits(tmp_path, capsys):
    torch.manual_seed(0)
    save_weights(build_model("digitsnet", 10, 1), tmp_path / "net.safetensors")
    arguments = f"--weights {tmp_path / 'net.safetensors'} --model digitsnet --data digits --bits 3 2"
    arguments += f" --quantizers lq max-abs --images 5 --test-images 20 --out {tmp_path / 'rows.json'}"
    assert exit_code(main, arguments.split()) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["quantizer"], row["bits"]) for row in rows] == [
        ("none", 32),
        *[(name, bits) for bits in (3, 2) for name in ("lq", "max-abs")],
    ]
    errors = [row["weight error"] for row in rows[1:]]
    assert errors[0] < errors[1] < errors[3] and errors[0] < errors[2] < errors[3]
    assert 3 < rows[1]["stored bits"] < 3.6 and all(0 <= row["5 images"] <= 100 for row in rows[1:])
    assert "max-abs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--quantizers nf4", "no weight quantizer 'nf4'"),
        ("--activation-quantizer kmeans", "no activation quantizer"),
        ("--bits 1", "2 to 8"),
        ("--images 0", "at least 1"),
    ],
)
def test_bad_options_are_refused_before_anything_is_read(option, said, capsys):
    assert exit_code(main, ["--weights", "missing.safetensors", *option.split()]) == 2
    assert said in capsys.readouterr().err


def test_ends_stay_in_floats(traced):
    network = traced("resnet20")
    policy = middle_policy(network, 2, 4)
    assert isinstance(policy, CompressionPolicy)
    quantized = list(policy.values("weight_bits"))
    assert quantized == [layer.name for layer in network.layers][1:-1]
