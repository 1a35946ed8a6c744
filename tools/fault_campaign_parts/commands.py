"""The commands to kill and to run on full disks."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import sleep

import torch

import convert_official_checkpoint
from experiments.stages import Stage, StageRunner, run_or_exit
from fault_campaign_parts.bench import Bench, script
from fault_campaign_parts.children import Target, guarded
from vild.data import Vocabulary, download
from vild.embeddings.cache import CachedTextEncoder
from vild.modeling.official import OfficialModel

VARIANTS = ("ensemble", "vild", "image", "text", "rpn_baseline")
ARCHIVES = {"annotations": ("a.json", "b.json"), "images": ("1.jpg", "2.jpg")}
VOCABULARIES = (("red circle", "blue square"), ("blue square", "green star"), ("a", "b", "c"))


# the files of each rank are merged, then removed
EVALUATION = ("config.yaml", "*.part*.json")


@dataclass(frozen=True)
class Command:
    """One command of the project.

    Attributes:
        name: name in reports.
        make: returns the targets for an output folder, one per process.
        kills: number of cases with kills at random moments.
        changing: files that a killed run may leave in another state, because they change during
            the run or are removed at its end.
        starved: whether to run it on full disks too.
    """

    name: str
    make: Callable[[Path], Sequence[Target]]
    kills: int = 8
    changing: tuple[str, ...] = ()
    starved: bool = True


def all_commands(bench: Bench) -> list[Command]:
    """Return the table of commands."""

    def one(words: Callable[[Path], Sequence[object]]) -> Callable[[Path], Sequence[Target]]:
        return lambda folder: [script(*words(folder))]

    def two(words: Callable[..., Sequence[object]]) -> Callable[[Path], Sequence[Target]]:
        machines = [("--num-machines", "2", "--machine-rank", rank) for rank in "01"]
        return lambda folder: [script(*words(folder, *machine)) for machine in machines]

    return [
        Command("make_shapes", one(lambda f: bench.shapes_command(f / "shapes", "--workers", "1"))),
        Command("text embeddings", one(lambda f: bench.text_command(f / "text.safetensors"))),
        Command(
            "word cache",
            lambda f: [guarded(partial(fill_word_cache, f))],
            changing=("cache/*.safetensors",),
        ),
        Command(
            "extract_proposals", one(lambda f: bench.proposals_command(f, "--detectron2-pickle"))
        ),
        Command("extract_image_embeddings", one(bench.embeddings_command)),
        Command("extract_image_embeddings, 2 processes", two(bench.embeddings_command), 12),
        Command("convert_proposals", one(bench.convert_command)),
        *(
            Command(
                f"train_net, {variant}",
                one(partial(bench.train_command, variant=variant)),
                12 if variant == "ensemble" else 6,
                changing=("last_checkpoint", "config.yaml"),
                starved=variant in ("ensemble", "rpn_baseline"),
            )
            for variant in VARIANTS
        ),
        Command("train_net --eval-only", one(bench.evaluate_command), changing=EVALUATION),
        Command("demo", one(bench.demo_command)),
        Command("export_model", one(bench.export_command), 6),
        Command("convert_official_checkpoint", lambda f: [partial(convert_official, bench, f)]),
        Command(
            "download",
            lambda f: [guarded(partial(download_archives, bench, f))],
            12,
            ("data/*.zip",),
        ),
        # with small scripts as stages, which do not import torch
        Command("stages of an experiment", lambda f: [partial(run_stages, f)], 8, starved=False),
    ]


def word_encoder(folder: Path) -> CachedTextEncoder:
    """Return a text encoder with a cache in ``folder``."""
    return CachedTextEncoder("vild-shapes", None, templates="single", folder=folder, device="cpu")


def fill_word_cache(folder: Path) -> None:
    """Embed three vocabularies with one cache."""
    encoder = word_encoder(folder / "cache")
    for number, words in enumerate(VOCABULARIES):
        found = encoder.embed(Vocabulary.from_names(words))
        found.save(folder / f"words{number}.safetensors")


def convert_official(bench: Bench, folder: Path) -> None:
    """Convert a checkpoint, with the detector of the fixtures in place of TensorFlow's."""
    text = torch.eye(64)[:60]
    state = torch.load(bench.detector, weights_only=False)["model"]
    tool = convert_official_checkpoint
    tool.checkpoint_prefix = nullcontext
    tool.read_variables = lambda prefix: {}
    tool.convert_variables = lambda variables: OfficialModel(state, text, 50, "ensemble")
    words = (bench.detector, "--out", folder / "official.pth", "--vocabulary", "shapes_val")
    argv = ["convert", *map(str, words), "--text-out", str(folder / "text.safetensors")]
    tool.sys.argv = argv
    raise SystemExit(tool.main())


def make_archives(bench: Bench) -> None:
    """Write two zip archives for the server to publish."""
    draw = torch.Generator().manual_seed(0)
    for name, members in ARCHIVES.items():
        folder = bench.folder / "archives" / "zips"
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            for member in members:
                content = torch.randint(0, 256, (150_000,), generator=draw, dtype=torch.uint8)
                entry = zipfile.ZipInfo(f"{name}/{member}", (2020, 1, 1, 0, 0, 0))
                archive.writestr(entry, content.numpy().tobytes())


def download_archives(bench: Bench, folder: Path) -> None:
    """Download and unpack the archives from a server in a thread of this process."""
    zips = bench.folder / "archives"
    download.ARCHIVES = tuple(
        download.Archive(
            f"http://publisher.example/zips/{name}.zip",
            hashlib.md5((zips / "zips" / f"{name}.zip").read_bytes()).hexdigest(),
            0.001,
            ("coco",),
            "coco",
            ".",
            # files by name, or a folder of so many images
            *((("images",), 2) if name == "images" else (tuple(f"{name}/{m}" for m in members),)),
        )
        for name, members in ARCHIVES.items()
    )
    with serving(zips) as address:
        download.fetch("coco", folder / "data", archive_base=address)


@contextmanager
def serving(folder: Path) -> Iterator[str]:
    """Run a slow HTTP server of a folder, with support for ranges, and yield its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            content = (folder / self.path.lstrip("/")).read_bytes()
            requested = self.headers.get("Range")
            begin = int(requested.removeprefix("bytes=").rstrip("-")) if requested else 0
            if begin >= len(content) > 0 and requested:
                self.send_response(416)
                self.end_headers()
                return
            self.send_response(206 if requested else 200)
            if requested:
                last = len(content) - 1
                self.send_header("Content-Range", f"bytes {begin}-{last}/{len(content)}")
            self.send_header("Content-Length", str(len(content) - begin))
            self.end_headers()
            for start in range(begin, len(content), 30_000):
                self.wfile.write(content[start : start + 30_000])
                sleep(0.005)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    # aborted connections are expected here
    server.handle_error = lambda *_: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


_STAGE = """
import os, sys, time
target, text = sys.argv[1:]
time.sleep(0.1)
with open(target + ".part", "w") as file:
    file.write(text)
time.sleep(0.1)
os.replace(target + ".part", target)
"""


def run_stages(folder: Path) -> bool:
    """Run three stages that depend on each other, like those of the quickstart."""
    program = folder / "stage.py"
    if not program.exists():
        temporary = folder / f".{threading.get_native_id()}.py"
        temporary.write_text(_STAGE, encoding="utf-8")
        temporary.replace(program)
    outputs = [folder / f"stage{number}.txt" for number in range(3)]
    stages = [
        Stage(
            f"stage{number}",
            f"write {output.name}",
            (str(program), str(output), f"the content of {number}"),
            (output,),
            tuple(f"stage{earlier}" for earlier in range(number)),
        )
        for number, output in enumerate(outputs)
    ]
    run_or_exit(StageRunner(stages, folder / "stages"))
    return False
