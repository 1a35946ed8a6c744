from __future__ import annotations

import colorsys

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode, Instances

from vild.data import Vocabulary
from vild.reporting import draw_detections, draw_ground_truth, side_by_side
from vild.reporting.drawing import BASE_HUES, NOVEL_HUES, class_colour, decode_segmentation

from .scenes import CROW, OWL, VOCABULARY, found, plain, warmth

BOX = [40.0, 40.0, 100.0, 90.0]


def changed(drawn: np.ndarray, background: int = 128) -> np.ndarray:
    """Return a mask of the drawn pixels."""
    return (np.abs(drawn.astype(int) - background) > 3).any(axis=2)


def test_a_detection_changes_pixels_where_it_is_and_nowhere_else() -> None:
    drawn = draw_detections(plain(), found((BOX, 0.9, CROW)), VOCABULARY)
    assert drawn.dtype == np.uint8
    assert drawn.shape == (600, 800, 3)  # 160 pixels are enlarged
    there = changed(drawn)
    assert there[200:450, 196:206].any(axis=1).all()  # the left edge, 5 × 40 from the border
    assert there[450 - 6 : 450 + 6, 200:500].any(axis=0).all()  # the lower edge
    assert not there[:, :190].any()
    assert not there[470:].any()


@pytest.mark.parametrize("score", [0.29, float("nan")])
def test_below_the_threshold_nothing_is_drawn(score: float) -> None:
    drawn = draw_detections(plain(), found((BOX, score, CROW)), VOCABULARY, threshold=0.3)
    assert not changed(drawn).any()


def test_empty_detections_leave_the_image_alone() -> None:
    drawn = draw_detections(plain(), found(), VOCABULARY)
    assert drawn.shape == (600, 800, 3)
    assert not changed(drawn).any()


def test_limit_keeps_the_best() -> None:
    left, right = [5.0, 40.0, 55.0, 90.0], [105.0, 40.0, 155.0, 90.0]
    instances = found((left, 0.5, CROW), (right, 0.9, CROW))
    there = changed(draw_detections(plain(), instances, VOCABULARY, limit=1))
    assert not there[:, :400].any()
    assert there[:, 400:].any()


def test_novel_classes_are_warm_and_base_classes_cool() -> None:
    novel = draw_detections(plain(), found((BOX, 0.9, OWL)), VOCABULARY)
    base = draw_detections(plain(), found((BOX, 0.9, CROW)), VOCABULARY)
    assert warmth(novel) > 2000
    assert warmth(base) < -1000


@pytest.mark.parametrize(("novel", "hues"), [(True, NOVEL_HUES), (False, BASE_HUES)])
def test_every_class_has_a_colour_of_its_family(novel: bool, hues: tuple[float, float]) -> None:
    colours = [class_colour(row, novel) for row in range(1203)]
    for colour in colours:
        hue = colorsys.rgb_to_hls(*colour)[0]
        assert any(hues[0] - 1e-6 <= h <= hues[1] + 1e-6 for h in (hue, hue - 1))
    assert len(set(colours)) > 1100


def test_the_star_is_in_the_label_of_novel_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    texts: list[str] = []
    original = Axes.text

    def text(self: Axes, x: float, y: float, s: str, *args: object, **more: object) -> object:
        texts.append(s)
        return original(self, x, y, s, *args, **more)

    monkeypatch.setattr(Axes, "text", text)
    long = "a very long name of a bird that nobody would ever want to read"
    vocabulary = Vocabulary.from_names(["crow", "owl", long], novel=["owl"])
    instances = found((BOX, 0.456, CROW), (BOX, 0.9, OWL), (BOX, 0.8, 2))
    draw_detections(plain(), instances, vocabulary)
    assert texts[:1] == ["★ owl 0.90"]
    assert texts[1].startswith("a very long name")
    assert texts[1].endswith("… 0.80")
    assert len(texts[1]) <= 40
    assert texts[2] == "crow 0.46"


@pytest.mark.parametrize("name", ["$5 bill$", "r$_{", "$_{$", "kite {red}", "a\\frac"])
def test_signs_of_formulas_are_drawn_as_they_are(name: str) -> None:
    vocabulary = Vocabulary.from_names([name])
    assert changed(draw_detections(plain(), found((BOX, 0.9, 0)), vocabulary)).any()


@pytest.mark.parametrize("hole", [False, True])
def test_masks_tint_their_pixels(hole: bool) -> None:
    mask = torch.zeros(1, 120, 160, dtype=torch.bool)
    mask[0, 50:80, 50:90] = True
    if hole:
        mask[0, 60:70, 60:80] = False
    with_mask = draw_detections(
        plain(), found((BOX, 0.9, CROW), pred_masks=mask), VOCABULARY
    ).astype(int)
    without = draw_detections(plain(), found((BOX, 0.9, CROW)), VOCABULARY)
    differs = np.abs(with_mask - without).sum(axis=2) > 20
    assert differs[255:295, 255:295].mean() > 0.95
    assert differs[310:340, 310:390].any() != hole


def test_an_empty_mask_is_no_error() -> None:
    mask = torch.zeros(1, 120, 160, dtype=torch.bool)
    drawn = draw_detections(plain(), found((BOX, 0.9, CROW), pred_masks=mask), VOCABULARY)
    without = draw_detections(plain(), found((BOX, 0.9, CROW)), VOCABULARY)
    assert np.array_equal(drawn, without)


@pytest.mark.parametrize(
    ("size", "drawn_size"),
    [
        ((160, 160), (800, 800)),
        ((900, 1200), (900, 1200)),
        ((3000, 2000), (1600, 1066)),
        ((20, 800), (40, 1600)),
        ((1, 3000), (1, 3000)),
        ((1, 1), (800, 800)),
    ],
)
def test_sizes(size: tuple[int, int], drawn_size: tuple[int, int]) -> None:
    height, width = size
    instances = found(([0.0, 0.0, width * 0.5, height * 0.5], 0.9, OWL), size=size)
    drawn = draw_detections(plain(*size), instances, VOCABULARY)
    assert drawn.shape == (*drawn_size, 3)
    assert changed(drawn).any()


@pytest.mark.parametrize("shape", [(120, 160), (120, 160, 1)])
def test_grey_images(shape: tuple[int, ...]) -> None:
    grey = draw_detections(np.full(shape, 128, np.uint8), found((BOX, 0.9, OWL)), VOCABULARY)
    assert np.array_equal(grey, draw_detections(plain(), found((BOX, 0.9, OWL)), VOCABULARY))


def test_the_image_that_is_given_stays_as_it_is() -> None:
    image = plain()
    draw_detections(image, found((BOX, 0.9, OWL)), VOCABULARY)
    assert (image == 128).all()


@pytest.mark.parametrize(
    ("image", "instances", "message"),
    [
        (plain(60, 80), found((BOX, 0.9, CROW)), "height and width"),
        (plain().astype(np.float32), found(), "uint8"),
        (np.zeros((120, 160, 4), np.uint8), found(), "uint8 RGB"),
        (plain(), Instances((120, 160)), "pred_boxes"),
        (plain(), found((BOX, 0.9, 2)), "a class below 2"),
        (plain(), found((BOX, 0.9, -1)), "a class below 2"),
    ],
)
def test_misuse_is_named(image: np.ndarray, instances: Instances, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw_detections(image, instances, VOCABULARY)


def annotation(**more: object) -> dict[str, object]:
    return {
        "bbox": [40, 40, 60, 50],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": OWL,
        **more,
    }


def record(**more: object) -> dict[str, object]:
    return {"height": 120, "width": 160, "annotations": [annotation(**more)]}


POLYGON = [50.0, 50, 90, 50, 90, 80, 50, 80]


@pytest.mark.parametrize("kind", ["polygon", "compressed", "uncompressed"])
def test_ground_truth_is_drawn_with_its_mask(kind: str) -> None:
    segmentation: object = [POLYGON]
    mask = decode_segmentation([POLYGON], 120, 160)
    if kind == "compressed":
        segmentation = mask_util.encode(np.asfortranarray(mask, np.uint8))
    elif kind == "uncompressed":
        runs = np.diff(np.flatnonzero(np.diff(mask.T.ravel(), prepend=0, append=2)), prepend=0)
        segmentation = {"size": [120, 160], "counts": [int(n) for n in runs]}
        assert np.array_equal(decode_segmentation(segmentation, 120, 160), mask)
    drawn = draw_ground_truth(plain(), record(segmentation=segmentation), VOCABULARY)
    bare = draw_ground_truth(plain(), record(), VOCABULARY)
    assert warmth(bare) > 2000
    differs = np.abs(drawn.astype(int) - bare).sum(axis=2) > 20
    assert differs[260:390, 260:440].mean() > 0.95
    assert not differs[:240].any()


def test_ground_truth_of_nothing() -> None:
    drawn = draw_ground_truth(plain(), {"annotations": []}, VOCABULARY)
    assert not changed(drawn).any()


def test_ground_truth_of_another_image_is_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        draw_ground_truth(plain(60, 80), record(), VOCABULARY)
    rle = mask_util.encode(np.zeros((10, 10), np.uint8, order="F"))
    with pytest.raises(ValueError, match="run lengths of"):
        draw_ground_truth(plain(), record(segmentation=rle), VOCABULARY)


def test_a_scene_of_shapes(shapes_val: str) -> None:
    vocabulary = Vocabulary.from_dataset(shapes_val)
    scene = next(r for r in DatasetCatalog.get(shapes_val) if r["annotations"])
    drawn = draw_ground_truth(plain(160, 160), scene, vocabulary)
    for item in scene["annotations"]:
        x, y, w, h = (round(5 * v) for v in item["bbox"])
        assert changed(drawn)[max(y - 4, 0) : y + h + 4, max(x - 4, 0) : x + w + 4].any()


def test_side_by_side() -> None:
    left, right = np.full((50, 300, 3), 10, np.uint8), np.full((80, 200, 3), 200, np.uint8)
    both = side_by_side(left, right, ("left", "right"))
    bar = both.shape[0] - 80
    assert both.shape[1] > 500
    assert (both[bar : bar + 50, :300] == 10).all()
    assert (both[bar:, -200:] == 200).all()
    assert (both[bar + 50 :, :300] == 255).all()
    assert (both[:bar, :300] < 100).any()  # a caption
    assert (both[:bar, -200:] < 100).any()
    with pytest.raises(ValueError, match="two captions"):
        side_by_side(left, right, ("one",))


def test_a_long_caption_stays_over_its_image() -> None:
    left, right = np.full((50, 120, 3), 10, np.uint8), np.full((50, 120, 3), 10, np.uint8)
    both = side_by_side(left, right, ("a caption that is far too long for it", ""))
    bar = both.shape[0] - 50
    assert (both[:bar, :120] < 100).any()
    assert (both[:bar, 120:] == 255).all()
