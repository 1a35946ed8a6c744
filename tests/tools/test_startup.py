"""Help and mistakes are shown before torch and Detectron2 are imported, which takes seconds."""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog
from detectron2.engine import default_argument_parser
from detectron2.modeling import META_ARCH_REGISTRY

import benchmark_shapes
import export_model
import extract_image_embeddings
import extract_proposals
import extract_text_embeddings
import make_shapes
import summarize
import train_shapes_teacher
import vild
import web_demo
from experiments import teacher_training
from experiments.methods import METHODS
from vild import precision
from vild.data.shapes import dataset
from vild.embeddings import crops, teacher
from vild.embeddings import store as embeddings
from vild.embeddings.text import CLIP_TEMPERATURE
from vild.evaluation import ground_truth
from vild.export import exporting
from vild.inference.predictor import OpenVocabularyPredictor
from vild.proposals import extraction
from vild.proposals import store as proposals
from vild.reporting import runs
from vild.web.detector import Limits
from vild_cli import arguments, training

ROOT = Path(__file__).parents[2]
TOOLS = [
    *(f"tools/{p.name}" for p in sorted((ROOT / "tools").glob("*.py"))),
    "projects/ViLD/train_net.py",
]
# Runs command lines of the tools one after the other, and refuses to import what takes long.
PROGRAM = """
import contextlib, io, json, runpy, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "detectron2", "vild", "numpy", "cv2", "PIL", "open_clip", "gradio"):
            raise AssertionError(f"{name} is imported")

sys.meta_path.insert(0, Blocker())
sys.path.insert(0, "tools")
said = []
for sys.argv in json.load(sys.stdin):
    out, err, code = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_path(sys.argv[0], run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        except AssertionError as error:
            code = str(error)
    said.append((code, out.getvalue(), err.getvalue()))
json.dump(said, sys.stdout)
"""
MISTAKES = [
    ("extract_proposals.py --config-file a --split b --topk many", "an integer of at least 1"),
    ("extract_proposals.py --split b", "the following arguments are required: --config-file"),
    ("extract_proposals.py --config-file a --split b --source c", "invalid choice: 'c'"),
    ("extract_image_embeddings.py --split a --proposals b --scales 0", "a number above 0, got '0'"),
    ("extract_text_embeddings.py --vocabulary a --out b --novel ['a']", "without brackets"),
    ("demo.py --config-file a --input b --precision fp8", "invalid choice: 'fp8'"),
    ("demo.py --config-file a --video-input gone.mp4", "expected a video at gone.mp4: no such"),
    ("web_demo.py --config-file a --port web", "an integer of at least 1, got 'web'"),
    ("convert_checkpoint.py a.pth b.pth", "expected the output to end in .safetensors, got b.pth"),
    ("convert_official_checkpoint.py a --out b --text-out c", "expected --out to end in .pth"),
    ("convert_proposals.py --to-detectron2 a", "expected --store with"),
    (
        "result_page.py --dataset a --run b=c --out d --regions e",
        "--weights and --regions together",
    ),
    ("benchmark_shapes.py --seeds 1 1", "each once, got [1, 1]"),
    ("benchmark_shapes.py --only vild_2", "invalid choice: 'vild_2'"),
    ("benchmark_teacher.py --part all", "invalid choice: 'all'"),
    ("fault_campaign.py --parts all", "expected parts among"),
    ("submit_train.py --nodes 0", "an integer of at least 1, got '0'"),
    ("train_coco_mini.py --data gone --text-embeddings b", "expected a file at"),
    ("../projects/ViLD/train_net.py --eval=boxes", "expected bbox, segm or both, got 'boxes'"),
    ("../projects/ViLD/train_net.py --num-gpus many", "invalid int value: 'many'"),
    ("../projects/ViLD/train_net.py --precision bf16", "expected --eval-only with"),
    ("../projects/ViLD/train_net.py --num-machines 2", "expected --dist-url tcp://FIRST_MACHINE"),
]


def run_light(commands: list[list[str]]) -> list[tuple[int | str | None, str, str]]:
    """Run command lines in one process without torch; return exit code, output and errors."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return [tuple(one) for one in json.loads(done.stdout)]


def test_help_of_every_tool_needs_no_torch() -> None:
    for tool, (code, out, _) in zip(TOOLS, run_light([[t, "--help"] for t in TOOLS]), strict=True):
        assert code == 0, f"{tool}: {code}"
        assert out.startswith("usage: "), tool


def test_an_unknown_option_of_every_tool_needs_no_torch() -> None:
    tools = [tool for tool in TOOLS if tool != "tools/submit_train.py"]  # it passes them on
    said = run_light([[tool, "--no-such-option"] for tool in tools])
    for tool, (code, _, err) in zip(tools, said, strict=True):
        assert code == 2, f"{tool}: {code}"
        assert "error: " in err.splitlines()[-1], tool


def test_mistakes_need_no_torch() -> None:
    said = run_light([f"tools/{command}".split() for command, _ in MISTAKES])
    for (command, message), (code, _, err) in zip(MISTAKES, said, strict=True):
        assert code == 2, f"{command}: {code}"
        assert message in err.splitlines()[-1], command


@pytest.mark.parametrize(("options", "code"), [(["--help"], 0), (["--source", "c"], 2)])
def test_a_real_process_answers_at_once(options: list[str], code: int) -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "tools/extract_proposals.py", *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, timeout=60)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == code
    # CPU time: the machine may be busy
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.5


def test_importing_the_package_leaves_out_what_few_commands_need() -> None:
    """Counted in packages instead of seconds, which depend on the machine."""
    program = """
import sys, torch, torchvision, detectron2.modeling
required = set(sys.modules)
import vild
added = set(sys.modules) - required
print(*{name.partition(".")[0] for name in added})
print(*{name.partition(".")[0] for name in sys.modules})
print("vild.inference" in sys.modules)
from vild import *
OpenVocabularyPredictor, Vocabulary, TextEmbeddings, EmbeddingStore, add_vild_config
import vild.engine, vild.inference
print(*{name.partition(".")[0] for name in sys.modules})
"""
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    added, alone, large, all_of_it = (set(line.split()) for line in done.stdout.splitlines())
    allowed = {"vild", "vild_cli", "msgspec", "safetensors", "filelock"}
    # parts of these that they themselves import when needed
    allowed |= {"torch", "torchvision", "detectron2", "numpy", "PIL", "pycocotools", "cv2"}
    assert added - set(sys.stdlib_module_names) <= allowed
    few = {"matplotlib", "lvis", "open_clip", "timm", "huggingface_hub", "gradio", "onnx"}
    assert not (alone | all_of_it) & {*few, "tensorflow", "pandas", "scipy", "sklearn"}
    assert large == {"False"}


def test_the_public_names_of_the_package() -> None:
    assert set(vild.__all__) <= set(dir(vild))
    for name in vild.__all__:
        assert getattr(vild, name).__name__ == name
    assert vild.OpenVocabularyPredictor is OpenVocabularyPredictor
    with pytest.raises(AttributeError, match="module 'vild' has no attribute 'nope'"):
        vild.nope  # noqa: B018
    assert META_ARCH_REGISTRY.get("ViLDRCNN")
    assert "lvis_v1_train_base" in DatasetCatalog


def test_choices_and_defaults_are_those_of_the_package() -> None:
    """The tools repeat them, since their parsers import nothing of the package."""
    parser = extract_proposals.build_parser()
    assert choices(parser, "source") == extraction.SOURCES
    assert parser.get_default("images_per_shard") == proposals.IMAGES_PER_SHARD
    parser = extract_image_embeddings.build_parser()
    assert choices(parser, "crop_mode") == crops.CROP_MODES
    assert choices(parser, "dtype") == embeddings.DTYPES
    assert choices(parser, "precision") == ("auto", *sorted(precision.PRECISIONS))
    assert parser.get_default("images_per_shard") == embeddings.IMAGES_PER_SHARD
    text = extract_text_embeddings.build_parser()
    for one in (parser, text):
        assert one.get_default("model") == teacher.OPENAI_MODEL
        assert one.get_default("pretrained") == teacher.OPENAI_TAG
        assert f"or {teacher.SHAPES_MODEL}" in one.format_help()
    assert text.get_default("temperature") == CLIP_TEMPERATURE
    assert choices(export_model.build_parser(), "format") == tuple(exporting.FORMATS)
    assert choices(summarize.build_parser(), "task") == runs.TASKS
    assert choices(benchmark_shapes.build_parser(), "only") == tuple(METHODS)
    parser = make_shapes.build_parser()
    assert parser.get_default("train_images") == dataset.TRAIN_IMAGES
    assert parser.get_default("val_images") == dataset.VAL_IMAGES
    parser = train_shapes_teacher.build_parser()
    assert parser.get_default("iterations") == teacher_training.ITERATIONS
    assert parser.get_default("scenes") == teacher_training.SCENES
    parser = web_demo.build_parser()
    assert parser.get_default("max_upload_mb") == Limits().upload_mb
    assert parser.get_default("max_megapixels") == Limits().megapixels
    assert parser.get_default("max_words") == Limits().words
    assert training.TASKS == ground_truth.TASKS
    assert (precision.AUTO, *precision.PRECISIONS) == arguments.PRECISIONS


def choices(parser: argparse.ArgumentParser, name: str) -> tuple[str, ...]:
    (found,) = (action.choices for action in parser._actions if action.dest == name)
    return tuple(found or ())


def test_the_trainer_has_detectron2_s_arguments() -> None:
    assert training.detectron2_parser().format_help() == default_argument_parser().format_help()
    ours, theirs = (
        [(a.option_strings, a.dest, a.default, a.type, a.nargs, a.help) for a in parser._actions]
        for parser in (training.detectron2_parser(), default_argument_parser())
    )
    assert ours == theirs


def test_lvis_metrics_are_found_in_their_package() -> None:
    evaluation = importlib.import_module("vild.evaluation")
    assert evaluation.evaluate_lvis.__module__ == "vild.evaluation.lvis_metrics"
    with pytest.raises(AttributeError, match="no attribute 'evaluate_nothing'"):
        evaluation.evaluate_nothing  # noqa: B018
