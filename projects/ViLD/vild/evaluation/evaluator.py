"""Evaluation on a registered dataset, within Detectron2's test loop or from a results file."""

from __future__ import annotations

import logging
import os
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from vild.data.coco_format import Id
from vild.evaluation.coco_metrics import evaluate_coco_open_vocabulary
from vild.evaluation.detections import Detections
from vild.evaluation.ground_truth import TASKS, GroundTruth, check_task_names
from vild.evaluation.reports import log_figures, write_metrics, write_per_class
from vild.evaluation.results import ResultsWriter, merge_parts
from vild.utils.files import remove_leftovers

logger = logging.getLogger(__name__)

Metrics = OrderedDict[str, dict[str, float]]


@dataclass(frozen=True)
class EvaluationProtocol:
    """The evaluation protocol of a registered dataset.

    Attributes:
        dataset_name: name in Detectron2's catalogs.
        kind: ``lvis`` or ``coco``.
        json_file: annotation file.
        dataset_ids: the category id of each row of the classifier.
        novel: category id -> whether the class is novel.
        frequency: category id -> ``r``, ``c`` or ``f``, where known.
        crowds_are_objects: see :func:`vild.data.read_annotations`.
    """

    dataset_name: str
    kind: str
    json_file: str
    dataset_ids: tuple[Id, ...]
    novel: Mapping[Id, bool]
    frequency: Mapping[Id, str]
    crowds_are_objects: bool = False

    @classmethod
    def from_dataset(cls, name: str) -> EvaluationProtocol:
        """Read the protocol from Detectron2's catalogs.

        Raises:
            ValueError: the dataset is not registered, has another evaluator type, or its metadata
                or annotation file is missing.
        """
        if name not in DatasetCatalog:
            known = ", ".join(sorted(n for n in DatasetCatalog.list() if n.endswith("_val")))
            raise ValueError(
                f"the dataset {name!r} is not registered. Registered datasets include: {known}"
            )
        metadata = MetadataCatalog.get(name)
        kind = metadata.get("evaluator_type")
        if kind not in ("lvis", "coco"):
            raise ValueError(
                f"{name}: expected evaluator_type 'lvis' or 'coco', got {kind!r}. Register the "
                "dataset with vild.data.register_split."
            )
        rows = metadata.get("thing_dataset_id_to_contiguous_id")
        if not rows or sorted(rows.values()) != list(range(len(rows))):
            raise ValueError(
                f"{name}: expected thing_dataset_id_to_contiguous_id with one category id for each "
                f"row of the classifier, got {rows!r:.60}"
            )
        json_file = PathManager.get_local_path(metadata.get("json_file", ""))
        if not Path(json_file).is_file():
            raise ValueError(
                f"{name}: expected annotations at {json_file or 'json_file of its metadata'}, but "
                "the file does not exist. Run datasets/check_datasets.py."
            )
        ids = tuple(sorted(rows, key=rows.__getitem__))
        novel = metadata.get("novel") or [False] * len(ids)
        frequency = metadata.get("frequency") or []
        return cls(
            name,
            kind,
            json_file,
            ids,
            dict(zip(ids, novel, strict=True)),
            dict(zip(ids, frequency, strict=bool(frequency))),
            metadata.get("crowds_are_objects", False),
        )

    def read(self) -> GroundTruth:
        """Read the annotations of the dataset's classes.

        Raises:
            ValueError: the annotations cannot be read, or LVIS evaluation cannot use them.
        """
        truth = GroundTruth.read(self.json_file, self.dataset_ids, self.crowds_are_objects)
        for category_id, frequency in self.frequency.items():
            # from the training images; "r" for the novel classes listed in a yaml
            truth.categories[category_id]["frequency"] = frequency
        if self.kind == "lvis":
            truth.check_federated()
        return truth


class OpenVocabularyEvaluator(DatasetEvaluator):
    """An evaluator that writes the detections of all ranks to one file and computes its metrics.

    It writes ``<dataset>_results.json``, ``<dataset>_per_class.csv`` and
    ``<dataset>_metrics.json``. All ranks must share the output folder. For annotations without
    objects, as in a test set, only the results are written.

    Args:
        dataset_name: a registered dataset; its ``evaluator_type`` selects LVIS or COCO metrics.
        tasks: ``bbox``, ``segm`` or both. Masks are written only for ``segm``.
        output_dir: folder of the output files.
        out: results file; ``<output_dir>/<dataset>_results.json`` by default.
        precision: numeric precision of the detector; recorded with the metrics.

    Raises:
        ValueError: a task is unknown, or the dataset cannot be evaluated.
    """

    def __init__(
        self,
        *,
        dataset_name: str,
        tasks: Sequence[str] = TASKS,
        output_dir: str | os.PathLike[str],
        out: str | os.PathLike[str] | None = None,
        precision: str = "fp32",
    ) -> None:
        check_task_names(tasks)
        self._protocol = EvaluationProtocol.from_dataset(dataset_name)
        self._tasks = tuple(tasks)
        self._folder = Path(output_dir)
        self._out = Path(out) if out else self._folder / f"{dataset_name}_results.json"
        self._precision = precision
        self._writer: ResultsWriter | None = None
        self._images = 0

    def reset(self) -> None:
        """Start over and drop detections that were not evaluated."""
        if self._writer is not None:
            self._writer.abandon()
        part = self._part(comm.get_rank())
        remove_leftovers(part)
        self._writer = ResultsWriter(part, masks="segm" in self._tasks)
        self._images = 0

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write the detections of some images.

        Args:
            inputs: one dict per image, with ``image_id``.
            outputs: one dict per image, with ``instances``; see :meth:`ResultsWriter.add`.

        Raises:
            ValueError: ``reset`` was not called, masks are missing for the task ``segm``, or as
                for :meth:`ResultsWriter.add`.
        """
        if self._writer is None:
            raise ValueError("the evaluator has no file to write to: call reset() first")
        for given, output in zip(inputs, outputs, strict=True):
            instances = output["instances"]
            if "segm" in self._tasks and len(instances) and not instances.has("pred_masks"):
                raise ValueError(
                    "the task 'segm' needs masks, but the detector gave none for image "
                    f"{given['image_id']}. Set MODEL.MASK_ON, or evaluate tasks=('bbox',)."
                )
            self._writer.add(given["image_id"], instances, self._protocol.dataset_ids)
            self._images += 1

    def evaluate(self) -> Metrics:
        """Merge the files of all ranks and compute the metrics, in the main process.

        Returns:
            task -> metric -> percent; empty in other processes and without annotated objects.

        Raises:
            ValueError: ``reset`` was not called, or as for :meth:`Detections.read`.
        """
        if self._writer is None:
            raise ValueError("there is nothing to evaluate: call reset() and process() first")
        self._writer.close()
        self._writer = None
        images = comm.gather(self._images)  # waits for the files of all ranks
        if not comm.is_main_process():
            return OrderedDict()
        parts = [self._part(rank) for rank in range(comm.get_world_size())]
        merge_parts(parts, self._out)
        for part in parts:
            part.unlink()
        logger.info("Wrote the detections of %d images to %s", sum(images), self._out)
        return _measure(
            self._protocol,
            self._out,
            self._tasks,
            self._folder,
            sum(images),
            precision=self._precision,
        )

    def _part(self, rank: int) -> Path:
        return self._out.with_name(f"{self._out.stem}.part{rank}.json")


def evaluate_results(
    dataset_name: str,
    results_file: str | os.PathLike[str],
    tasks: Sequence[str] | None = None,
    output_dir: str | os.PathLike[str] | None = None,
) -> Metrics:
    """Compute the metrics of a results file, without a model.

    Args:
        dataset_name: a registered dataset.
        results_file: detections in COCO results format, from any detector.
        tasks: ``bbox``, ``segm`` or both; by default those for which the file has boxes or masks.
        output_dir: folder for the csv and the json; nothing is written by default.

    Returns:
        task -> metric -> percent.

    Raises:
        ValueError: the dataset cannot be evaluated, or the results are malformed or belong to
            another dataset; see :meth:`Detections.read`.
    """
    folder = Path(output_dir) if output_dir is not None else None
    return _measure(
        EvaluationProtocol.from_dataset(dataset_name), Path(results_file), tasks, folder
    )


def _measure(
    protocol: EvaluationProtocol,
    results: Path,
    tasks: Sequence[str] | None,
    folder: Path | None,
    images: int | None = None,
    precision: str | None = None,
) -> Metrics:
    """Compute the metrics of a results file; write and log them."""
    truth = protocol.read()
    if images is not None and images != len(truth.images):
        logger.warning(
            "%d images were processed, %s has %d; objects of the others count as missed",
            images,
            truth.path,
            len(truth.images),
        )
    if not len(truth):
        logger.info("%s has no annotations of these classes: no metrics", truth.path)
        return OrderedDict()
    found = Detections.read(results, truth)
    if not len(found):
        logger.warning("%s holds no detections", results)
    tasks = tasks or found.tasks()
    if len(tasks) > 1 and not truth.has_masks():
        logger.warning("%s has no masks: only boxes are evaluated", truth.path)
        tasks = ("bbox",)
    evaluate = evaluate_coco_open_vocabulary
    if protocol.kind == "lvis":
        from vild.evaluation.lvis_metrics import evaluate_lvis as evaluate
    figures = evaluate(truth, found, tasks, protocol.novel)
    log_figures(truth, protocol.novel, figures)
    if folder is not None:
        stem, detections = folder / protocol.dataset_name, len(found)
        per_class = stem.with_name(f"{stem.name}_per_class.csv")
        write_per_class(per_class, truth, protocol.novel, protocol.frequency, figures)
        write_metrics(
            stem.with_name(f"{stem.name}_metrics.json"),
            truth,
            figures,
            dataset=protocol.dataset_name,
            protocol=protocol.kind,
            results=str(results),
            detections=detections,
            precision=precision,
        )
        logger.info("Wrote the figures of each class to %s", per_class)
    return OrderedDict((task, dict(found.metrics)) for task, found in figures.items())
