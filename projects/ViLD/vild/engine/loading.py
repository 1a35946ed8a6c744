"""Loaders from the configuration: data sets, mapper and stores put together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)

from vild.data.dataset_mapper import SOURCES, ViLDDatasetMapper
from vild.embeddings import EmbeddingStore
from vild.proposals import ProposalStore


def build_region_source(cfg: CfgNode) -> EmbeddingStore | ProposalStore | None:
    """The store that ``MODEL.VILD.DISTILL`` names; None where it names none.

    Raises:
        ValueError: an unknown source, more than one training set, or no whole store there.
    """
    distill = cfg.MODEL.VILD.DISTILL
    if distill.SOURCE not in SOURCES:
        raise ValueError(
            f"expected MODEL.VILD.DISTILL.SOURCE to be one of {SOURCES}, got {distill.SOURCE!r}"
        )
    if not distill.STORE:
        return None
    if len(cfg.DATASETS.TRAIN) != 1:
        raise ValueError(
            "expected one training set beside MODEL.VILD.DISTILL.STORE, got "
            f"{tuple(cfg.DATASETS.TRAIN)}: image ids of several would mix. Make one of them."
        )
    kind = EmbeddingStore if distill.SOURCE == "store" else ProposalStore
    return kind(distill.STORE)


def build_proposal_source(cfg: CfgNode, is_train: bool, index: int = 0) -> ProposalStore | None:
    """The store of precomputed proposals that replaces the RPN (``MODEL.LOAD_PROPOSALS``).

    Args:
        cfg: configuration; ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST`` name folders.
        is_train: which of the two.
        index: which of the data sets.

    Raises:
        ValueError: nothing named, or not a store.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return None
    key = f"PROPOSAL_FILES_{'TRAIN' if is_train else 'TEST'}"
    files = cfg.DATASETS[key]
    if len(files) <= index or not Path(files[index]).is_dir():
        raise ValueError(
            f"expected DATASETS.{key} to name a folder that tools/extract_proposals.py wrote for "
            f"each data set, got {tuple(files)}. tools/convert_proposals.py reads Detectron2's "
            "pickles."
        )
    return ProposalStore(files[index])


def build_train_loader(cfg: CfgNode) -> Any:
    """Detectron2's training loader with this project's mapper."""
    mapper = ViLDDatasetMapper(
        cfg, True, regions=build_region_source(cfg), proposals=build_proposal_source(cfg, True)
    )
    # given here, since Detectron2 would read DATASETS.PROPOSAL_FILES_TRAIN as pickles
    records = get_detection_dataset_dicts(
        cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    )
    return build_detection_train_loader(cfg, mapper=mapper, dataset=records)


def build_test_loader(cfg: CfgNode, name: str) -> Any:
    """Detectron2's test loader for one of ``DATASETS.TEST`` with this project's mapper."""
    index = list(cfg.DATASETS.TEST).index(name) if cfg.MODEL.LOAD_PROPOSALS else 0
    mapper = ViLDDatasetMapper(cfg, False, proposals=build_proposal_source(cfg, False, index))
    return build_detection_test_loader(
        get_detection_dataset_dicts(name, filter_empty=False),
        mapper=mapper,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
