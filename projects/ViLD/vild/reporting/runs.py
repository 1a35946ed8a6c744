"""Reading of the metrics of runs: Detectron2's ``metrics.json`` and metrics files."""

from __future__ import annotations

import json
import logging
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

logger = logging.getLogger(__name__)

TASKS = ("segm", "bbox")
_SUFFIX = "_metrics.json"
Metrics = dict[str, dict[str, float]]  # task -> metric -> value


@dataclass(frozen=True)
class Run:
    """One run on one dataset.

    Attributes:
        name: name of the run.
        data: the dataset; empty if unknown.
        results: task (``segm``, ``bbox``) -> metric -> percent, NaN if undefined; from the last
            evaluation.
        history: ``total_loss``, ``loss_*`` or ``<task>/<metric>`` -> (T, 2) of iteration and
            value, sorted by iteration.
    """

    name: str
    data: str
    results: Mapping[str, Mapping[str, float]]
    history: Mapping[str, np.ndarray]


def read_runs(
    paths: Sequence[str | os.PathLike[str]], names: Sequence[str] | None = None
) -> list[Run]:
    """Read runs, in the given order.

    Args:
        paths: each the folder of a run, a ``metrics.json`` (Detectron2's json lines) or a
            ``<dataset>_metrics.json`` of the form ``{"segm": {"AP": 1.0}}``, at the top level or
            under ``metrics``.
        names: one per path; by default the names of the folders, or the paths if two names are the
            same.

    Returns:
        One run per dataset of each path. Losses are in the first run of a path.

    Raises:
        ValueError: the numbers of names and paths differ, or a file is missing or damaged. A
            truncated last line, left by a killed run, is skipped.
    """
    if names is not None and len(names) != len(paths):
        raise ValueError(f"expected a name for each of {len(paths)} runs, got {len(names)}")
    if names is None:
        folders = [Path(p) if Path(p).is_dir() else Path(p).parent for p in paths]
        names = [folder.resolve().name for folder in folders]
        names = [
            str(path) if names.count(name) > 1 else name
            for name, path in zip(names, paths, strict=True)
        ]
    return [
        run for path, name in zip(paths, names, strict=True) for run in _read_run(Path(path), name)
    ]


def _read_run(path: Path, name: str) -> list[Run]:
    results: dict[str, Metrics] = {}
    history: dict[str, dict[str, np.ndarray]] = {"": {}}
    if path.is_dir():
        log, files = path / "metrics.json", sorted(path.glob(f"*{_SUFFIX}"))
        if not log.exists() and not files:
            raise ValueError(
                f"expected metrics.json or <dataset>{_SUFFIX} in {path}, found neither: is it the "
                "OUTPUT_DIR of a run?"
            )
        if log.exists():
            results, history = _read_log(log)
            if "" in results and len(files) == 1:
                results[_data_of(files[0])] = results.pop("")
                history[_data_of(files[0])] = history[""]
            elif files:
                results.pop("", None)  # belongs to one of the datasets that have files
        for file in files:
            results[_data_of(file)] = _read_metrics(file)
    elif _by_task(_json_or_none(_read_text(path))):
        results = {_data_of(path): _read_metrics(path)}
    else:
        results, history = _read_log(path)
    losses = {key: curve for key, curve in history[""].items() if "/" not in key}
    runs = []
    for data in results or {"": {}}:
        curves = {k: c for k, c in history.get(data, {}).items() if "/" in k}
        runs.append(Run(name, data, results.get(data, {}), {**losses, **curves}))
        losses = {}
    return runs


def _data_of(file: Path) -> str:
    return file.name.removesuffix(_SUFFIX) if file.name.endswith(_SUFFIX) else ""


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise ValueError(f"expected metrics at {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not a json file ({error})") from None


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _by_task(contents: Any) -> Metrics:
    """Return the metrics of a json by task, with or without an envelope; empty without metrics."""
    if isinstance(contents, dict):
        contents = contents.get("metrics", contents)
    if not isinstance(contents, dict):
        return {}
    return {
        task: {key: _percent(value) for key, value in contents[task].items()}
        for task in TASKS
        if isinstance(contents.get(task), dict)
    }


def _percent(value: Any) -> float:
    # null, NaN and negative values such as -100 all mean undefined
    if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
        return math.nan
    return float(value)


def _read_metrics(path: Path) -> Metrics:
    contents = _json_or_none(_read_text(path))
    metrics = _by_task(contents)
    if not metrics:
        raise ValueError(
            f'{path}: expected metrics by task, {{"segm": {{"AP": ...}}}}, got '
            f"{'invalid json' if contents is None else f'{contents!r:.60}'}"
        )
    return metrics


def _read_log(path: Path) -> tuple[dict[str, Metrics], dict[str, dict[str, np.ndarray]]]:
    """Read the last metrics and all curves from Detectron2's json lines, both by dataset.

    A resumed run repeats some iterations; the last line of each counts. Losses belong to the
    dataset "".
    """
    lines = [line for line in _read_text(path).split("\n") if line.strip()]
    found: dict[str, dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    read = 0
    for number, line in enumerate(lines, start=1):
        entry = _json_or_none(line)
        if not isinstance(entry, dict) or not isinstance(entry.get("iteration"), int):
            if number == len(lines) and read:
                logger.warning("%s: ignored the last line, which is incomplete", path)
                break
            raise ValueError(
                f"{path}: expected lines of json with an iteration, got {line!r:.60} in line "
                f"{number}: the file is not Detectron2's metrics.json, or it is damaged"
            )
        read += 1
        for key, value in entry.items():
            iteration, parts = int(entry["iteration"]), key.rsplit("/", 2)
            if key == "total_loss" or key.startswith("loss_"):
                known = isinstance(value, int | float)
                found[""][key][iteration] = float(value) if known else math.nan
            elif len(parts) > 1 and parts[-2] in TASKS:
                data = parts[0] if len(parts) == 3 else ""
                found[data]["/".join(parts[-2:])][iteration] = _percent(value)
    if not read:
        raise ValueError(f"{path}: expected lines of json, got an empty file: has the run started?")
    curves = {
        data: {key: np.array(sorted(c.items()), dtype=float) for key, c in own.items()}
        for data, own in found.items()
    }
    results: dict[str, Metrics] = {}
    for data, own in curves.items():
        for key, curve in own.items():
            if "/" in key:
                task, metric = key.split("/")
                results.setdefault(data, {}).setdefault(task, {})[metric] = float(curve[-1, 1])
    curves.setdefault("", {})
    tested_on = _tested_on(path)
    if "" in results and tested_on:
        results[tested_on], curves[tested_on] = results.pop(""), curves[""]
    return results, curves


def _tested_on(log: Path) -> str:
    """Return the test set of a run, from the configuration that Detectron2 wrote."""
    config = log.with_name("config.yaml")
    try:
        if config.stat().st_mtime > log.stat().st_mtime:
            return ""  # from a later evaluation in the same folder, perhaps on another dataset
        (name,) = yaml.safe_load(_read_text(config))["DATASETS"]["TEST"]
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError):
        return ""  # no configuration, or several datasets, which metrics.json names
    return str(name)
