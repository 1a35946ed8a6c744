"""Measurements of tools/benchmark_detector.py."""

from __future__ import annotations

import argparse
import copy
import itertools
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import torch
from detectron2.modeling import build_model
from detectron2.modeling.roi_heads.fast_rcnn import fast_rcnn_inference_single_image
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.timing import alternate, choose_device, synchronise
from vild.config import read_config
from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings
from vild.engine import reuse_freed_memory
from vild.modeling import select_detections
from vild.precision import autocast

ROOT = Path(__file__).parents[2]
HEIGHT, WIDTH = 800, 1216
DIMENSION, LVIS, MANY = 512, 1203, 20_000
CLASSES = (1, 3, 20, 80, LVIS, MANY)  # of the selection
DISTILLED = 300
LOGIT_STD = 100 / DIMENSION**0.5
STAGES = ("backbone", "proposal_generator", "box_pooler", "box_head", "image_head", "mask_head")


def benchmark(args: argparse.Namespace) -> int:
    """Print the requested measurements and return the exit code."""
    device = choose_device(args.device)
    torch.manual_seed(0)
    if device == "cpu":
        reuse_freed_memory()  # as train_net.py does; for both sides
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {device}")
    for section in args.only:
        globals()[section](args.repeats, torch.device(device))
    return 0


def selection(repeats: int, device: torch.device) -> None:
    """Compare selection with Detectron2's by K, and its growth with K with that of the softmax."""
    boxes = {"scattered": random_boxes(1000, device), "clustered": clustered_boxes(1000, device)}
    for kind, classes, threshold in itertools.product(boxes, CLASSES, (0.0, 0.05)):
        if threshold == 0 and classes > LVIS:
            continue  # Detectron2's routine would suppress among 20 million candidates
        probs = (torch.randn(1000, classes + 1, device=device) * LOGIT_STD).softmax(1)
        limits = ((HEIGHT, WIDTH), threshold, 0.5, 300)
        own = boxes[kind]
        found = alternate(
            1 if classes == LVIS and threshold == 0 else 4 * repeats,
            {
                "detectron2": partial(fast_rcnn_inference_single_image, own, probs, *limits),
                "ours": partial(select_detections, own, probs[:, :-1], *limits),
            },
        )
        print(
            f"selection, 1000 {kind} boxes, K = {classes}, threshold {threshold}: "
            f"{found['ours'] * 1e3:.2f} ms, Detectron2 {found['detectron2'] * 1e3:.2f} ms, "
            f"ratio {found['detectron2'] / found['ours']:.2f}",
            flush=True,
        )
    sizes = (LVIS, 13_204)
    limits = ((HEIGHT, WIDTH), 0.0, 0.5, 300)
    logits = {k: torch.randn(1000, k + 1, device=device) * LOGIT_STD for k in sizes}
    scores = {k: logits[k].softmax(1)[:, :-1] for k in sizes}
    work: dict[str, Callable[[], object]] = {}
    for k in sizes:
        work[f"softmax {k}"] = partial(logits[k].softmax, 1)
        work[f"select {k}"] = partial(select_detections, boxes["scattered"], scores[k], *limits)
    found = alternate(4 * repeats, work)
    growth = {w: found[f"{w} {sizes[1]}"] / found[f"{w} {sizes[0]}"] for w in ("softmax", "select")}
    print(
        f"from K = {sizes[0]} to {sizes[1]}: selection {growth['select']:.1f} times as long "
        f"({found[f'select {sizes[1]}'] * 1e3:.1f} ms), softmax {growth['softmax']:.1f} times "
        f"({found[f'softmax {sizes[1]}'] * 1e3:.1f} ms)"
    )


def training(repeats: int, device: torch.device) -> None:
    """Time a training step of one image (forward, backward, optimizer) in both precisions."""
    work: dict[str, Callable[[], object]] = {}
    batch = [training_image()]
    for variant in ("plain", "text", "vild", "ensemble"):
        model = make_model(variant, LVIS, device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-9)

        def step(
            is_half: bool,
            model: nn.Module = model,
            optimizer: torch.optim.Optimizer = optimizer,
        ) -> None:
            half = torch.autocast(device.type, torch.bfloat16, enabled=is_half)
            with EventStorage(), half:
                losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()

        work[variant] = partial(step, False)
        work[f"{variant} in bf16"] = partial(step, True)
    found = alternate(repeats, work)
    report(f"training step, {HEIGHT} x {WIDTH}, {DISTILLED} distilled rows", found)


def inference(repeats: int, device: torch.device) -> None:
    """Time detection of one image by vocabulary size, and each part of the model."""
    image = [{"image": random_image(), "height": HEIGHT, "width": WIDTH}]
    work, models = {}, {}
    for variant in ("plain", "text", "vild", "ensemble"):
        model = models[variant] = make_model(variant, LVIS, device).eval()
        work[variant] = torch.no_grad()(partial(model, image))
    found = alternate(repeats, work)
    report(f"inference, {HEIGHT} x {WIDTH}, K = {LVIS}", found)
    for variant in ("plain", "vild", "ensemble"):
        with stage_times(models[variant]) as stages, torch.no_grad():
            start = time.perf_counter()
            detections = models[variant](image)[0]["instances"]
            synchronise()
            total = time.perf_counter() - start
        stages["other: logits, selection, pasting of masks"] = total - sum(stages.values())
        shown = ", ".join(f"{name} {100 * t / total:.1f} %" for name, t in stages.items())
        print(f"    {variant}: {len(detections)} detections; {shown}")
    many = text_embeddings(MANY)
    for variant in ("vild", "ensemble"):
        other = make_model(variant, LVIS, device).eval()
        other.roi_heads.set_vocabulary(many)
        sides = {f"K = {LVIS}": models[variant], f"K = {MANY}": other}
        found = alternate(
            repeats,
            {k: torch.no_grad()(partial(model, image)) for k, model in sides.items()},
        )
        report(f"inference of {variant} by K", found)


def precision(repeats: int, device: torch.device) -> None:
    """Time detection of one image in fp32 and bf16, each with and without ``channels_last``."""
    image = [{"image": random_image(), "height": HEIGHT, "width": WIDTH}]
    model = make_model("ensemble", LVIS, device).eval()
    layouts = {"": model, ", channels_last": copy.deepcopy(model)}
    layouts[", channels_last"].to(memory_format=torch.channels_last)
    cpu_seconds = defaultdict(list)

    def detect(name: str, layout: str) -> None:
        start = time.process_time()
        with torch.inference_mode(), autocast(name, device):
            layouts[layout](image)
        cpu_seconds[name + layout].append(time.process_time() - start)

    sides = itertools.product(("fp32", "bf16"), layouts)
    found = alternate(
        repeats, {name + layout: partial(detect, name, layout) for name, layout in sides}
    )
    title = f"inference of ensemble, {HEIGHT} x {WIDTH}, K = {LVIS}"
    report(title, found)
    if device.type == "cpu":  # other programs slow it down less than the wall clock
        report(
            f"{title}, CPU time", {name: statistics.median(cpu_seconds[name][1:]) for name in found}
        )


def make_model(variant: str, classes: int, device: torch.device) -> nn.Module:
    """Build a variant at the official sizes, or Detectron2's Mask R-CNN (``plain``)."""
    cfg = read_config(ROOT / "configs" / "LVIS" / "vild_ensemble_r50_fpn_lsj.yaml")
    cfg.MODEL.DEVICE = str(device)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = classes
    if variant == "plain":
        cfg.MODEL.META_ARCHITECTURE = "GeneralizedRCNN"
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.05
    else:
        cfg.MODEL.VILD.VARIANT = variant
    with tempfile.TemporaryDirectory() as folder:
        cfg.MODEL.VILD.TEXT_EMBEDDINGS = f"{folder}/text.safetensors"
        text_embeddings(classes).save(cfg.MODEL.VILD.TEXT_EMBEDDINGS)
        torch.manual_seed(0)
        model = build_model(cfg)
    if variant == "plain":
        classifier = model.roi_heads.box_predictor.cls_score
        nn.init.normal_(classifier.weight, std=LOGIT_STD / (0.5 * classifier.in_features) ** 0.5)
    return model


def text_embeddings(classes: int) -> TextEmbeddings:
    """Make random text embeddings."""
    rows = functional.normalize(torch.randn(classes, DIMENSION), dim=1)
    names = [f"class {n}" for n in range(classes)]
    return TextEmbeddings(rows, Vocabulary.from_names(names, names[::4]), 0.01, "random")


def random_boxes(number: int, device: torch.device | str = "cpu") -> Tensor:
    """Make boxes (R, 4) in the image, with sides of 16 to 300 pixels."""
    size = torch.rand(number, 2) * 284 + 16
    corner = torch.rand(number, 2) * (torch.tensor([WIDTH, HEIGHT]) - size)
    return torch.cat([corner, corner + size], dim=1).to(device)


def clustered_boxes(number: int, device: torch.device | str = "cpu") -> Tensor:
    """Make boxes (R, 4) around 12 objects, like those of a trained detector."""
    objects = random_boxes(12)[torch.randint(0, 12, (number,))]
    return (objects + torch.randn(number, 4) * 8).to(device)


def random_image() -> Tensor:
    """Make an image (3, H, W) uint8."""
    return torch.randint(0, 256, (3, HEIGHT, WIDTH), dtype=torch.uint8)


def training_image() -> dict[str, object]:
    """Make an image of 20 objects with its distilled regions."""
    objects = Instances((HEIGHT, WIDTH))
    objects.gt_boxes = Boxes(random_boxes(20))
    objects.gt_classes = torch.arange(20) * 4 + 1  # base ones
    objects.gt_masks = BitMasks(torch.rand(20, HEIGHT, WIDTH) > 0.5)
    regions = Instances((HEIGHT, WIDTH))
    regions.proposal_boxes = Boxes(random_boxes(DISTILLED))
    regions.teacher_embeddings = torch.randn(DISTILLED, DIMENSION)
    return {"image": random_image(), "instances": objects, "distill_regions": regions}


def report(title: str, found: dict[str, float]) -> None:
    """Print seconds, and ratios to the first."""
    first = next(iter(found.values()))
    shown = ", ".join(f"{name} {t:.3f} s ({t / first:.3f})" for name, t in found.items())
    print(f"{title}: {shown}", flush=True)


@contextmanager
def stage_times(model: nn.Module) -> Iterator[dict[str, float]]:
    """Measure the seconds in each of ``STAGES`` within the context."""
    found: dict[str, float] = {}
    begun: dict[str, float] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def before(*_: object) -> None:
            synchronise()
            begun[name] = time.perf_counter()

        def after(*_: object) -> None:
            synchronise()
            found[name] = found.get(name, 0.0) + time.perf_counter() - begun[name]

        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after))

    for name in STAGES:
        module = getattr(model, name, None) or getattr(model.roi_heads, name, None)
        if module is not None:
            watch(name, module)
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
