"""Every shipped yaml loads, names only known keys and builds a model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model

from vild.config import add_vild_config, register_datasets

CONFIGS = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))


def test_there_are_configs() -> None:
    assert CONFIGS


def own_keys(node: CfgNode, prefix: str = "") -> list[str]:
    keys = []
    for key, value in sorted(node.items()):
        keys += own_keys(value, f"{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def test_own_keys_are_these_and_below_model_vild() -> None:
    plain, cfg = get_cfg(), get_cfg()
    add_vild_config(cfg)
    # frozen on purpose: at most 15, each documented
    assert own_keys(cfg.MODEL.VILD) == [
        "DATASETS",
        "DISTILL.MIN_VISIBLE",
        "DISTILL.REGIONS",
        "DISTILL.SOURCE",
        "DISTILL.STORE",
    ]
    del cfg.MODEL["VILD"]
    assert cfg == plain


def test_custom_data_is_registered_by_the_configuration(tmp_path: Path) -> None:
    category = {"id": 1, "name": "crow"}
    contents = {"images": [], "annotations": [], "categories": [category, {"id": 2, "name": "owl"}]}
    (tmp_path / "a.json").write_text(json.dumps(contents), encoding="utf-8")
    (tmp_path / "own.yaml").write_text(
        "name: config_birds\nval: {json: a.json, images: .}\nnovel: [owl]\n", encoding="utf-8"
    )
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.merge_from_list(["MODEL.VILD.DATASETS", [str(tmp_path / "own.yaml")]])
    assert register_datasets(cfg) == ["config_birds_val"]
    assert MetadataCatalog.get("config_birds_val").novel == [False, True]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_config_loads_and_builds(path: Path) -> None:
    cfg = get_cfg()
    add_vild_config(cfg)
    cfg.merge_from_file(str(path))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    assert sum(p.numel() for p in model.parameters()) > 1e6
