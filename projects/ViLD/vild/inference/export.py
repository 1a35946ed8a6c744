"""A trained detector as TorchScript or ONNX, compared with the detector itself before it is kept.

Shapes: H x W the picture in pixels, K classes, D embedding, M detections.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.utils.file_io import PathManager
from torch import Tensor, nn

import vild
from vild.data import Vocabulary
from vild.data.files import atomic_path
from vild.embeddings import TextEmbeddings
from vild.modeling import ExportableDetector

FORMATS = {"torchscript": "model.ts", "onnx": "model.onnx"}
ABOUT, TEXT = "model.json", "text.safetensors"
TOLERANCE = 1e-4  # of scores and masks; of boxes relative to the coordinate, or in pixels below 1
OPSET = 17  # RoIAlign as Detectron2 has it came with 16

Tensors = tuple[Tensor, ...]


@dataclass(frozen=True)
class Check:
    """How an exported file and the detector agree on one picture.

    Attributes:
        case: which picture, and which vocabulary where it is not the detector's own.
        detections: M.
        boxes: largest difference of a coordinate, in pixels.
        scores: largest difference of a score.
        masks: largest difference of a mask's value in [0, 1]; 0 without masks.
    """

    case: str
    detections: int
    boxes: float
    scores: float
    masks: float


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        file: the model.
        megabytes: its size, of 10^6 bytes.
        picture: height and width of the first picture, as it went in.
        seconds: median time for it.
        eager_seconds: the detector's own.
        checks: one a picture and vocabulary.
    """

    file: Path
    megabytes: float
    picture: tuple[int, int]
    seconds: float
    eager_seconds: float
    checks: tuple[Check, ...]


@dataclass(frozen=True)
class _Case:
    name: str
    inputs: Tensors
    expected: Tensors


def export_detector(
    model: nn.Module,
    cfg: CfgNode,
    folder: str | os.PathLike[str],
    pictures: Sequence[np.ndarray],
    *,
    formats: Sequence[str] = tuple(FORMATS),
    text_input: bool = True,
    repeats: int = 5,
) -> list[Exported]:
    """Write a detector in other formats, all of them or none.

    Each is loaded again and compared with the detector: on ``pictures``, on the first one mirrored
    and smaller, and, where the text embeddings are an input, with other classes.

    Args:
        model: of :class:`OpenVocabularyPredictor`; on the CPU.
        cfg: its configuration; of ``INPUT`` it says how pictures are prepared.
        folder: new or empty; gets the models, ``model.json`` which says what they are, and
            ``text.safetensors`` with the embeddings of the vocabulary.
        pictures: one or more of (H, W, 3) uint8 RGB. The first one is traced.
        formats: of ``FORMATS``.
        text_input: whether text embeddings (and novel flags in ViLD-ensemble) are inputs beside
            the picture; otherwise the vocabulary is part of the file.
        repeats: of the time measurements.

    Raises:
        ValueError: an unknown format, a folder that holds something, a package that is not
            installed, a detector that cannot be exported (:class:`ExportableDetector`) or does not
            run on the CPU, or an exported one that detects something else.
    """
    folder = Path(folder)
    _check_arguments(folder, formats, pictures, repeats)
    example = ExportableDetector(model)
    if model.device.type != "cpu":
        raise ValueError(f"expected a detector on the CPU, got {model.device}")
    text = _own_text(model, cfg)
    cases = _cases(example, cfg, pictures, text if text_input else None)
    first = cases[0].inputs
    eager_seconds = _median_seconds(_eager, (model, first[0]), repeats)
    written = []
    with ExitStack() as stack:
        about = stack.enter_context(atomic_path(folder / ABOUT))
        for name in formats:
            file = stack.enter_context(atomic_path(folder / FORMATS[name]))
            run = _EXPORTERS[name](model, first, file)
            checks = tuple(_compare(name, case, run(case.inputs)) for case in cases)
            seconds = _median_seconds(run, (first,), repeats)
            size = file.stat().st_size / 1e6
            picture = (first[0].shape[1], first[0].shape[2])
            written.append(
                Exported(folder / FORMATS[name], size, picture, seconds, eager_seconds, checks)
            )
        text.save(folder / TEXT)
        description = _describe(model, cfg, text, cases[0], text_input, written)
        about.write_text(json.dumps(description, indent=1, ensure_ascii=False), encoding="utf-8")
    return written


def prepare_picture(cfg: CfgNode, picture: np.ndarray) -> Tensor:
    """The input of an exported detector.

    Args:
        cfg: ``INPUT`` of it.
        picture: (H, W, 3) uint8 RGB.

    Returns:
        (3, H', W') uint8, resized as for the detector itself.
    """
    sizes = (cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MIN_SIZE_TEST)
    pixels = picture if cfg.INPUT.FORMAT == "RGB" else picture[:, :, ::-1]
    pixels = np.ascontiguousarray(pixels)
    resize = T.ResizeShortestEdge(sizes, cfg.INPUT.MAX_SIZE_TEST).get_transform(pixels)
    return torch.from_numpy(np.ascontiguousarray(resize.apply_image(pixels).transpose(2, 0, 1)))


def _check_arguments(
    folder: Path, formats: Sequence[str], pictures: Sequence[np.ndarray], repeats: int
) -> None:
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise ValueError(f"expected formats of {', '.join(FORMATS)}, got {unknown or 'none'}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"expected a folder to write to, but {folder} is a file")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"expected a new or an empty folder, but {folder} holds something: name another one, "
            "so that its files go together"
        )
    if not pictures:
        raise ValueError("expected a picture to trace the detector with, got none")
    if repeats < 1:
        raise ValueError(f"expected 1 or more repeats of the time measurements, got {repeats}")
    if "onnx" in formats:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise ValueError(
                f"the format onnx needs a package that is not installed ({error}): "
                "pip install -e '.[export]'"
            ) from None


def _own_text(model: nn.Module, cfg: CfgNode) -> TextEmbeddings:
    predictor = model.roi_heads.box_predictor
    return TextEmbeddings(
        predictor.classifier.text,
        predictor.vocabulary,
        predictor.classifier.temperature,
        " ".join(cfg.MODEL.VILD.TEACHER).strip(),
        predictor.teacher,
    )


def _cases(
    detector: ExportableDetector,
    cfg: CfgNode,
    pictures: Sequence[np.ndarray],
    text: TextEmbeddings | None,
) -> list[_Case]:
    """Pictures and vocabularies with what the detector finds; the first one is traced."""
    model = detector.model
    images = {f"picture {n}": prepare_picture(cfg, p) for n, p in enumerate(pictures, start=1)}
    first = images["picture 1"]
    height, width = (max(1, round(side * 0.75)) for side in first.shape[1:])
    smaller = nn.functional.interpolate(first[None].float(), (height, width), mode="bilinear")[0]
    images["picture 1, mirrored and smaller"] = smaller.round().byte().flip(2)
    cases = [
        _Case(name, (image, *_vocabulary_inputs(model, text)), _eager(model, image))
        for name, image in images.items()
    ]
    if text is not None:
        try:
            model.roi_heads.set_vocabulary(_other_classes(text))
            inputs = (first, *_vocabulary_inputs(model, text))
            cases.append(_Case("picture 1, other classes", inputs, _eager(model, first)))
        finally:
            model.roi_heads.set_vocabulary(text)
    return cases


def _vocabulary_inputs(model: nn.Module, text: TextEmbeddings | None) -> Tensors:
    """The model's present vocabulary as inputs; none where it is part of the file."""
    if text is None:
        return ()
    predictor = model.roi_heads.box_predictor
    if model.roi_heads.variant == "ensemble":
        return predictor.classifier.text, predictor.novel
    return (predictor.classifier.text,)


def _other_classes(text: TextEmbeddings) -> TextEmbeddings:
    """Every second class, last one first, base where it was novel and the reverse."""
    own = text.vocabulary
    rows = slice(None, None, -2)
    novel = tuple(not flag for flag in own.novel[rows])
    return text.select(Vocabulary(own.names[rows], own.synonyms[rows], novel))


@torch.no_grad()
def _eager(model: nn.Module, image: Tensor) -> Tensors:
    """Detectron2's own inference on (3, H, W), as the exported detector orders its outputs."""
    try:
        (found,) = model.inference([{"image": image}], do_postprocess=False)
    except NotImplementedError as error:
        raise ValueError(
            f"expected a detector that runs on the CPU, where it is exported: {error}"
        ) from None
    masks = (found.pred_masks,) if found.has("pred_masks") else ()
    return (found.pred_boxes.tensor, found.scores, found.pred_classes, *masks)


def _export_torchscript(
    model: nn.Module, inputs: Tensors, file: Path
) -> Callable[[Tensors], Tensors]:
    """Write the file; returns what runs it."""
    adapter = _traceable(ExportableDetector(model), inputs)
    with torch.no_grad(), warnings.catch_warnings():
        # of what is fixed in the trace, and of torch's plans; the results are compared
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        traced.save(str(file))
        loaded = torch.jit.load(str(file))

    def run(inputs: Tensors) -> Tensors:
        with torch.no_grad():
            return loaded(*inputs)

    return run


def _export_onnx(model: nn.Module, inputs: Tensors, file: Path) -> Callable[[Tensors], Tensors]:
    """Write the file; returns what runs it."""
    import onnxruntime

    adapter = _traceable(ExportableDetector(model, for_onnx=True), inputs)
    input_names = ["image", "text", "novel"][: len(inputs)]
    output_names = ["boxes", "scores", "classes", "masks"][: 3 + model.roi_heads.mask_on]
    axes = {name: {0: "detections"} for name in output_names}
    axes |= {name: {0: "classes"} for name in input_names[1:]}
    axes["image"] = {1: "height", 2: "width"}
    # torch's other exporter (dynamo) cannot follow Detectron2, which pads a picture by a tensor and
    # then asks for its size; torch 2.4 has no such option
    has_other = "dynamo" in inspect.signature(torch.onnx.export).parameters
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        torch.onnx.export(
            *(adapter, adapter.flattened_inputs, str(file)),
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
            f"this Detectron2 cannot export ({error}): its v0.6 wants a torch with caffe2. "
            "Take one of tools/install_detectron2.py or from upstream's main branch"
        ) from None
    # as a whole: torch.onnx.export leaves modules in the mode that the outermost is in
    return TracingAdapter(detector, inputs).eval()


def _compare(format_name: str, case: _Case, found: Tensors) -> Check:
    """Pair the detections: those of nearly equal scores may come in another order.

    Raises:
        ValueError: a detection that only one of the two has, or that differs.
    """
    boxes, scores, classes, *masks = case.expected
    count = len(boxes)
    if len(found[0]) == count and not count:
        return Check(case.name, 0, 0.0, 0.0, 0.0)
    difference = torch.full((count, len(found[0])), torch.inf)
    if len(found[0]) == count:
        relative = (boxes[:, None] - found[0]).abs() / boxes[:, None].abs().clamp(min=1)
        difference = torch.maximum(relative.amax(dim=2), (scores[:, None] - found[1]).abs())
        difference[classes[:, None] != found[2]] = torch.inf
        partner = difference.argmin(dim=1)
        pairs = difference.gather(1, partner[:, None])
        if len(partner.unique()) == count and bool((pairs <= TOLERANCE).all()):
            others = [value[partner] for value in found]
            gap = [float((a - b).abs().max()) for a, b in zip(case.expected, others, strict=True)]
            if not masks or gap[3] <= TOLERANCE:
                return Check(case.name, count, gap[0], gap[1], gap[3] if masks else 0.0)
    agree = int((difference <= TOLERANCE).any(dim=1).sum()) if difference.numel() else 0
    raise ValueError(
        f"the {format_name} file finds {len(found[0])} objects in {case.name} and the detector "
        f"{count}, of which {agree} agree to {TOLERANCE}"
        f"{' apart from their masks' if masks else ''}; nothing was written. Where nearly equal "
        "scores or overlaps decide, another sample image may do"
    )


def _median_seconds(
    function: Callable[..., object], arguments: tuple[Any, ...], repeats: int
) -> float:
    times = []
    for turn in range(repeats + 2):
        start = time.perf_counter()
        function(*arguments)
        if turn >= 2:  # TorchScript looks at the first runs and then optimises
            times.append(time.perf_counter() - start)
    return statistics.median(times)


def _describe(
    model: nn.Module,
    cfg: CfgNode,
    text: TextEmbeddings,
    example: _Case,
    text_input: bool,
    written: Sequence[Exported],
) -> dict[str, Any]:
    """``model.json``: what made the files, what goes in and what comes out."""
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
        "variant": model.roi_heads.variant,
        "weights": {"file": cfg.MODEL.WEIGHTS, "sha256": _sha256(cfg.MODEL.WEIGHTS)},
        "config": cfg.dump(),
        "versions": {
            "vild": vild.__version__,
            "torch": str(torch.__version__),
            "torchvision": str(torchvision.__version__),
        },
        "picture": {
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
