"""Every kind of file that the project reads, with a writer and a reader."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from fault_campaign_parts.bench import Bench
from fault_campaign_parts.readers import (
    detector,
    downloaded,
    read_annotations,
    read_embeddings,
    read_list,
    read_matrix,
    read_metrics,
    read_pickle,
    read_pixels,
    read_proposals,
    read_results,
    read_teacher,
    read_text,
    read_words,
    read_yaml,
    remade,
    rerun_stages,
    resume,
    resume_store,
    verify,
)
from fault_campaign_parts.samples import (
    annotations,
    begun,
    begun_download,
    cached_words,
    configuration,
    converted_weights,
    copied_metrics,
    copy,
    dataset,
    finished_stages,
    jpeg,
    matrix,
    plain_weights,
    proposals_file,
    teacher_folder,
    unfinished,
    whole_download,
    word_list,
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
    make: Callable[[Path], None]
    files: str
    read: Callable[[Path], str]
    count: int = 40
    group: str = OWN
    keep_times: bool = False


def all_kinds(bench: Bench) -> list[Kind]:
    """Return the table of kinds."""

    def copied(source: Path) -> Callable[[Path], None]:
        return lambda folder: copy(source, folder)

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
            "weights of others (.safetensors)",
            plain_weights(bench),
            "*.safetensors",
            detector(bench),
            20,
            OTHERS,
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
