"""Class names with their synonyms and novel flags."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.data.prompts import MAX_NAME_LENGTH, clean_name
from vild.data.registry import require_split
from vild.data.vocabulary_files import FILE_ENDINGS, classes_of_json, read_classes
from vild_cli.words import split_words

# aliases of the most common vocabularies
SHORT_NAMES = {"lvis": "lvis_v1_val", "coco": "coco_2017_ovd_val"}
_SPLIT_ENDINGS = ("_train", "_val", "_test", "_base", "_trainval", "_minival")
# control characters except white space, and unpaired surrogates
_NOT_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff]")


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of classes; row i of every embedding matrix is class i.

    Attributes:
        names: K unique names, as the user wrote them.
        synonyms: K tuples of names, the class name first.
        novel: K flags; True for classes without training annotations.

    Raises:
        ValueError: no class, an empty, over-long or repeated name, one with control characters, two
            names with the same prompts (:func:`vild.data.clean_name`), or lists of unequal length.
    """

    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    novel: tuple[bool, ...]

    def __post_init__(self) -> None:
        if not self.names:
            raise ValueError("expected at least one class name, got an empty vocabulary")
        for field in ("synonyms", "novel"):
            if len(getattr(self, field)) != len(self.names):
                raise ValueError(
                    f"expected one entry in {field} per class, got {len(getattr(self, field))} for "
                    f"{len(self.names)} names"
                )
        for name in self.names:
            if len(name) > MAX_NAME_LENGTH:
                raise ValueError(
                    f"the name {name[:40] + '…'!r} has {len(name)} characters; at most "
                    f"{MAX_NAME_LENGTH} are allowed"
                )
            if not clean_name(name):
                raise ValueError(f"expected words for every class, got the name {name!r}")
        self._check_unique()
        for name, synonyms in zip(self.names, self.synonyms, strict=True):
            if not synonyms or synonyms[0] != name:
                raise ValueError(f"the synonyms of {name!r} must begin with the name itself")
            for word in synonyms:
                if odd := _NOT_TEXT.search(word):
                    raise ValueError(
                        f"expected text as the name of a class, got {word[:40]!r} with the "
                        f"character {odd[0]!r}: remove it"
                    )

    def __len__(self) -> int:
        return len(self.names)

    def _check_unique(self) -> None:
        name, times = Counter(self.names).most_common(1)[0]
        if times > 1:
            raise ValueError(f"expected every class once, got {name!r} {times} times")
        spelled: dict[str, str] = {}
        for name in self.names:
            other = spelled.setdefault(clean_name(name), name)
            if other != name:
                raise ValueError(
                    f"expected every class once, but {other!r} and {name!r} have the same prompts, "
                    f"as {clean_name(name)!r}"
                )

    @classmethod
    def from_names(
        cls, names: Iterable[str], novel: Iterable[str] | str | None = None
    ) -> Vocabulary:
        """Return classes without synonyms.

        Args:
            names: the class names; each one is taken literally, whatever it looks like.
            novel: the novel ones among them, in any spelling with the same prompts; a string is a
                comma-separated list. By default all are novel, since nothing is known about
                training annotations of words that a user types.

        Raises:
            ValueError: as in the class, names that are not text, or a novel name that is not among
                ``names``.
        """
        if isinstance(names, str):
            raise ValueError(f"expected a list of class names, got the text {names!r:.60}")
        listed = _words(names, "class names")
        vocabulary = cls(listed, tuple((n,) for n in listed), (True,) * len(listed))
        return vocabulary if novel is None else vocabulary.with_novel(novel)

    def with_novel(self, novel: Iterable[str] | str) -> Vocabulary:
        """Return the same classes with other novel flags.

        Args:
            novel: names of the novel classes, in any spelling with the same prompts; a string is a
                comma-separated list.

        Raises:
            ValueError: a name that is not among the classes.
        """
        names = split_words(novel) if isinstance(novel, str) else _words(novel, "novel classes")
        spelled = [clean_name(name) for name in self.names]
        known, flags = set(spelled), {clean_name(name) for name in names}
        unknown = next((name for name in names if clean_name(name) not in known), None)
        if unknown is not None:
            near = get_close_matches(clean_name(unknown), spelled, 3)
            raise ValueError(
                f"the novel class {unknown!r} is not in the vocabulary of {len(self)} classes"
                + _did_you_mean([self.names[spelled.index(name)] for name in near])
            )
        return replace(self, novel=tuple(name in flags for name in spelled))

    @classmethod
    def from_dataset(cls, name: str) -> Vocabulary:
        """Return the classes of a registered dataset.

        Raises:
            ValueError: the dataset is not registered or has no class names.
        """
        require_split(name)
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes")
        if not names:
            raise ValueError(f"expected class names (thing_classes) of {name!r}, got none")
        synonyms = metadata.get("synonyms") or [[n] for n in names]
        novel = metadata.get("novel") or [False] * len(names)
        return cls(tuple(names), tuple(map(tuple, synonyms)), tuple(map(bool, novel)))

    @classmethod
    def from_file(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Read the classes of a file; see :func:`vild.data.vocabulary_files.read_classes`.

        A class of a json is novel if it has ``novel: true`` or, without that key, the frequency
        ``r``. If no class has either key, all are novel.

        Raises:
            ValueError: the file is missing or of another kind.
        """
        return cls._from_items(read_classes(path), str(path))

    @classmethod
    def from_json_text(cls, text: str, where: str) -> Vocabulary:
        """Read the classes of a json; see :meth:`from_file`.

        Args:
            text: the json.
            where: its file, for error messages.
        """
        return cls._from_items(classes_of_json(text, where), where)

    @classmethod
    def _from_items(cls, items: Sequence[Mapping[str, Any]], where: str) -> Vocabulary:
        flags = [_novel_flag(item, where) for item in items]
        unknown = all(flag is None for flag in flags)
        return cls(
            tuple(item["name"] for item in items),
            tuple(_synonyms(item, where) for item in items),
            tuple(unknown or bool(flag) for flag in flags),
        )

    @classmethod
    def load(
        cls, source: str | os.PathLike[str], novel: Iterable[str] | str | None = None
    ) -> Vocabulary:
        """Return the classes that ``source`` names.

        Args:
            source: a registered dataset, ``lvis``, ``coco``, a file (see :meth:`from_file`), a
                comma-separated list ("cat, red panda"), or one word. A single word that looks like
                a file, a path or a dataset name must be double-quoted: ``'"rock.txt"'``.
            novel: names of the novel classes; overrides the flags of the source.

        Raises:
            ValueError: see the other constructors; or a single word that looks like a missing file
                or an unregistered dataset.
        """
        vocabulary = cls._load(source)
        return vocabulary if novel is None else vocabulary.with_novel(novel)

    @classmethod
    def _load(cls, source: str | os.PathLike[str]) -> Vocabulary:
        if not isinstance(source, str):
            return cls.from_file(source)
        name = SHORT_NAMES.get(source.strip().lower(), source.strip())
        if name in DatasetCatalog:
            return cls.from_dataset(name)
        if name and _exists(name):
            return cls.from_file(Path(name).expanduser())
        words = split_words(source)
        if words == [name]:  # no quotes and no comma
            _require_word(name)
        return cls.from_names(words)

    def to_json(self) -> str:
        """Return a json that :meth:`from_file` can read."""
        items = [
            {"name": name, "synonyms": list(synonyms), "novel": novel}
            for name, synonyms, novel in zip(self.names, self.synonyms, self.novel, strict=True)
        ]
        return json.dumps({"categories": items}, ensure_ascii=False)


def _words(names: object, what: str) -> tuple[str, ...]:
    """Return names without surrounding spaces; raise unless given a list of text."""
    if not isinstance(names, Iterable):
        raise ValueError(f"expected a list of {what}, got {names!r:.60}")
    listed = tuple(names)
    other = next((name for name in listed if not isinstance(name, str)), "")
    if not isinstance(other, str):
        raise ValueError(f"expected a list of {what} as text, got {other!r:.60} in it")
    return tuple(name.strip() for name in listed)


def _novel_flag(item: Mapping[str, Any], where: str) -> bool | None:
    """Return whether a json marks its class as novel; None if it has no such key."""
    novel, frequency = item.get("novel"), item.get("frequency")
    if novel not in (None, True, False):
        raise ValueError(
            f"{where}: expected true or false as 'novel' of {item['name']!r}, got {novel!r}"
        )
    if frequency not in (None, "r", "c", "f"):
        raise ValueError(
            f"{where}: expected 'r', 'c' or 'f' as the frequency of {item['name']!r}, got "
            f"{frequency!r}"
        )
    if novel is not None:
        return bool(novel)
    return None if frequency is None else frequency == "r"


def _synonyms(item: Mapping[str, Any], where: str) -> tuple[str, ...]:
    """Return the class name in a json, followed by its other names."""
    synonyms = item.get("synonyms")
    if synonyms is None:
        synonyms = []
    if not isinstance(synonyms, list) or not all(isinstance(s, str) for s in synonyms):
        raise ValueError(
            f"{where}: expected a list of names as the synonyms of {item['name']!r}, got "
            f"{synonyms!r:.60}"
        )
    empty = next((s for s in synonyms if not clean_name(s)), None)
    if empty is not None:
        raise ValueError(
            f"{where}: expected words as the synonyms of {item['name']!r}, got {empty!r}"
        )
    return tuple(dict.fromkeys([item["name"], *synonyms]))


def _require_word(word: str) -> None:
    """Raise if a word looks like a missing file or an unregistered dataset.

    Raises:
        ValueError: it has a file suffix, begins like a path, continues an existing folder, looks
            like the name of a split or is similar to a registered one.
    """
    quoted = f"To detect the word itself, put it in double quotes: '\"{word}\"'"
    if _looks_like_a_file(word):
        raise ValueError(
            f"expected a vocabulary at {word}: no such file{_files_near(word)} {quoted}"
        )
    if "_" not in word or " " in word:
        return
    known = {name.lower(): name for name in DatasetCatalog.list()}
    near = get_close_matches(word.lower(), known, 3, cutoff=0.8)
    begun = [name for name in known if name.startswith(f"{word.lower()}_")]
    is_split = word.lower().endswith(_SPLIT_ENDINGS) and not _is_known_class(word)
    if near or begun or is_split:
        hint = _did_you_mean([known[name] for name in (near or begun[:3])])
        raise ValueError(
            f"expected a registered dataset, got {word!r}{hint} Register your own datasets with "
            f"--dataset-yaml or DATASETS.CUSTOM. {quoted}"
        )


def _looks_like_a_file(word: str) -> bool:
    if re.match(r"\.{0,2}[/\\]|~|[A-Za-z]:[/\\]|\w+://", word):
        return True
    if Path(word).suffix.lower() in FILE_ENDINGS:
        return True
    folder, separator, _ = word.replace("\\", "/").rpartition("/")
    return bool(separator) and _exists(folder)


def _is_known_class(word: str) -> bool:
    """Return whether LVIS or COCO has a class of this name, such as "bullet_train"."""
    vocabularies = map(Vocabulary.from_dataset, SHORT_NAMES.values())
    names = (name for v in vocabularies for synonyms in v.synonyms for name in synonyms)
    return clean_name(word) in map(clean_name, names)


def _files_near(path: str) -> str:
    try:
        file = Path(path).expanduser()
        names = [other.name for other in file.parent.iterdir()]
    except (OSError, RuntimeError):  # no such folder or user
        return "."
    near = get_close_matches(file.name, names, 3, cutoff=0.7)
    return _did_you_mean([str(file.parent / name) for name in near])


def _did_you_mean(names: Sequence[str]) -> str:
    return f". Did you mean {' or '.join(names)}?" if names else "."


def _exists(source: str) -> bool:
    try:
        return Path(source).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # a comma-separated list can be too long for a path
        return False
