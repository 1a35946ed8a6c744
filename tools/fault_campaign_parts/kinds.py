"""Every kind of file that the project reads, with a writer and a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fault_campaign_parts import readers, samples
from fault_campaign_parts.bench import VAL, Bench
from fault_campaign_parts.commands import fill_word_cache, run_stages
from fault_campaign_parts.readers import (
    read_annotations,
    read_embeddings,
    read_matrix,
    read_pickle,
    read_pixels,
    read_teacher,
    verify,
)

OWN = "files of the project"
OTHERS = "data of others, without checksums"


@dataclass(frozen=True)
class Kind:
    """One kind of file.

    Attributes:
        name: name in reports.
        make: writes intact files into a folder.
        files: pattern of the files to damage.
        read: returns the digest of what the project reads. Raises ValueError, OSError or
            SystemExit if it detects damage. May write to the folder.
        count: number of damaged copies.
        group: ``OWN``: damage must be detected or harmless. ``OTHERS``: it must not cause a
            traceback; without a checksum, a changed digit cannot be detected.
        keep_times: keep the modification time, like a failing disk.
    """

    name: str
    make: Callable[[Path], object]
    files: str
    read: Callable[[Path], str]
    count: int = 40
    group: str = OWN
    keep_times: bool = False


def all_kinds(bench: Bench) -> list[Kind]:
    """Return the table of kinds."""

    def copied(source: Path) -> Callable[[Path], None]:
        return partial(samples.copy, source)

    def using(function: Callable[[Bench, Path], Any]) -> Callable[[Path], Any]:
        return partial(function, bench)

    proposals, embeddings = copied(bench.proposals), copied(bench.embeddings)
    unfinished, resume_store = using(samples.unfinished), using(readers.resume_store)
    interrupted, resume = using(samples.interrupted_training), using(readers.resume)
    converted, plain = using(samples.converted_weights), using(samples.plain_weights)
    whole, half = using(samples.whole_download), using(samples.partial_download)
    annotations, dataset = using(samples.annotations), using(samples.dataset)
    detector, downloaded = using(readers.detector), using(readers.downloaded)
    metrics = copied(bench.results.with_name(f"{VAL}_metrics.json"))
    csv, json = partial(samples.word_list, "csv"), partial(samples.word_list, "json")
    return [
        Kind("proposals: shard", proposals, "shard_*", readers.read_proposals, 60),
        Kind("embeddings: shard", embeddings, "shard_*", read_embeddings, 60),
        Kind("embeddings: shard, by verify_store", embeddings, "shard_*", verify, 60, OWN, True),
        Kind("store: manifest", embeddings, "manifest.json", read_embeddings, 60),
        Kind("store: record of checks", embeddings, ".checked.json", read_embeddings),
        Kind("unfinished store: spec", unfinished, "*/spec.json", resume_store),
        Kind("unfinished store: shard", unfinished, "*/shard_*", resume_store),
        Kind("checkpoint (.pth)", copied(bench.detector), "*.pth", detector, 80),
        Kind("checkpoint to resume from", interrupted, "*.pth", resume, 40),
        Kind("last_checkpoint", interrupted, "last_checkpoint", resume, 20),
        Kind("weights (.safetensors)", converted, "*.safetensors", detector),
        Kind("text embeddings", copied(bench.text), "*.safetensors", readers.read_text, 80),
        Kind("word cache", fill_word_cache, "cache/*.safetensors", readers.read_words, 60),
        Kind("weights of a teacher", samples.teacher_folder, "*.safetensors", read_teacher, 30),
        Kind("download: part", half, "*/*.part", downloaded, 30),
        Kind("download: zip", whole, "*/*.zip", downloaded, 20),
        Kind("recipe of shapes", dataset, "*/shapes.json", readers.remade, 20),
        Kind("records of stages", run_stages, "stages/*.json", readers.rerun_stages, 30),
        Kind("annotations", annotations, "*.json", read_annotations, 80, OTHERS),
        Kind("dataset yaml", annotations, "*.yaml", read_annotations, 40, OTHERS),
        Kind("weights of others (.safetensors)", plain, "*.safetensors", detector, 20, OTHERS),
        Kind("results", copied(bench.results), "*.json", readers.read_results, 60, OTHERS),
        Kind("metrics of a run", metrics, "*.json", readers.read_metrics, 30, OTHERS),
        Kind("PNG", copied(bench.image), "*.png", read_pixels, 60, OTHERS),
        Kind("JPEG", using(samples.jpeg), "*.jpg", read_pixels, 40, OTHERS),
        Kind("configuration yaml", samples.configuration, "*.yaml", readers.read_yaml, 40, OTHERS),
        Kind("Detectron2's proposals", copied(bench.pickle), "*.pkl", read_pickle, 60, OTHERS),
        Kind("word list (.csv)", csv, "words.*", readers.read_list, 30, OTHERS),
        Kind("word list (.json)", json, "words.*", readers.read_list, 20, OTHERS),
        Kind("embeddings of others (.npy)", samples.matrix, "*.npy", read_matrix, 30, OTHERS),
    ]
