"""The benchmarks' inputs are accepted by what they measure."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks import evaluation
from vild.evaluation import GroundTruth


def test_annotations_of_the_evaluation_benchmark_can_be_read(tmp_path: Path) -> None:
    sizes = argparse.Namespace(classes=4, objects=3, negatives=2)
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(evaluation.annotations(sizes, 2)), encoding="utf-8")
    truth = GroundTruth.read(file, range(1, 5))
    truth.check_federated()
    assert (len(truth.images), len(truth)) == (2, 6)
