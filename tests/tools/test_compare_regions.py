"""The tool that compares region embeddings of teacher and detectors."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

import compare_regions

from .. import small_shapes

Run = Callable[..., int]


def test_each_detector_beside_the_teacher(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_shapes.make(tmp_path, 3)
    cfg = small_shapes.config(tmp_path, "vild")
    files = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        DetectionCheckpointer(build_model(cfg), str(tmp_path)).save(f"model{seed}")
        files.append(str(tmp_path / f"model{seed}.pth"))
    config = tmp_path / "config.yaml"
    config.write_text(cfg.dump(), encoding="utf-8")
    common = ["--config-file", config, "--dataset", small_shapes.SEEN, "--weights", *files]
    # the device of the recipes; the machine may have no GPU
    device = ["--opts", "MODEL.DEVICE", "cuda"]
    assert run(compare_regions, *common, "--regions", tmp_path / "store", *device) == 0
    lines = capsys.readouterr().out.splitlines()
    form = re.compile(r"(.*): classified correctly: ([\d.]+) % of (\d+) base, no novel regions")
    found = [form.fullmatch(line) for line in lines]
    names, base, counts = zip(*(match.groups() for match in found if match), strict=True)
    assert names == ("the teacher", *files)
    assert len(set(counts)) == 1
    # the shipped teacher knows its classes; the detector's weights are random
    assert float(base[0]) > 60
    assert max(map(float, base[1:])) < 30

    assert run(compare_regions, *common, "--regions", tmp_path / "none") == 2
    assert "none" in capsys.readouterr().err
    for name in ("manifest.json", "shard_00000.safetensors"):
        path = tmp_path / "store" / name
        whole = path.read_bytes()
        for content in (b"", b"[]", b"null", whole[:-9]):
            path.write_bytes(content)
            assert run(compare_regions, *common, "--regions", tmp_path / "store") == 2
            error = capsys.readouterr().err
            assert error.startswith("error: ")
            assert error.count("\n") == 1
            assert name in error
        path.write_bytes(whole)
