"""Files and names that are made to run code, to write elsewhere, or to fill memory and disk."""

from __future__ import annotations

import csv
import io
import json
import os
import pickle
import resource
import shlex
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import open_clip
import torch
from convert_official_checkpoint import checkpoint_prefix
from fault_campaign_parts.bench import TRAIN_NET, VAL, Bench, script
from fault_campaign_parts.children import guarded, run
from fault_campaign_parts.report import Case, Result
from PIL import Image

from vild.data import Vocabulary, read_image
from vild.data.download import extract
from vild.embeddings import Teacher

MARKER = "CODE_RAN"
MEMORY = 3 << 30  # bytes beside what a forked child has; the bombs ask for more
ELSEWHERE = "elsewhere"  # a folder beside the one that a command writes to
SCRIPT, IMAGE_TAG = "<script>alert(1)</script>", "<img src=x onerror=alert(1)>"
FORMULA = '=HYPERLINK("http://example.org")'


@dataclass(frozen=True)
class Attack:
    """A hostile file and the command that is given it.

    Attributes:
        name: of the case.
        subject: row of the table.
        make: writes the files; gets the folder.
        target: reads them; gets the folder.
        may_succeed: whether reading it as plain data is right, too.
        check: looks at what was written; returns what is wrong with it.
    """

    name: str
    subject: str
    make: Callable[[Path], None]
    target: Callable[[Path], int | None]
    may_succeed: bool = False
    check: Callable[[Path], str] | None = None


class Call:
    """Is a call of ``os.system`` once it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.words = f"touch {shlex.quote(str(folder / MARKER))}"

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return (os.system, (self.words,))


def malicious_cases(bench: Bench) -> list[Case]:
    """All of this part."""
    attacks = [*pickles(bench), *arrays(bench), *yamls(bench), *names(bench), *archives(bench)]
    attacks += bombs(bench)
    return [
        Case("malicious", attack.subject, f"malicious/{attack.name}", partial(attempt, attack))
        for attack in attacks
    ]


def attempt(attack: Attack, folder: Path, random: Random) -> Result:
    """Run one attack."""
    result = Result()
    own = folder / "own"
    own.mkdir()
    (folder / ELSEWHERE).mkdir()
    made = run(partial(attack.make, own), folder / "make")
    (own / MARKER).unlink(missing_ok=True)
    if made.code:
        result.problems.append(f"the file cannot be made: {made.text[-500:]}")
        return result
    outcome = run(guarded(partial(_limited, partial(attack.target, own))), folder / "read")
    result.counts["attacks"] += 1
    if list(folder.rglob(MARKER)):
        result.problems.append("CODE of the file RAN")
    if any((folder / ELSEWHERE).iterdir()):
        result.problems.append("a file was written elsewhere")
    if outcome.complaint():
        result.problems.append(outcome.complaint())
    if not outcome.code and not attack.may_succeed:
        result.problems.append("it was accepted")
    if attack.check is not None and not outcome.code and (wrong := attack.check(own)):
        result.problems.append(wrong)
    result.counts["refused" if outcome.code else "read as plain data"] += 1
    result.notes.append((outcome.text.strip().splitlines() or [""])[-1][:300])
    return result


def _limited(target: Callable[[], int | None]) -> int | None:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    return target()


# pickles ------------------------------------------------------------------------------------------


def _state(bench: Bench, folder: Path) -> dict[str, object]:
    state = torch.load(bench.detector, weights_only=False)
    return {**state, "more": Call(folder)}


def _as_zip(bench: Bench, file: Path) -> None:
    torch.save(_state(bench, file.parent), file)


def _as_legacy(bench: Bench, file: Path) -> None:
    torch.save(_state(bench, file.parent), file, _use_new_zipfile_serialization=False)


def _as_tar(bench: Bench, file: Path) -> None:
    with tarfile.open(file, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            content = pickle.dumps(Call(file.parent) if name == "pickle" else 0, protocol=2)
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def _as_false_torchscript(bench: Bench, file: Path) -> None:
    """A pickle of torch with a name of TorchScript's added."""
    _as_zip(bench, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("other/constants.pkl", b"\x80\x02).")


def _as_plain_pickle(bench: Bench, file: Path) -> None:
    model = {"stem": np.ones(2, np.float32), "more": Call(file.parent)}
    contents = {"model": model, "__author__": "somebody"}
    file.write_bytes(pickle.dumps(contents))


FORMS: dict[str, tuple[str, Callable[[Bench, Path], None]]] = {
    "zip": ("weights.pth", _as_zip),
    "legacy": ("weights.pth", _as_legacy),
    "tar": ("weights.pth", _as_tar),
    "false TorchScript": ("weights.pt", _as_false_torchscript),
    "pickle": ("weights.pkl", _as_plain_pickle),
    "pyth": ("weights.pyth", _as_zip),
}


def pickles(bench: Bench) -> list[Attack]:
    """Checkpoints, teachers and proposals."""

    def weights(name: str) -> Callable[[Path], None]:
        def target(folder: Path) -> None:
            words = bench.evaluate_command(folder)
            script(*words, "MODEL.WEIGHTS", str(folder / name))()

        return target

    def resume(folder: Path) -> None:
        script(*bench.train_command(folder))()

    def begun(folder: Path) -> None:
        torch.save(_state(bench, folder), folder / "model_0000001.pth")
        (folder / "last_checkpoint").write_text("model_0000001.pth", encoding="utf-8")

    def make(form: str) -> Callable[[Path], None]:
        name, write = FORMS[form]
        return lambda folder: write(bench, folder / name)

    def proposals(folder: Path) -> None:
        words = [str(folder / "weights.pkl") if w == str(bench.pickle) else w for w in command]
        script(*words)()

    command = bench.convert_command(bench.folder / "never")
    attacks = [
        Attack(f"MODEL.WEIGHTS, {form}", "checkpoints", make(form), weights(FORMS[form][0]))
        for form in FORMS
    ]
    attacks.append(Attack("resumed checkpoint", "checkpoints", begun, resume))
    attacks += [
        Attack(f"weights of a teacher, {form}", "teachers", make(form), teacher(FORMS[form][0]))
        for form in ("zip", "legacy", "tar", "false TorchScript")
    ]
    attacks += [
        Attack(f"proposals, {form}", "proposals", _always("weights.pkl", form, bench), proposals)
        for form in ("pickle", "zip")
    ]
    return attacks


def _always(name: str, form: str, bench: Bench) -> Callable[[Path], None]:
    """A form under another name."""
    return lambda folder: FORMS[form][1](bench, folder / name)


def teacher(name: str) -> Callable[[Path], None]:
    """Load the weights of a small CLIP."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1},
    }

    def target(folder: Path) -> None:
        (folder / "configs").mkdir()
        (folder / "configs" / "tiny.json").write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(folder / "configs")
        Teacher.load("tiny", str(folder / name), "cpu")

    return target


# arrays -------------------------------------------------------------------------------------------


def arrays(bench: Bench) -> list[Attack]:
    """Matrices that others publish."""

    def importing(name: str) -> Callable[[Path], None]:
        return lambda folder: script(
            *bench.text_command(folder / "text.safetensors", "--import", str(folder / name))
        )()

    def objects(folder: Path) -> np.ndarray:
        return np.array([Call(folder)], dtype=object)

    makers: dict[str, Callable[[Path], None]] = {
        "matrix.npy": lambda folder: np.save(folder / "matrix", objects(folder)),
        "matrix.npz": lambda folder: np.savez(folder / "matrix", rows=objects(folder)),
        "matrix.pth": lambda folder: _as_zip(bench, folder / "matrix.pth"),
        "matrix.pt": lambda folder: _as_legacy(bench, folder / "matrix.pt"),
    }
    return [
        Attack(f"--import {name}", "arrays of objects", make, importing(name))
        for name, make in makers.items()
    ]


# yaml ---------------------------------------------------------------------------------------------

TAGS = ("!!python/object/apply:os.system", "!!python/object/new:os.system")


def yamls(bench: Bench) -> list[Attack]:
    """Tags that run code, and bases that are none."""

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


# names --------------------------------------------------------------------------------------------


def names(bench: Bench) -> list[Attack]:
    """Names that a page, a spreadsheet or a file system may take for more."""

    def page(folder: Path) -> None:
        script(
            *("tools/result_page.py", "--dataset", VAL, "--out", folder / "page.html"),
            *("--title", f"{IMAGE_TAG} $x^{{$", "--run", f"{SCRIPT}={bench.results.parent}"),
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


# archives -----------------------------------------------------------------------------------------

OUTSIDE = (f"../{ELSEWHERE}/x", f"a/../../{ELSEWHERE}/x", f"..\\{ELSEWHERE}\\x")


def archives(bench: Bench) -> list[Attack]:
    """Archives whose members go elsewhere."""

    def zipped(member: str, link: bool = False) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            with zipfile.ZipFile(folder / "a.zip", "w") as archive:
                entry = zipfile.ZipInfo(member.replace("FOLDER", str(folder.parent)))
                if link:
                    entry.external_attr = 0o120777 << 16
                archive.writestr(entry, f"../{ELSEWHERE}" if link else "x")
                if link:
                    archive.writestr(f"{member}/x", "x")

        return make

    def tarred(member: str, kind: bytes = tarfile.REGTYPE) -> Callable[[Path], None]:
        def make(folder: Path) -> None:
            with tarfile.open(folder / "a.tar.gz", "w:gz") as archive:
                entry = tarfile.TarInfo(member.replace("FOLDER", str(folder.parent)))
                entry.type, entry.linkname = kind, str(folder.parent / ELSEWHERE)
                archive.addfile(entry)
                inner = tarfile.TarInfo(f"{entry.name}/x" if kind != tarfile.REGTYPE else "y")
                archive.addfile(inner)

        return make

    def unzip(folder: Path) -> None:
        extract(folder / "a.zip", folder / "data", progress=False)

    def untar(folder: Path) -> None:
        with checkpoint_prefix(folder / "a.tar.gz"):
            pass

    absolute = f"FOLDER/{ELSEWHERE}/x"
    attacks = [
        Attack(f"zip, {member}", "archives", zipped(member), unzip)
        for member in (*OUTSIDE, absolute, "C:\\x")
    ]
    attacks.append(Attack("zip, a link", "archives", zipped("link", True), unzip, True))
    attacks += [
        Attack(f"tar, {member}", "archives", tarred(member), untar)
        for member in (*OUTSIDE[:2], absolute)
    ]
    attacks.append(Attack("tar, a link", "archives", tarred("link", tarfile.SYMTYPE), untar))
    attacks.append(Attack("tar, a device", "archives", tarred("device", tarfile.CHRTYPE), untar))
    return attacks


# bombs --------------------------------------------------------------------------------------------


def bombs(bench: Bench) -> list[Attack]:
    """Small files that ask for much."""

    def nested(name: str) -> Callable[[Path], None]:
        text = '{"images": ' + "[" * 200_000 + "]" * 200_000 + "}"
        return lambda folder: (folder / name).write_text(text) and None

    def mine(folder: Path) -> None:
        images = json.dumps(str(bench.shapes / "val"))
        text = f"name: x\nval: {{json: a.json, images: {images}}}\nnovel: []\n"
        (folder / "a.yaml").write_text(text, encoding="utf-8")
        words = bench.text_command(folder / "text.safetensors")
        script(*words, "--dataset-yaml", folder / "a.yaml")()

    def results(folder: Path) -> None:
        words = bench.evaluate_command(folder, "--eval-results", str(folder / "a.json"))
        script(*(word for word in words if word != "--eval-only"))()

    def great_image(folder: Path) -> None:
        """A PNG of 60,000 x 60,000 pixels in ten megabytes; one row is written, the rest is zero."""
        side = 60_000

        def chunk(kind: bytes, data: bytes) -> bytes:
            whole = kind + data
            return len(data).to_bytes(4, "big") + whole + zlib.crc32(whole).to_bytes(4, "big")

        pack = zlib.compressobj(9)
        row = bytes(1 + side // 8)
        data = b"".join(pack.compress(row) for _ in range(side)) + pack.flush()
        header = side.to_bytes(4, "big") * 2 + bytes((1, 0, 0, 0, 0))
        content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)
        (folder / "a.png").write_bytes(content + chunk(b"IEND", b""))

    def great_npz(folder: Path) -> None:
        """8 GB of zeros in 8 MB."""
        with zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            with archive.open("rows.npy", "w", force_zip64=True) as file:
                header = {"descr": "<f4", "fortran_order": False, "shape": (32 << 10, 64 << 10)}
                np.lib.format.write_array_header_1_0(file, header)
                block = bytes(64 << 20)
                for _ in range(128):
                    file.write(block)

    def great_zip(folder: Path) -> None:
        """A zip that says that its member has an exabyte."""
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("x", "x")
        data = bytearray((folder / "a.zip").read_bytes())
        place = data.rfind(b"PK\x01\x02")
        data[place + 24 : place + 28] = (0xFFFFFFFE).to_bytes(4, "little")
        (folder / "a.zip").write_bytes(data)

    def long_header(folder: Path) -> None:
        (folder / "a.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")

    def great_pickle(folder: Path) -> None:
        """A pickle that asks for an array of 64 GB."""
        contents = {"ids": [1], "boxes": [np.zeros((1, 4))], "objectness_logits": [np.zeros(1)]}
        data = pickle.dumps({**contents, "bbox_mode": 0}, protocol=4)
        (folder / "a.pkl").write_bytes(
            data.replace(b"K\x01K\x04\x86", b"J\xff\xff\xff\x7fK\x04\x86")
        )

    def read_boxes(folder: Path) -> None:
        words = bench.convert_command(folder / "store")
        script(*(str(folder / "a.pkl") if word == str(bench.pickle) else word for word in words))()

    def importing(name: str) -> Callable[[Path], None]:
        return lambda folder: script(
            *bench.text_command(folder / "t.safetensors", "--import", str(folder / name))
        )()

    def weights(folder: Path) -> None:
        file = str(folder / "a.safetensors")
        script(*bench.evaluate_command(folder), "MODEL.WEIGHTS", file)()

    def unzip(folder: Path) -> None:
        extract(folder / "a.zip", folder / "data", progress=False)

    def pixels(folder: Path) -> None:
        read_image(folder / "a.png")

    return [
        Attack("deep annotations", "bombs", nested("a.json"), mine),
        Attack("deep results", "bombs", nested("a.json"), results),
        Attack("an image of 3.6 gigapixels", "bombs", great_image, pixels),
        Attack("8 GB of zeros as npz", "bombs", great_npz, importing("a.npz")),
        Attack("a zip that is smaller than it says", "bombs", great_zip, unzip, True),
        Attack("safetensors with a header of an exabyte", "bombs", long_header, weights),
        Attack("an array of 64 GB in a pickle", "bombs", great_pickle, read_boxes),
    ]
