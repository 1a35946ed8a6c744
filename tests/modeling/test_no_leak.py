"""Novel labels do not leak into training on base classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.utils.env import seed_all_rng

from .. import small_shapes


def permuted(novel: bool) -> Any:
    """Return a change of the annotations that permutes the novel or the base classes."""

    def change(contents: dict[str, Any]) -> None:
        ids = [c["id"] for c in contents["categories"]]
        own = [i for i, flag in zip(ids, small_shapes.NOVEL, strict=True) if flag == novel]
        following = dict(zip(own, own[1:] + own[:1], strict=True))
        for annotation in contents["annotations"]:
            annotation["category_id"] = following.get(
                annotation["category_id"], annotation["category_id"]
            )
        counts = {c["id"]: (c["image_count"], c["instance_count"]) for c in contents["categories"]}
        for category in contents["categories"]:
            source = next((a for a, b in following.items() if b == category["id"]), category["id"])
            category["image_count"], category["instance_count"] = counts[source]

    return change


def trained(folder: Path, variant: str) -> dict[str, torch.Tensor]:
    cfg = small_shapes.config(
        folder, variant, SOLVER__MAX_ITER=3, SOLVER__IMS_PER_BATCH=2, SOLVER__STEPS=()
    )
    seed_all_rng(0)
    trainer = small_shapes.Trainer(cfg)
    trainer.train()
    return {key: value.clone() for key, value in trainer.model.state_dict().items()}


@pytest.mark.parametrize("variant", [pytest.param("text", marks=pytest.mark.slow), "ensemble"])
def test_permuted_novel_labels_change_no_bit(variant: str, tmp_path: Path) -> None:
    small_shapes.make(tmp_path, 4)
    weights = trained(tmp_path, variant)
    assert any(
        a["category_id"] for r in DatasetCatalog.get(small_shapes.BASE) for a in r["annotations"]
    )

    before = (tmp_path / "all.json").read_text(encoding="utf-8")
    small_shapes.register(tmp_path, permuted(novel=True))
    assert (tmp_path / "all.json").read_text(encoding="utf-8") != before
    again = trained(tmp_path, variant)
    assert set(again) == set(weights)
    assert all(torch.equal(again[key], weights[key]) for key in weights)

    # shows that the test can fail: base labels do change the weights
    small_shapes.register(tmp_path, permuted(novel=False))
    other = trained(tmp_path, variant)
    assert not all(torch.equal(other[key], weights[key]) for key in weights)
