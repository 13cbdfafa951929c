"""The CPU seconds of a training on few labels are those of all its calls."""

from pathlib import Path

import pytest

from amc.files import read_json, write_json
from scripts import few_labels_tuning
from scripts.cpu_clock import CPU_FILE
from tests.test_saas import call


def cpu_seconds(path: Path) -> float:
    stored = read_json(path)
    assert isinstance(stored, dict)
    return float(stored["cpu_seconds"])


@pytest.mark.parametrize("saved", ["save_estimate", "save_checkpoint"])
def test_an_interrupted_call_counts(saved: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_labels_tuning, "write_report", lambda folders: folders)
    save = getattr(few_labels_tuning, saved)

    def cut(*arguments: object) -> None:
        save(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(few_labels_tuning, saved, cut)
        assert call(tmp_path) == 130
    kept = tmp_path / CPU_FILE
    assert 0 <= cpu_seconds(kept) < 100
    write_json(kept, {"cpu_seconds": 1000})
    assert call(tmp_path, "--resume") == 0
    assert 1000 <= cpu_seconds(tmp_path / "few_labels.json") < 1100 and not kept.exists()
