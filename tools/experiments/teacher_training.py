"""Train the teacher of ``shapes``: a small open_clip model, on crops with captions.

The teacher knows every composition of shape, colour and pattern, as CLIP knows most words; only the
detector's training labels omit some of them.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import open_clip
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from vild.data import fill
from vild.data.shapes import ALL_COMPOSITIONS, draw_scene
from vild.embeddings import build_teacher
from vild.embeddings.open_clip_teacher import CLIP_MEAN, CLIP_STD
from vild.embeddings.teacher import Teacher
from vild.embeddings.text import template_set
from vild.utils.files import atomic_path

logger = logging.getLogger(__name__)

_SCENES = {"train": 10, "held-out": 11}  # part of every scene's seed; the dataset uses 2 and 3
# Maximum shift of each edge, relative to the box's size: proposals are never exact, and most are
# loose. The amplitude of each crop is drawn between 0 and this, so exact boxes are learned, too.
JITTER = 0.4
ITERATIONS, SCENES = 3000, 8000  # training steps; images to cut crops from
GROWTH = 1.5  # scale of the larger of the two crops that ViLD embeds
MIN_VISIBLE = 0.6
BACKGROUND_IOU = 0.2
BACKGROUND_CAPTIONS = ("nothing", "background", "clutter")


@dataclass(frozen=True, eq=False)
class Crops:
    """Objects and background regions in scenes drawn for the teacher.

    Attributes:
        images: (N, SIZE, SIZE, 3) uint8 RGB.
        image: (R,) image index of each region.
        box: (R, 4) x0, y0, x1, y1 in pixels.
        label: (R,) row in ALL_COMPOSITIONS, or -1 for background.
    """

    images: npt.NDArray[np.uint8]
    image: npt.NDArray[np.int64]
    box: npt.NDArray[np.float64]
    label: npt.NDArray[np.int64]

    def only(self, labels: Sequence[int]) -> Crops:
        """Return the regions with these labels."""
        return self.at(np.nonzero(np.isin(self.label, labels))[0])

    def at(self, regions: npt.NDArray[np.int64]) -> Crops:
        """Return the regions with these indices, in this order."""
        return Crops(self.images, self.image[regions], self.box[regions], self.label[regions])


def draw_crops(split: str, scenes: int, seed: int = 0, progress: bool = False) -> Crops:
    """Draw scenes in which every composition is equally likely.

    Args:
        split: ``train`` or ``held-out``; they share no scene with each other or with the dataset.
        scenes: number of scenes.
        seed: seed of the scenes.
        progress: show a progress bar.
    """
    draw = partial(_draw_one, seed, _SCENES[split])
    images, image, boxes, labels = [], [], [], []
    with ProcessPoolExecutor() as pool:
        drawn = pool.map(draw, range(scenes), chunksize=32)
        for number, (pixels, found) in enumerate(
            tqdm(drawn, total=scenes, unit="scene", desc="scenes", disable=not progress)
        ):
            images.append(pixels)
            for box, label in found:
                image.append(number)
                boxes.append(box)
                labels.append(label)
    return Crops(np.stack(images), np.array(image), np.array(boxes, np.float64), np.array(labels))


def _draw_one(
    seed: int, stream: int, number: int
) -> tuple[npt.NDArray[np.uint8], list[tuple[tuple[float, ...], int]]]:
    rng = np.random.RandomState([seed, stream, number])
    uniform = np.arange(1, len(ALL_COMPOSITIONS) + 1) / len(ALL_COMPOSITIONS)
    image, objects = draw_scene(rng, ALL_COMPOSITIONS, uniform)
    taken = [item.box for item in objects]
    found: list[tuple[tuple[float, ...], int]] = [
        (item.box, item.index) for item in objects if item.visible >= MIN_VISIBLE
    ]
    size = image.shape[0]
    for _ in range(20):  # gives about one background region per image
        side = rng.randint(16, 60, 2)
        x, y = (int(rng.randint(0, size - s + 1)) for s in side)
        box = (x, y, x + int(side[0]), y + int(side[1]))
        if max((_iou(box, other) for other in taken), default=0.0) < BACKGROUND_IOU:
            found.append((box, -1))
            break
    return image, found


def _iou(a: Sequence[float], b: Sequence[float]) -> float:
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    overlap = width * height
    return overlap / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - overlap)


def cut(
    crops: Crops, regions: npt.NDArray[np.int64], size: int, growth: npt.NDArray[np.float64]
) -> Tensor:
    """Cut out regions as inputs of the teacher.

    Args:
        crops: the regions and their images.
        regions: (N,) indices of the regions.
        size: S.
        growth: (N,) factor for the box's width and height; the result is clipped to the image.

    Returns:
        (N, 3, S, S) float32 in [0, 1].
    """
    out = np.empty((len(regions), size, size, 3), np.uint8)
    for row, (region, factor) in enumerate(zip(regions, growth, strict=True)):
        image = Image.fromarray(crops.images[crops.image[region]])
        x0, y0, x1, y1 = crops.box[region]
        dx, dy = (x1 - x0) * (factor - 1) / 2, (y1 - y0) * (factor - 1) / 2
        box = (
            *(max(0.0, x0 - dx), max(0.0, y0 - dy)),
            *(min(float(image.width), x1 + dx), min(float(image.height), y1 + dy)),
        )
        out[row] = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, box=box))
    return torch.from_numpy(out).permute(0, 3, 1, 2).float() / 255


def jitter(
    crops: Crops, amplitude: float | npt.NDArray[np.float64], rng: np.random.RandomState
) -> Crops:
    """Return the same regions with every box edge shifted at random within the image.

    Args:
        crops: the regions.
        amplitude: maximum shift as a fraction of the box's width or height; a scalar, or (R, 1).
        rng: source of the shifts.
    """
    extent = np.tile(crops.box[:, 2:] - crops.box[:, :2], 2)
    box = crops.box + extent * amplitude * (2 * rng.random_sample(crops.box.shape) - 1)
    limit = float(crops.images.shape[1])
    return Crops(crops.images, crops.image, box.clip(0, limit), crops.label)


def train(
    folder: Path,
    iterations: int = ITERATIONS,
    scenes: int = SCENES,
    seed: int = 0,
    progress: bool = True,
) -> Teacher:
    """Train the teacher and write its weights next to ``open_clip_config.json`` in ``folder``.

    Every batch holds one crop of each composition and some of the background, so no two captions in
    it have the same meaning and the plain contrastive loss applies.

    Args:
        folder: has the model's config; receives ``open_clip_model.safetensors`` (fp16).
        iterations: training steps.
        scenes: number of images to cut crops from.
        seed: seed for weights, crops and captions.
        progress: show progress bars.

    Returns:
        the trained teacher, as :func:`vild.embeddings.build_teacher` returns it.

    Raises:
        ValueError: so few scenes that a composition occurs in none of them.
    """
    torch.manual_seed(seed)
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    model = open_clip.CLIP(**config["model_cfg"])
    tokenizer = open_clip.SimpleTokenizer(
        context_length=config["model_cfg"]["text_cfg"]["context_length"]
    )
    size = config["model_cfg"]["vision_cfg"]["image_size"]
    crops = draw_crops("train", scenes, seed, progress)
    regions = [np.nonzero(crops.label == row)[0] for row in range(len(ALL_COMPOSITIONS))]
    background = np.nonzero(crops.label == -1)[0]
    if not len(background) or not all(len(own) for own in regions):
        raise ValueError(
            f"expected scenes that show every composition and some background, got {scenes} scenes "
            "that do not; draw more (about 700 are enough)"
        )
    rng = np.random.RandomState(seed)
    templates = ("{}", *template_set("single"), *template_set("vild"))
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.02}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, iterations, pct_start=0.1)
    mean, std = (torch.tensor(v)[:, None, None] for v in (CLIP_MEAN, CLIP_STD))
    loss_function = open_clip.ClipLoss()
    model.train()
    with tqdm(range(iterations), unit="step", desc="teacher", disable=not progress) as bar:
        for step in bar:
            chosen = np.array([own[rng.randint(len(own))] for own in regions])
            chosen = np.append(chosen, background[rng.randint(len(background))])
            images = (_augmented(crops, chosen, size, rng) - mean) / std
            tokens = tokenizer([_caption(crops.label[r], templates, rng) for r in chosen])
            features = model(images, tokens)
            loss = loss_function(*features[:3])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            with torch.no_grad():
                model.logit_scale.clamp_(0, float(np.log(100)))
            if step % 20 == 0:
                bar.set_postfix(loss=f"{float(loss.detach()):.3f}")
    state = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    with atomic_path(folder / "open_clip_model.safetensors") as temporary:
        save_file({k: v.contiguous() for k, v in state.items()}, temporary)
    logger.info("wrote %s", folder / "open_clip_model.safetensors")
    return build_teacher(f"local-dir:{os.fspath(folder)}", None)


def _augmented(
    crops: Crops, chosen: npt.NDArray[np.int64], size: int, rng: np.random.RandomState
) -> Tensor:
    """Return crops with jittered boxes at 1 or 1.5 times their size."""
    amplitude = JITTER * rng.random_sample((len(chosen), 1))
    moved = jitter(crops.at(chosen), amplitude, rng)
    growth = np.where(rng.random_sample(len(chosen)) < 0.5, 1.0, GROWTH)
    return cut(moved, np.arange(len(chosen)), size, growth)


def _caption(label: int, templates: Sequence[str], rng: np.random.RandomState) -> str:
    if label < 0:
        return BACKGROUND_CAPTIONS[rng.randint(len(BACKGROUND_CAPTIONS))]
    composition = ALL_COMPOSITIONS[label]
    name = composition.name if rng.random_sample() < 0.7 else composition.synonym
    return fill(templates[rng.randint(len(templates))], name)


def embed_crops(teacher: Teacher, crops: Crops) -> Tensor:
    """Embed crops as ViLD embeds regions: the sum at 1 and 1.5 times the box.

    Args:
        teacher: the image encoder.
        crops: R regions.

    Returns:
        (R, D) float32 on the CPU, not normalised.
    """
    rows = [torch.empty(0, teacher.dimension)]
    for part in torch.arange(len(crops.label)).split(256):
        scaled = (
            teacher.encode_image(
                cut(crops, part.numpy(), teacher.image_size, np.full(len(part), growth))
            )
            for growth in (1.0, GROWTH)
        )
        rows.append(sum(scaled, torch.zeros(())).cpu())
    return torch.cat(rows)


def zero_shot_accuracy(
    embeddings: Tensor, crops: Crops, text: Tensor, rows: Sequence[int]
) -> tuple[float, int]:
    """Return the fraction of held-out crops whose nearest text embedding is that of their class.

    Args:
        embeddings: (R, D) of the crops, by :func:`embed_crops`.
        crops: R held-out crops; those of other compositions are ignored.
        text: (K, D) text embeddings.
        rows: row in ALL_COMPOSITIONS of each of the K classes.

    Returns:
        accuracy in [0, 1], and the number of crops.
    """
    class_of = {row: k for k, row in enumerate(rows)}
    truth = torch.tensor([class_of.get(int(label), -1) for label in crops.label])
    hits = (embeddings @ text.T).argmax(dim=1) == truth
    count = int((truth >= 0).sum())
    return int(hits.sum()) / max(1, count), count
