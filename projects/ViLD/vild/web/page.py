"""Layout of the web page, and its server; the body of tools/web_demo.py."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import tempfile
from pathlib import Path

from vild.config import read_config, register_datasets
from vild.data import Vocabulary
from vild.inference import OpenVocabularyPredictor
from vild.inference.inputs import find_images
from vild.web.detector import VISITORS, Limits, PageDetector
from vild.web.folder import private_folder
from vild.web.gate import Gate, ServedHosts, require_free_address
from vild_cli.words import join_words

try:
    import gradio as gr
    from starlette.middleware import Middleware
except ImportError as error:
    raise ImportError(
        "the web page needs gradio, which is not installed: pip install -e '.[demo]'"
    ) from error

TITLE = "ViLD: detect anything you can name"
COLUMNS = ("name", "class", "score", "x", "y", "width", "height")
# system fonts only, so that the page works without a network
FONTS = ["system-ui", "sans-serif"]


def build_page(
    detector: PageDetector, words: str, threshold: float, examples: list[Path]
) -> gr.Blocks:
    """Build the page."""

    def detect(file: str | None, text: str, threshold: float) -> tuple[object, ...]:
        got = detector.answer(file, text, threshold)
        rows = [list(row) for row in got.rows]
        download = gr.DownloadButton(value=got.file, interactive=got.file is not None)
        return got.message, got.image, list(got.words), rows, download

    limits = detector.limits
    # visitors' files are removed after an hour
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown(f"# {TITLE}")
        with gr.Row():
            with gr.Column(scale=1):
                sizes = f"{limits.upload_mb} MB and {limits.megapixels} megapixels"
                image = gr.File(
                    label=f"Image, up to {sizes}",
                    type="filepath",
                    elem_id="image",
                )
                text = gr.Textbox(
                    words,
                    label="Words to detect",
                    info=f"separated by commas; up to {limits.words}",
                    lines=3,
                    elem_id="words",
                )
                score = gr.Slider(
                    0.0, 1.0, threshold, step=0.05, label="Minimum score", elem_id="threshold"
                )
                button = gr.Button("Detect", variant="primary", elem_id="detect")
                if examples:
                    gr.Examples([[str(file)] for file in examples], image, label="Examples")
            with gr.Column(scale=2):
                message = gr.Textbox(label="Result", interactive=False, elem_id="message")
                drawn = gr.Image(
                    show_label=False,
                    format="png",
                    interactive=False,
                    buttons=["download", "fullscreen"],
                    elem_id="drawn",
                )
                gr.Markdown(
                    "★ and warm colours mark novel classes, which the detector was not trained on."
                )
                vocabulary = gr.HighlightedText(
                    label="Vocabulary",
                    color_map={"novel": "orange", "base": "blue"},
                    elem_id="vocabulary",
                )
                table = gr.Dataframe(
                    headers=list(COLUMNS),
                    datatype=["str", "str", "number", "number", "number", "number", "number"],
                    interactive=False,
                    elem_id="table",
                )
                download = gr.DownloadButton(
                    "Detections as json", interactive=False, elem_id="download"
                )
        gr.on(
            [button.click, image.change, score.release],
            detect,
            [image, text, score],
            [message, drawn, vocabulary, table, download],
            trigger_mode="always_last",
            concurrency_limit=VISITORS,
            api_visibility="private",
        )
    return page


def url_host(host: str) -> str:
    """Return a host in the form used in URLs and by gradio."""
    return f"[{host}]" if ":" in host else host


def serve(page: gr.Blocks, limits: Limits, hosts: ServedHosts, args: argparse.Namespace) -> None:
    """Serve the page until Ctrl-C or SIGTERM."""
    # one file with its form data, or words
    gate = Middleware(Gate, hosts=hosts, max_bytes=(limits.upload_mb + 1) * 2**20)
    page.queue(max_size=32)
    page.launch(
        server_name=url_host(args.host),
        server_port=args.port,
        max_file_size=f"{limits.upload_mb}mb",
        theme=gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]),
        app_kwargs={"middleware": [gate]},
        footer_links=[],
        share=False,
        ssr_mode=False,
        enable_monitoring=False,
        quiet=True,
        inbrowser=args.browser,
    )


def run_page(args: argparse.Namespace) -> None:
    """Load the detector and serve the page until Ctrl-C or SIGTERM.

    Raises:
        ValueError: see the called functions.
        KeyboardInterrupt: the server was stopped.
    """
    limits = Limits(args.max_upload_mb, args.max_megapixels, words=args.max_words)
    cfg = read_config(args.config_file, args.opts)
    register_datasets(cfg)
    # the initial words; every visitor sends others
    words = Vocabulary.load(args.words) if args.words.strip() else None
    if words is not None and len(words) > limits.words:
        raise ValueError(
            f"expected at most {limits.words} words on this page, got {len(words)}: raise "
            "--max-words"
        )
    args.host = args.host.strip("[]")  # brackets of an IPv6 address
    hosts = ServedHosts(args.host, args.allowed_host)
    require_free_address(args.host, args.port)
    examples = find_images(args.examples) if args.examples else []
    predictor = OpenVocabularyPredictor(cfg, words, precision=args.precision)
    text = join_words(words.names) if words is not None else ""
    # handle SIGTERM like Ctrl-C, so that the folder is removed
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with private_folder(os.environ.get("GRADIO_TEMP_DIR")) as folder:
        tempfile.tempdir = str(folder)
        os.environ["GRADIO_TEMP_DIR"] = str(folder / "gradio")
        os.environ["GRADIO_RUN_HISTORY"] = "False"  # do not keep visitors' images in the browser
        detector = PageDetector(predictor, folder / "found", limits)
        page = build_page(detector, text, args.confidence_threshold, examples)
        sys.stdout.write(f"http://{url_host(args.host)}:{args.port} (press Ctrl-C to stop)\n")
        sys.stdout.flush()
        serve(page, limits, hosts, args)
