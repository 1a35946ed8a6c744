"""Concurrent visitors, hostile requests, and files that a page leaves behind."""

from __future__ import annotations

import http.client
import io
import json
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import IcoImagePlugin, Image

from vild.embeddings.cache import CachedTextEncoder
from vild.inference import OpenVocabularyPredictor
from vild.web.detector import Limits, PageDetector

from .. import malformed, small_shapes
from .pages import ServedPage, served_page, status


@pytest.fixture(scope="module")
def image(opts: list[str]) -> Path:
    return Path(opts[2]).parent / "shapes" / "train" / "000001.png"


@pytest.fixture(scope="module")
def detector(opts: list[str], tmp_path_factory: pytest.TempPathFactory) -> PageDetector:
    folder = tmp_path_factory.mktemp("page")
    few = {"MODEL__RPN__POST_NMS_TOPK_TEST": 10}
    cfg = small_shapes.config(Path(opts[2]).parent, "ensemble", MODEL__WEIGHTS=opts[2], **few)
    predictor = OpenVocabularyPredictor(cfg, ["crow"], cache=folder / "cache")
    return PageDetector(predictor, folder / "found", Limits(words=1000))


def test_a_visitor_does_not_wait_for_the_words_of_another(
    detector: PageDetector, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, answered, embed = threading.Event(), threading.Event(), CachedTextEncoder.embed

    def slow(self: CachedTextEncoder, vocabulary, *more):  # type: ignore[no-untyped-def]
        if vocabulary.names[0].startswith("slow"):
            begun.set()
            answered.wait(0.5)
        return embed(self, vocabulary, *more)

    monkeypatch.setattr(CachedTextEncoder, "embed", slow)
    many = ", ".join(f"slow {number}" for number in range(1000))  # 16 chunks
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(detector.answer, str(image), many, 0.05)
        assert begun.wait(30)
        second = detector.answer(str(image), "a new word, owl", 0.05)
        assert not first.done()
        answered.set()
        assert "of 2 words" in second.message
        assert [name for name, _ in second.words] == ["a new word", "owl"]
        assert "of 1000 words" in first.result().message
        assert len(first.result().words) == 1000


def test_words_in_slices_are_the_same_as_at_once(detector: PageDetector, image: Path) -> None:
    words = [f"word {number}" for number in range(150)]
    assert "of 150 words" in detector.answer(str(image), ", ".join(words), 0.05).message
    found = detector.predictor.model.roi_heads.vocabulary
    expected = detector.predictor.encoder.embed(found)
    assert detector._text is not None
    assert detector._text.vocabulary == found
    np.testing.assert_allclose(detector._text.embeddings, expected.embeddings, atol=1e-6)


def test_no_image_is_decoded_while_the_model_is_locked(
    detector: PageDetector, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert malformed.FINE in detector.answer(str(image), "crow", 0.05).message
    with detector._model, ThreadPoolExecutor(1) as pool:  # another visitor is using the model
        message = pool.submit(detector.answer, __file__, "crow", 0.05).result(30).message
    assert "not an image format" in message


@pytest.mark.parametrize("size", [(50_000_000, 1), (1, 50_000_000), (20_001, 2)])
def test_long_strips_are_refused_by_their_header(
    size: tuple[int, int], detector: PageDetector, tmp_path: Path
) -> None:
    strip = tmp_path / "strip.png"
    strip.write_bytes(malformed.png_header(*size))
    begin = time.perf_counter()
    message = detector.answer(str(strip), "crow", 0.05).message
    assert time.perf_counter() - begin < 1
    expected = f"sides of at most 20000 pixels, got {size[0]} x {size[1]}. Make it smaller."
    assert message == f"error: cannot read the image strip.png: expected {expected}"


def test_rare_formats_are_not_opened(
    detector: PageDetector, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An icon may contain a PNG of any size, which Pillow decodes when it opens the icon."""
    icon = tmp_path / "icon.png"
    Image.new("RGB", (64, 64)).save(icon, "ICO")
    monkeypatch.setattr(IcoImagePlugin.IcoFile, "getimage", lambda *_: 1 / 0)
    message = detector.answer(str(icon), "crow", 0.05).message
    assert "it is not an image format that this page reads (JPEG, PNG, " in message


@pytest.mark.parametrize("threshold", [float("nan"), 2, -1, "1", None, [1]])
def test_an_impossible_threshold(threshold: float, detector: PageDetector, image: Path) -> None:
    message = detector.answer(str(image), "crow", threshold).message
    assert message == f"error: expected a minimum score from 0 to 1, got {threshold!r}."


@pytest.mark.exhaustive
def test_many_visitors_at_once(detector: PageDetector, image: Path, tmp_path: Path) -> None:
    """Responses are not mixed up: every visitor gets the requested words."""
    files = [image, *malformed.write_images(tmp_path / "malformed").values()]
    words = [*malformed.WORDS.values(), ("crow", malformed.FINE), ("owl, emu", malformed.FINE)]
    draw = np.random.default_rng(0)
    asked = [(draw.integers(len(files)), draw.integers(len(words))) for _ in range(1000)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda a: detector.answer(str(files[a[0]]), words[a[1]][0], 0.05), asked)
        )
    for (_, row), answer in zip(asked, answers, strict=True):
        assert "see its log" not in answer.message
        assert "\n" not in answer.message
        if answer.image is not None:
            assert words[row][1] == malformed.FINE
            assert {row[0] for row in answer.rows} <= {name for name, _ in answer.words}


def upload(page: ServedPage, size: int = 1000, **headers: str) -> int:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + bytes(size) + b"\r\n--x--\r\n"
    )
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    return status(f"{page.address}/gradio_api/upload", body, **kind, **headers)


def stored(page: ServedPage) -> list[Path]:
    return [file for file in page.uploads.rglob("*") if file.is_file() and file.name != "lock"]


def test_requests_of_other_sites_are_refused_and_store_nothing(page: ServedPage) -> None:
    foreign = {"Host": f"evil.example:{page.port}", "Origin": f"http://evil.example:{page.port}"}
    own = {"Origin": page.address}
    assert status(page.address, **own) == 200
    assert status(page.address, **foreign) == 403
    assert status(page.address, Host="evil.example") == 403
    before = stored(page)
    assert upload(page, **foreign) == 403
    assert upload(page, Origin="http://evil.example") == 403
    assert upload(page, Origin="null") == 403
    for name in ("queue/join", "run/predict", "upload", "reset", "cancel"):
        address = f"{page.address}/gradio_api/{name}"
        kind = {"Content-Type": "application/json"}
        assert status(address, b"{}", Origin="http://evil.example", **kind) == 403
    assert stored(page) == before
    # a size of its own, because gradio names files by their contents
    assert upload(page, 1357, **own) == 200
    deadline = time.monotonic() + 20
    while not set(stored(page)) - set(before):  # it may remove others meanwhile
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_the_files_of_visitors_are_private(page: ServedPage) -> None:
    assert upload(page, 500) == 200
    (folder,) = page.uploads.glob("vild-page-*")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(folder in file.parents for file in stored(page))


def test_one_request_does_not_bring_many_files(page: ServedPage) -> None:
    part = (
        b'--x\r\nContent-Disposition: form-data; name="files"; filename="a%d.png"\r\n\r\n'
        + bytes(900_000)
        + b"\r\n"
    )
    body = b"".join(part % number for number in range(4)) + b"--x--\r\n"
    before = stored(page)
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    assert status(f"{page.address}/gradio_api/upload", body, **kind) == 413
    assert stored(page) == before


def test_every_response_has_security_headers(page: ServedPage) -> None:
    for path in ("/", "/config", "/gradio_api/file=/etc/passwd", "/nothing", "/theme.css"):
        connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=60)
        connection.request("GET", path)
        headers = connection.getresponse().headers
        connection.close()
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"], path
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def ask(page: ServedPage, session: str, data: list[object]) -> str:
    """Run the page's detection over HTTP and return the server's events as text."""
    body = json.dumps({"fn_index": 0, "session_hash": session, "data": data})
    connection = http.client.HTTPConnection("127.0.0.1", page.port, timeout=120)
    kind = {"Content-Type": "application/json"}
    connection.request("POST", "/gradio_api/queue/join", body, kind)
    joined = connection.getresponse()
    said = joined.read().decode()
    if joined.status == 200:
        connection.request("GET", f"/gradio_api/queue/data?session_hash={session}")
        said = connection.getresponse().read().decode()
    connection.close()
    return said


ODD_WORDS = ("\ud800", "a\0b", "crow \x1b[2J", "\u202eowl", "x" * 1_000_000, "\n" * 300_000, "{}")


@pytest.mark.parametrize("number", range(len(ODD_WORDS)))
def test_odd_words_over_http(number: int, page: ServedPage) -> None:
    begin = time.perf_counter()
    said = ask(page, f"odd{number}", [None, ODD_WORDS[number], 0.3])
    assert "process_completed" in said
    assert "Drop an image first." in said
    assert time.perf_counter() - begin < 20


@pytest.mark.exhaustive
def test_a_thousand_requests_in_parallel(page: ServedPage) -> None:
    draw = np.random.default_rng(0)
    image = io.BytesIO()
    Image.new("RGB", (60, 40), "red").save(image, "PNG")
    values: list[object] = [None, "crow", 0.3, [], {}, 1e300, True, "\ud800", "a, a", ["x"], -1]
    values += [{"path": "/etc/passwd"}, {"path": "http://127.0.0.1:1/a.png"}, {"url": "file:///a"}]

    def visit(number: int) -> None:
        pick = [values[int(i)] for i in draw.integers(len(values), size=3)]
        if number % 4 == 0:
            upload(page, int(draw.integers(2000)))
        elif number % 4 == 1:
            junk = bytes(draw.integers(256, size=200).astype(np.uint8))
            status(f"{page.address}/gradio_api/queue/join", junk, Origin=page.address)
        else:
            assert "root:" not in ask(page, f"fuzz{number}", pick)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(visit, range(1000)))
    assert page.process.poll() is None
    assert status(page.address) == 200
    assert "Drop an image first." in ask(page, "last", [None, "crow", 0.3])


@pytest.mark.exhaustive
def test_nothing_stays_behind(opts: list[str], tmp_path: Path) -> None:
    with served_page(tmp_path, opts) as page:
        assert upload(page) == 200
        page.process.send_signal(signal.SIGKILL)
        page.process.wait(30)
    assert stored(page)
    with served_page(tmp_path, opts) as page:
        assert not stored(page)
        assert upload(page) == 200
    assert page.process.returncode == 0
    assert not list(page.uploads.glob("vild-page-*"))
    assert not stored(page)
