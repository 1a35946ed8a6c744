"""Proposals are converted to Detectron2's pickles and back; pickles that run code are refused."""

from __future__ import annotations

import builtins
import codecs
import contextlib
import os
import pickle
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from vild.proposals import read_detectron2_proposals, write_detectron2_proposals

Record = tuple[int | str, np.ndarray, np.ndarray]


def records(ids: tuple[int | str, ...] = (9, 4, 7)) -> list[Record]:
    """Return records with unsorted objectness; the last one has no proposals."""
    rng = np.random.default_rng(0)
    result: list[Record] = []
    for image_id, count in zip(ids, (5, 3, 0), strict=True):
        corners = rng.uniform(0, 100, (count, 2))
        boxes = np.concatenate([corners, corners + rng.uniform(1, 50, (count, 2))], axis=1)
        objectness = rng.permutation(count) - 1.5
        result.append((image_id, boxes.astype(np.float32), objectness.astype(np.float32)))
    return result


def contents(**changes: Any) -> dict[str, Any]:
    """Return the format that Detectron2's evaluators write."""
    ids, boxes, objectness = (list(column) for column in zip(*records(), strict=True))
    mode = BoxMode.XYXY_ABS.value
    return {
        **{"ids": ids, "boxes": boxes, "objectness_logits": objectness, "bbox_mode": mode},
        **changes,
    }


def pickled(path: Path, value: object, protocol: int = 4) -> Path:
    path.write_bytes(pickle.dumps(value, protocol=protocol))
    return path


def assert_equal(read: Any, expected: list[Record]) -> None:
    assert [record[0] for record in read] == [record[0] for record in expected]
    assert [type(record[0]) for record in read] == [type(record[0]) for record in expected]
    for (_, boxes, objectness), (_, expected_boxes, expected_objectness) in zip(
        read, expected, strict=True
    ):
        np.testing.assert_array_equal(boxes, expected_boxes)
        np.testing.assert_array_equal(objectness, expected_objectness)
        assert boxes.dtype == objectness.dtype == np.float32
        assert boxes.flags.writeable
        assert boxes.shape == (len(objectness), 4)


@pytest.mark.parametrize("ids", [(9, 4, 7), ("b", "a/1", "c")])
def test_round_trip(tmp_path: Path, ids: tuple[int | str, ...]) -> None:
    path = tmp_path / "new" / "proposals.pkl"
    write_detectron2_proposals(path, iter(records(ids)))
    assert_equal(read_detectron2_proposals(path, allow_pickle=True), records(ids))
    assert [file.name for file in path.parent.iterdir()] == ["proposals.pkl"]


def test_detectron2_loads_the_file(tmp_path: Path) -> None:
    path = tmp_path / "proposals.pkl"
    write_detectron2_proposals(path, records())
    loaded = load_proposals_into_dataset([{"image_id": 4}, {"image_id": 9}], str(path))
    for record in loaded:
        _, boxes, objectness = next(item for item in records() if item[0] == record["image_id"])
        order = np.argsort(-objectness)  # without ties
        np.testing.assert_array_equal(record["proposal_boxes"], boxes[order])
        np.testing.assert_array_equal(record["proposal_objectness_logits"], objectness[order])
        assert record["proposal_bbox_mode"] is BoxMode.XYXY_ABS


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_every_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    changed = contents(bbox_mode=BoxMode.XYXY_ABS, ids=[np.int64(9), np.int32(4), 7])
    path = pickled(tmp_path / "a.pkl", changed, protocol)
    assert_equal(read_detectron2_proposals(path, allow_pickle=True), records())


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_other_layouts_of_arrays_are_read(tmp_path: Path, protocol: int) -> None:
    kinds = (">f8", "<f4", "f2")
    changed = contents()
    changed["boxes"] = [
        np.asfortranarray(boxes.astype(kind))
        for boxes, kind in zip(changed["boxes"], kinds, strict=True)
    ]
    changed["ids"] = np.array(["b", "a/1", "c"])
    path = pickled(tmp_path / "a.pkl", changed, protocol)
    read = read_detectron2_proposals(path, allow_pickle=True)
    assert_equal(read, records(("b", "a/1", "c")))


def test_names_of_other_numpys_are_read(tmp_path: Path) -> None:
    for protocol in (2, 5):
        data = pickle.dumps(contents(), protocol=protocol)
        other = b"numpy.core." if b"numpy._core." in data else b"numpy._core."
        old = b"numpy._core." if other == b"numpy.core." else b"numpy.core."
        if protocol == 2:  # names end with a line
            data = data.replace(old, other)
        else:  # names carry their length, and frames theirs
            for module in (b"multiarray", b"numeric"):
                name, new = old + module, other + module
                data = data.replace(
                    b"\x8c" + bytes([len(name)]) + name, b"\x8c" + bytes([len(new)]) + new
                )
            data = data[:2] + data[11:]  # without the frame's header
        (tmp_path / "a.pkl").write_bytes(data)
        read = read_detectron2_proposals(tmp_path / "a.pkl", allow_pickle=True)
        assert_equal(read, records())


def test_a_file_of_detectron_under_python_2_is_read(tmp_path: Path) -> None:
    """Use a handwritten file in the format of Python 2: bytes as strings, Detectron's keys."""
    box = np.array([[1, 2, 30, 250]], dtype="<f4")
    score = np.array([0.5], dtype="<f8")

    def array(value: np.ndarray, code: bytes) -> bytes:
        shape = b"".join(b"K" + bytes([n]) for n in value.shape)
        data = value.tobytes()
        return (
            b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
            b"(K\x01(" + shape + b"tcnumpy\ndtype\nU\x02" + code + b"K\x00K\x01\x87R"
            b"(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89"
            b"U" + bytes([len(data)]) + data + b"tb"
        )

    path = tmp_path / "detectron.pkl"
    path.write_bytes(
        b"\x80\x02}(U\x07indexes]K\x05aU\x05boxes](" + array(box, b"f4") + b"e"
        b"U\x06scores](" + array(score, b"f8") + b"eu."
    )
    assert_equal(
        read_detectron2_proposals(path, allow_pickle=True),
        [(5, box.astype(np.float32), score.astype(np.float32))],
    )
    (record,) = load_proposals_into_dataset([{"image_id": 5}], str(path))
    np.testing.assert_array_equal(record["proposal_boxes"], box)


def test_widths_and_heights_become_corners(tmp_path: Path) -> None:
    changed = contents(bbox_mode=BoxMode.XYWH_ABS)
    changed["boxes"] = [
        BoxMode.convert(boxes, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS) for boxes in changed["boxes"]
    ]
    path = pickled(tmp_path / "a.pkl", changed)
    for read, expected in zip(
        read_detectron2_proposals(path, allow_pickle=True), records(), strict=True
    ):
        np.testing.assert_allclose(read.boxes, expected[1], rtol=1e-6)


def test_pickles_have_to_be_allowed(tmp_path: Path) -> None:
    path = pickled(tmp_path / "a.pkl", contents())
    with pytest.raises(ValueError, match=r"a\.pkl.*can run code.*allow_pickle=True"):
        read_detectron2_proposals(path)


class Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, rf"{os.system.__module__}\.system"),
        (subprocess.check_output, r"(subprocess|commands)\.check_output"),
        (builtins.eval, r"(builtins|__builtin__)\.eval"),
        (builtins.getattr, r"(builtins|__builtin__)\.getattr"),
        (torch.load, r"torch\.serialization\.load"),
        (np.load, r"numpy[\w.]*\.load"),
    ],
)
def test_code_is_refused_and_not_run(
    tmp_path: Path, function: Any, name: str, protocol: int
) -> None:
    canary = tmp_path / "canary"
    argument = {
        os.system: f"touch {canary}",
        subprocess.check_output: ["touch", str(canary)],
        builtins.eval: f"open({str(canary)!r}, 'w').close()",
    }.get(function, str(canary))
    harmful = Call(function, argument)
    for value in (harmful, contents(ids=[harmful, 4, 7]), contents(more=harmful)):
        path = pickled(tmp_path / "a.pkl", value, protocol)
        with pytest.raises(ValueError, match=rf"a\.pkl: .*{name}.*do not trust"):
            read_detectron2_proposals(path, allow_pickle=True)
        assert not canary.exists()
    if function in (os.system, subprocess.check_output, builtins.eval):
        pickle.loads(path.read_bytes())  # check that the canary works
        assert canary.exists()


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        (torch.zeros(2), r"torch\._utils\._rebuild_tensor_v2"),
        (np.array([{}, None], dtype=object), "arrays of numbers, got one of object"),
        (np.zeros(2, dtype=[("a", "f4")]), "arrays of numbers"),
        (np.zeros(2, dtype="M8[s]"), "arrays of numbers"),
        (Path("a"), r"pathlib.*Path"),
        (Call(codecs.encode, "text", "zlib"), "codec 'zlib'"),
        (Call(bytes, 10), "TypeError"),  # only empty bytes are allowed, not large allocations
    ],
)
def test_what_the_format_does_not_need_is_refused(
    tmp_path: Path, value: object, complaint: str
) -> None:
    path = pickled(tmp_path / "a.pkl", contents(more=value), protocol=2)
    with pytest.raises(ValueError, match=rf"a\.pkl.* .*{complaint}"):
        read_detectron2_proposals(path, allow_pickle=True)


@pytest.mark.parametrize(
    "target",
    [
        b"cdetectron2.structures.boxes\nBoxMode\n",
        b"cdetectron2.structures.boxes\nBoxMode\nK\x00\x85R",
        b"cnumpy\nndarray\n",
        b"cnumpy\ndtype\n",
        b"c_codecs\nencode\n",
    ],
)
def test_a_pickle_cannot_alter_the_program(tmp_path: Path, target: bytes) -> None:
    """The opcode BUILD sets attributes of any object that the pickle can reach."""
    state = b"}U\x05canaryK\x01s"
    path = tmp_path / "a.pkl"
    honest = pickle.dumps(contents(), protocol=2)[2:]
    for build in (state + b"b0", b"N" + state + b"\x86b0"):
        path.write_bytes(b"\x80\x02" + target + build + honest)
        # refused, or applied to an object that nothing else uses
        with contextlib.suppress(ValueError):
            assert_equal(read_detectron2_proposals(path, allow_pickle=True), records())
        for untouched in (BoxMode, BoxMode.XYXY_ABS, np.ndarray, np.dtype, codecs):
            assert not hasattr(untouched, "canary")


@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.9, 0.99])
def test_a_file_that_was_cut_short(tmp_path: Path, share: float) -> None:
    path = tmp_path / "a.pkl"
    whole = pickle.dumps(contents(), protocol=4)
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(ValueError, match=r"a\.pkl is truncated"):
        read_detectron2_proposals(path, allow_pickle=True)


def test_a_missing_file_and_one_that_is_no_pickle(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        read_detectron2_proposals(tmp_path / "none.pkl", allow_pickle=True)
    (tmp_path / "a.pkl").write_text("<!DOCTYPE html>", encoding="utf-8")
    with pytest.raises(ValueError, match=r"a\.pkl is truncated or not a proposal file"):
        read_detectron2_proposals(tmp_path / "a.pkl", allow_pickle=True)


@pytest.mark.parametrize(
    ("value", "complaint"),
    [
        ([1, 2], "expected a dict with the keys ids, boxes, objectness_logits, got a list"),
        ({}, "a list under 'ids', got no such key"),
        (contents(boxes={}), "a list under 'boxes', got a dict"),
        (contents(ids=np.array(3)), "a list under 'ids', got a ndarray"),
        (contents(ids=[9, 4]), "{'ids': 2, 'boxes': 3, 'objectness_logits': 3}"),
        (contents(bbox_mode=BoxMode.XYXY_REL), "got XYXY_REL (2)"),
        (contents(bbox_mode=BoxMode.XYWHA_ABS), "got XYWHA_ABS (4)"),
        (contents(bbox_mode=17), "got an unknown one (17)"),
        (contents(bbox_mode=None), "got no number (None)"),
    ],
)
def test_malformed_files(tmp_path: Path, value: object, complaint: str) -> None:
    path = pickled(tmp_path / "a.pkl", value)
    with pytest.raises(ValueError, match=rf"a\.pkl: .*{re.escape(complaint)}"):
        read_detectron2_proposals(path, allow_pickle=True)


BOX = np.array([[0, 0, 10, 10]], dtype=np.float32)
ONE = np.zeros(1, dtype=np.float32)


@pytest.mark.parametrize(
    ("malformed", "complaint"),
    [
        ([(1, BOX[0], ONE)], "image 1: boxes: expected 2 dimensions, got the shape (4,)"),
        ([(1, BOX[:, :3], ONE)], "image 1: expected boxes of shape (R, 4)"),
        ([(1, BOX, np.zeros(2))], "got (1, 4) and (2,)"),
        ([(1, BOX, ONE[None])], "objectness: expected 1 dimensions, got the shape (1, 1)"),
        ([(1, [], [])], "write boxes of shape (0, 4)"),
        ([(1, BOX * np.nan, ONE)], "boxes: expected finite numbers"),
        ([(1, BOX, np.array([1e300]))], "objectness: expected finite numbers"),
        ([(1, BOX, ["high"])], "objectness: expected an array of numbers"),
        ([(1, BOX[:, [2, 1, 0, 3]], ONE)], "x2 > x1 and y2 > y1, got [10.0, 0.0, 0.0, 10.0]"),
        ([(1, BOX[:, [0, 3, 2, 1]], ONE)], "x2 > x1 and y2 > y1, got [0.0, 10.0, 10.0, 0.0]"),
        ([(1, np.array([[3, 3, 3, 5]]), ONE)], "x2 > x1"),
        ([(1, BOX, ONE), (2, BOX, ONE), (1, BOX, ONE)], "got 1 more than once"),
        ([(1, BOX, ONE), ("1", BOX, ONE)], "got '1' more than once"),
        ([(1.5, BOX, ONE)], "image ids, got 1.5"),
        ([(True, BOX, ONE)], "image ids, got True"),
    ],
)
def test_malformed_records(tmp_path: Path, malformed: list[Any], complaint: str) -> None:
    path = tmp_path / "a.pkl"
    with pytest.raises(ValueError, match=rf"a\.pkl: .*{re.escape(complaint)}"):
        write_detectron2_proposals(path, malformed)
    assert not path.exists()
    ids, boxes, objectness = (list(column) for column in zip(*malformed, strict=True))
    pickled(path, {"ids": ids, "boxes": boxes, "objectness_logits": objectness})
    with pytest.raises(ValueError, match=rf"a\.pkl: .*{re.escape(complaint)}"):
        read_detectron2_proposals(path, allow_pickle=True)


def test_malformed_widths_are_refused(tmp_path: Path) -> None:
    changed = contents(ids=[1], objectness_logits=[ONE], bbox_mode=BoxMode.XYWH_ABS)
    for boxes, complaint in (
        (np.array([[5, 5, 0, 3]]), "x2 > x1"),
        (BOX[:, :3], "shape (R, 4)"),
        (BOX[0], "2 dimensions"),
    ):
        path = pickled(tmp_path / "a.pkl", {**changed, "boxes": [boxes]})
        with pytest.raises(ValueError, match=re.escape(complaint)):
            read_detectron2_proposals(path, allow_pickle=True)
