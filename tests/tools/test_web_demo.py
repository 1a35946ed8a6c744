"""The web page in a browser, and its handling of visitors' input."""

from __future__ import annotations

import json
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

import web_demo
from vild.inference import OpenVocabularyPredictor
from vild.web.detector import Limits, PageDetector

from .. import malformed, small_shapes
from .pages import CONFIG, ServedPage, status

PATIENCE = 120_000  # ms; other tests may keep the cores busy


@pytest.fixture(scope="module")
def image(opts: list[str]) -> Path:
    return Path(opts[2]).parent / "shapes" / "train" / "000001.png"


@pytest.fixture(scope="module")
def detector(opts: list[str], tmp_path_factory: pytest.TempPathFactory) -> PageDetector:
    folder = Path(opts[2]).parent
    few = {"MODEL__RPN__POST_NMS_TOPK_TEST": 10}
    cfg = small_shapes.config(folder, "ensemble", MODEL__WEIGHTS=opts[2], **few)
    cache = tmp_path_factory.mktemp("cache")
    predictor = OpenVocabularyPredictor(cfg, ["crow"], cache=cache)
    return PageDetector(predictor, tmp_path_factory.mktemp("found"), Limits(words=1000))


@pytest.mark.parametrize("name", malformed.IMAGES)
def test_every_image_gets_a_message(name: str, detector: PageDetector, tmp_path: Path) -> None:
    make, message = malformed.IMAGES[name]
    (tmp_path / name).write_bytes(make())
    answer = detector.answer(str(tmp_path / name), "crow, owl", 0.05)
    assert message in answer.message
    assert name in answer.message
    assert str(tmp_path) not in answer.message  # do not reveal the server's paths
    assert (answer.image is not None) == (message == malformed.FINE)


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")  # matplotlib has no other fonts
@pytest.mark.parametrize("name", malformed.WORDS)
def test_all_words_get_a_message(name: str, detector: PageDetector, image: Path) -> None:
    words, message = malformed.WORDS[name]
    answer = detector.answer(str(image), words, 0.05)
    assert message in answer.message
    assert (answer.image is not None) == (message == malformed.FINE)


def test_what_is_shown_is_in_pixels_of_the_image(
    detector: PageDetector, image: Path, tmp_path: Path
) -> None:
    large = tmp_path / "large.png"
    cv2.imwrite(str(large), cv2.resize(cv2.imread(str(image)), (3200, 3200)))
    answer = detector.answer(str(large), "crow, owl", 0.05)
    assert answer.image is not None
    assert max(answer.image.shape) == 1600
    assert max(row[3] + row[5] for row in answer.rows) > 1600
    assert all(0 <= row[3] <= row[3] + row[5] <= 3201 for row in answer.rows)
    assert answer.file is not None
    entries = json.loads(Path(answer.file).read_text(encoding="utf-8"))
    assert [entry["bbox"] for entry in entries] == [list(row[3:]) for row in answer.rows]
    assert [entry["category_name"] for entry in entries] == [row[0] for row in answer.rows]


def test_base_classes_of_the_training_are_no_novel_words(
    detector: PageDetector, image: Path
) -> None:
    base = sorted(detector.predictor.base_classes)[0]
    answer = detector.answer(str(image), f"{base}, crow", 0.05)
    assert answer.words == ((base, "base"), ("crow", "novel"))
    kinds = dict(answer.words)
    assert all(row[1] == kinds[row[0]] for row in answer.rows)


def test_another_threshold_does_not_detect_again(
    detector: PageDetector, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = detector.answer(str(image), "heart, moon", 0.05).rows
    monkeypatch.setattr(OpenVocabularyPredictor, "__call__", None)
    middle = (many[0][2] + many[-1][2]) / 2
    fewer = detector.answer(str(image), "heart, moon", middle).rows
    assert fewer == tuple(row for row in many if row[2] >= middle)
    assert 0 < len(fewer) < len(many)


def test_a_failure_of_the_server_is_no_more_than_a_message(
    detector: PageDetector, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert detector.answer(None, "crow", 0.3).message == "Drop an image first."
    with monkeypatch.context() as patch:
        patch.setattr(OpenVocabularyPredictor, "__call__", lambda *_: 1 / 0)
        assert "see its log" in detector.answer(str(image), "a new word", 0.3).message
    assert malformed.FINE in detector.answer(str(image), "a new word", 0.3).message


# the remaining tests are about the served page


@pytest.fixture
def server(page: ServedPage) -> str:
    return page.address


FIRST = "Drop an image first."


def answer_to(page: Any, image: Path) -> str:
    """Replace the uploaded image and return the page's message."""
    if page.locator("#message textarea").count() and page.input_value("#message textarea"):
        page.click("#image button[aria-label='Clear']")
        wait_for(page, "said === given", FIRST)
    page.set_input_files("#image input[type=file]", str(image))
    return wait_for(page, "said && said !== given", FIRST)


def wait_for(page: Any, condition: str, given: str) -> str:
    """Wait until the message meets a condition, and return it."""
    page.wait_for_function(
        f"""given => {{
            const said = document.querySelector('#message textarea').value;
            return {condition};
        }}""",
        arg=given,
        timeout=PATIENCE,
    )
    return page.input_value("#message textarea")


def is_error(message: Any) -> bool:
    """Return whether a console message is an error, such as a violation of the page's policy."""
    return message.type == "error" or "Content Security Policy" in message.text


def test_in_a_browser(server: str, browser: Any, image: Path, tmp_path: Path) -> None:
    page, said = browser.new_page(viewport={"width": 1280, "height": 900}), []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text) if is_error(message) else None)
    page.on("request", lambda r: said.append(r.url) if r.url.startswith("https:") else None)
    page.goto(server)
    first = answer_to(page, image)
    assert first.startswith("000001.png: ")
    assert first.endswith("of 2 words.")
    page.wait_for_selector("#drawn img", timeout=PATIENCE)
    assert page.locator("#drawn img").evaluate("image => image.naturalWidth") == 800
    words = page.locator("#vocabulary").inner_text()
    assert "striped red star" in words
    names = page.locator("#table").inner_text()
    assert "striped red star" in names or "plain blue heart" in names
    with page.expect_download() as download:
        page.click("#download")
    entries = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert {e["category_name"] for e in entries} <= {"striped red star", "plain blue heart"}
    assert first.startswith(f"000001.png: {len(entries)} object")

    page.fill("#words textarea", "crow, owl, <b>emu</b>")
    page.click("#detect")
    assert wait_for(page, "said !== given", first).endswith("of 3 words.")
    page.wait_for_function("document.querySelector('#table').innerText.match(/crow|owl|emu/)")
    assert "heart" not in page.locator("#table").inner_text()
    assert "<b>emu</b>" in page.locator("#vocabulary").inner_text()
    page.screenshot(path=str(tmp_path / "shot.png"), full_page=True)
    shot = np.asarray(Image.open(tmp_path / "shot.png").convert("L"))
    assert shot.shape[0] > 600
    assert 5 < shot.std() < 120
    assert not said
    page.close()


# browsers cannot send the first, and take minutes to lay out the second
NOT_TYPED = ("half a character", "empty lines")


@pytest.mark.slow
def test_the_page_works_after_everything_malformed(
    server: str, browser: Any, image: Path, tmp_path: Path
) -> None:
    page = browser.new_page()
    page.goto(server)
    for name, file in malformed.write_images(tmp_path / "malformed").items():
        message = answer_to(page, file)
        expected = "9000 x 9000" if name == "large.png" else malformed.IMAGES[name][1]
        assert expected in message, name
    for name, (words, expected) in malformed.WORDS.items():
        if name in NOT_TYPED:
            continue
        page.fill("#words textarea", words)
        assert expected in answer_to(page, image), name
    page.close()


def test_no_file_of_the_server_is_given_away(server: str, opts: list[str]) -> None:
    weights = opts[2]
    for path in ("/etc/passwd", weights, "../../../../etc/passwd", "log", "%2e%2e/log"):
        assert status(f"{server}/gradio_api/file={path}") in (403, 404), path
        assert status(f"{server}/file={path}") in (403, 404), path
    # the path of an image must be that of an upload
    body = {
        "fn_index": 0,
        "session_hash": "a",
        "data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, "crow", 0.3],
    }
    data = json.dumps(body).encode()
    headers = {"Content-Type": "application/json"}
    assert status(f"{server}/gradio_api/queue/join", data, **headers) in (200, 403, 404, 422)
    with urllib.request.urlopen(
        f"{server}/gradio_api/queue/data?session_hash=a", timeout=60
    ) as events:
        text = events.read(4000).decode()
    assert "root:" not in text
    assert '"success":false' in text.replace(" ", "")


def test_uploads_are_limited(server: str) -> None:
    def upload(size: int) -> int:
        body = (
            b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n'
            b"Content-Type: image/png\r\n\r\n" + bytes(size) + b"\r\n--x--\r\n"
        )
        kind = {"Content-Type": "multipart/form-data; boundary=x"}
        return status(f"{server}/gradio_api/upload", body, **kind)

    assert upload(1000) == 200
    assert upload(3_000_000) == 413


def test_it_listens_on_this_machine_alone(server: str) -> None:
    port = int(server.rsplit(":", 1)[1])
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    listening = {line.split()[1] for line in lines if line.split()[3] == "0A"}
    assert [a for a in listening if int(a.split(":")[1], 16) == port] == [f"0100007F:{port:04X}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--config-file", "none.yaml"), "expected a configuration in none.yaml"),
        (("--config-file", str(CONFIG)), "MODEL.WEIGHTS"),
        (("--config-file", str(CONFIG), "--opts", "MODEL.NOTHING", "1"), "MODEL.NOTHING"),
    ],
)
def test_impossible_arguments(
    arguments: tuple[str, ...],
    message: str,
    run: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("gradio")
    import web_demo

    assert run(web_demo, *arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--max-words", "0", "expected an integer of at least 1, got '0'"),
        ("--max-upload-mb", "0", "expected an integer of at least 1, got '0'"),
        ("--max-megapixels", "-3", "expected an integer of at least 1, got '-3'"),
        ("--port", "70000", "expected a free --port 70000 on --host 127.0.0.1: "),
        ("--host", "192.0.2.1", "expected a free --port 7860 on --host 192.0.2.1: "),
        ("--allowed-host", "https://a.org", "expected a host name such as demo.example.org"),
        ("--port", "web", "expected an integer of at least 1, got 'web'"),
        ("--confidence-threshold", "30", "expected a number from 0 to 1, got '30'"),
        ("--confidence-threshold", "nan", "expected a number from 0 to 1, got 'nan'"),
        ("--words", "birds.txt", "expected a vocabulary at birds.txt: no such file"),
        ("--words", "lvis", "expected at most 1000 words on this page, got 1203"),
    ],
)
def test_options_out_of_range(
    option: str,
    value: str,
    message: str,
    run: Callable[..., int],
    opts: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("gradio")
    import web_demo

    assert run(web_demo, "--config-file", CONFIG, option, value, *opts) == 2
    assert message in capsys.readouterr().err


def test_without_gradio_one_line_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "vild.web.page", raising=False)
    monkeypatch.setattr(sys, "argv", ["web_demo.py", "--config-file", "none.yaml"])
    assert web_demo.main() == 2
    expected = "the web page needs gradio, which is not installed: pip install -e '.[demo]'"
    assert capsys.readouterr().err == f"error: {expected}\n"
