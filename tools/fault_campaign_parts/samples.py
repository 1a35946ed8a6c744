"""Intact files of each kind, to be damaged."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from fault_campaign_parts.bench import ROOT, TRAIN, VAL, Bench, run_script
from fault_campaign_parts.commands import (
    fill_word_cache,
    run_stages,
)
from vild.embeddings.teacher import SHAPES_FOLDER

CONVERT = "tools/convert_checkpoint.py"


def copy(source: Path, folder: Path) -> None:
    """Copy a file into a folder, or the content of a folder."""
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        shutil.copy2(source, folder)


def unfinished(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of a store without its last shard and manifest."""

    def make(folder: Path) -> None:
        shutil.copytree(bench.converted / TRAIN, folder / TRAIN)
        for name in ("manifest.json", ".checked.json", "shard_00003.safetensors"):
            (folder / TRAIN / name).unlink(missing_ok=True)

    return make


def plain_weights(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of the detector's weights as plain safetensors."""

    def make(folder: Path) -> None:
        weights = torch.load(bench.detector, weights_only=False)["model"]
        save_file({n: t.contiguous() for n, t in weights.items()}, folder / "model.safetensors")

    return make


def converted_weights(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of the detector's weights by tools/convert_checkpoint.py."""
    return lambda folder: run_script(CONVERT, bench.detector, folder / "model.safetensors")


def begun(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of a training to resume."""

    def make(folder: Path) -> None:
        shutil.copy2(bench.detector.with_name("model_0000001.pth"), folder)
        (folder / "last_checkpoint").write_text("model_0000001.pth", encoding="utf-8")

    return make


def cached_words(folder: Path) -> None:
    """Fill a word cache."""
    fill_word_cache(folder)


def teacher_folder(folder: Path) -> None:
    """Write a teacher as a folder."""
    for file in SHAPES_FOLDER.iterdir():
        if file.is_file():
            shutil.copy2(file, folder)


def begun_download(bench: Bench, folder: Path) -> None:
    """Write the first half of an archive."""
    (folder / "data").mkdir()
    content = (bench.folder / "archives/zips/images.zip").read_bytes()
    (folder / "data/images.zip.part").write_bytes(content[: len(content) // 2])


def whole_download(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of an archive that is not unpacked yet."""

    def make(folder: Path) -> None:
        (folder / "data").mkdir()
        shutil.copy2(bench.folder / "archives/zips/images.zip", folder / "data")

    return make


def dataset(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of the dataset."""
    return lambda folder: copy(bench.shapes, folder / "shapes")


def finished_stages(folder: Path) -> None:
    """Write the records of a finished experiment."""
    run_stages(folder)


def annotations(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of a custom dataset."""

    def make(folder: Path) -> None:
        shutil.copy2(bench.shapes / "annotations/val.json", folder / "val.json")
        images = json.dumps(str(bench.shapes / "val"))
        text = f"name: mine\nval:\n  json: val.json\n  images: {images}\nnovel: []\n"
        (folder / "mine.yaml").write_text(text, encoding="utf-8")

    return make


def copied_metrics(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of the metrics of an evaluation."""
    return lambda folder: copy(bench.results.with_name(f"{VAL}_metrics.json"), folder)


def jpeg(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of a JPEG."""
    return lambda folder: Image.open(bench.image).convert("RGB").save(folder / "image.jpg")


def configuration(folder: Path) -> None:
    """Write a configuration."""
    shutil.copy2(ROOT / "configs/Base-ViLD-R50-FPN.yaml", folder)


def proposals_file(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of proposals in Detectron2's format."""
    return lambda folder: copy(bench.folder / "proposals.pkl", folder)


def word_list(ending: str) -> Callable[[Path], None]:
    """Return a writer of a word list."""
    words = [f"class {number}" for number in range(20)]
    entries = [{"name": word, "synonyms": [word, f"a {word}"]} for word in words]
    text = json.dumps(entries) if ending == "json" else "\n".join(["name", *words])
    return lambda folder: (folder / f"words.{ending}").write_text(text, encoding="utf-8") and None


def matrix(folder: Path) -> None:
    """Write an embedding matrix."""
    np.save(folder / "clip.npy", np.random.default_rng(0).normal(size=(60, 64)).astype(np.float32))
