"""The predictor: vocabularies of words, the cache, input images."""

from __future__ import annotations

import gc
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from detectron2.structures import Instances
from detectron2.utils.visualizer import Visualizer
from PIL import Image

from vild.data import Vocabulary
from vild.embeddings import OpenClipTeacher, TextEmbeddings, build_teacher, embed_vocabulary
from vild.embeddings.cache import CachedTextEncoder
from vild.inference.predictor import OpenVocabularyPredictor

from .. import small_shapes
from ..forked import run

WORDS = ["striped red star", "plain blue heart", "dotted green moon"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make three images, text embeddings, and a detector with random weights."""
    made = tmp_path_factory.mktemp("predictor")
    small_shapes.make(made, 3)
    torch.manual_seed(0)
    DetectionCheckpointer(build_model(config(made)), str(made)).save("model")
    return made


def config(folder: Path, **changes: Any) -> CfgNode:
    few = {"TEST__DETECTIONS_PER_IMAGE": 10, "MODEL__RPN__POST_NMS_TOPK_TEST": 10}
    weights = str(folder / "model.pth")
    return small_shapes.config(folder, "ensemble", **{"MODEL__WEIGHTS": weights, **few, **changes})


def images(folder: Path) -> list[np.ndarray]:
    small_shapes.register(folder)
    return [cv2.imread(record["file_name"]) for record in DatasetCatalog.get(small_shapes.SEEN)]


def classes_found(predictor: OpenVocabularyPredictor, image: np.ndarray) -> list[int]:
    return predictor(image)["instances"].pred_classes.tolist()


def scores(predictor: OpenVocabularyPredictor, image: np.ndarray) -> torch.Tensor:
    return predictor(image)["instances"].scores


def same(one: Instances, other: Instances) -> bool:
    pairs = ((one.get(name), other.get(name)) for name in ("scores", "pred_classes"))
    return all(torch.allclose(a, b, atol=1e-5) for a, b in pairs) and torch.allclose(
        one.pred_boxes.tensor, other.pred_boxes.tensor, atol=1e-3
    )


def test_the_configurations_own_classes_as_the_evaluation_sees_them(folder: Path) -> None:
    cfg = config(folder)
    predictor = OpenVocabularyPredictor(cfg, cache=folder / "cache")
    assert predictor.vocabulary == TextEmbeddings.load(folder / "text.safetensors").vocabulary
    first, *others = images(folder)
    found = predictor(first)["instances"]
    assert len(found) == 10
    assert found.image_size == (160, 160)
    assert found.pred_masks.shape == (10, 160, 160)
    model = build_model(cfg).eval()
    DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    tensor = torch.as_tensor(first.transpose(2, 0, 1).copy())
    with torch.no_grad():
        (expected,) = model([{"image": tensor, "height": 160, "width": 160}])
    assert same(found, expected["instances"])
    # several images of different sizes at once give the same results
    wide = cv2.resize(first, (320, 160))
    several = [output["instances"] for output in predictor([first, *others, wide])]
    # only scores: with untrained heads they are so close that rounding changes their order
    assert torch.allclose(several[0].scores, found.scores, atol=1e-4)
    assert several[-1].image_size == (160, 320)
    assert predictor([]) == []


def test_words_and_names_change_together(folder: Path) -> None:
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    (image, *_) = images(folder)
    assert predictor.vocabulary.names == tuple(WORDS)
    assert set(classes_found(predictor, image)) <= {0, 1, 2}
    predictor.set_vocabulary("plain red arrow, dotted red star", novel=["dotted red star"])
    assert predictor.metadata.thing_classes == ["plain red arrow", "dotted red star"]
    assert predictor.vocabulary.novel == (False, True)
    predictor.set_vocabulary(Vocabulary.from_names(["heart"]), novel=[])
    assert predictor.vocabulary.novel == (False,)
    assert set(classes_found(predictor, image)) == {0}
    drawn = Visualizer(image[:, :, ::-1], predictor.metadata).draw_instance_predictions(
        predictor(image)["instances"]
    )
    assert drawn.get_image().shape[2] == 3
    predictor.set_vocabulary(TextEmbeddings.load(folder / "text.safetensors"))
    assert len(predictor.vocabulary) == 60


def test_words_that_the_detector_was_trained_on_are_base_classes(folder: Path) -> None:
    predictor = OpenVocabularyPredictor(config(folder), cache=folder / "cache")
    known = predictor.vocabulary
    base, novel = known.names[known.novel.index(False)], known.names[known.novel.index(True)]
    assert base in predictor.base_classes
    assert novel not in predictor.base_classes
    for words in ([base, novel, "crow"], f"{base}, {novel}, crow"):
        predictor.set_vocabulary(words)
        assert predictor.vocabulary.novel == (False, True, True)
    predictor.set_vocabulary([base, "crow"], novel=[base, "crow"])
    assert predictor.vocabulary.novel == (True, True)
    # any spelling with the same prompts
    for word in (base.capitalize(), base.replace(" ", "_"), f"{base}.", base.upper()):
        for words in ([word, "crow"], f"{word}, crow", Vocabulary.from_names([word, "crow"])):
            predictor.set_vocabulary(words, None if not isinstance(words, Vocabulary) else ["Crow"])
            assert predictor.vocabulary.names == (word, "crow")
            assert predictor.vocabulary.novel == (False, True)


def test_supervision_takes_the_result(folder: Path) -> None:
    supervision = pytest.importorskip("supervision", reason="needs supervision (pip install)")
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    output = predictor(images(folder)[0])
    detections, found = supervision.Detections.from_detectron2(output), output["instances"]
    detections["class_name"] = np.array(predictor.metadata.thing_classes)[detections.class_id]
    assert len(detections) == len(found) == 10
    rows = found.pred_classes.tolist()
    assert detections["class_name"].tolist() == [WORDS[row] for row in rows]
    np.testing.assert_allclose(detections.xyxy, found.pred_boxes.tensor.numpy())
    np.testing.assert_allclose(detections.confidence, found.scores.numpy())


def test_the_script_in_the_readme(folder: Path, tmp_path: Path) -> None:
    root = small_shapes.CONFIGS.parent
    text = (root / "README.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"\n\n((?:    .*\n|\n)*?    predictor = .*\n(?:    .*\n)*)", text)
    lines = [line[4:] for line in script.splitlines() if line.strip()]
    assert len(lines) <= 10
    paths = {
        "configs/": f"{root}/configs/",
        "output/shapes/ensemble/model_final.pth": str(folder / "model.pth"),
        "datasets/shapes/val/000001.png": str(folder / "shapes" / "train" / "000001.png"),
        "scores > 0.3": "scores > 0",
        '"MODEL.WEIGHTS"': f'"MODEL.VILD.TEXT_EMBEDDINGS", "{folder}/text.safetensors", '
        '"TEST.DETECTIONS_PER_IMAGE", "5", "MODEL.WEIGHTS"',
    }
    code = "\n".join(lines)
    for given, here in paths.items():
        assert given in code, given
        code = code.replace(given, here)
    (tmp_path / "script.py").write_text(code, encoding="utf-8")
    exit_code, output = run([tmp_path / "script.py"], tmp_path, VILD_CACHE=str(tmp_path))
    assert exit_code == 0, output
    names = ("striped blue heart 0.", "plain green cross 0.", "striped green star 0.")
    said = [line for line in output.splitlines() if line.startswith(names)]  # libraries log, too
    assert len(said) == 5


def test_the_second_start_with_the_same_words_encodes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = OpenVocabularyPredictor(config(folder), WORDS, cache=tmp_path)
    assert first.encoder.encoded == 3
    text = first.model.roi_heads.box_predictor.classifier.text.clone()

    def fails(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the teacher was loaded")

    with monkeypatch.context() as patch:
        patch.setattr(OpenClipTeacher, "load", fails)
        again = OpenVocabularyPredictor(config(folder), WORDS[::-1], cache=tmp_path)
    assert again.encoder.encoded == 0
    assert torch.equal(again.model.roi_heads.box_predictor.classifier.text, text.flip(0))
    # only new words are embedded
    again.set_vocabulary([*WORDS, "striped red heart"])
    assert again.encoder.encoded == 1


def test_words_of_a_model_without_text_embeddings(folder: Path, tmp_path: Path) -> None:
    without = config(folder, MODEL__VILD__TEXT_EMBEDDINGS="")
    predictor = OpenVocabularyPredictor(without, WORDS, cache=tmp_path)
    assert predictor.vocabulary.names == tuple(WORDS)
    assert all(predictor.vocabulary.novel)
    with pytest.raises(ValueError, match=r"expected words to detect, or MODEL\.VILD\.TEXT"):
        OpenVocabularyPredictor(without, cache=tmp_path)


def test_the_model_is_built_without_a_file(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a configured file, and also if nothing can be written."""
    (image, *_) = images(folder)
    text = CachedTextEncoder("vild-shapes", None, folder=tmp_path).embed(
        Vocabulary.from_names(WORDS)
    )
    text.save(tmp_path / "words.safetensors")
    changes = {"MODEL__VILD__TEXT_EMBEDDINGS": str(tmp_path / "words.safetensors")}
    expected = OpenVocabularyPredictor(config(folder, **changes), cache=tmp_path)(image)

    def fails(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a file was written")

    monkeypatch.setattr(TextEmbeddings, "save", fails)
    for own in ({}, {"MODEL__VILD__TEXT_EMBEDDINGS": ""}):
        found = OpenVocabularyPredictor(config(folder, **own), text, cache=tmp_path)(image)
        assert same(found["instances"], expected["instances"])
    # the next model has the configuration's classes again
    assert len(build_model(config(folder)).roi_heads.vocabulary) == 60


def test_missing_text_embeddings_are_an_error(folder: Path, tmp_path: Path) -> None:
    """Without them, every word would count as novel and get different scores."""
    gone = config(folder, MODEL__VILD__TEXT_EMBEDDINGS=str(tmp_path / "gone.safetensors"))
    for words in (None, WORDS):
        with pytest.raises(ValueError, match=r"expected text embeddings at .*gone\.safetensors"):
            OpenVocabularyPredictor(gone, words, cache=tmp_path)


@pytest.mark.parametrize("batch_size", [0, 1.5, "8", None, float("nan")])
def test_impossible_batch_sizes(folder: Path, batch_size: Any) -> None:
    with pytest.raises(ValueError, match="expected a batch of 1 or more images, got"):
        OpenVocabularyPredictor(config(folder), WORDS, batch_size=batch_size)


@pytest.mark.parametrize("cfg", [get_cfg(), None, "model.yaml", CfgNode()])
def test_configurations_without_vild(cfg: Any) -> None:
    with pytest.raises(ValueError, match=r"expected a configuration (with MODEL\.VILD|\(CfgNode)"):
        OpenVocabularyPredictor(cfg, WORDS)


def test_an_empty_path_is_no_cache(folder: Path) -> None:
    with pytest.raises(ValueError, match="expected a folder as the cache, got an empty path"):
        OpenVocabularyPredictor(config(folder), WORDS, cache="")


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (Image.new("RGB", (0, 10)), "expected an image with pixels, got one of 0 x 10"),
        (np.zeros((0, 10, 3), np.uint8), r"expected images of shape \(H, W, 3\)"),
        ("", "expected the path of an image, got an empty one"),
    ],
)
def test_images_without_extent(folder: Path, image: Any, message: str) -> None:
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    with pytest.raises(ValueError, match=message):
        predictor(image)


@pytest.mark.parametrize("size", [(1, 50_000), (50_000, 1)])
def test_images_as_thin_as_they_come(folder: Path, size: tuple[int, int]) -> None:
    """The short side of such images would round to 0 pixels when resized."""
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    assert predictor(np.zeros((*size, 3), np.uint8))["instances"].image_size == size


def test_half_precision_finds_nearly_the_same(folder: Path) -> None:
    image = images(folder)[0]
    full = OpenVocabularyPredictor(config(folder), cache=folder / "cache")
    half = OpenVocabularyPredictor(config(folder), precision="bf16", cache=folder / "cache")
    assert torch.allclose(scores(half, image).float(), scores(full, image), atol=0.05)
    with pytest.raises(ValueError, match=r"^expected a precision of auto, fp32, .*, got 'fp8'$"):
        OpenVocabularyPredictor(config(folder), precision="fp8")


def test_the_precision_of_the_machine(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is used only on request; by default detections do not depend on the machine."""
    monkeypatch.setattr("vild.precision._cpu_computes_in_bf16", lambda: True)
    for options, expected in (({}, "fp32"), ({"precision": "auto"}, "bf16")):
        predictor = OpenVocabularyPredictor(config(folder), cache=folder / "cache", **options)
        assert predictor.precision == expected


@pytest.mark.parametrize(
    ("words", "novel", "message"),
    [
        ([], None, "an empty vocabulary"),
        (["crow", "crow"], None, "expected every class once"),
        (["crow"], ["owl"], "'owl' is not in the vocabulary"),
        (["crow", "  "], None, "expected words for every class"),
        (["Crow", "crow"], None, "have the same prompts"),
        ("crows.txt", None, "expected a vocabulary at crows.txt: no such file"),
        ("lvis_v1_vall", None, "Did you mean lvis_v1_val"),
        (3, None, "expected a list of class names, got 3"),
        ([None], None, "expected a list of class names as text, got None in it"),
    ],
)
def test_impossible_words_change_nothing(
    folder: Path, words: list[str] | str, novel: list[str] | None, message: str
) -> None:
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    with pytest.raises(ValueError, match=message):
        predictor.set_vocabulary(words, novel)
    assert predictor.vocabulary.names == tuple(WORDS)


def test_more_words_than_imagenet_has(folder: Path) -> None:
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    names = [f"thing {row}" for row in range(22_047)]
    rows = torch.nn.functional.normalize(torch.randn(len(names), 64), dim=1)
    predictor.set_vocabulary(TextEmbeddings(rows, Vocabulary.from_names(names), 0.02, "fake"))
    (image, *_) = images(folder)
    first = classes_found(predictor, image)[0]
    # its embedding becomes the last row
    rows = rows.roll(len(names) - 1 - first, dims=0)
    predictor.set_vocabulary(TextEmbeddings(rows, Vocabulary.from_names(names), 0.02, "fake"))
    assert classes_found(predictor, image)[0] == len(names) - 1


def test_words_may_be_a_file(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "words.txt"
    file.write_text("\n".join(WORDS), encoding="utf-8")
    for words in (file, str(file)):
        predictor = OpenVocabularyPredictor(config(folder), words, cache=folder / "cache")
        assert predictor.vocabulary.names == tuple(WORDS)
    predictor.set_vocabulary(["words.txt", "lvis_v1_val"])  # items of a list are always words
    assert predictor.vocabulary.names == ("words.txt", "lvis_v1_val")


def test_prompts_of_ones_own_work_in_any_folder(folder: Path, tmp_path: Path) -> None:
    template, text = tmp_path / "templates.txt", tmp_path / "text.safetensors"
    template.write_text("a drawing of {}\n", encoding="utf-8")
    teacher = build_teacher("vild-shapes", device="cpu")
    embed_vocabulary(teacher, Vocabulary.from_names(WORDS), str(template)).save(text)
    template.unlink()
    cfg = config(folder, MODEL__VILD__TEXT_EMBEDDINGS=str(text))
    predictor = OpenVocabularyPredictor(cfg, ["crow"], cache=tmp_path / "cache")
    expected = embed_vocabulary(teacher, Vocabulary.from_names(["crow"]), "a drawing of {}")
    made = predictor.encoder.embed(Vocabulary.from_names(["crow"]))
    torch.testing.assert_close(made.embeddings, expected.embeddings)


def test_images_may_be_files_and_of_pillow(folder: Path, tmp_path: Path) -> None:
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    array = images(folder)[0]
    expected = predictor(array)["instances"]
    file = Path(DatasetCatalog.get(small_shapes.SEEN)[0]["file_name"])
    image = Image.open(file)
    for given in (image, file, str(file), image.convert("RGBA")):
        output = predictor(given)
        assert list(output) == ["instances"]
        assert isinstance(output["instances"], Instances)
        assert same(output["instances"], expected)
    for several in ([array, image, file, str(file)], (array for _ in range(4))):
        results = predictor(several)
        assert isinstance(results, list)
        assert len(results) == 4
        assert all(
            torch.allclose(result["instances"].scores, expected.scores, atol=1e-4)
            for result in results
        )
    # rotated, with an EXIF orientation
    turned = Image.fromarray(array[:, :, ::-1]).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[274] = 6  # rotate by 270 degrees
    turned.save(tmp_path / "turned.png", exif=exif)
    for given in (tmp_path / "turned.png", Image.open(tmp_path / "turned.png")):
        assert same(predictor(given)["instances"], expected)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8), np.uint8), r"expected images of shape \(H, W, 3\)"),
        (np.zeros((8, 8, 4), np.uint8), r"got \(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), r"got \(0, 8, 3\)"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"got \(2, 8, 8, 3\)"),
        (np.zeros((8, 8, 3), np.float32), "got float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), "got torch.uint8"),
        (None, r"got None, which is what cv2\.imread returns"),
        (3, "got int"),
        (b"abc", "got (bytes|int)"),
        ("gone.jpg", r"gone\.jpg: there is no such file"),
        (Path("gone.jpg"), r"gone\.jpg: there is no such file"),
        (Image.new("F", (8, 8)), "its values are floats"),
    ],
)
def test_impossible_images(folder: Path, image: Any, message: str) -> None:
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    for given in (image, [image], iter([image])):
        with pytest.raises(ValueError, match=message):
            predictor(given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"MODEL__WEIGHTS": ""}, "MODEL.WEIGHTS to name the checkpoint"),
        ({"MODEL__WEIGHTS": "/nowhere.pth"}, "expected a checkpoint at /nowhere.pth"),
        ({"MODEL__VILD__VARIANT": "clip"}, "finds its regions itself, got the variant 'clip'"),
        ({"MODEL__VILD__TEACHER__MODEL": "no-such-model"}, "expected an open_clip model"),
    ],
)
def test_impossible_configurations(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        OpenVocabularyPredictor(config(folder, **changes), WORDS, cache=tmp_path)


@pytest.mark.slow
def test_memory_returns_after_large_vocabularies(folder: Path) -> None:
    predictor = OpenVocabularyPredictor(config(folder), WORDS, cache=folder / "cache")
    image = images(folder)[0]
    sizes = []
    for _ in range(20):
        for count in (1203, 20, 13_000):
            predictor.set_vocabulary([f"thing {n}" for n in range(count)])
            assert len(predictor.vocabulary) == count
            assert max(classes_found(predictor, image)) < count
        gc.collect()
        sizes.append(resident())
    assert max(sizes[5:]) <= 1.05 * sizes[4]


def resident() -> int:
    """Return the resident memory of this process in pages."""
    return int(Path("/proc/self/statm").read_text().split()[1])
