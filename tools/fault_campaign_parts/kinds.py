"""Every kind of file that the project reads, with a writer and a reader."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from PIL import Image
from safetensors.torch import save_file

from fault_campaign_parts.artefacts import digest, digests, tree_digest
from fault_campaign_parts.bench import ROOT, TRAIN, VAL, Bench, script
from fault_campaign_parts.commands import (
    VOCABULARIES,
    download_archives,
    fill_word_cache,
    run_stages,
)
from vild.config import read_config
from vild.data import Vocabulary, read_image, register_custom
from vild.data.inspection import inspect_custom
from vild.embeddings import EmbeddingStore, TextEmbeddings, import_embeddings
from vild.embeddings.cache import CachedTextEncoder
from vild.embeddings.store import embedding_faults
from vild.embeddings.teacher import SHAPES_FOLDER, Teacher
from vild.evaluation import evaluate_results
from vild.inference.runs import read_runs
from vild.modeling import load_weights
from vild.proposals import ProposalStore, read_detectron2_proposals
from vild.storage import store_faults

CONVERT = "tools/convert_checkpoint.py"
OWN = "files of the project"
OTHERS = "data of others, without checksums"


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: in reports.
        make: writes intact files into a folder.
        files: pattern of those that are damaged.
        read: returns the digest of what the project reads. Raises ValueError, OSError or
            SystemExit where damage is found. May write to the folder.
        count: number of damaged copies.
        group: ``OWN``: damage must be found or harmless. ``OTHERS``: it must not end in a
            traceback; without a checksum, a changed digit cannot be noticed.
        keep_times: keep the modification time, as a failing disk does.
    """

    name: str
    make: Callable[[Path], None]
    files: str
    read: Callable[[Path], str]
    count: int = 40
    group: str = OWN
    keep_times: bool = False


def all_kinds(bench: Bench) -> list[Kind]:
    """Return the table of kinds."""

    def copied(source: Path) -> Callable[[Path], None]:
        return lambda folder: _copy(source, folder)

    proposals, embeddings = copied(bench.proposals), copied(bench.embeddings)
    return [
        Kind("proposals: shard", proposals, "shard_*", read_proposals, 60),
        Kind("embeddings: shard", embeddings, "shard_*", read_embeddings, 60),
        Kind("embeddings: shard, by verify_store", embeddings, "shard_*", verify, 60, OWN, True),
        Kind("store: manifest", embeddings, "manifest.json", read_embeddings, 60),
        Kind("store: record of checks", embeddings, ".checked.json", read_embeddings),
        Kind("unfinished store: spec", unfinished(bench), "*/spec.json", resume_store(bench)),
        Kind("unfinished store: shard", unfinished(bench), "*/shard_*", resume_store(bench)),
        Kind("checkpoint (.pth)", copied(bench.detector), "*.pth", detector(bench), 80),
        Kind("checkpoint to resume from", begun(bench), "*.pth", resume(bench), 40),
        Kind("last_checkpoint", begun(bench), "last_checkpoint", resume(bench), 20),
        Kind("weights (.safetensors)", converted_weights(bench), "*.safetensors", detector(bench)),
        Kind("text embeddings", copied(bench.text), "*.safetensors", read_text, 80),
        Kind("word cache", cached_words, "cache/*.safetensors", read_words, 60),
        Kind("weights of a teacher", teacher_folder, "*.safetensors", read_teacher, 30),
        Kind("download: part", partial(begun_download, bench), "*/*.part", downloaded(bench), 30),
        Kind("download: zip", whole_download(bench), "*/*.zip", downloaded(bench), 20),
        Kind("recipe of shapes", dataset(bench), "*/shapes.json", remade, 20),
        Kind("records of stages", finished_stages, "stages/*.json", rerun_stages, 30),
        Kind("annotations", annotations(bench), "*.json", read_annotations, 80, OTHERS),
        Kind("dataset yaml", annotations(bench), "*.yaml", read_annotations, 40, OTHERS),
        Kind(
            *(
                "weights of others (.safetensors)",
                plain_weights(bench),
                "*.safetensors",
                detector(bench),
            ),
            *(20, OTHERS),
        ),
        Kind("results", copied(bench.results), "*.json", read_results, 60, OTHERS),
        Kind("metrics of a run", copied_metrics(bench), "*.json", read_metrics, 30, OTHERS),
        Kind("PNG", copied(bench.image), "*.png", read_pixels, 60, OTHERS),
        Kind("JPEG", jpeg(bench), "*.jpg", read_pixels, 40, OTHERS),
        Kind("configuration yaml", configuration, "*.yaml", read_yaml, 40, OTHERS),
        Kind("Detectron2's proposals", proposals_file(bench), "*.pkl", read_pickle, 60, OTHERS),
        Kind("word list (.csv)", word_list("csv"), "words.*", read_list, 30, OTHERS),
        Kind("word list (.json)", word_list("json"), "words.*", read_list, 20, OTHERS),
        Kind("embeddings of others (.npy)", matrix, "*.npy", read_matrix, 30, OTHERS),
    ]


def _copy(source: Path, folder: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, folder, dirs_exist_ok=True)
    else:
        shutil.copy2(source, folder)


def _only(folder: Path, pattern: str) -> Path:
    (file,) = folder.glob(pattern)
    return file


def read_proposals(folder: Path) -> str:
    """Read all records."""
    store = ProposalStore(folder)
    return tree_digest([store.digest, {str(image): store.arrays(image) for image in store}])


def read_embeddings(folder: Path) -> str:
    """Read all records."""
    store = EmbeddingStore(folder)
    return tree_digest([store.digest, {str(image): store.arrays(image) for image in store}])


def verify(folder: Path) -> str:
    """Check a store like tools/verify_store.py."""
    if faults := store_faults(folder, embedding_faults):
        raise ValueError(faults[0])
    return read_embeddings(folder)


def unfinished(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of a store without its last shard and manifest."""

    def make(folder: Path) -> None:
        shutil.copytree(bench.converted / TRAIN, folder / TRAIN)
        for name in ("manifest.json", ".checked.json", "shard_00003.safetensors"):
            (folder / TRAIN / name).unlink(missing_ok=True)

    return make


def resume_store(bench: Bench) -> Callable[[Path], str]:
    """Return a reader that finishes the store."""

    def read(folder: Path) -> str:
        _run(*bench.convert_command(folder))
        return read_proposals(folder / TRAIN)

    return read


def _run(*words: object) -> None:
    """Run a script; SystemExit only if it fails."""
    try:
        script(*words)()
    except SystemExit as stop:
        if stop.code:
            raise


def detector(bench: Bench) -> Callable[[Path], str]:
    """Return a reader that loads weights for inference."""

    def read(folder: Path) -> str:
        options = bench.options()
        cfg = read_config(ROOT / "configs/shapes/vild_ensemble.yaml", options)
        model = build_model(cfg)
        load_weights(model, str(next(f for f in folder.iterdir() if f.is_file())))
        return tree_digest(dict(model.state_dict()))

    return read


def plain_weights(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of the detector's weights as anybody's safetensors."""

    def make(folder: Path) -> None:
        weights = torch.load(bench.detector, weights_only=False)["model"]
        save_file({n: t.contiguous() for n, t in weights.items()}, folder / "model.safetensors")

    return make


def converted_weights(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of the detector's weights by tools/convert_checkpoint.py."""
    return lambda folder: _run(CONVERT, bench.detector, folder / "model.safetensors")


def begun(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of a training to resume."""

    def make(folder: Path) -> None:
        shutil.copy2(bench.detector.with_name("model_0000001.pth"), folder)
        (folder / "last_checkpoint").write_text("model_0000001.pth", encoding="utf-8")

    return make


def resume(bench: Bench) -> Callable[[Path], str]:
    """Return a reader that resumes the training for one step."""

    def read(folder: Path) -> str:
        _run(*bench.train_command(folder, "ensemble", 3))
        return digest(folder / "model_final.pth", folder)

    return read


def read_text(folder: Path) -> str:
    """Read text embeddings and their header."""
    found = TextEmbeddings.load(_only(folder, "*.safetensors"))
    words = found.vocabulary
    about = (words.names, words.synonyms, words.novel, found.temperature, found.teacher)
    about += (found.fingerprint, found.templates, found.synonyms)
    return tree_digest([found.embeddings, about])


def cached_words(folder: Path) -> None:
    """Fill a word cache."""
    fill_word_cache(folder)


def read_words(folder: Path) -> str:
    """Embed the words of the cache again.

    Words that are recomputed in another batch differ by rounding, so values are compared instead of
    bytes.
    """
    found, fresh = (
        torch.cat(
            [encoder.embed(Vocabulary.from_names(words)).embeddings for words in VOCABULARIES]
        )
        for encoder in map(_encoder, (folder / "cache", folder / "fresh"))
    )
    return "equal" if torch.allclose(found, fresh, rtol=0, atol=1e-6) else tree_digest(found)


def _encoder(folder: Path) -> CachedTextEncoder:
    return CachedTextEncoder(
        *("vild-shapes", None), templates="single", folder=folder, device="cpu"
    )


def teacher_folder(folder: Path) -> None:
    """Write a teacher as a folder."""
    for file in SHAPES_FOLDER.iterdir():
        if file.is_file():
            shutil.copy2(file, folder)


def read_teacher(folder: Path) -> str:
    """Embed words with a teacher whose fingerprint is known."""
    meant = Teacher.load("vild-shapes", device="cpu").fingerprint
    encoder = CachedTextEncoder(
        f"local-dir:{folder}",
        None,
        fingerprint=meant,
        templates="single",
        folder=folder / "cache",
        device="cpu",
    )
    return tree_digest(encoder.embed(Vocabulary.from_names(["red circle"])).embeddings)


def begun_download(bench: Bench, folder: Path) -> None:
    """Write the first half of an archive."""
    (folder / "data").mkdir()
    content = (bench.folder / "archives/zips/images.zip").read_bytes()
    (folder / "data/images.zip.part").write_bytes(content[: len(content) // 2])


def whole_download(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of an archive that is not unpacked yet."""

    def make(folder: Path) -> None:
        (folder / "data").mkdir()
        shutil.copy2(bench.folder / "archives/zips/images.zip", folder / "data")

    return make


def downloaded(bench: Bench) -> Callable[[Path], str]:
    """Return a reader that finishes the download."""

    def read(folder: Path) -> str:
        download_archives(bench, folder)
        return tree_digest(digests(folder))

    return read


def dataset(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of the dataset."""
    return lambda folder: _copy(bench.shapes, folder / "shapes")


def remade(folder: Path) -> str:
    """Run make_shapes on an existing dataset."""
    _run(*Bench(folder).shapes_command(folder / "shapes", "--workers", "1"))
    return tree_digest(digests(folder / "shapes"))


def finished_stages(folder: Path) -> None:
    """Write the records of a finished experiment."""
    run_stages(folder)


def rerun_stages(folder: Path) -> str:
    """Run the experiment again; stages without a valid record are repeated."""
    run_stages(folder)
    return tree_digest({f.name: f.read_bytes() for f in sorted(folder.glob("stage*.txt"))})


def annotations(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of a custom dataset."""

    def make(folder: Path) -> None:
        shutil.copy2(bench.shapes / "annotations/val.json", folder / "val.json")
        images = json.dumps(str(bench.shapes / "val"))
        text = f"name: mine\nval:\n  json: val.json\n  images: {images}\nnovel: []\n"
        (folder / "mine.yaml").write_text(text, encoding="utf-8")

    return make


def read_annotations(folder: Path) -> str:
    """Inspect a custom dataset and read it as training does."""
    report = inspect_custom(folder / "mine.yaml", "none")
    names = register_custom(folder / "mine.yaml")
    records = {name: DatasetCatalog.get(name) for name in names}
    return tree_digest([repr(report.errors), records])


def read_results(folder: Path) -> str:
    """Evaluate results."""
    return tree_digest(repr(evaluate_results(VAL, _only(folder, "*.json"))))


def copied_metrics(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of the metrics of an evaluation."""
    return lambda folder: _copy(bench.results.with_name(f"{VAL}_metrics.json"), folder)


def read_metrics(folder: Path) -> str:
    """Read metrics like tools/summarize.py."""
    return tree_digest(repr([(run.name, run.results) for run in read_runs([_only(folder, "*")])]))


def jpeg(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of a JPEG."""
    return lambda folder: Image.open(bench.image).convert("RGB").save(folder / "image.jpg")


def read_pixels(folder: Path) -> str:
    """Read the pixels of an image."""
    return tree_digest(np.asarray(read_image(_only(folder, "*"))))


def configuration(folder: Path) -> None:
    """Write a configuration."""
    shutil.copy2(ROOT / "configs/Base-ViLD-R50-FPN.yaml", folder)


def read_yaml(folder: Path) -> str:
    """Read a configuration."""
    return tree_digest(read_config(_only(folder, "*.yaml")).dump())


def proposals_file(bench: Bench) -> Callable[[Path], None]:
    """Return a writer of proposals in Detectron2's format."""
    return lambda folder: _copy(bench.folder / "proposals.pkl", folder)


def read_pickle(folder: Path) -> str:
    """Read proposals in Detectron2's format."""
    return tree_digest([tuple(r) for r in read_detectron2_proposals(_only(folder, "*.pkl"), True)])


def word_list(ending: str) -> Callable[[Path], None]:
    """Return a writer of a word list."""
    words = [f"class {number}" for number in range(20)]
    entries = [{"name": word, "synonyms": [word, f"a {word}"]} for word in words]
    text = json.dumps(entries) if ending == "json" else "\n".join(["name", *words])
    return lambda folder: (folder / f"words.{ending}").write_text(text, encoding="utf-8") and None


def read_list(folder: Path) -> str:
    """Read a word list."""
    words = Vocabulary.load(str(_only(folder, "words.*")))
    return tree_digest((words.names, words.synonyms, words.novel))


def matrix(folder: Path) -> None:
    """Write an embedding matrix."""
    np.save(folder / "clip.npy", np.random.default_rng(0).normal(size=(60, 64)).astype(np.float32))


def read_matrix(folder: Path) -> str:
    """Import an embedding matrix."""
    found = import_embeddings(_only(folder, "*.npy"), Vocabulary.load(VAL), "somebody", 0.01, "kd")
    return tree_digest(found.embeddings)
