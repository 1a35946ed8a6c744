"""Measurements of tools/benchmark_text_embeddings.py."""

from __future__ import annotations

import argparse
import platform
import time

import torch
from torch import Tensor

from benchmarks.timing import synchronise
from vild.data import Vocabulary
from vild.embeddings import OpenClipTeacher, embed_vocabulary


class TimedTeacher(OpenClipTeacher):
    """A teacher that sums the time of its text encoder."""

    seconds = 0.0

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        synchronise()
        start = time.perf_counter()
        embedded = super()._embed_tokens(tokens)
        synchronise()
        self.seconds += time.perf_counter() - start
        return embedded


def benchmark(args: argparse.Namespace) -> int:
    """Print the requested measurements and return the exit code."""
    lvis = Vocabulary.from_dataset("lvis_v1_val")
    step = max(1, len(lvis) // args.classes)
    vocabulary = Vocabulary.from_names(lvis.names[::step][: args.classes])
    teacher = TimedTeacher.load(args.model, None)
    assert isinstance(teacher, TimedTeacher)
    padded = teacher.tokenizer(["warm up"]).to(teacher.device)
    teacher._embed_tokens(padded)
    teacher.seconds = 0.0
    start = time.perf_counter()
    # includes the time to compute the fingerprint of the weights
    embed_vocabulary(teacher, vocabulary, "vild", synonyms=False, progress=True)
    wall = time.perf_counter() - start
    prompts = len(vocabulary) * 63
    print(
        f"{len(vocabulary)} classes x 63 prompts with {args.model} on {teacher.device} "
        f"({platform.machine()}, {torch.get_num_threads()} threads): {wall:.1f} s, "
        f"{prompts / wall:.0f} prompts/s, encoder {teacher.seconds / wall:.1%} of the wall time"
    )
    tokens = teacher.tokenizer([f"a photo of a {name}." for name in vocabulary.names])
    tokens = tokens[:64].to(teacher.device)
    ratios = []
    with torch.inference_mode():
        for _ in range(3):
            start = time.perf_counter()
            teacher.model.encode_text(tokens)
            full = time.perf_counter() - start
            start = time.perf_counter()
            teacher.encode_text([f"a photo of a {name}." for name in vocabulary.names][:64])
            ratios.append(full / (time.perf_counter() - start))
    print(
        f"open_clip's encode_text on padded sentences takes {sorted(ratios)[1]:.1f} times as long"
    )
    return 0
