"""The GPU table's script: without a GPU, its arithmetic, and all of it on the processor."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in (FOLDER / "engine", FOLDER, FOLDER / "devices"):
        monkeypatch.syspath_prepend(str(folder))
    import sys

    monkeypatch.delitem(sys.modules, "gpu", raising=False)  # another folder has a script of that name
    return importlib.import_module("gpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_ends_with_4_and_one_sentence_without_a_gpu(
    script: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        script.main(["--out", str(tmp_path / "gpu.json")])
    assert end.value.code == 4
    assert capsys.readouterr().out == "Nothing was measured: torch finds no CUDA device here.\n"
    assert list(tmp_path.iterdir()) == []


def test_percentiles_are_samples_and_none_where_too_few_say_so(script: Any) -> None:
    hundred = script.summary([float(value) for value in range(100, 0, -1)], 8)
    assert (hundred["p50_ms"], hundred["p90_ms"], hundred["p99_ms"]) == (50.0, 90.0, 99.0)
    assert hundred["images_per_s"] == pytest.approx(1000 * 8 * 100 / 5050)
    few = script.summary([3.0, 1.0, 2.0], 1)
    assert (few["p50_ms"], few["p90_ms"], few["p99_ms"]) == (2.0, None, None)


def test_agreement_is_one_for_the_same_logits_and_tells_other_classes(script: Any) -> None:
    logits = np.array([[1.0, 2.0], [3.0, 0.0]])
    assert script.agreement(logits, logits) == {"cosine": pytest.approx(1.0), "top1": 1.0}
    assert script.agreement(logits[:, ::-1], logits)["top1"] == 0.0


@pytest.mark.slow
def test_every_way_is_timed_or_says_why_not(script: Any, tmp_path: Path) -> None:
    out = script.main(["--quick", "--device", "cpu", "--out", str(tmp_path / "gpu.json")])
    record = json.loads(out.read_text(encoding="utf-8"))
    ways = record["rows"]["mobilenet_v2"]["batches"]["1"]
    assert len(ways) == 9
    for facts in ways.values():
        assert ("missing" in facts) != ("p50_ms" in facts)
    assert ways["onnxruntime_cpu float32"]["agreement"]["cosine"] > 0.9999
    assert ways["onnxruntime_cpu int8"]["agreement"]["cosine"] > 0.9
    assert "GPU" in ways["torch_eager int8"]["missing"]
