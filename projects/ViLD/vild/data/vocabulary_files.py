"""Read the classes of a vocabulary file: .json, .txt, .yaml, .csv or .safetensors.

Every reader returns one dict per class: ``name`` and, for .json and .safetensors, optionally
``synonyms``, ``novel`` and ``frequency``. Other kinds of files are refused, never parsed as words.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from vild.utils.files import read_text
from vild.utils.yaml_loader import parse_yaml

KINDS = (
    "a .json, a .txt with one class per line, a .yaml with 'names', a .csv, or a .safetensors of "
    "text embeddings"
)
Item = dict[str, Any]

# suffixes that mark text as a file name
FILE_ENDINGS = frozenset(
    (
        *(".json", ".jsonl", ".txt", ".yaml", ".yml", ".csv", ".tsv", ".safetensors", ".names"),
        *(".list", ".labels", ".pbtxt", ".xml", ".html", ".htm", ".md", ".py", ".toml", ".ini"),
        *(".npy", ".npz", ".pth", ".pt", ".pkl", ".pickle", ".bin", ".onnx", ".ckpt", ".h5"),
        *(".zip", ".tar", ".gz", ".tgz", ".7z", ".parquet", ".arrow", ".xls", ".xlsx", ".ods"),
        *(".pdf", ".doc", ".docx", ".rtf", ".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp"),
        *(".tif", ".tiff", ".mp4", ".avi", ".mkv", ".mov"),
    )
)
_NAME_COLUMNS = (
    *("name", "class", "label", "class_name", "category", "category_name", "label_name"),
    *("names", "classes", "labels", "categories", "object", "objects", "display_name"),
)
_RICH_COLUMNS = ("synonyms", "novel", "frequency")
_ID_COLUMNS = (
    *("id", "ids", "index", "idx", "number", "no", "class_id", "category_id", "label_id"),
    *("class_index", "label_index", ""),
)
_DATASET_KEYS = ("train", "val", "test")

# "0: cat", "1. cat", "1) cat", "1,cat", "1 cat", "n02121808 cat"
_NUMBERED = re.compile(r"(\d+|n\d{8})(\s*[:,;)\t]\s*|\.\s+|\s+)(\S.*)")
_BULLET = re.compile(r"[-*•]\s+(\S.*)")
# patterns that a line of words does not match
_FOREIGN = (
    (re.compile(r"[\[<].*|\{.*[\"':].*|[\[\](){}]+[,;]?|---.*|%.*"), "JSON, markup or code"),
    (re.compile(r"([\"']).*\1\s*,?|\"[^\"]*\"\s*:.*"), "a quoted list"),
    (re.compile(r"version https?://\S+|oid sha256:.*"), "a Git LFS pointer"),
    (re.compile(r"\|.*\||//.*|\{\\rtf.*"), "markup or a comment"),
    (re.compile(r"\w+\s*:(\s.*)?|\w+\s*=.*|.*\{"), "a configuration"),
    (re.compile(r".*(\t|;|,\S).*|.*,"), "a table"),
    (re.compile(r"n\d{8}"), "a WordNet id"),
    (re.compile(r"[-+\d.eE]+([\s,]+[-+\d.eE]+)+"), "numbers"),
)


def read_classes(path: str | os.PathLike[str]) -> list[Item]:
    """Read the classes of a file according to its suffix, in upper or lower case.

    - ``.json``: see :func:`classes_of_json`.
    - ``.txt``, ``.names``, ``.labels``, ``.list`` or no suffix: one class per line. Empty lines and
      those that begin with ``#`` are skipped. Line numbers from 0 or 1 ("0: cat"), WordNet ids and
      bullets are removed if all lines have them. Lines in another format are refused.
    - ``.yaml``, ``.yml``: ``names``, a list or ``{index: name}`` (YOLO's data.yaml), or a list.
    - ``.csv``, ``.tsv``: one column, or a header with a column ``name``, ``class`` or ``label``.
      A column ``id`` must be increasing, since the order of lines defines the order of classes.
    - ``.safetensors``: the vocabulary of text embeddings.

    Returns:
        one dict per class with its ``name``.

    Raises:
        ValueError: the file is missing, a folder, damaged, or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(
            f"expected a vocabulary at {path} ({KINDS}), got a folder. On a command line, put a "
            "word that is also the name of a folder in double quotes: '\"word\"'"
        )
    kind = path.suffix.lower()
    if path.exists() and kind not in _READERS and kind != ".safetensors":
        raise ValueError(f"expected a vocabulary as {KINDS}; got {path}")
    if path.exists() and kind == ".safetensors":
        return _classes_of_safetensors(path)
    text = read_text(path, "a vocabulary")
    if not text.strip():
        raise ValueError(f"expected a vocabulary at {path}, got an empty file")
    if re.match(r"\s*<[!?]?[a-z]", text, re.IGNORECASE):
        raise ValueError(
            f"{path}: expected a vocabulary, got HTML, XML or SVG: was an error page saved under "
            "this name? Download the file again"
        )
    return _READERS[kind](text, str(path))


def classes_of_json(text: str, where: str) -> list[Item]:
    """Return the classes in a JSON text.

    It may be annotations in COCO or LVIS format (``categories``, sorted by id), a list of names, a
    list of objects with ``name``, ``names`` as in a YOLO yaml, or ``{"0": name, ...}``.

    Args:
        text: the JSON.
        where: its file, for error messages.

    Raises:
        ValueError: invalid JSON, or another structure.
    """
    try:
        contents = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not a json file ({error})") from None
    if isinstance(contents, dict):
        if "categories" not in contents and "names" in contents:
            contents = _names(contents["names"], where)
        elif contents and all(key.isdecimal() for key in contents):
            contents = _names(contents, where)
        elif not isinstance(contents.get("categories"), list):
            raise ValueError(
                f"{where}: expected a list under 'categories', got the keys {_shown(contents)}"
            )
        else:
            contents = _by_id(contents["categories"], where)
    if not isinstance(contents, list):
        raise ValueError(f"{where}: expected a list of classes, got {contents!r:.60}")
    items = [{"name": item} if isinstance(item, str) else item for item in contents]
    for index, item in enumerate(items):
        if not isinstance(item, dict) or not isinstance(item.get("name"), str):
            raise ValueError(
                f"{where}: expected class {index} to have a 'name', got {_cut(repr(item))}"
            )
    return items


def _by_id(categories: list[Any], where: str) -> list[Any]:
    """Sort the categories of annotations by id, if they have ids."""
    if not all(isinstance(item, dict) and "id" in item for item in categories):
        return categories
    seen: dict[float, Any] = {}
    for item in categories:
        number = item["id"]
        if isinstance(number, str) and number.isdecimal():
            number = int(number)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise ValueError(
                f"{where}: expected a number as the id of {item.get('name')!r}, got {item['id']!r}"
            )
        if number in seen:
            raise ValueError(
                f"{where}: {seen[number].get('name')!r} and {item.get('name')!r} have the same id, "
                f"{number}; every class needs a different id"
            )
        seen[number] = item
    return [seen[number] for number in sorted(seen)]


def _names(names: Any, where: str) -> list[str]:
    """Return the names in a list or in ``{index: name}``."""
    if isinstance(names, dict):
        try:
            numbers = {int(key): name for key, name in names.items()}
        except (TypeError, ValueError):
            numbers = {}
        if len(numbers) != len(names) or sorted(numbers) != list(range(len(numbers))):
            raise ValueError(
                f"{where}: expected the names under 0, 1, 2, ..., got the keys {_shown(names)}"
            )
        names = [numbers[index] for index in range(len(numbers))]
    if not isinstance(names, list):
        raise ValueError(f"{where}: expected a list of names, got {_cut(repr(names))}")
    for index, name in enumerate(names):
        if not isinstance(name, str):
            raise ValueError(
                f"{where}: expected text as name {index}, got {_cut(repr(name))}; put it in quotes"
            )
    return names


def _classes_of_yaml(text: str, where: str) -> list[Item]:
    contents = parse_yaml(text, where)
    if isinstance(contents, list):
        return [{"name": name} for name in _names(contents, where)]
    if not isinstance(contents, dict):
        raise ValueError(f"{where}: expected the names of classes under 'names', got {text!r:.60}")
    if "novel" in contents or any(isinstance(contents.get(k), dict) for k in _DATASET_KEYS):
        raise ValueError(
            f"{where}: expected a list of classes, got the description of a dataset. Register it "
            f"with --dataset-yaml {where} or DATASETS.CUSTOM, and name one of its splits "
            f"instead, such as {contents.get('name', 'NAME')}_val"
        )
    if "names" not in contents:
        raise ValueError(
            f"{where}: expected the names of classes under 'names', got the keys {_shown(contents)}"
        )
    names = _names(contents["names"], where)
    count = contents.get("nc")
    if count is not None and count != len(names):
        raise ValueError(f"{where}: 'nc' is {count!r}, but 'names' has {len(names)} classes")
    return [{"name": name} for name in names]


def _classes_of_csv(text: str, where: str) -> list[Item]:
    first = text.lstrip().splitlines()[0]
    delimiter = max(",;\t", key=first.count)
    try:
        table = list(csv.reader(text.splitlines(), delimiter=delimiter, strict=True))
    except csv.Error as error:
        raise ValueError(f"{where} is not a csv file ({error})") from None
    rows = [[cell.strip() for cell in row] for row in table if any(map(str.strip, row))]
    if not rows:
        raise ValueError(f"expected a vocabulary at {where}, got empty lines only")
    header = [cell.lower().replace(" ", "_") for cell in rows[0]]
    odd = next((row for row in rows if len(row) != len(header)), None)
    if odd is not None:
        raise ValueError(
            f"{where}: expected {len(header)} columns as in the first line, got {len(odd)} in "
            f"{_cut(delimiter.join(odd))!r}"
        )
    rich = [column for column in header if column in _RICH_COLUMNS]
    if rich and len(header) > 1:
        raise ValueError(
            f"{where}: a csv gives names only, got the column {rich[0]!r}; use a .json instead"
        )
    columns = [index for index, column in enumerate(header) if column in _NAME_COLUMNS]
    if len(header) == 1:
        return [{"name": row[0]} for row in rows[len(columns) :]]
    of_words = [i for i in columns if any(not _is_number(row[i]) for row in rows[1:])]
    if len(of_words) != 1:
        raise ValueError(
            f"{where}: expected one column of names, called 'name', 'class' or 'label' in the "
            f"first line, got {len(of_words)} among {_shown(rows[0])}"
        )
    _require_increasing_ids(header, rows[1:], where)
    return [{"name": row[of_words[0]]} for row in rows[1:]]


def _require_increasing_ids(header: list[str], rows: list[list[str]], where: str) -> None:
    """Check that the ids of a csv are in the same order as its lines.

    Raises:
        ValueError: an id is not larger than the one before.
    """
    for index in (index for index, column in enumerate(header) if column in _ID_COLUMNS):
        cells = [row[index] for row in rows]
        if not all(re.fullmatch(r"\d{1,18}", cell) for cell in cells):
            continue
        for before, after in pairwise(map(int, cells)):
            if after <= before:
                raise ValueError(
                    f"{where}: expected ids that increase in the column {header[index]!r}, got "
                    f"{after} after {before}; the order of lines defines the classes. Sort the "
                    "lines, or remove the column"
                )


def _classes_of_text(text: str, where: str) -> list[Item]:
    control = re.search(r"[\x00-\x08\x0b\x0e-\x1f]", text)
    if control is not None:
        raise ValueError(
            f"{where}: expected words, one class per line, got the control character "
            f"{control[0]!r}: is it a text file?"
        )
    lines = [line.strip() for line in text.splitlines()]
    lines = [line for line in lines if line and not line.startswith("#")]
    lines = _without_numbers(_without_bullets(lines, where), where)
    for line in lines:
        kind = next((kind for pattern, kind in _FOREIGN if pattern.fullmatch(line)), None)
        if kind is None and Path(line).suffix.lower() in FILE_ENDINGS:
            kind = "the name of a file"
        if kind is not None:
            raise _foreign(where, line, f"which looks like {kind}")
    if len(lines) == 1 and "," in lines[0]:
        raise _foreign(where, lines[0], "which looks like a comma-separated list")
    return [{"name": line} for line in lines]


def _without_bullets(lines: list[str], where: str) -> list[str]:
    found = [_BULLET.fullmatch(line) for line in lines]
    bulleted = [line for line, match in zip(lines, found, strict=True) if match]
    if bulleted and len(bulleted) < len(lines):
        raise _foreign(where, bulleted[0], "with a bullet that other lines do not have")
    return [match[1] for match in found if match] or lines


def _without_numbers(lines: list[str], where: str) -> list[str]:
    """Remove the numbers of a numbered list; raise if they do not count the lines."""
    found = [match for match in map(_NUMBERED.fullmatch, lines) if match]
    marked = [match for match in found if match[2].strip() or match[1].startswith("n")]
    if len(found) < len(lines) or not found:
        if marked:
            raise _foreign(where, marked[0][0], "with a number that other lines do not have")
        return lines
    if len(found) == 1 and not marked:  # a single line such as "2 door car"
        return lines
    numbers = [match[1] for match in found]
    if not all(number.startswith("n") for number in numbers):
        start = int(numbers[0]) if numbers[0].isdecimal() else -1
        expected = [str(start + row) for row in range(len(lines))]
        if start not in (0, 1) or [n.lstrip("0") or "0" for n in numbers] != expected:
            raise _foreign(
                where, lines[0], "but the lines are not numbered consecutively from 0 or 1"
            )
    return [match[3] for match in found]


def _foreign(where: str, line: str, what: str) -> ValueError:
    return ValueError(
        f"{where}: expected words, one class per line, got {_cut(line)!r}, {what}. Correct the "
        'line, or save the names as .json (["a name", "another"]), where every name is allowed'
    )


def _classes_of_safetensors(path: Path) -> list[Item]:
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"expected a vocabulary in {path}: {error}") from None
    if "vocabulary" not in header:
        raise ValueError(
            f"expected text embeddings of tools/extract_text_embeddings.py in {path}, got a "
            "safetensors file without a vocabulary"
        )
    return classes_of_json(header["vocabulary"], str(path))


def _is_number(text: str) -> bool:
    return not text or re.fullmatch(r"[-+]?[\d.]+", text) is not None


def _shown(keys: Any) -> str:
    """Return the first few keys of a file, for an error message."""
    return _cut(str(list(map(str, keys))))


def _cut(text: str) -> str:
    return text if len(text) <= 80 else f"{text[:80]}…"


_READERS: dict[str, Callable[[str, str], list[Item]]] = {
    **dict.fromkeys(("", ".txt", ".names", ".labels", ".list"), _classes_of_text),
    **dict.fromkeys((".yaml", ".yml"), _classes_of_yaml),
    **dict.fromkeys((".csv", ".tsv"), _classes_of_csv),
    ".json": classes_of_json,
}
