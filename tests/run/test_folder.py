"""What every run leaves in its folder: records that are read back as they were, weights that others may read."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from frisket.run.folder import follow_umask, read_lines


def test_records_hold_what_unicode_calls_the_end_of_a_line(tmp_path: Path) -> None:
    records = [{"answer": "one\u2028two\x85three"}, {"answer": ""}]
    path = tmp_path / "samples.jsonl"
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    assert read_lines(path) == records
    assert read_lines(tmp_path / "none.jsonl") == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640)])
def test_weights_have_the_mode_of_other_files(umask: int, mode: int, tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    weights = [tmp_path / "adapter.safetensors", tmp_path / "inner" / "model.safetensors"]
    before = os.umask(umask)
    try:
        for path in weights:
            save_file({"a": torch.ones(2)}, path)
        follow_umask(tmp_path)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in weights] == [mode, mode]
    assert {path.name for path in tmp_path.iterdir()} == {"adapter.safetensors", "inner"}
