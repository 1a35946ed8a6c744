"""Readers of each kind of file, which return a digest of what the project reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from fault_campaign_parts.artefacts import digest, digests, tree_digest
from fault_campaign_parts.bench import ROOT, TRAIN, VAL, Bench, run_script
from fault_campaign_parts.commands import (
    VOCABULARIES,
    download_archives,
    run_stages,
    word_encoder,
)
from vild.checkpoint import load_weights
from vild.config import read_config
from vild.data import Vocabulary, read_image, register_custom
from vild.data.inspection import inspect_custom
from vild.embeddings import EmbeddingStore, TextEmbeddings, build_teacher, import_embeddings
from vild.embeddings.cache import CachedTextEncoder
from vild.embeddings.store import embedding_faults
from vild.evaluation import evaluate_results
from vild.proposals import ProposalStore, read_detectron2_proposals
from vild.reporting.runs import read_runs
from vild.storage import store_faults


def only(folder: Path, pattern: str) -> Path:
    """Return the only file of a pattern."""
    (file,) = folder.glob(pattern)
    return file


def read_store(store: ProposalStore | EmbeddingStore) -> str:
    """Read all records."""
    return tree_digest([store.digest, {str(image): store.arrays(image) for image in store}])


def read_proposals(folder: Path) -> str:
    """Read all records of a store of proposals."""
    return read_store(ProposalStore(folder))


def read_embeddings(folder: Path) -> str:
    """Read all records of a store of embeddings."""
    return read_store(EmbeddingStore(folder))


def verify(folder: Path) -> str:
    """Check a store like tools/verify_store.py."""
    if faults := store_faults(folder, embedding_faults):
        raise ValueError(faults[0])
    return read_embeddings(folder)


def resume_store(bench: Bench, folder: Path) -> str:
    """Finish the store."""
    run_script(*bench.convert_command(folder))
    return read_proposals(folder / TRAIN)


def detector(bench: Bench, folder: Path) -> str:
    """Load weights for inference."""
    options = bench.options()
    cfg = read_config(ROOT / "configs/shapes/vild_ensemble.yaml", options)
    model = build_model(cfg)
    load_weights(model, str(next(f for f in folder.iterdir() if f.is_file())))
    return tree_digest(dict(model.state_dict()))


def resume(bench: Bench, folder: Path) -> str:
    """Resume the training for one step."""
    run_script(*bench.train_command(folder, "ensemble", 3))
    return digest(folder / "model_final.pth", folder)


def read_text(folder: Path) -> str:
    """Read text embeddings and their header."""
    found = TextEmbeddings.load(only(folder, "*.safetensors"))
    words = found.vocabulary
    about = (words.names, words.synonyms, words.novel, found.temperature, found.teacher)
    about += (found.fingerprint, found.templates, found.synonyms)
    return tree_digest([found.embeddings, about])


def read_words(folder: Path) -> str:
    """Embed the words of the cache again.

    Words that are recomputed in another batch differ by rounding, so values are compared instead of
    bytes.
    """
    found, fresh = (
        torch.cat(
            [encoder.embed(Vocabulary.from_names(words)).embeddings for words in VOCABULARIES]
        )
        for encoder in map(word_encoder, (folder / "cache", folder / "fresh"))
    )
    return "equal" if torch.allclose(found, fresh, rtol=0, atol=1e-6) else tree_digest(found)


def read_teacher(folder: Path) -> str:
    """Embed words with a teacher whose fingerprint is known."""
    meant = build_teacher("vild-shapes", device="cpu").fingerprint
    encoder = CachedTextEncoder(
        f"local-dir:{folder}",
        None,
        fingerprint=meant,
        templates="single",
        folder=folder / "cache",
        device="cpu",
    )
    return tree_digest(encoder.embed(Vocabulary.from_names(["red circle"])).embeddings)


def downloaded(bench: Bench, folder: Path) -> str:
    """Finish the download."""
    download_archives(bench, folder)
    return tree_digest(digests(folder))


def remade(folder: Path) -> str:
    """Run make_shapes on an existing dataset."""
    run_script(*Bench(folder).shapes_command(folder / "shapes", "--workers", "1"))
    return tree_digest(digests(folder / "shapes"))


def rerun_stages(folder: Path) -> str:
    """Run the experiment again; stages without a valid record are repeated."""
    run_stages(folder)
    return tree_digest({f.name: f.read_bytes() for f in sorted(folder.glob("stage*.txt"))})


def read_annotations(folder: Path) -> str:
    """Inspect a custom dataset and read it as training does."""
    report = inspect_custom(folder / "mine.yaml", "none")
    names = register_custom(folder / "mine.yaml")
    records = {name: DatasetCatalog.get(name) for name in names}
    return tree_digest([repr(report.errors), records])


def read_results(folder: Path) -> str:
    """Evaluate results."""
    return tree_digest(repr(evaluate_results(VAL, only(folder, "*.json"))))


def read_metrics(folder: Path) -> str:
    """Read metrics like tools/summarize.py."""
    return tree_digest(repr([(run.name, run.results) for run in read_runs([only(folder, "*")])]))


def read_pixels(folder: Path) -> str:
    """Read the pixels of an image."""
    return tree_digest(np.asarray(read_image(only(folder, "*"))))


def read_yaml(folder: Path) -> str:
    """Read a configuration."""
    return tree_digest(read_config(only(folder, "*.yaml")).dump())


def read_pickle(folder: Path) -> str:
    """Read proposals in Detectron2's format."""
    return tree_digest([tuple(r) for r in read_detectron2_proposals(only(folder, "*.pkl"), True)])


def read_list(folder: Path) -> str:
    """Read a word list."""
    words = Vocabulary.load(str(only(folder, "words.*")))
    return tree_digest((words.names, words.synonyms, words.novel))


def read_matrix(folder: Path) -> str:
    """Import an embedding matrix."""
    found = import_embeddings(only(folder, "*.npy"), Vocabulary.load(VAL), "somebody", 0.01, "kd")
    return tree_digest(found.embeddings)
