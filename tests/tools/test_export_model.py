"""The command line of the export, and the documented way to run the exported files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

import export_model
from vild.config import read_config
from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings, build_teacher, embed_vocabulary
from vild.inference import OpenVocabularyPredictor

from .. import small_shapes

CONFIG = small_shapes.CONFIGS / "shapes" / "vild_ensemble.yaml"
DOCUMENT = Path(__file__).parents[2] / "docs" / "EXPORT.md"
WORDS = "striped red star, plain blue heart"
FEW = ("MODEL.RPN.POST_NMS_TOPK_TEST", "10", "TEST.DETECTIONS_PER_IMAGE", "10")
Run = Callable[..., int]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make images, text embeddings and a checkpoint of random weights."""
    folder = tmp_path_factory.mktemp("export")
    small_shapes.make(folder, 2)
    torch.manual_seed(0)
    cfg = small_shapes.config(folder, "ensemble")
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model")
    return folder


@pytest.fixture
def opts(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("VILD_CACHE", str(tmp_path / "cache"))
    text = ("MODEL.VILD.TEXT_EMBEDDINGS", str(folder / "text.safetensors"))
    return ["MODEL.WEIGHTS", str(folder / "model.pth"), *text, *FEW]


def sample(folder: Path, number: int = 1) -> Path:
    return folder / "shapes" / "train" / f"{number:06d}.png"


@pytest.mark.slow
def test_the_documented_way_to_run_a_file(
    run: Run, folder: Path, tmp_path: Path, opts: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without this project, it prints the predictor's detections, also for other words."""
    pytest.importorskip("onnxruntime")
    common = ("--config-file", CONFIG, "--output", tmp_path / "exported", "--repeats", 1)
    images = ("--sample-image", sample(folder), sample(folder, 2))
    words = ("--vocabulary", WORDS, "--novel", "plain blue heart")
    assert run(export_model, *common, *images, *words, "--opts", *opts) == 0
    printed = capsys.readouterr().out
    assert re.search(
        r"model\.ts: [\d.]+ MB; 160 x 160 pixels in [\d.]+ s, the original detector", printed
    )
    assert printed.count("differences up to") == 8
    about = json.loads((tmp_path / "exported" / "model.json").read_text(encoding="utf-8"))
    assert [item["novel"] for item in about["vocabulary"]] == [False, True]

    shutil.copy(sample(folder, 2), tmp_path / "street.png")
    predictor = OpenVocabularyPredictor(
        read_config(CONFIG, opts), WORDS, novel=["plain blue heart"], cache=tmp_path / "cache"
    )
    text, document = tmp_path / "exported" / "text.safetensors", DOCUMENT.read_text("utf-8")
    inputs, *runs = re.findall(r"```python\n(.*?)```", document, flags=re.DOTALL)
    assert len(runs) == 2
    script = f"import sys\n{inputs}\n{runs[0]}print('ONNX')\n{runs[1]}"
    script += "assert not {'vild', 'detectron2'} & set(sys.modules)\n"
    for classes in (Vocabulary.from_names(["a", "b"]), None):
        if classes is not None:  # other embeddings under the names in the file
            other = embed_vocabulary(build_teacher("vild-shapes", device="cpu"), classes)
            own = TextEmbeddings.load(text)
            TextEmbeddings(
                other.embeddings, own.vocabulary, own.temperature, own.teacher, own.fingerprint
            ).save(text)
        predictor.set_vocabulary(TextEmbeddings.load(text))
        found = predictor(cv2.imread(str(tmp_path / "street.png")))["instances"]
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        for lines in done.stdout.split("ONNX\n"):
            lines = lines.splitlines()
            scores = [float(re.search(r" ([\d.]+) at", line).group(1)) for line in lines]
            assert np.allclose(scores, found.scores, atol=1e-3)
            boxes = [json.loads(line.split(" at ")[1]) for line in lines]
            assert np.allclose(boxes, found.pred_boxes.tensor, atol=0.11)
            names = predictor.vocabulary.names
            seen = [line.rsplit(" at ")[0].rsplit(" ", 1)[0] for line in lines]
            assert seen == [names[row] for row in found.pred_classes]


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (("--format", "tflite"), (), "invalid choice: 'tflite'"),
        (("--output", "{folder}/model.pth"), (), "model.pth is a file"),
        (("--output", "{folder}"), (), "a new or empty folder"),
        (("--sample-image", "gone.png"), (), "gone.png"),
        (("--novel", "owl"), (), "expected --vocabulary with --novel"),
        (("--repeats", "0"), (), "expected an integer of at least 1, got '0'"),
        (("--vocabulary", "owls.txt"), (), "expected a vocabulary at owls.txt: no such file"),
        (("--vocabulary", "owl, owl"), (), "expected every class once"),
        ((), ("MODEL.WEIGHTS", ""), "expected MODEL.WEIGHTS to name the checkpoint"),
        ((), ("MODEL.WEIGHTS", "gone.pth"), "expected a checkpoint at gone.pth"),
        ((), ("MODEL.VILD.VARIANT", "text_clip"), "finds its regions itself"),
        ((), ("MODEL.LOAD_PROPOSALS", "True"), "finds its regions itself"),
        ((), ("MODEL.WHAT", "1"), "expected KEY VALUE pairs"),
    ],
)
def test_impossible_arguments(
    run: Run,
    folder: Path,
    tmp_path: Path,
    opts: list[str],
    arguments: tuple[str, ...],
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    usual = (
        "--config-file",
        CONFIG,
        "--sample-image",
        sample(folder),
        "--output",
        tmp_path / "new",
    )
    given = [argument.format(folder=folder) for argument in arguments]
    assert run(export_model, *usual, *given, "--opts", *opts, *options) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
