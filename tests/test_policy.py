"""Policy files: what they keep, and one clear sentence for each that is no good."""

import copy
import json

import pytest
import torch
from torch import nn

from amc.errors import UserError
from amc.network import Network, trace
from amc.policy import CompressionPolicy, LayerDecision
from amc.policy_check import check_policy


def residual() -> Network:
    """Layers a and b share their outputs' group and, with c, nothing else; b and c read one tensor."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1)
            self.d = nn.Conv2d(4, 5, 1)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            x = self.a(x)
            return torch.cat([self.c(x), self.d(x + self.b(x))], 1)

    return trace(Net(), torch.zeros(1, 3, 2, 2))


NETWORK = residual()
VALID = {
    "format": "amc-policy",
    "version": 1,
    "network": NETWORK.fingerprint,
    "decisions": [
        {"point": "a", "operator": "original", "values": {"width": 2, "weight_bits": 8}},
        {"point": "b", "operator": "original", "values": {"width": 2, "activation_bits": 4}},
        {"point": "c", "operator": "original", "values": {"width": 6, "activation_bits": 4}},
        {"point": "d", "operator": "original", "values": {"width": 5, "weight_bits": 32}},
    ],
}


def test_round_trip_through_a_file(tmp_path):
    policy = CompressionPolicy.from_json(VALID)
    policy.save(tmp_path / "policy.json")
    loaded = CompressionPolicy.load(tmp_path / "policy.json")
    assert loaded == policy and loaded.digest() == policy.digest()
    assert json.loads((tmp_path / "policy.json").read_text()) == VALID
    assert [path.name for path in tmp_path.iterdir()] == ["policy.json"]
    check_policy(loaded, NETWORK)


def test_values_and_lookup():
    policy = CompressionPolicy.from_json(VALID)
    assert policy.values("weight_bits") == {"a": 8, "d": 32}
    assert policy["b"].values == {"width": 2, "activation_bits": 4}


def test_digest_is_the_same_in_every_process_and_order_of_knobs():
    def policy(**values: int) -> CompressionPolicy:
        return CompressionPolicy("0" * 16, (LayerDecision("a", values),))

    assert policy(width=2, weight_bits=8).digest() == policy(weight_bits=8, width=2).digest()
    assert policy(width=2, weight_bits=8).digest() == "e00299859a7e2b60"
    assert policy(width=2, weight_bits=8).digest() != policy(width=3, weight_bits=8).digest()


def test_saving_replaces_an_old_file_or_leaves_it(tmp_path, monkeypatch):
    path = tmp_path / "policy.json"
    CompressionPolicy("old", ()).save(path)
    monkeypatch.setattr("pathlib.Path.replace", _fail)
    with pytest.raises(OSError, match="no space"):
        CompressionPolicy("new", ()).save(path)
    monkeypatch.undo()
    assert CompressionPolicy.load(path).network == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["policy.json"]


def _fail(*_: object) -> None:
    raise OSError("no space")


def test_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"There is no file .*absent\.json\."):
        CompressionPolicy.load(tmp_path / "absent.json")


@pytest.mark.parametrize("content", [b"", b'{"format": "amc-', b"\xff\xfe\x00", b"PK\x03\x04"])
def test_damaged_file_is_one_sentence(content, tmp_path):
    path = tmp_path / "policy.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"policy\.json is not readable as JSON"):
        CompressionPolicy.load(path)


def test_folder_instead_of_a_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not readable as JSON"):
        CompressionPolicy.load(tmp_path)


@pytest.mark.parametrize("content", ["[]", "3", "null", '{"format": "other"}', '{"decisions": []}'])
def test_foreign_json_is_refused(content, tmp_path):
    (tmp_path / "policy.json").write_text(content)
    with pytest.raises(UserError, match=r"policy\.json is not a compression policy"):
        CompressionPolicy.load(tmp_path / "policy.json")


@pytest.mark.parametrize("version", [0, 2, "1", None])
def test_other_version_is_refused(version):
    with pytest.raises(UserError, match=f"has policy version {version}; this release reads 1"):
        CompressionPolicy.from_json({**VALID, "version": version})


@pytest.mark.parametrize(
    "decisions",
    [
        *(None, 3, ["a"], {"a": 1}, [{}], [{"point": "a", "operator": "original"}]),
        [{"point": "a", "operator": "original", "values": [1, 2]}],
        *([{"point": "a", "operator": "original", "values": {"width": w}}] for w in (0, -1, 1.5, "2", True)),
    ],
)
def test_damaged_decisions_are_refused(decisions):
    with pytest.raises(UserError, match=r"mine\.json is damaged: .* while reading its decisions"):
        CompressionPolicy.from_json({**VALID, "decisions": decisions}, "mine.json")


def changed(point: str, **values: object) -> CompressionPolicy:
    data = copy.deepcopy(VALID)
    for row in data["decisions"]:
        if row["point"] == point:
            row["values"].update(values)
    return CompressionPolicy.from_json(data)


def test_policy_of_another_network_is_refused():
    policy = CompressionPolicy.from_json({**VALID, "network": "0123456789abcdef"})
    with pytest.raises(UserError, match="made for another network") as caught:
        check_policy(policy, NETWORK)
    assert "0123456789abcdef" in str(caught.value) and NETWORK.fingerprint in str(caught.value)


def rows(*points: str) -> list[dict[str, object]]:
    return [{"point": point, "operator": "original", "values": {}} for point in points]


@pytest.mark.parametrize(
    ("points", "named"),
    [("abc", "d"), ("abcdd", "d"), ("abcde", "e"), ("", "a, b, c, d"), ("abde", "c, e")],
)
def test_every_layer_is_decided_once(points, named):
    policy = CompressionPolicy.from_json({**VALID, "decisions": rows(*points)})
    with pytest.raises(UserError, match=f"must decide every layer once, which fails at {named}\\."):
        check_policy(policy, NETWORK)


def test_policy_that_says_nothing_is_the_original():
    check_policy(CompressionPolicy.from_json({**VALID, "decisions": rows(*"abcd")}), NETWORK)


@pytest.mark.parametrize(
    ("policy", "sentence"),
    [
        (changed("a", width=5), "keeps 5 of 4 channels in a"),
        (changed("d", width=2), "prunes d, whose channels cannot be pruned"),
        (changed("b", width=3), "width that must be equal different values: 2 in a, 3 in b"),
        (changed("c", activation_bits=8), "activation_bits that must be equal .*: 8 in c, 4 in b"),
        (changed("a", weight_bits=1), "gives a weight_bits = 1; legal are 2 to 8, or 32"),
        (changed("a", weight_bits=9), "gives a weight_bits = 9"),
        (changed("b", activation_bits=16), "gives b activation_bits = 16"),
    ],
)
def test_illegal_values_are_refused(policy, sentence):
    with pytest.raises(UserError, match=sentence):
        check_policy(policy, NETWORK)


def test_unknown_operator_is_refused():
    data = copy.deepcopy(VALID)
    data["decisions"][0]["operator"] = "clustered"
    with pytest.raises(UserError, match="no operator 'clustered'"):
        check_policy(CompressionPolicy.from_json(data), NETWORK)
