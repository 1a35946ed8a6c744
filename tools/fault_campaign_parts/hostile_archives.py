"""Archives with members outside their folder, and decompression bombs."""

from __future__ import annotations

import json
import pickle
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from convert_official_checkpoint import checkpoint_prefix
from fault_campaign_parts.attack import ELSEWHERE, Attack
from fault_campaign_parts.bench import Bench, script
from vild.data import read_image
from vild.data.download import extract

OUTSIDE = (f"../{ELSEWHERE}/x", f"a/../../{ELSEWHERE}/x", f"..\\{ELSEWHERE}\\x")


def archives(bench: Bench) -> list[Attack]:
    """Return archives with members outside their folder."""

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
        extract(folder / "a.zip", folder / "data")

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


def bombs(bench: Bench) -> list[Attack]:
    """Return small files that expand to much memory or disk space."""

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
        """Write a PNG of 60,000 x 60,000 pixels."""
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
        """Write 8 GB of zeros in 8 MB."""
        header = {"descr": "<f4", "fortran_order": False, "shape": (32 << 10, 64 << 10)}
        with (
            zipfile.ZipFile(folder / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
            archive.open("rows.npy", "w", force_zip64=True) as file,
        ):
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(128):
                file.write(bytes(64 << 20))

    def great_zip(folder: Path) -> None:
        """Write a zip whose directory declares a member of 4 GB."""
        with zipfile.ZipFile(folder / "a.zip", "w") as archive:
            archive.writestr("x", "x")
        data = bytearray((folder / "a.zip").read_bytes())
        place = data.rfind(b"PK\x01\x02")
        data[place + 24 : place + 28] = (0xFFFFFFFE).to_bytes(4, "little")
        (folder / "a.zip").write_bytes(data)

    def long_header(folder: Path) -> None:
        (folder / "a.safetensors").write_bytes((1 << 60).to_bytes(8, "little") + b"{}")

    def great_pickle(folder: Path) -> None:
        """Write a pickle with an array of 64 GB."""
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
        extract(folder / "a.zip", folder / "data")

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
