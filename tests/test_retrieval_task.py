"""The retrieval task: its networks, its score, example searches, and the scripts end to end."""

import json

import pytest
import torch
from torch import nn

from agents.report_neighbours import neighbours_caption, neighbours_figure
from amc.data.digits import digits
from amc.data.shapes import shapes
from amc.errors import UserError
from amc.models import build_model, load_weights, save_weights
from amc.models.retrieval import RetrievalNet, split_name
from amc.network import trace
from amc.retrieval import Code, hard_codes, mean_average_precision, said
from amc.retrieval.classified import Classified, classification_loss
from amc.retrieval.neighbours import Neighbours, find_neighbours, load_neighbours, save_neighbours
from amc.retrieval.search import Collection, float_precision, search_precision
from amc.tasks import RetrievalTask, load_task
from amc.tasks.base import Illustrated, ModelCheck, Task
from amc.training import Recipe, fit
from scripts import evaluate, export_policy, fine_tune, pretrain, report, retrieval_results, tasks_page
from scripts import train_agent as training
from scripts.cli import exit_code

SMALL = ["--data", "digits", "--side", "8", "--task", "retrieval", "--device", "cpu"]


@pytest.fixture(scope="module")
def task() -> RetrievalTask:
    return RetrievalTask(digits(8))


@pytest.fixture(scope="module")
def network() -> RetrievalNet:
    torch.manual_seed(0)
    model = build_model("digitsnet-pqn12", 10, 1, 0.25)
    assert isinstance(model, RetrievalNet)
    return model.eval()


class Perfect(nn.Module):
    """Gives every image the word of its label, which its first pixel tells."""

    def __init__(self, wrong: int = 0):
        super().__init__()
        self.wrong = wrong

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        labels = x[:, 0, 0, 0].long().clamp(0, 9)
        labels = torch.where(labels < self.wrong, 0, labels)
        vectors = torch.eye(12)[labels]
        return torch.cat([nn.functional.pad(vectors, (0, 4)), vectors], dim=1)


# ---- networks -------------------------------------------------------------------------------------------


def test_any_classifier_takes_codes_behind_its_name():
    assert split_name("resnet20-pqn48") == ("resnet20", Code(12))
    assert split_name("resnet20") is None
    model = build_model("resnet20-pqn36", 10, 3)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, Code(9).outputs)
    with pytest.raises(UserError, match="cannot have 10 bits"):
        build_model("resnet20-pqn10")
    with pytest.raises(UserError, match="no model 'resnet2'"):
        build_model("resnet2-pqn12")


def test_the_output_is_the_table_of_the_embedding(network, task):
    x = task.data.normalised("reward")[:5]
    found = said(network(x), network.code)
    wanted = torch.einsum("nms,mks->nmk", found.vectors, network.codebooks)
    assert torch.allclose(found.table, wanted, atol=1e-5)


def test_words_keep_length_one_in_training(task):
    torch.manual_seed(0)
    model = build_model("digitsnet-pqn12", 10, 1, 0.25)
    before = model.codebooks.detach().clone()
    fit(model, task.data, Recipe(epochs=1, batch_size=200, lr=0.1), loss=task.loss)
    assert not torch.allclose(model.codebooks, before)
    assert torch.allclose(model.codebooks.norm(dim=2), torch.ones(3, 16), atol=1e-2)
    model.train()(task.data.normalised("reward")[:4])
    assert torch.allclose(model.codebooks.norm(dim=2), torch.ones(3, 16), atol=1e-6)


def test_embedding_and_codebooks_are_layers_that_keep_their_channels(network, task):
    traced = trace(network, task.example_input())
    x = task.data.normalised("reward")[:3]
    assert torch.allclose(traced.module(x), network(x), atol=1e-5)
    assert {"backbone.linear", "words"} <= {layer.name for layer in traced.layers}
    assert traced.layer("words").weights == network.words.weight.numel()
    pruned = {name for name, group in traced.group_of.items() if group.frozen is None}
    assert pruned and not {"backbone.linear", "words"} & pruned


def test_fresh_embeddings_lie_all_over_the_sphere(network, task):
    model = build_model("digitsnet-pqn12", 10, 1, 0.25).train()
    vectors = said(model(task.data.normalised("reward"))).vectors
    assert float(vectors.detach().mean(0).norm(dim=1).max()) < 0.5


def test_a_classifier_learns_through_the_codes(network):
    learner = Classified(network, 10)
    loss = classification_loss(learner, torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 3]))
    loss.backward()
    assert network.words.weight.grad is not None and float(network.words.weight.grad.abs().sum()) > 0
    network.zero_grad()


# ---- score ----------------------------------------------------------------------------------------------


def test_the_score_of_codes_that_are_classes_is_one(task, monkeypatch):
    labels = task.data.reward.labels
    images = labels[:, None, None, None].float().expand(-1, 1, 8, 8)
    monkeypatch.setattr(task.data, "normalised", lambda split: images)
    assert task.score(Perfect(), "reward") == pytest.approx(1.0)
    # Two classes with one code: of what is found first, their shares are right.
    merged = task.score(Perfect(wrong=2), "reward")
    assert 0.85 < merged < 0.95


def test_an_untrained_network_is_near_chance(task, network):
    assert 0.08 < task.score(network, "reward") < 0.6


def test_the_task_is_complete_and_found_by_name(task):
    assert isinstance(load_task("retrieval", task.data), RetrievalTask)
    assert isinstance(task, Task) and isinstance(task, ModelCheck) and isinstance(task, Illustrated)
    assert task.score_name == "mAP" and not task.distillable


def test_what_is_no_retrieval_is_refused(task):
    with pytest.raises(UserError, match="--model digitsnet-pqn24"):
        task.check(build_model("digitsnet", 10, 1), "digitsnet")
    with pytest.raises(UserError, match="fails on an image of 1 x 8 x 8"):
        task.check(build_model("resnet20-pqn12", 10, 3), "resnet20-pqn12")
    with pytest.raises(UserError, match="has boxes"):
        RetrievalTask(shapes())


def test_outputs_agree_where_they_choose_the_same_words(task):
    one = torch.randn(6, Code(3).outputs, generator=torch.Generator().manual_seed(0))
    assert task.agreement(one, one * 2) == 1
    other = one.clone()
    other[0, :16] = -other[0, :16]
    assert task.agreement(one, other) == pytest.approx(17 / 18)


def test_a_search_among_floats_and_among_exact_codes_agree():
    words = nn.functional.normalize(torch.randn(2, 16, 4, generator=torch.Generator().manual_seed(0)), dim=2)
    codes = torch.randint(0, 16, (30, 2), generator=torch.Generator().manual_seed(1))
    vectors = words[torch.arange(2), codes]
    whole = Collection(vectors, torch.arange(30) % 3)
    queries = whole.take(torch.arange(30) < 5)
    coded = search_precision(queries, whole.labels, codes, words)
    assert coded == pytest.approx(float_precision(queries, whole), abs=0.02)
    scores = queries.vectors.flatten(1) @ vectors.flatten(1).T
    relevant = queries.labels[:, None] == whole.labels[None]
    assert float_precision(queries, whole) == pytest.approx(mean_average_precision(scores, relevant))


# ---- example searches -----------------------------------------------------------------------------------


def test_neighbours_are_the_best_of_the_others_and_survive_a_file(task, network, tmp_path):
    outputs = task.outputs(network, task.data.normalised("test"))
    found = find_neighbours(task.data.test, {"original": outputs})
    assert found.queries.shape == (8, 1, 8, 8) and found.found["original"].shape == (8, 8, 1, 8, 8)
    labels, codes = task.data.test.labels, hard_codes(outputs.table)
    asked = int((labels == 0).nonzero()[0, 0])
    scores = torch.stack([outputs.table[asked, m, codes[:, m]] for m in range(3)]).sum(0)
    scores[asked] = -torch.inf
    best = int(scores.argmax())
    assert bool(found.right["original"][0, 0]) == (int(labels[best]) == 0)
    save_neighbours(tmp_path / "n.npz", found)
    again = load_neighbours(tmp_path / "n.npz")
    assert (again.found["original"] == found.found["original"]).all() and list(again.right) == ["original"]
    (tmp_path / "n.npz").write_bytes(b"no archive")
    with pytest.raises(UserError, match="does not hold example searches"):
        load_neighbours(tmp_path / "n.npz")


def test_the_drawing_counts_what_is_right():
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8).numpy()
    right = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]).bool().numpy()
    neighbours = Neighbours(images, {"ddpg": images[:, None].repeat(4, axis=1)}, {"ddpg": right})
    assert "88 % by ddpg" in neighbours_caption(neighbours)
    axes = neighbours_figure(neighbours).axes[0]
    assert len(axes.images) == 2 + 2 * 4
    assert len(axes.patches) == 2 * 4


# ---- scripts --------------------------------------------------------------------------------------------


def test_rows_are_made_once_and_shown(tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    quick = retrieval_results.Setting("digitsnet", 10, Recipe(epochs=1, batch_size=100, lr=0.05))
    monkeypatch.setattr(retrieval_results, "SETTINGS", {"digits": quick})
    monkeypatch.setattr(retrieval_results, "load_data", lambda name, root: digits(8))
    monkeypatch.setattr(retrieval_results, "SEEDS", (0, 1))
    monkeypatch.setattr(retrieval_results, "BITS", (24,))
    out = tmp_path / "tasks.json"
    out.write_text(json.dumps({"codecs": [{"name": "kept"}]}))
    given = ["--out", str(out), "--runs", str(tmp_path / "runs"), "--device", "cpu"]
    assert exit_code(retrieval_results.main, given) == 0
    figures = json.loads(out.read_text())
    assert figures["codecs"] == [{"name": "kept"}]
    rows = {row["name"]: row for row in figures["retrieval"]}
    losses = ("pqn", "float", "symmetric", "cross-entropy")
    assert list(rows) == [f"digits/{loss}/24/{seed}" for seed in (0, 1) for loss in losses]
    assert rows["digits/pqn/24/0"]["queries"] == 100 and rows["digits/pqn/24/0"]["database"] == 260
    assert "mAP" not in rows["digits/float/24/0"] and 0 < rows["digits/float/24/0"]["mAP_plain_pq"] < 1
    assert not list((tmp_path / "runs").glob("*.checkpoint"))
    capsys.readouterr()
    assert exit_code(retrieval_results.main, [*given, "--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["done"] * 8
    out.write_text(json.dumps({"retrieval": figures["retrieval"]}))
    assert exit_code(tasks_page.main, ["--figures", str(out)]) == 0
    page = out.with_suffix(".md").read_text()
    assert "24 bits: PQN - float triplets, then plain PQ" in page and "symmetric triplets, 24 bits" in page


def test_an_empty_figures_file_has_no_page(tmp_path, capsys):
    assert exit_code(tasks_page.main, ["--figures", str(tmp_path / "tasks.json")]) == 2
    assert "has no rows yet" in capsys.readouterr().err


@pytest.mark.slow
def test_scripts_from_training_to_report(tmp_path, capsys):
    weights, runs = tmp_path / "w.safetensors", tmp_path / "runs"
    model = ["--model", "digitsnet-pqn12", "--width", "0.5"]
    assert exit_code(pretrain.main, [*SMALL, *model, "--epochs", "6", "--out", str(weights)]) == 0
    assert "test mAP" in capsys.readouterr().out
    search = [*SMALL, *model, "--weights", str(weights), "--runs", str(runs), "--name", "a"]
    budgets = ["--budget", "macs=0.7", "--evaluations", "3"]
    assert exit_code(training.main, [*search, *budgets]) == 0
    assert "test mAP" in capsys.readouterr().out
    run = runs / "a"
    assert exit_code(export_policy.main, ["--run", str(run)]) == 0
    assert "(passed)" in capsys.readouterr().out
    scored = [*SMALL[:-2], "--file", str(run / "export" / "model.onnx"), "--no-latency"]
    assert exit_code(evaluate.main, scored) == 0
    assert "test mAP" in capsys.readouterr().out
    assert exit_code(fine_tune.main, ["--run", str(run), "--epochs", "1"]) == 0
    assert exit_code(report.main, [str(run)]) == 0
    assert "What is found" in (run / "report" / "index.html").read_text()
    assert (run / "report" / "neighbours.png").is_file()


def test_weights_of_a_network_with_codes_are_stored_and_read(network, tmp_path):
    save_weights(network, tmp_path / "w.safetensors")
    again = build_model("digitsnet-pqn12", 10, 1, 0.25)
    load_weights(again, tmp_path / "w.safetensors")
    assert torch.equal(again.codebooks, network.codebooks)
