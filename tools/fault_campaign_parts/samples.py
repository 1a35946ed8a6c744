"""Intact files of each kind, to be damaged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from fault_campaign_parts.bench import ROOT, TRAIN, Bench, run_script
from vild.embeddings.teacher import SHAPES_FOLDER

CONVERT = "tools/convert_checkpoint.py"


def copy(source: Path, folder: Path) -> None:
    """Copy a file into a folder, or the content of a folder."""
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        shutil.copy2(source, folder)


def unfinished(bench: Bench, folder: Path) -> None:
    """Write a store without its last shard and manifest."""
    shutil.copytree(bench.converted / TRAIN, folder / TRAIN)
    for name in ("manifest.json", ".checked.json", "shard_00003.safetensors"):
        (folder / TRAIN / name).unlink(missing_ok=True)


def plain_weights(bench: Bench, folder: Path) -> None:
    """Write the detector's weights as plain safetensors."""
    weights = torch.load(bench.detector, weights_only=False)["model"]
    save_file({n: t.contiguous() for n, t in weights.items()}, folder / "model.safetensors")


def converted_weights(bench: Bench, folder: Path) -> None:
    """Write the detector's weights by tools/convert_checkpoint.py."""
    run_script(CONVERT, bench.detector, folder / "model.safetensors")


def interrupted_training(bench: Bench, folder: Path) -> None:
    """Write a training to resume."""
    shutil.copy2(bench.detector.with_name("model_0000001.pth"), folder)
    (folder / "last_checkpoint").write_text("model_0000001.pth", encoding="utf-8")


def teacher_folder(folder: Path) -> None:
    """Write a teacher as a folder."""
    for file in SHAPES_FOLDER.iterdir():
        if file.is_file():
            shutil.copy2(file, folder)


def partial_download(bench: Bench, folder: Path) -> None:
    """Write the first half of an archive."""
    (folder / "data").mkdir()
    content = (bench.folder / "archives/zips/images.zip").read_bytes()
    (folder / "data/images.zip.part").write_bytes(content[: len(content) // 2])


def whole_download(bench: Bench, folder: Path) -> None:
    """Write an archive that is not unpacked yet."""
    (folder / "data").mkdir()
    shutil.copy2(bench.folder / "archives/zips/images.zip", folder / "data")


def dataset(bench: Bench, folder: Path) -> None:
    """Write the dataset."""
    copy(bench.shapes, folder / "shapes")


def annotations(bench: Bench, folder: Path) -> None:
    """Write a custom dataset."""
    shutil.copy2(bench.shapes / "annotations/val.json", folder / "val.json")
    images = json.dumps(str(bench.shapes / "val"))
    text = f"name: mine\nval:\n  json: val.json\n  images: {images}\nnovel: []\n"
    (folder / "mine.yaml").write_text(text, encoding="utf-8")


def jpeg(bench: Bench, folder: Path) -> None:
    """Write a JPEG."""
    Image.open(bench.image).convert("RGB").save(folder / "image.jpg")


def configuration(folder: Path) -> None:
    """Write a configuration."""
    shutil.copy2(ROOT / "configs/Base-ViLD-R50-FPN.yaml", folder)


def word_list(suffix: str, folder: Path) -> None:
    """Write a word list."""
    words = [f"class {number}" for number in range(20)]
    entries = [{"name": word, "synonyms": [word, f"a {word}"]} for word in words]
    text = json.dumps(entries) if suffix == "json" else "\n".join(["name", *words])
    (folder / f"words.{suffix}").write_text(text, encoding="utf-8")


def matrix(folder: Path) -> None:
    """Write an embedding matrix."""
    np.save(folder / "clip.npy", np.random.default_rng(0).normal(size=(60, 64)).astype(np.float32))
