"""Class names with their synonyms and novel flags, kept together."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.data.annotations import repeated, synonyms_of
from vild.data.prompts import clean_name

MAX_NAME_LENGTH = 200  # characters; CLIP reads 77 tokens


@dataclass(frozen=True)
class Vocabulary:
    """An ordered list of classes; row i of every embedding matrix is class i.

    Attributes:
        names: K unique names, as the user wrote them.
        synonyms: K tuples of names, the class name first.
        novel: K flags; True for classes without training annotations.

    Raises:
        ValueError: no class, an empty, over-long or repeated name, or lists of unequal length.
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
            if not clean_name(name):
                raise ValueError(f"expected words for every class, got the name {name!r}")
            if len(name) > MAX_NAME_LENGTH:
                raise ValueError(
                    f"the name {name[:40] + '…'!r} has {len(name)} characters; at most "
                    f"{MAX_NAME_LENGTH} are allowed"
                )
        twice = repeated(self.names)
        if twice:
            raise ValueError(
                f"the class {twice[0]!r} is there {self.names.count(twice[0])} times; every class "
                "may be there once"
            )
        for name, synonyms in zip(self.names, self.synonyms, strict=True):
            if not synonyms or synonyms[0] != name:
                raise ValueError(f"the synonyms of {name!r} must begin with the name itself")

    def __len__(self) -> int:
        return len(self.names)

    @classmethod
    def from_names(cls, names: Iterable[str], novel: Iterable[str] | None = None) -> Vocabulary:
        """Classes without synonyms.

        Args:
            names: the class names.
            novel: those of them that are novel. By default all are: words that a user types have
                no training annotations that we know of.

        Raises:
            ValueError: as in the class, or a novel name that is not among ``names``.
        """
        listed = tuple(str(name).strip() for name in names)
        flags = set(listed) if novel is None else {str(name).strip() for name in novel}
        unknown = sorted(flags - set(listed))
        if unknown:
            raise ValueError(
                f"the novel class {unknown[0]!r} is not in the vocabulary of {len(listed)} classes"
            )
        return cls(listed, tuple((n,) for n in listed), tuple(n in flags for n in listed))

    @classmethod
    def from_dataset(cls, name: str) -> Vocabulary:
        """The classes of a registered data set.

        Raises:
            ValueError: the data set is not registered or names no classes.
        """
        if name not in DatasetCatalog:
            known = ", ".join(sorted(n for n in DatasetCatalog.list() if "ovd" in n or "lvis" in n))
            raise ValueError(
                f"the data set {name!r} is not registered; among those that are: {known}"
            )
        metadata = MetadataCatalog.get(name)
        names = metadata.get("thing_classes")
        if not names:
            raise ValueError(f"the data set {name!r} names no classes (thing_classes)")
        synonyms = metadata.get("synonyms") or [[n] for n in names]
        novel = metadata.get("novel") or [False] * len(names)
        return cls(tuple(names), tuple(map(tuple, synonyms)), tuple(map(bool, novel)))

    @classmethod
    def from_json(cls, path: str | os.PathLike[str]) -> Vocabulary:
        """Classes from a json.

        It may be annotations in COCO or LVIS format (``categories`` in the order of their ids;
        novel where the frequency is ``r``), a list of names, a list of objects with ``name`` and
        optionally ``synonyms`` and ``novel``, or what :meth:`to_json` wrote.

        Raises:
            ValueError: the file is missing or of another form.
        """
        file = Path(path)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise ValueError(f"expected a vocabulary at {file}: {error.strerror}") from None
        except UnicodeDecodeError as error:
            raise ValueError(f"{file} is not a json file ({error})") from None
        return cls.from_json_text(text, str(file))

    @classmethod
    def from_json_text(cls, text: str, where: str) -> Vocabulary:
        """Classes from the text of a json; see :meth:`from_json`.

        Args:
            text: the json.
            where: its file, for messages.
        """
        try:
            contents = json.loads(text)
        except ValueError as error:
            raise ValueError(f"{where} is not a json file ({error})") from None
        if isinstance(contents, dict):
            if not isinstance(contents.get("categories"), list):
                raise ValueError(
                    f"{where}: expected a list under 'categories', got the keys {sorted(contents)}"
                )
            contents = contents["categories"]
            if all(isinstance(item, dict) and "id" in item for item in contents):
                contents = sorted(contents, key=lambda item: item["id"])
        if not isinstance(contents, list):
            raise ValueError(f"{where}: expected a list of classes, got {contents!r:.60}")
        items = [{"name": item} if isinstance(item, str) else item for item in contents]
        for index, item in enumerate(items):
            if not isinstance(item, dict) or not isinstance(item.get("name"), str):
                raise ValueError(f"{where}: expected class {index} to have a 'name', got {item!r}")
        split_known = any("novel" in item or "frequency" in item for item in items)
        return cls(
            tuple(item["name"] for item in items),
            tuple(synonyms_of(item, where) for item in items),
            tuple(
                bool(i.get("novel", i.get("frequency") == "r" or not split_known)) for i in items
            ),
        )

    @classmethod
    def load(cls, source: str, novel: Sequence[str] | None = None) -> Vocabulary:
        """Classes from whatever ``source`` names.

        Args:
            source: a registered data set, a ``.json`` file, a text file with one class a line
                (empty lines and lines that begin with ``#`` are skipped), or a comma list.
            novel: names of the novel classes; overrides what the source says.

        Raises:
            ValueError: see the other constructors.
        """
        if source in DatasetCatalog:
            vocabulary = cls.from_dataset(source)
        elif source.endswith(".json"):
            vocabulary = cls.from_json(source)
        elif _is_file(source):
            # utf-8-sig: editors on Windows begin files with a mark that is no part of a name
            lines = Path(source).read_text(encoding="utf-8-sig").splitlines()
            vocabulary = cls.from_names(s for s in lines if s.strip() and not s.startswith("#"))
        elif source.endswith(".txt"):
            raise ValueError(f"expected a vocabulary at {source}: no such file")
        else:
            vocabulary = cls.from_names(s for s in source.split(",") if s.strip())
        if novel is None:
            return vocabulary
        flags = cls.from_names(vocabulary.names, novel).novel
        return cls(vocabulary.names, vocabulary.synonyms, flags)

    def to_json(self) -> str:
        """The vocabulary as text that :meth:`from_json` reads back."""
        items = [
            {"name": name, "synonyms": list(synonyms), "novel": novel}
            for name, synonyms, novel in zip(self.names, self.synonyms, self.novel, strict=True)
        ]
        return json.dumps({"categories": items}, ensure_ascii=False)


def _is_file(source: str) -> bool:
    try:
        return Path(source).is_file()
    except (OSError, ValueError):  # a comma list can be longer than a file name may be
        return False
