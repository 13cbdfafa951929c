import os
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from amc.errors import UserError
from amc.models import build_model, load_weights, save_weights


def small() -> nn.Module:
    """A convolution with batch norm, whose statistics are not those of a fresh one."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    model(torch.randn(8, 1, 5, 5))
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    one, other = a.state_dict(), b.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_safetensors_round_trip(tmp_path):
    before, after = small(), small()
    save_weights(before, tmp_path / "w.safetensors", metadata={"model": "small"})
    assert not same(before, after)
    load_weights(after, tmp_path / "w.safetensors")
    assert same(before, after)
    with safetensors.safe_open(tmp_path / "w.safetensors", "pt") as file:
        assert file.metadata()["model"] == "small"
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".th"])
@pytest.mark.parametrize("wrapped", [True, False])
@pytest.mark.parametrize("prefix", ["module.", ""])
def test_torch_files_in_every_common_form(tmp_path, suffix, wrapped, prefix):
    before, after = small(), small()
    state = {prefix + key: value for key, value in before.state_dict().items()}
    path = tmp_path / f"w{suffix}"
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    load_weights(after, path)
    assert same(before, after)


def test_a_part_called_module_keeps_its_name(tmp_path):
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.module, self.head = nn.Linear(2, 2), nn.Linear(2, 2)

    before, after = Wrapped(), Wrapped()
    torch.save(before.state_dict(), tmp_path / "w.pt")
    load_weights(after, tmp_path / "w.pt")
    assert same(before, after)


def test_old_files_without_batch_counters_load(tmp_path):
    before, after = small(), small()
    state = {k: v for k, v in before.state_dict().items() if "num_batches" not in k}
    torch.save(state, tmp_path / "w.pt")
    load_weights(after, tmp_path / "w.pt")
    assert torch.equal(after[1].running_var, before[1].running_var)


def test_half_precision_narrows_kernels_and_keeps_vectors(tmp_path):
    before, after = small(), small()
    before[1].running_var.fill_(1e-9)  # would be 0 in fp16
    save_weights(before, tmp_path / "w.safetensors", store="fp16")
    stored = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert stored["0.weight"].dtype == torch.float16
    load_weights(after, tmp_path / "w.safetensors")
    assert after[0].weight.dtype == torch.float32
    assert torch.equal(after[0].weight, before[0].weight.half().float())
    assert torch.equal(after[1].running_var, before[1].running_var)


def test_eight_bits_are_rounded_by_the_channel(tmp_path):
    before, after = (nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)) for _ in range(2))
    before[1].running_var.fill_(1e-9)
    before[0].weight.data[0] *= 100.0  # a coarse scale for one channel alone
    before[0].weight.data[1] = 0.0
    save_weights(before, tmp_path / "w.safetensors", store="int8")
    stored = safetensors.torch.load_file(tmp_path / "w.safetensors")
    assert stored["0.weight"].dtype == torch.int8 and stored["0.bias"].dtype == torch.float32
    load_weights(after, tmp_path / "w.safetensors")
    error = (after[0].weight - before[0].weight).abs().flatten(1).amax(1)
    largest = before[0].weight.abs().flatten(1).amax(1)
    assert bool((error <= largest / 253).all())
    assert error[0] > 10 * error[2:].max() and error[1] == 0
    assert torch.equal(after[1].running_var, before[1].running_var)


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    model = small()
    model[0].weight.data[0, 0, 0, 0] = 1e5
    with pytest.raises(UserError, match=r"weight 0\.weight exceeds the range of fp16"):
        save_weights(model, tmp_path / "w.safetensors", store="fp16")
    assert list(tmp_path.iterdir()) == []


def check_refused(model: nn.Module, path: Path, said: str) -> None:
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(UserError, match=said) as caught:
        load_weights(model, path)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_missing_and_misnamed_files(tmp_path):
    check_refused(small(), tmp_path / "w.pt", "There is no weights file .*w.pt")
    check_refused(small(), tmp_path / "w.onnx", r"should end in \.pt, \.pth, \.th, \.safetensors")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"GIF89a and more", b"\x80\x02}q\x00."])
def test_foreign_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    check_refused(small(), tmp_path / name, "cannot be read as|holds no state dict")


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(small(), path)
    path.write_bytes(path.read_bytes()[:-5])
    check_refused(small(), path, "cannot be read as a safetensors file")


class Hostile:
    def __init__(self, folder: str):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_file_is_refused_and_nothing_runs(tmp_path, writer):
    content = {"state_dict": Hostile(str(tmp_path / "witness"))}
    if writer == "torch":
        torch.save(content, tmp_path / "w.pt")
    else:
        (tmp_path / "w.pt").write_bytes(pickle.dumps(content))
    check_refused(small(), tmp_path / "w.pt", "cannot be read as a PyTorch weights file")
    assert not (tmp_path / "witness").exists()


def test_whole_models_and_other_content_are_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    check_refused(small(), tmp_path / "list.pt", "holds no state dict")
    torch.save({"weight": torch.zeros(2), "epoch": 3}, tmp_path / "mixed.pt")
    check_refused(small(), tmp_path / "mixed.pt", "'epoch' is not a tensor")


def test_a_file_of_another_model_says_what_differs(tmp_path):
    torch.save(build_model("resnet20").state_dict(), tmp_path / "w.pt")
    check_refused(
        small(),
        tmp_path / "w.pt",
        r"6 missing|6 tensors: .* unknown \(conv1\.weight; bn1\.weight; .*\.\.\.\)",
    )
    state = small().state_dict()
    state["0.weight"] = torch.zeros(3, 1, 3, 3)
    torch.save(state, tmp_path / "shape.pt")
    check_refused(
        small(),
        tmp_path / "shape.pt",
        r"1 of another shape \(0\.weight is \[3, 1, 3, 3\] .* \[2, 1, 3, 3\]\)",
    )
    state["0.weight"] = torch.zeros(2, 1, 3, 3, dtype=torch.int8)
    torch.save(state, tmp_path / "kind.pt")
    check_refused(small(), tmp_path / "kind.pt", r"1 not floating-point \(0\.weight is int8\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_not_a_number_is_refused(tmp_path, value):
    model = small()
    model[1].running_var[1] = value
    save_weights(model, tmp_path / "w.safetensors")
    check_refused(
        small(), tmp_path / "w.safetensors", r"NaN or infinite weights in 1 tensors \(1\.running_var\)"
    )


def test_weights_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"written as \.safetensors"):
        save_weights(small(), tmp_path / "w.pt")
    with pytest.raises(UserError, match="cannot be written"):
        save_weights(small(), tmp_path / "absent" / "w.safetensors")
