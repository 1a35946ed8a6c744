"""Dataset descriptions that cannot be read, and the supported encodings."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from detectron2.data import DatasetCatalog

from vild.data import register_custom

from .conftest import Spec, bird_contents, write_yaml
from .test_annotations import write
from .test_custom_datasets import classes_of

DESCRIPTION = (
    r"birds\.yaml: expected the description of a dataset with the keys name, novel, train, val, "
    "base, evaluator, crowds_are_objects: "
)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.update(novell=[]), f"{DESCRIPTION}Object contains unknown field `novell`$"),
        (lambda s: s.pop("name"), f"{DESCRIPTION}Object missing required field `name`$"),
        (lambda s: s.pop("novel"), f"{DESCRIPTION}Object missing required field `novel`$"),
        (lambda s: (s.pop("train"), s.pop("val")), "at least one of the keys 'train' and 'val'"),
        (lambda s: s.update(name="my birds"), "expected a name of letters.*got 'my birds'"),
        (lambda s: s.update(name="../birds"), r"expected a name of letters.*got '\.\./birds'"),
        (lambda s: s.update(name="-3"), "expected a name of letters.*got '-3'"),
        (lambda s: s.update(name=-3), "expected a name of letters.*got -3"),
        (lambda s: s.update(name=None), rf"{DESCRIPTION}Expected .*, got `null` - at `\$\.name`$"),
        (lambda s: s.update(name=1.5), rf"{DESCRIPTION}Expected .*, got `float` - at `\$\.name`$"),
        (lambda s: s.update(name=True), rf"{DESCRIPTION}Expected .*, got `bool` - at `\$\.name`$"),
        (
            lambda s: s.update(novel={"crow": 1}),
            rf"{DESCRIPTION}Expected .*, got `object` - at `\$\.novel`$",
        ),
        (lambda s: s.update(novel=3), rf"{DESCRIPTION}Expected .*, got `int` - at `\$\.novel`$"),
        (lambda s: s.update(novel=None), rf"{DESCRIPTION}.*, got `null` - at `\$\.novel`$"),
        (lambda s: s.update(novel=[["crow"]]), r"novel classes as names or ids, got \['crow'\]"),
        (lambda s: s.update(novel=[True]), "novel classes as names or ids, got True"),
        (
            lambda s: s.update(base="f"),
            rf"{DESCRIPTION}Expected `array \| null`, got `str` - at `\$\.base`$",
        ),
        (
            lambda s: s.update(evaluator="voc"),
            rf"{DESCRIPTION}Invalid enum value 'voc' - at `\$\.evaluator`; expected lvis or coco$",
        ),
        (
            lambda s: s.update(crowds_are_objects=1),
            rf"{DESCRIPTION}Expected `bool`, got `int` - at `\$\.crowds_are_objects`$",
        ),
        (
            lambda s: s.update(train="a.json"),
            rf"{DESCRIPTION}Expected `object \| null`, got `str` - at `\$\.train`$",
        ),
        (
            lambda s: s["val"].pop("images"),
            rf"{DESCRIPTION}Object missing required field `images` - at `\$\.val`$",
        ),
        (
            lambda s: s["val"].update(images=3),
            rf"{DESCRIPTION}Expected `str`, got `int` - at `\$\.val\.images`$",
        ),
        (
            lambda s: s["val"].update(zip="a"),
            rf"{DESCRIPTION}Object contains unknown field `zip` - at `\$\.val`$",
        ),
        (lambda s: s["val"].update(images="x"), r"val\.images: expected a folder at .*/x"),
        (lambda s: s["val"].update(images="a\0b"), r"val\.images: expected a path, got 'a\\x00b'"),
        (lambda s: s["val"].update(images="x" * 999), r"val\.images: expected a folder at .*/xxx"),
        (
            lambda s: s["val"].update(json="x.json"),
            r"^expected annotations at .*/x\.json: No such file or directory\. Run datasets/check_",
        ),
        (lambda s: s.update(novel=["ospray"]), "novel class 'ospray'.*Did you mean 'osprey'"),
        (lambda s: s.update(base=["crows"]), "base class 'crows'.*Did you mean 'crow'"),
        (lambda s: s.update(novel=["crow", 2]), "novel class 2 is listed more than once"),
        (lambda s: s.update(novel=["crow", "2"]), "the novel class '2' is not in the dataset"),
        (lambda s: s.update(base=["crow", "crow"]), "base class 'crow' is listed more than once"),
        (lambda s: s.update(base=["crow", "osprey"]), "'osprey' is listed as base and as novel"),
        (lambda s: s.update(novel="rare"), "frequency group 'r', 'c' or 'f'; got 'rare'"),
        (lambda s: s.update(novel=[2, 4, 6, 8]), "all 4 classes are novel; there is nothing to"),
        (lambda s: s.update(base=[]), "all 2 classes are novel; there is nothing to"),
    ],
)
def test_bad_descriptions_are_refused(
    tmp_path: Path, spec: Spec, edit: Callable[[Spec], object], message: str
) -> None:
    edit(spec)
    before = DatasetCatalog.list()
    with pytest.raises(ValueError, match=message):
        register_custom(write_yaml(tmp_path, spec))
    assert DatasetCatalog.list() == before


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("novel: [crow", r"birds\.yaml is not valid yaml: "),
        ("novel: !!python/object:os.system {}", r"birds\.yaml is not valid yaml: could not det"),
        ("[" * 5000, r"birds\.yaml is not valid yaml: maximum recursion depth exceeded"),
        ("- crow\n", f"{DESCRIPTION}Expected `object`, got `array`$"),
        ("", f"{DESCRIPTION}Expected `object`, got `null`$"),
        ("crow\n", f"{DESCRIPTION}Expected `object`, got `str`$"),
        ("1: crow\n", f"{DESCRIPTION}Expected `str` - at `key` in "),
        ("name: 2024-13-45\n", r"is not valid yaml: month must be in 1\.\.12$"),
    ],
)
def test_what_is_no_description_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        register_custom(path)
    assert len(str(caught.value).splitlines()) == 1


def test_a_missing_yaml_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.yaml"
    message = f"expected a yaml that describes a dataset at {path}: No such file or directory"
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        register_custom(path)


def _rename(folder: Path, spec: Spec, old: str, new: str) -> str:
    """Rename a class in the yaml and in the jsons; return the yaml's text."""
    for split in ("train", "val"):
        data = bird_contents()
        for category in data["categories"]:
            category["name"] = category["name"].replace(old, new)
        write(folder / "birds", data, f"{split}.json")
    novel = [name.replace(old, new) for name in spec["novel"]]
    return yaml.safe_dump(spec | {"novel": novel}, allow_unicode=True)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_yaml_in_unicode_is_read(tmp_path: Path, spec: Spec, encoding: str) -> None:
    path = tmp_path / "birds.yaml"
    path.write_text(_rename(tmp_path, spec, "osprey", "h\u00e9ron"), encoding=encoding)
    register_custom(path)
    assert ("h\u00e9ron", "r", True) in classes_of("birds_val")


@pytest.mark.parametrize(
    ("encoding", "got"),
    [
        ("latin-1", r"other bytes at position \d+ \(b'\\xe9ron'\)"),
        ("utf-16-le", "(zero|other) bytes.*"),  # without a byte order mark
    ],
)
def test_a_yaml_in_another_encoding_is_refused(
    tmp_path: Path, spec: Spec, encoding: str, got: str
) -> None:
    path = tmp_path / "birds.yaml"
    path.write_bytes(_rename(tmp_path, spec, "osprey", "h\u00e9ron").encode(encoding))
    message = (
        rf"{re.escape(str(path))}: expected a yaml that describes a dataset in UTF-8, got {got}\. "
        "Save the file as UTF-8"
    )
    with pytest.raises(ValueError, match=f"^{message}$"):
        register_custom(path)
    assert "birds_val" not in DatasetCatalog


def test_a_key_that_occurs_twice_is_refused(tmp_path: Path, spec: Spec) -> None:
    path = write_yaml(tmp_path, spec)
    path.write_text(path.read_text(encoding="utf-8") + "novel: []\n", encoding="utf-8")
    with pytest.raises(ValueError, match="the key 'novel' occurs more than once"):
        register_custom(path)


def test_a_name_of_another_yaml_is_taken(tmp_path: Path, spec: Spec) -> None:
    path = write_yaml(tmp_path, spec)
    register_custom(path)
    other = path.with_name("other.yaml")
    other.write_bytes(path.read_bytes())
    with pytest.raises(ValueError, match="the name 'birds' is taken"):
        register_custom(other)
    register_custom(path)


@pytest.mark.parametrize("name", ["b" * 101, "\u00e9" * 60, "b" * 5000])
def test_a_name_too_long_for_files_is_one_line(tmp_path: Path, spec: Spec, name: str) -> None:
    with pytest.raises(ValueError, match="at most 100 bytes, got ") as caught:
        register_custom(write_yaml(tmp_path, spec | {"name": name}))
    assert len(str(caught.value)) < 500
    register_custom(write_yaml(tmp_path, spec | {"name": "b" * 100}))


@pytest.mark.parametrize("key", ["json", "images"])
@pytest.mark.parametrize("path", ["a\nb", "a\0b", "x" * 5000])
def test_a_path_that_no_file_can_have_is_one_line(
    tmp_path: Path, spec: Spec, key: str, path: str
) -> None:
    spec["train"][key] = path
    with pytest.raises(ValueError, match=rf"train\.{key}: expected a path, got '[ax]") as caught:
        register_custom(write_yaml(tmp_path, spec))
    assert len(str(caught.value).splitlines()) == 1
    assert len(str(caught.value)) < 500


def test_long_class_names_are_cut(tmp_path: Path, spec: Spec) -> None:
    for novel in ("x" * 5000, ["x" * 5000], [["x" * 5000]], ["crow", "crow"]):
        with pytest.raises(ValueError, match="novel") as caught:
            register_custom(write_yaml(tmp_path, spec | {"novel": novel}))
        assert len(str(caught.value)) < 500
