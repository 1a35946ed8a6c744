"""Loaders, built from the configuration: datasets, mapper and stores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import (
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.modeling import ROI_HEADS_REGISTRY
from torch.utils.data import Sampler

from vild.data import require_split
from vild.data.dataset_mapper import SOURCES, ViLDDatasetMapper
from vild.data.train_loader import TrainingLoader
from vild.embeddings import CropRule, EmbeddingStore, OnlineEmbedder, build_teacher
from vild.modeling import (
    OptionalMaskROIHeads,
    ViLDROIHeads,
    find_variant,
    load_text_embeddings,
)
from vild.proposals import ProposalStore
from vild.storage import StoreMismatchError


def build_region_source(cfg: CfgNode) -> EmbeddingStore | ProposalStore | None:
    """Open the store named by ``MODEL.VILD.DISTILL``; None if the model is not distilled.

    Raises:
        ValueError: the source is unknown, the store is missing or incomplete or has another
            teacher, dimension or crop rule than the configuration, or there are several training
            sets.
    """
    if not is_distilled(cfg):
        return None
    online = _is_online("MODEL.VILD.DISTILL.SOURCE", cfg.MODEL.VILD.DISTILL.SOURCE)
    key = "PROPOSALS" if online else "STORE"
    folder = cfg.MODEL.VILD.DISTILL[key]
    if not folder:
        tool = "extract_proposals" if online else "extract_image_embeddings"
        raise ValueError(
            f"expected MODEL.VILD.DISTILL.{key} to name the folder that tools/{tool}.py wrote for "
            f"the training set, since the variant {cfg.MODEL.VILD.VARIANT!r} is distilled with "
            f"SOURCE: {cfg.MODEL.VILD.DISTILL.SOURCE}"
        )
    _require_one_training_set(cfg, f"MODEL.VILD.DISTILL.{key}")
    return ProposalStore(folder) if online else _embedding_store(cfg, folder)


def _is_online(key: str, value: str) -> bool:
    """Return whether a source of teacher embeddings is the running teacher."""
    if value not in SOURCES:
        raise ValueError(f"expected {key} to be one of {SOURCES}, got {value!r}")
    return value == "online"


def is_distilled(cfg: CfgNode) -> bool:
    """Return whether training needs the teacher's region embeddings."""
    return is_vild(cfg) and find_variant(cfg.MODEL.VILD.VARIANT).distilled


def is_vild(cfg: CfgNode) -> bool:
    """Return whether the RoI heads are ViLD's, which need text embeddings."""
    return issubclass(ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME), ViLDROIHeads)


def build_online_embedder(cfg: CfgNode, field: str) -> OnlineEmbedder:
    """Load the teacher (``MODEL.VILD.TEACHER``) to embed regions while training or testing.

    Args:
        cfg: configuration.
        field: field of a mapped image that holds the regions to embed.

    Raises:
        ValueError: the teacher is unknown, or has another dimension or other weights than the
            teacher that made the text embeddings.
    """
    names = cfg.MODEL.VILD.TEACHER
    teacher = build_teacher(names.MODEL, names.PRETRAINED, cfg.MODEL.DEVICE)
    text = load_text_embeddings(cfg)
    for what, own, expected in (
        ("dimension", teacher.dimension, text.dimension),
        ("fingerprint", teacher.fingerprint, text.fingerprint or teacher.fingerprint),
    ):
        if own != expected:
            raise ValueError(
                f"expected the teacher that made the text embeddings, {text.teacher} ({what} "
                f"{expected}), got MODEL.VILD.TEACHER {teacher.name} ({what} {own})"
            )
    return OnlineEmbedder(teacher, crop_rule(cfg), field)


def build_proposal_source(
    cfg: CfgNode, is_train: bool, index: int = 0
) -> EmbeddingStore | ProposalStore | None:
    """Open the store of precomputed proposals that replaces the RPN (``MODEL.LOAD_PROPOSALS``).

    Variants that need the teacher at inference require a store of region embeddings, unless the
    teacher runs online.

    Args:
        cfg: configuration; ``DATASETS.PROPOSAL_FILES_TRAIN`` and ``_TEST`` name folders.
        is_train: whether to use the training or the test option.
        index: index of the dataset.

    Raises:
        ValueError: no folder is configured, or it is not a store.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return None
    if is_train:
        _require_one_training_set(cfg, "MODEL.LOAD_PROPOSALS")
    key = f"PROPOSAL_FILES_{'TRAIN' if is_train else 'TEST'}"
    files = cfg.DATASETS[key]
    if len(files) <= index or not Path(files[index]).is_dir():
        raise ValueError(
            f"expected DATASETS.{key} to name a folder that tools/extract_proposals.py wrote for "
            f"each dataset, got {tuple(files)}. tools/convert_proposals.py reads Detectron2's "
            "pickles."
        )
    if not is_train and _needs_teacher(cfg) and not _tests_online(cfg):
        try:
            return _embedding_store(cfg, files[index])
        except StoreMismatchError as error:
            raise StoreMismatchError(
                f"{error}. With MODEL.VILD.TEACHER.SOURCE_TEST: online, a proposal store suffices"
            ) from None
    return ProposalStore(files[index])


def _embedding_store(cfg: CfgNode, folder: str) -> EmbeddingStore:
    text = load_text_embeddings(cfg)
    return EmbeddingStore(
        folder,
        teacher=text.fingerprint or None,
        dimension=text.dimension,
        crop=crop_rule(cfg),
    )


def crop_rule(cfg: CfgNode) -> CropRule:
    """Return how the teacher crops regions (``MODEL.VILD.TEACHER.CROP_MODE`` and ``CROP_SCALES``).

    Raises:
        ValueError: the mode is unknown, or a scale is not positive.
    """
    return CropRule(cfg.MODEL.VILD.TEACHER.CROP_MODE, tuple(cfg.MODEL.VILD.TEACHER.CROP_SCALES))


def _needs_teacher(cfg: CfgNode) -> bool:
    """Return whether detection needs the teacher's region embeddings."""
    return is_vild(cfg) and find_variant(cfg.MODEL.VILD.VARIANT).teacher_at_test


def _tests_online(cfg: CfgNode) -> bool:
    """Return whether the teacher computes region embeddings at test time."""
    value = cfg.MODEL.VILD.TEACHER.SOURCE_TEST
    return _needs_teacher(cfg) and _is_online("MODEL.VILD.TEACHER.SOURCE_TEST", value)


def build_train_loader(cfg: CfgNode) -> TrainingLoader:
    """Build a loader of mapped training images, with the regions to distil from.

    The images depend only on ``cfg.SEED`` (0 if negative) and the position in the stream.

    Raises:
        ValueError: the stores, the teacher or the classes do not match the configuration, or a
            store describes other images or lacks images of the training set.
    """
    for name in cfg.DATASETS.TRAIN:
        require_split(name, "a registered split in DATASETS.TRAIN")
    if is_vild(cfg):
        text = load_text_embeddings(cfg)
        for name in cfg.DATASETS.TRAIN:
            text.check_classes(MetadataCatalog.get(name).thing_classes, f"the dataset {name}")
    regions, proposals = build_region_source(cfg), build_proposal_source(cfg, True)
    mapper = ViLDDatasetMapper(cfg, True, regions=regions, proposals=proposals)
    # loaded here, because Detectron2 would read DATASETS.PROPOSAL_FILES_TRAIN as pickles
    every = _records(cfg.DATASETS.TRAIN)
    records = every
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(every)
    _require_objects(cfg, records)
    for store in filter(None, (regions, proposals)):
        store.check_split(cfg.DATASETS.TRAIN[0], every)
        store.check_images(record["image_id"] for record in records)
    is_online = is_distilled(cfg) and cfg.MODEL.VILD.DISTILL.SOURCE == "online"
    return TrainingLoader(
        records,
        mapper,
        # of all processes, while iterating over the sampler would yield this one's part
        _sampler(cfg, records)._infinite_indices,
        batch_size=cfg.SOLVER.IMS_PER_BATCH,
        seed=max(cfg.SEED, 0),
        group=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        workers=cfg.DATALOADER.NUM_WORKERS,
        complete=build_online_embedder(cfg, "distill_regions") if is_online else None,
    )


def _records(names: Sequence[str]) -> list[dict[str, Any]]:
    """Load the records of registered splits.

    Raises:
        ValueError: a split has no images.
    """
    try:
        return get_detection_dataset_dicts(names, filter_empty=False)
    except AssertionError as error:  # raised by Detectron2 for an empty list
        raise ValueError(f"expected images in {tuple(names)}: {error}") from None


def _require_objects(cfg: CfgNode, records: Sequence[Mapping[str, Any]]) -> None:
    """Refuse a training set without objects, or without masks that the RoI heads require."""
    objects = [a for r in records for a in r.get("annotations", ()) if not a.get("iscrowd")]
    if not objects:
        raise ValueError(
            f"expected objects to learn from in {tuple(cfg.DATASETS.TRAIN)}, got none: it has no "
            "annotations, or only those of novel classes or crowds. Check it with "
            "datasets/check_datasets.py --custom YAML"
        )
    heads = ROI_HEADS_REGISTRY.get(cfg.MODEL.ROI_HEADS.NAME)
    has_masks = all(item.get("segmentation") for item in objects)
    if cfg.MODEL.MASK_ON and not has_masks and not issubclass(heads, OptionalMaskROIHeads):
        raise ValueError(
            f"expected masks of all objects for {cfg.MODEL.ROI_HEADS.NAME}, got some without in "
            f"{tuple(cfg.DATASETS.TRAIN)}: set MODEL.ROI_HEADS.NAME to OptionalMaskROIHeads, or "
            "MODEL.MASK_ON to False"
        )


def _sampler(cfg: CfgNode, records: list[dict[str, Any]]) -> Sampler:
    """Make the Detectron2 sampler named by ``DATALOADER.SAMPLER_TRAIN``.

    Detectron2's builder of loaders seeds it from the state of numpy's generator, which would give a
    resumed training another order.

    Raises:
        ValueError: the sampler is unknown, or the subset's ratio is not a fraction.
    """
    name, seed = cfg.DATALOADER.SAMPLER_TRAIN, max(cfg.SEED, 0)
    if name == "TrainingSampler":
        return TrainingSampler(len(records), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        # a key of newer versions of Detectron2
        options = {} if cfg.DATALOADER.get("REPEAT_SQRT", True) else {"sqrt": False}
        factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
            records, cfg.DATALOADER.REPEAT_THRESHOLD, **options
        )
        return RepeatFactorTrainingSampler(factors, seed=seed)
    if name == "RandomSubsetTrainingSampler":
        ratio = cfg.DATALOADER.get("RANDOM_SUBSET_RATIO", 0)  # Detectron2 reads but never adds it
        if not 0 < ratio <= 1 or int(len(records) * ratio) < 1:
            raise ValueError(
                "expected DATALOADER.RANDOM_SUBSET_RATIO to be the fraction of the "
                f"{len(records)} images to train on, got {ratio}"
            )
        return RandomSubsetTrainingSampler(len(records), ratio, seed_shuffle=seed, seed_subset=seed)
    raise ValueError(
        "expected DATALOADER.SAMPLER_TRAIN to be TrainingSampler, RepeatFactorTrainingSampler or "
        f"RandomSubsetTrainingSampler, got {name!r}"
    )


def build_test_loader(cfg: CfgNode, name: str) -> Any:
    """Build Detectron2's test loader for one of ``DATASETS.TEST`` with this project's mapper.

    Raises:
        ValueError: see :func:`build_test_proposals`.
    """
    online = _tests_online(cfg)
    records = _records([name])
    proposals = build_test_proposals(cfg, name, records)
    mapper = ViLDDatasetMapper(cfg, False, proposals=proposals, online_proposals=online)
    loader = build_detection_test_loader(
        records,
        mapper=mapper,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )
    return _Completed(loader, build_online_embedder(cfg, "proposals")) if online else loader


def build_test_proposals(
    cfg: CfgNode, name: str, records: Sequence[Mapping[str, Any]]
) -> EmbeddingStore | ProposalStore | None:
    """Open the precomputed proposals of one of ``DATASETS.TEST`` and check them.

    Args:
        cfg: configuration.
        name: name of the test set.
        records: records of the test set.

    Returns:
        The store; None without ``MODEL.LOAD_PROPOSALS``.

    Raises:
        ValueError: no store is configured, or it describes other images or lacks some.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return None
    if name not in cfg.DATASETS.TEST:
        raise ValueError(
            f"expected one of DATASETS.TEST, {tuple(cfg.DATASETS.TEST)}, whose proposals are in "
            f"DATASETS.PROPOSAL_FILES_TEST, got {name!r}"
        )
    proposals = build_proposal_source(cfg, False, list(cfg.DATASETS.TEST).index(name))
    if proposals is not None:
        proposals.check_split(name, records)
        proposals.check_images(record["image_id"] for record in records)
    return proposals


def _require_one_training_set(cfg: CfgNode, key: str) -> None:
    if len(cfg.DATASETS.TRAIN) != 1:
        raise ValueError(
            f"expected one training set with {key}, got {tuple(cfg.DATASETS.TRAIN)}: their image "
            "ids could collide. Merge them into one dataset"
        )


class _Completed:
    """A loader that applies one more step to the mapped images, in the main process."""

    def __init__(self, loader: Any, step: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        self.loader, self.step = loader, step

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        return ([self.step(mapped) for mapped in batch] for batch in self.loader)
