"""Figures of several seeds: mean and standard deviation, as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from experiments.pipeline import Pipeline

COLUMNS = ("AP", "APr", "APc", "APf")
METRICS = (*COLUMNS, "AP-base")
Results = Mapping[str, Mapping[str, Mapping[str, float]]]  # method -> seed -> metric -> percent


def collect(pipelines: Sequence[Pipeline], methods: Sequence[str]) -> Results:
    """Collect the box AP of each method and seed.

    Raises:
        ValueError: a method has no box metrics.
    """
    results: dict[str, dict[str, dict[str, float]]] = {}
    for method in methods:
        results[method] = {}
        for pipeline in pipelines:
            figures = pipeline.figures(method)
            results[method][str(pipeline.seed)] = {name: figures[name] for name in METRICS}
    return results


def summary(results: Results, method: str, column: str) -> tuple[float, float]:
    """Return mean and sample standard deviation over the seeds; 0 for one seed."""
    values = [figures[column] for figures in results[method].values()]
    return fmean(values), stdev(values) if len(values) > 1 else 0.0


def to_markdown(results: Results, labels: Mapping[str, str]) -> str:
    """Format the table as Markdown; ``labels`` maps methods to row labels."""
    seeds = next(iter(results.values()))
    lines = [
        f"| box AP on `shapes_seed{{{','.join(seeds)}}}_val` | {' | '.join(COLUMNS)} |",
        f"| --- |{' ---: |' * len(COLUMNS)}",
    ]
    for method in results:
        cells = []
        for column in COLUMNS:
            mean, deviation = summary(results, method, column)
            cells.append(f"{mean:.1f} ± {deviation:.1f}")
        lines.append(f"| {labels[method]} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
