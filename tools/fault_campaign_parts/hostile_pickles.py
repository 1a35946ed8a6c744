"""Pickles that would run code: checkpoints, teachers, proposals, arrays of objects."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import open_clip
import torch

from fault_campaign_parts.attack import Attack, Call
from fault_campaign_parts.bench import Bench, script
from vild.embeddings import build_teacher


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
    """Write a torch pickle disguised as TorchScript."""
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
    """Return hostile checkpoints, teachers and proposals."""

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

    def make(form: str, name: str = "") -> Callable[[Path], None]:
        default, write = FORMS[form]
        return lambda folder: write(bench, folder / (name or default))

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
        Attack(f"proposals, {form}", "proposals", make(form, "weights.pkl"), proposals)
        for form in ("pickle", "zip")
    ]
    return attacks


def teacher(name: str) -> Callable[[Path], None]:
    """Return a target that loads the weights of a small CLIP."""
    config = {
        "embed_dim": 16,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 16},
        "text_cfg": {"context_length": 8, "vocab_size": 49408, "width": 16, "heads": 1},
    }

    def target(folder: Path) -> None:
        (folder / "configs").mkdir()
        (folder / "configs" / "tiny.json").write_text(json.dumps(config), encoding="utf-8")
        open_clip.add_model_config(folder / "configs")
        build_teacher("tiny", str(folder / name), "cpu")

    return target


def arrays(bench: Bench) -> list[Attack]:
    """Return hostile files for ``--import``."""

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
