"""Yaml that would run code, and names that pages or spreadsheets could interpret."""

from __future__ import annotations

import csv
import json
import shlex
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from fault_campaign_parts.attack import MARKER, Attack
from fault_campaign_parts.bench import TRAIN_NET, VAL, Bench, script
from vild.data import Vocabulary

SCRIPT, IMAGE_TAG = "<script>alert(1)</script>", "<img src=x onerror=alert(1)>"
FORMULA = '=HYPERLINK("http://example.org")'
TAGS = ("!!python/object/apply:os.system", "!!python/object/new:os.system")


def yamls(bench: Bench) -> list[Attack]:
    """Return yaml files with Python tags, odd ``_BASE_`` values and alias bombs."""

    def write(name: str, text: str) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            marker = shlex.quote(str(folder / MARKER))
            text_here = text.replace("MARKER", f"touch {marker}").replace("FOLDER", str(folder))
            (folder / name).write_text(text_here, encoding="utf-8")

        return make

    def train(folder: Path) -> None:
        script(TRAIN_NET, "--config-file", folder / "a.yaml", "OUTPUT_DIR", folder / "run")()

    def register(folder: Path) -> None:
        words = bench.text_command(folder / "text.safetensors")
        script(*words, "--dataset-yaml", folder / "a.yaml")()

    def words(folder: Path) -> None:
        file = str(folder / "a.yaml")
        Vocabulary.load(file)

    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{n + 1}: &a{n + 1} [{', '.join([f'*a{n}'] * 9)}]\n" for n in range(9)
    )
    attacks = []
    for tag in TAGS:
        call = f"{tag} ['MARKER']"
        for what, target, key in (
            ("configuration", train, "OUTPUT_DIR"),
            ("dataset", register, "name"),
            ("word list", words, "names"),
        ):
            make = write("a.yaml", f"{key}: {call}\n")
            attacks.append(Attack(f"{what} with {tag}", "yaml", make, target))
    bases = {
        "itself": "a.yaml",
        "a file that is not there": "b.yaml",
        "a folder": ".",
        "a device": "/dev/null",
        "a number": "7",
        "an address": "http://127.0.0.1:9/a.yaml",
        "a tag": f"{TAGS[0]} ['MARKER']",
    }
    for what, base in bases.items():
        make = write("a.yaml", f"_BASE_: {base}\nSEED: 1\n")
        attacks.append(Attack(f"_BASE_ is {what}", "yaml", make, train, what == "a device"))
    for what, target in (("configuration", train), ("dataset", register), ("word list", words)):
        make = write("a.yaml", f"name: x\n{laughs}")
        attacks.append(Attack(f"{what} of a billion laughs", "bombs", make, target))
    attacks[-1] = Attack(attacks[-1].name, "bombs", attacks[-1].make, words, may_succeed=True)
    return attacks


def names(bench: Bench) -> list[Attack]:
    """Return names that a page, a spreadsheet or a file system could interpret."""

    def page(folder: Path) -> None:
        script(
            "tools/result_page.py",
            "--dataset",
            VAL,
            "--out",
            folder / "page.html",
            "--title",
            f"{IMAGE_TAG} $x^{{$",
            "--run",
            f"{SCRIPT}={bench.results.parent}",
        )()

    def check_page(folder: Path) -> str:
        text = (folder / "page.html").read_text(encoding="utf-8")
        found = [tag for tag in (SCRIPT, IMAGE_TAG) if tag in text]
        return f"the page holds {found[0]} as it is" if found else ""

    def demo(words: str, suffix: str) -> Callable[[Path], None]:
        def target(folder: Path) -> None:
            command = list(bench.demo_command(folder, "--vocabulary", str(folder / "words.json")))
            command[command.index(str(folder / "found.json"))] = str(folder / f"found{suffix}")
            script(*command)()

        return target

    def word_file(*words: str) -> Callable[[Path], None]:
        return lambda folder: (folder / "words.json").write_text(json.dumps(words)) and None

    def check_cells(folder: Path) -> str:
        with (folder / "found.csv").open(encoding="utf-8", newline="") as file:
            cells = [cell for row in csv.reader(file) for cell in row]
        found = [cell for cell in cells if cell[:1] in "=+@" and cell[:1]]
        return f"a cell begins a formula: {found[0]!r}" if found else ""

    def odd_files(folder: Path) -> None:
        for name in ("-rf.png", "$(touch x).png", f"{FORMULA.replace('/', '_')}.png", "a\nb.png"):
            Image.open(bench.image).save(folder / name)

    def draw(folder: Path) -> None:
        command = list(bench.demo_command(folder))
        command[command.index(str(bench.shapes / "val"))] = str(folder)
        script(*command)()

    nothing: Callable[[Path], None] = lambda folder: None  # noqa: E731
    tricky = (SCRIPT, FORMULA, "$x^{$", "../../elsewhere/x", "\u202egnp.exe")
    return [
        Attack("tags in a page's title and runs", "names", nothing, page, True, check_page),
        *(
            Attack(
                f"class {name!r}, {suffix}",
                "names",
                word_file(name, "red circle"),
                demo(name, suffix),
                True,
                check_cells if suffix == ".csv" else None,
            )
            for name in tricky
            for suffix in (".json", ".csv")
        ),
        Attack("images with odd names", "names", odd_files, draw, True),
    ]
