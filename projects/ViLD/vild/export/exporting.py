"""Export of a trained detector to TorchScript or ONNX, verified against the original detector.

Shapes: H x W the image in pixels, K classes, D embedding, M detections.
"""

from __future__ import annotations

import hashlib
import inspect
import io
import json
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

import vild
from vild.embeddings import TextEmbeddings
from vild.export.checks import Case, Check, Tensors, compare, make_cases, run_detector
from vild.export.detector import ExportableDetector, check_exportable
from vild.utils.files import atomic_folder

logger = logging.getLogger(__name__)

FORMATS = {"torchscript": "model.ts", "onnx": "model.onnx"}
ABOUT, TEXT = "model.json", "text.safetensors"
OPSET = 17  # Detectron2's RoIAlign needs 16 or later


@dataclass(frozen=True)
class Exported:
    """An exported file with its timings and checks.

    Attributes:
        file: the exported model.
        megabytes: size in units of 10^6 bytes.
        image: height and width of the first image at the model's input.
        seconds: median time for that image.
        eager_seconds: median time of the original detector, measured alternately.
        checks: one per image and vocabulary.
    """

    file: Path
    megabytes: float
    image: tuple[int, int]
    seconds: float
    eager_seconds: float
    checks: tuple[Check, ...]


def export_detector(
    model: nn.Module,
    cfg: CfgNode,
    folder: str | os.PathLike[str],
    images: Sequence[np.ndarray],
    *,
    formats: Sequence[str] = tuple(FORMATS),
    text_input: bool = True,
    repeats: int = 5,
) -> list[Exported]:
    """Export a detector to one or more formats; if one fails, nothing is written.

    Each file is loaded again and compared with the detector: on ``images``, on the first one
    mirrored and smaller, and, if the text embeddings are an input, with other classes. A warning is
    logged if the detector finds nothing in any of these.

    Args:
        model: model of an :class:`OpenVocabularyPredictor`, on the CPU.
        cfg: its configuration; ``INPUT`` determines the preprocessing.
        folder: new, empty or an earlier export, which is replaced. Receives the models,
            ``model.json``, which describes them, and ``text.safetensors`` with the text embeddings
            of the vocabulary.
        images: one or more images (H, W, 3) uint8 RGB. The first one is traced.
        formats: a selection of ``FORMATS``.
        text_input: whether text embeddings (and novel flags in ViLD-ensemble) are inputs in
            addition to the image; otherwise the vocabulary is part of the file.
        repeats: repetitions of the time measurement.

    Raises:
        ValueError: a format is unknown, the folder has other contents, a package is missing, the
            detector cannot be exported (:class:`ExportableDetector`) or does not run on the CPU,
            or the exported detector gives other detections.
    """
    folder = Path(folder)
    _check_arguments(folder, formats, images, repeats)
    check_exportable(model)
    if model.device.type != "cpu":
        raise ValueError(f"expected a detector on the CPU, got {model.device}")
    text = _own_text(model, cfg)
    cases = make_cases(model, cfg, images, text if text_input else None)
    if not any(len(case.expected[0]) for case in cases):
        logger.warning(
            "expected sample images in which the detector finds something, got none: the "
            "exported files are not compared on any detection. Use other images, or a lower "
            f"MODEL.ROI_HEADS.SCORE_THRESH_TEST than {cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST}"
        )
    first = cases[0].inputs
    written = []
    with atomic_folder(folder) as made:
        for name in formats:
            file = made / FORMATS[name]
            run = _EXPORTERS[name](model, first, file)
            checks = tuple(compare(name, case, run(case.inputs)) for case in cases)
            seconds, eager_seconds = _median_seconds(
                (partial(run, first), partial(run_detector, model, first[0])), repeats
            )
            size = file.stat().st_size / 1e6
            image = (first[0].shape[1], first[0].shape[2])
            written.append(
                Exported(folder / FORMATS[name], size, image, seconds, eager_seconds, checks)
            )
        text.save(made / TEXT)
        description = _describe(model, cfg, text, cases[0], text_input, written)
        shown = json.dumps(description, indent=1, ensure_ascii=False)
        (made / ABOUT).write_text(shown, encoding="utf-8")
    return written


def _check_arguments(
    folder: Path, formats: Sequence[str], images: Sequence[np.ndarray], repeats: int
) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"expected formats of {', '.join(FORMATS)}, got {unknown or 'none'}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder to write to, but {folder} is a file")
    own = {*FORMATS.values(), ABOUT, TEXT}
    others = {file.name for file in folder.iterdir()} - own if folder.is_dir() else set()
    if others:
        raise ValueError(
            f"expected a new or empty folder, or an earlier export, but {folder} contains "
            f"{min(others)!r}: choose another folder, because all of it is replaced"
        )
    if not images:
        raise ValueError("expected at least one image to trace the detector, got none")
    if repeats < 1:
        raise ValueError(f"expected at least 1 repeat of the time measurements, got {repeats}")
    if "onnx" in formats:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"the onnx format needs a package that is not installed ({error}): "
                "pip install -e '.[export]'"
            ) from None


def _own_text(model: nn.Module, cfg: CfgNode) -> TextEmbeddings:
    predictor, names = model.roi_heads.box_predictor, cfg.MODEL.VILD.TEACHER
    return TextEmbeddings(
        predictor.classifier.text,
        predictor.vocabulary,
        predictor.classifier.temperature,
        f"{names.MODEL} {names.PRETRAINED}".strip(),
        predictor.teacher,
    )


def _export_torchscript(
    model: nn.Module, inputs: Tensors, file: Path
) -> Callable[[Tensors], Tensors]:
    """Write the file and return a function that runs it."""
    adapter = _traceable(ExportableDetector(model), inputs)
    with torch.no_grad(), warnings.catch_warnings():
        # about values fixed in the trace and about torch's plans; the results are compared anyway
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        contents = io.BytesIO()  # in memory first: torch aborts the process on a full disk
        torch.jit.save(traced, contents)
        file.write_bytes(contents.getbuffer())
        loaded = torch.jit.load(str(file))

    def run(inputs: Tensors) -> Tensors:
        with torch.no_grad():
            return loaded(*inputs)

    return run


def _export_onnx(model: nn.Module, inputs: Tensors, file: Path) -> Callable[[Tensors], Tensors]:
    """Write the file and return a function that runs it."""
    import onnxruntime

    adapter = _traceable(ExportableDetector(model, for_onnx=True), inputs)
    input_names = ["image", "text", "novel"][: len(inputs)]
    output_names = ["boxes", "scores", "classes", "masks"][: 3 + model.roi_heads.mask_on]
    axes = {name: {0: "detections"} for name in output_names}
    axes |= {name: {0: "classes"} for name in input_names[1:]}
    axes["image"] = {1: "height", 2: "width"}
    # torch's dynamo exporter fails on Detectron2's image padding, whose size is given by a tensor;
    # torch 2.4 does not have the option
    has_other = "dynamo" in inspect.signature(torch.onnx.export).parameters
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        torch.onnx.export(
            adapter,
            adapter.flattened_inputs,
            str(file),
            input_names=input_names,
            output_names=output_names,
            dynamic_axes=axes,
            opset_version=OPSET,
            **({"dynamo": False} if has_other else {}),
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    def run(inputs: Tensors) -> Tensors:
        feed = {name: value.numpy() for name, value in zip(input_names, inputs, strict=True)}
        return tuple(torch.from_numpy(value) for value in session.run(output_names, feed))

    return run


_EXPORTERS = {"torchscript": _export_torchscript, "onnx": _export_onnx}


def _traceable(detector: ExportableDetector, inputs: Tensors) -> nn.Module:
    try:
        from detectron2.export import TracingAdapter
    except ImportError as error:
        raise ValueError(
            f"this Detectron2 cannot export ({error}): v0.6 needs a torch with caffe2. "
            "Install Detectron2 with tools/install_detectron2.py or from upstream's main branch"
        ) from None
    # eval() on the outermost module, whose mode torch.onnx.export applies to all modules
    return TracingAdapter(detector, inputs).eval()


def _median_seconds(functions: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median time of each function, run alternately."""
    times: list[list[float]] = [[] for _ in functions]
    for turn in range(repeats + 2):
        for function, own in zip(functions, times, strict=True):
            start = time.perf_counter()
            function()
            if turn >= 2:  # TorchScript profiles the first runs, then optimises
                own.append(time.perf_counter() - start)
    return [statistics.median(own) for own in times]


def _describe(
    model: nn.Module,
    cfg: CfgNode,
    text: TextEmbeddings,
    example: Case,
    text_input: bool,
    written: Sequence[Exported],
) -> dict[str, Any]:
    """Return the contents of ``model.json``: provenance, inputs and outputs of the files."""
    names = ("image", "text", "novel"), ("boxes", "scores", "classes", "masks")
    shapes = {
        "image": "3 x H x W, values 0 to 255",
        "text": f"K x {text.dimension}, rows of norm 1",
        "novel": "K, which classes are novel",
        "boxes": "M x 4, (x1, y1, x2, y2) in pixels of the image",
        "scores": "M, best first",
        "classes": "M, rows of text" if text_input else "M, rows of vocabulary",
        "masks": "M x 1 x 28 x 28, values 0 to 1, each spread over its box",
    }
    inputs, outputs = (
        [
            {"name": name, "shape": shapes[name], "type": str(value.dtype).removeprefix("torch.")}
            for name, value in zip(named, values, strict=False)
        ]
        for named, values in zip(names, (example.inputs, example.expected), strict=True)
    )
    vocabulary = text.vocabulary
    return {
        "format": "vild-export-1",
        "variant": model.roi_heads.variant.name,
        "weights": {"file": cfg.MODEL.WEIGHTS, "sha256": _sha256(cfg.MODEL.WEIGHTS)},
        "config": cfg.dump(),
        "versions": {
            "vild": vild.__version__,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
        "image": {
            "channels": cfg.INPUT.FORMAT,
            "short_side": cfg.INPUT.MIN_SIZE_TEST,
            "long_side": cfg.INPUT.MAX_SIZE_TEST,
        },
        "inputs": inputs,
        "outputs": outputs,
        "text": {
            "is": "an input" if text_input else "part of the files",
            "teacher": text.teacher,
            "fingerprint": text.fingerprint,
            "temperature": text.temperature,
        },
        "vocabulary": [
            {"name": name, "novel": novel}
            for name, novel in zip(vocabulary.names, vocabulary.novel, strict=True)
        ],
        "checks": {item.file.name: [asdict(check) for check in item.checks] for item in written},
    }


def _sha256(file: str) -> str:
    digest = hashlib.sha256()
    with PathManager.open(file, "rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()
