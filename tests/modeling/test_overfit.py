"""Every variant with a classifier overfits eight images."""

from __future__ import annotations

from pathlib import Path

import pytest
from detectron2.evaluation import LVISEvaluator

from .. import small_shapes

ITERATIONS = 120


@pytest.mark.parametrize(
    "variant",
    [
        pytest.param("text", marks=pytest.mark.exhaustive),
        pytest.param("vild", marks=pytest.mark.exhaustive),
        pytest.param("ensemble", marks=pytest.mark.slow),
    ],
)
def test_eight_images_are_learned(variant: str, tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 8)
    cfg = small_shapes.config(
        tmp_path,
        variant,
        MODEL__MASK_ON=False,
        INPUT__RANDOM_FLIP="none",
        SOLVER__BASE_LR=0.02,
        SOLVER__WARMUP_ITERS=20,
        SOLVER__STEPS=(90,),
        SOLVER__MAX_ITER=ITERATIONS,
    )
    trainer = small_shapes.Trainer(cfg)
    trainer.train()
    evaluator = LVISEvaluator(small_shapes.SEEN, ("bbox",), False, str(tmp_path))
    results = small_shapes.Trainer.test(cfg, trainer.model, evaluator)
    assert results["bbox"]["AP50"] > 90
