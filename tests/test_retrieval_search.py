"""Search through faiss with our codebooks, and plain product quantization behind a trained embedding."""

import json
import sys

import pytest
import torch
from torch.nn import functional as F

from agents.config import AgentConfig, SearchConfig
from agents.export import export_run
from agents.run import start_run
from agents.run_config import RunConfig, SourceConfig
from amc.data.digits import digits
from amc.errors import UserError
from amc.models import build_model, save_weights
from amc.retrieval import asymmetric_scores, hard_codes
from amc.retrieval.code import words_of
from amc.retrieval.faiss_index import faiss_index, nearest_words, require_faiss, trained_codebooks
from amc.retrieval.quantize import decode
from amc.tasks import RetrievalTask
from envs.problem_config import ProblemConfig
from scripts.export_policy import show


def unit(*shape: int, seed: int = 0) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize(("parts", "count"), [(3, 16), (2, 8), (1, 16)])
def test_faiss_finds_what_our_scores_say(parts, count):
    pytest.importorskip("faiss")
    words, vectors, queries = unit(parts, count, 12), unit(200, parts, 12, seed=1), unit(9, parts, 12, seed=2)
    codes = hard_codes(torch.einsum("nms,mks->nmk", vectors, words))
    ours = asymmetric_scores(torch.einsum("nms,mks->nmk", queries, words), codes)
    index = faiss_index(words, codes)
    scores, places = index.search(queries.flatten(1).numpy(), 200)
    assert index.ntotal == 200
    best = ours.sort(dim=1, descending=True).values
    assert torch.allclose(torch.from_numpy(scores), best, atol=1e-5)
    assert torch.allclose(ours.gather(1, torch.from_numpy(places)), best, atol=1e-5)


def test_faiss_encodes_unit_vectors_as_we_do():
    pytest.importorskip("faiss")
    words, vectors = unit(3, 16, 12), unit(100, 3, 12, seed=1)
    codes = hard_codes(torch.einsum("nms,mks->nmk", vectors, words))
    index = faiss_index(words, codes[:1])
    index.add(vectors.flatten(1).numpy())
    decoded = torch.from_numpy(index.reconstruct_n(1, 100))
    assert torch.allclose(decoded, decode(codes, words).flatten(1), atol=1e-6)
    assert torch.equal(nearest_words(vectors, words), codes)


def test_plain_codebooks_fit_the_vectors_better_than_random_ones():
    pytest.importorskip("faiss")
    vectors = unit(1000, 3, 12)
    words = trained_codebooks(vectors.flatten(1), 3, 16)
    assert words.shape == (3, 16, 12)

    def error(codebooks):
        return float((decode(nearest_words(vectors, codebooks), codebooks) - vectors).square().sum())

    assert error(words) < 0.9 * error(unit(3, 16, 12, seed=3))


def test_a_missing_faiss_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match=r"pip install 'amc-compress\[retrieval\]'"):
        require_faiss()


def test_words_are_what_the_outputs_say():
    torch.manual_seed(0)
    model, task = build_model("digitsnet-pqn12", 10, 1, 0.25), RetrievalTask(digits(8))
    outputs = task.outputs(model, task.data.normalised("train")[:200])
    assert torch.allclose(words_of(outputs), model.codebooks.detach(), atol=1e-4)


def test_an_export_holds_the_index_of_the_training_images(tmp_path, monkeypatch, capsys):
    """The compressed network's codes, ranked by faiss as by our own search."""
    faiss = pytest.importorskip("faiss")
    torch.manual_seed(0)
    save_weights(build_model("digitsnet-pqn12", 10, 1, 0.25), tmp_path / "w.safetensors")
    source = SourceConfig(
        "digitsnet-pqn12", tmp_path / "w.safetensors", 0.25, "digits", side=8, task="retrieval", device="cpu"
    )
    problem = ProblemConfig(budget=("macs=0.6",), target="onnxruntime", final_images=100)
    config = RunConfig(source, problem, AgentConfig("uniform"), SearchConfig(1))
    run = start_run(tmp_path / "run", config)
    run.search()
    run.problem.close()
    exported = export_run(run)
    task, model = run.task, exported.model
    assert isinstance(task, RetrievalTask)
    (path,) = exported.own
    assert path in exported.paths and not exported.notes
    base = task.outputs(model, task.data.normalised("train"))
    asked = task.outputs(model, task.data.normalised("test")[:20])
    ours = asymmetric_scores(asked.table, hard_codes(base.table))
    index = faiss.read_index(str(path))
    assert index.ntotal == len(task.data.train)
    scores, places = index.search(asked.vectors.flatten(1).numpy(), 50)
    best = ours.sort(dim=1, descending=True).values[:, :50]
    assert torch.allclose(torch.from_numpy(scores), best, atol=1e-4)
    assert torch.allclose(ours.gather(1, torch.from_numpy(places)), best, atol=1e-4)
    monkeypatch.setitem(sys.modules, "faiss", None)
    without = export_run(run, folder=tmp_path / "without")
    show(without)
    said = capsys.readouterr().out
    assert not without.own and "note: No index.faiss was written." in said and "pip install" in said
    assert task.save_files(model, path.parent)[0] == [] and not path.exists()  # no earlier index stays
    assert json.loads((tmp_path / "without" / "export.json").read_text())["files"]
