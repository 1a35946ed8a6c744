from __future__ import annotations

import numpy as np
import pytest

from vild.reporting.labels import place_labels


def rectangles(places, sizes):  # type: ignore[no-untyped-def]
    return [(p.x, p.y, p.x + w, p.y + h) for p, (w, h) in zip(places, sizes, strict=True) if p]


def overlap(first, second) -> bool:  # type: ignore[no-untyped-def]
    return all(min(first[i + 2], second[i + 2]) > max(first[i], second[i]) for i in (0, 1))


def test_no_objects_no_places() -> None:
    assert place_labels(np.zeros((0, 4)), np.zeros((0, 2)), (100, 100)) == []


def test_a_lone_label_is_above_its_box() -> None:
    (place,) = place_labels(np.array([[20, 30, 60, 70]]), np.array([[30, 10]]), (100, 100))
    assert place is not None
    assert (place.x, place.y, place.leader) == (20, 20, None)


def test_at_the_upper_edge_the_label_stays_in_the_image() -> None:
    (place,) = place_labels(np.array([[20, 2, 60, 70]]), np.array([[30, 10]]), (100, 100))
    assert place is not None
    assert place.y >= 0


def test_a_label_wider_than_the_image_begins_at_its_edge() -> None:
    (place,) = place_labels(np.array([[5, 5, 9, 9]]), np.array([[300, 10]]), (100, 100))
    assert place is not None
    assert place.x == 0


@pytest.mark.parametrize("seed", range(3))
def test_labels_overlap_nowhere_and_stay_inside(seed: int) -> None:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 500, (40, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 120, (40, 2))], axis=1)
    sizes = np.stack([rng.uniform(40, 120, 40), np.full(40, 16)], axis=1)
    places = place_labels(boxes, sizes, (640, 640))
    placed = rectangles(places, sizes)
    assert len(placed) >= 35
    assert all(r[0] >= 0 and r[2] <= 640 and r[1] >= 0 and r[3] <= 640 for r in placed)
    assert not any(overlap(a, b) for n, a in enumerate(placed) for b in placed[:n])


def test_equal_boxes_get_leaders_and_then_no_label() -> None:
    boxes, sizes = np.tile([[250.0, 250, 260, 260]], (200, 1)), np.tile([[60.0, 20]], (200, 1))
    places = place_labels(boxes, sizes, (500, 500))
    assert places[0] is not None
    assert places[0].leader is None
    far = [place for place in places if place and place.leader]
    assert far
    for place in far:
        (x, y), (on_x, on_y) = place.leader or ((0, 0), (0, 0))
        assert place.x <= x <= place.x + 60
        assert place.y <= y <= place.y + 20
        assert 250 <= on_x <= 260
        assert 250 <= on_y <= 260
    assert places[-1] is None


def test_a_label_avoids_a_small_object_above_its_box() -> None:
    boxes = np.array([[100.0, 100, 200, 200], [110, 88, 122, 98]])
    first, _ = place_labels(boxes, np.array([[60.0, 14], [20, 14]]), (400, 400))
    assert first is not None
    assert not overlap((first.x, first.y, first.x + 60, first.y + 14), boxes[1])
