"""What is said of a whole run, where the record says nothing."""

import json
from pathlib import Path

import pytest

from pipeline.record.summary import summarise
from shards.errors import InputError


@pytest.mark.parametrize("lines", [[], [{"kind": "eval", "step": 4, "set": "test", "main/top1": 0.5}]])
def test_a_record_without_training_is_named(tmp_path: Path, lines: list[dict[str, object]]) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(InputError, match=r"metrics\.jsonl has no line of training.*checkpoints"):
        summarise(tmp_path, 4)
