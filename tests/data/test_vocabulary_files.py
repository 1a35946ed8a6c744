"""Vocabulary files of every kind are read correctly or refused in one line."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from vild.data import Vocabulary
from vild.embeddings import TextEmbeddings

CATS = ("cat", "red panda")

# file name -> text
READABLE = {
    "json in upper case": ("a.JSON", '["cat", "red panda"]'),
    "json with names": ("a.json", '{"names": ["cat", "red panda"], "nc": 2}'),
    "json by index": ("a.json", '{"1": "red panda", "0": "cat"}'),
    "json by id": ("a.json", '{"categories": [{"id": 10, "name": "red panda"}, '
                             '{"id": "2", "name": "cat"}]}'),
    "json with empty fields": ("a.json", '[{"name": "cat", "synonyms": null, "novel": null, '
                                         '"frequency": null}, "red panda"]'),
    "yolo list": ("data.yaml", "train: a\nval: b\nnc: 2\nnames: ['cat', 'red panda']\n"),
    "yolo block": ("data.YML", "names:\n- cat\n- red panda\n"),
    "yolo by index": ("data.yaml", "path: x\ntrain: a\nnames:\n  0: cat\n  1: red panda\n"),
    "yaml list": ("words.yaml", "- cat\n- red panda\n"),
    "csv": ("a.csv", "id,name\n1,cat\n2,red panda\n"),
    "csv with semicolons": ("a.CSV", "Label;images\ncat;3\nred panda;4\n\n"),
    "csv with numbers as class": ("a.csv", "class,label\n0,cat\n1,red panda\n"),
    "csv of a column": ("a.csv", "cat\nred panda\n"),
    "csv of a column with header": ("a.csv", "\nname\ncat\n\"red panda\"\n"),
    "csv with quotes": ("a.csv", '"class_name","x"\n"cat","1"\n"red panda","2"\n'),
    "tsv": ("a.tsv", "name\tid\ncat\t1\nred panda\t2\n"),
    "lines": ("coco.names", "cat\r\nred panda\r\n"),
    "lines without an ending": ("words", "# animals\ncat\n\n  # more\nred panda"),
    "numbered from 0": ("a.txt", "0: cat\n1: red panda\n"),
    "numbered from 1": ("a.txt", "1. cat\n2. red panda\n"),
    "numbered with brackets": ("a.txt", "1) cat\n2) red panda\n"),
    "numbered with spaces": ("a.txt", "1 cat\n2  red panda\n"),
    "numbered with commas": ("a.txt", "1,cat\n2,red panda\n"),
    "numbered with tabs": ("a.txt", "01\tcat\n02\tred panda\n"),
    "WordNet ids": ("a.txt", "n02121808 cat\nn02509815\tred panda\n"),
    "bullets": ("a.txt", "- cat\n- red panda\n"),
}  # fmt: skip


@pytest.mark.parametrize("name", READABLE)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_files_are_read_for_what_they_are(tmp_path: Path, name: str, encoding: str) -> None:
    file, text = READABLE[name]
    (tmp_path / file).write_bytes(text.encode(encoding))
    vocabulary = Vocabulary.load(str(tmp_path / file))
    assert vocabulary.names == CATS
    assert all(vocabulary.novel)
    assert Vocabulary.load(tmp_path / file) == vocabulary  # a path is always a file


@pytest.mark.parametrize(
    "line",
    [
        *("cat", "t-shirt", "St. Bernard", "alarm_clock", "wiper_(for_windshield/screen)"),
        *("7up can", "tench, Tinca tinca", "4x4", "U.S. flag", "rock 'n' roll", "猫", "and/or"),
        *("🦦 otter", "2 door car", "it's", '12" record', "$1", "C++", "dog?", "cat-o'-nine-tails"),
        *("a [rare] bird", "{brace}", "3d printer", "n95 mask", "1.5 litre bottle", "50% sign"),
    ],
)  # fmt: skip
def test_ordinary_words_are_read_as_they_are(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.txt").write_text(f"osprey\n{line}\n", encoding="utf-8")
    assert Vocabulary.load(str(tmp_path / "a.txt")).names == ("osprey", line)


REFUSED = {
    "json in txt": ("a.txt", '["cat", "dog"]\n', "looks like JSON"),
    "json over lines": ("a.txt", '[\n  "cat",\n  "dog"\n]\n', "looks like JSON"),
    "json lines": ("a.txt", '{"name": "cat"}\n{"name": "dog"}\n', "looks like JSON"),
    "json that was cut": ("a.json", '["cat", "do', "is not a json file"),
    "json of great depth": ("a.json", "[" * 100_000, "is not a json file"),
    "json of indices": ("a.json", '{"cat": 0, "dog": 1}', r"keys \['cat', 'dog'\]"),
    "json with gaps": ("a.json", '{"0": "cat", "2": "dog"}', "under 0, 1, 2"),
    "json of pairs": ("a.json", '{"0": ["n02121808", "cat"]}', "expected text as name 0"),
    "json with ids twice": (
        *("a.json", '{"categories": [{"id": 1, "name": "a"}, {"id": 1, "name": "b"}]}'),
        "'a' and 'b' have the same id, 1",
    ),
    "json with other ids": (
        *("a.json", '{"categories": [{"id": 1, "name": "a"}, {"id": "x", "name": "b"}]}'),
        "expected a number as the id of 'b', got 'x'",
    ),
    "json flags as text": ("a.json", '[{"name": "a", "novel": "false"}]', "true or false"),
    "json frequencies": ("a.json", '[{"name": "a", "frequency": "rare"}]', "'r', 'c' or 'f'"),
    "html": ("a.txt", "<!DOCTYPE html>\n<html>\n", "got HTML, XML or SVG"),
    "html as csv": ("a.csv", "\n <html>\n404\n</html>\n", "got HTML, XML or SVG"),
    "html as json": ("a.json", "<!-- a page --><p>", "is not a json file"),
    "xml as yaml": ("a.yaml", "<?xml version='1.0'?>\n", "got HTML, XML or SVG"),
    "html by its ending": ("a.html", "cat\n", r"expected a vocabulary as a \.json"),
    "quoted": ("a.txt", '"cat",\n"dog"\n', "a quoted list"),
    "python": ("a.txt", "CLASSES = (\n'cat',\n)\n", "a configuration"),
    "yaml in txt": ("a.txt", "names:\n  0: cat\n", "with a number that other lines"),
    "protobuf": ("a.txt", "item {\n  id: 1\n  name: 'cat'\n}\n", "a configuration"),
    "darknet's data": ("a.data", "classes = 2\nnames = a.names\n", "expected a vocabulary as"),
    "csv in txt": ("a.txt", "id,name\n1,cat\n2,dog\n", "with a number that other lines"),
    "table in txt": ("a.txt", "cat,animal\ncar,thing\n", "a table"),
    "tabs in txt": ("a.txt", "cat\tanimal\ncar\tthing\n", "a table"),
    "comma list in txt": ("a.txt", "cat, dog, bird\n", "a comma-separated list"),
    "list of files": ("a.txt", "images/1.jpg\nimages/2.jpg\n", "the name of a file"),
    "labels of boxes": ("a.txt", "0 0.5 0.5 0.2 0.1\n1 0.1 0.1 0.2 0.2\n", "numbers"),
    "ids alone": ("a.txt", "n02121808\nn02509815\n", "a WordNet id"),
    "gaps in the numbers": (
        "a.txt",
        "1 person\n2 bicycle\n13 stop sign\n",
        "not numbered consecutively",
    ),
    "some numbers": ("a.txt", "cat\n2. dog\n", "with a number that other lines"),
    "some bullets": ("a.txt", "cat\n- dog\n", "with a bullet that other lines"),
    "nothing": ("a.txt", "", "got an empty file"),
    "blanks": ("a.json", " \n", "got an empty file"),
    "remarks": ("a.txt", "# cat\n", "got an empty vocabulary"),
    "control characters": ("a.txt", "cat\x01dog\n", "control character '.x01'"),
    "yolo with another count": ("a.yaml", "nc: 3\nnames: [cat, dog]\n", "'nc' is 3, but 'names'"),
    "yolo with gaps": ("a.yaml", "names: {0: cat, 2: dog}\n", "under 0, 1, 2"),
    "yolo with truth values": ("a.yaml", "names: [yes, no]\n", "got True; put it in quotes"),
    "yolo with a file": ("a.yaml", "names: coco.names\n", "expected a list of names"),
    "a configuration": ("a.yaml", "MODEL:\n  WEIGHTS: x\n", r"under 'names', got the keys"),
    "yolo with an index twice": (
        *("a.yaml", "names: {0: cat, 0: dog}\n"),
        "the key '0' occurs more than once",
    ),
    "yaml with names twice": ("a.yaml", "names: [cat]\nnames: [dog]\n", "'names' occurs more"),
    "broken yaml": ("a.yaml", "names: [cat\n", "is not valid yaml: "),
    "words as yaml": ("a.yaml", "cat\ndog\n", "under 'names', got 'cat"),
    "a dataset": (
        *("birds.yaml", "name: birds\nval: {json: a.json, images: b}\nnovel: [owl]\n"),
        r"description of a dataset\. Register it with --dataset-yaml .* such as birds_val",
    ),
    "csv of separators": ("a.csv", ";;\n;;\n", "got empty lines only"),
    "csv without a name": ("a.csv", "id,x\n1,2\n", "called 'name', 'class' or 'label'"),
    "csv without a header": ("a.csv", "1,cat\n2,dog\n", "called 'name', 'class' or 'label'"),
    "csv of numbers": ("a.csv", "id,label\n1,0\n2,1\n", "called 'name', 'class' or 'label'"),
    "csv of two names": ("a.csv", "name,class\nTom,cat\nRex,dog\n", "got 2 among"),
    "csv with more": ("a.csv", "name,novel\ncat,1\n", "got the column 'novel'; use a .json"),
    "ragged csv": ("a.csv", "id,name\n1,cat,3\n", "expected 2 columns as in the first line, got 3"),
    "csv in another order": (
        *("a.csv", "id,name\n2,dog\n1,cat\n"),
        "expected ids that increase in the column 'id', got 1 after 2",
    ),
    "csv with an id twice": ("a.csv", "name;class_id\ncat;1\ndog;1\n", "got 1 after 1"),
    "csv of a shuffled table": ("a.csv", ",name\n4,cat\n3,dog\n", "in the column '', got 3 after"),
    "csv of boxes": (
        "a.csv",
        "file,class\na,cat\nb,cat\n",
        "expected every class once, got 'cat' 2 times",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_other_files_are_refused_in_one_line(tmp_path: Path, name: str) -> None:
    file, text, message = REFUSED[name]
    (tmp_path / file).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message) as refused:
        Vocabulary.load(str(tmp_path / file))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("a.txt", "cat\nth\xe9\n".encode("latin-1"), r"a\.txt: expected a vocabulary in UTF-8"),
        ("a.json", b'["th\xe9"]', r"a\.json: expected a vocabulary in UTF-8"),
        ("a.csv", b"name\nth\xe9\n", r"a\.csv: expected a vocabulary in UTF-8"),
        ("a.yaml", b"names: [th\xe9]", r"a\.yaml: expected a vocabulary in UTF-8"),
        ("a.txt", "cat\n".encode("utf-16-le"), "got zero bytes"),
        ("a.txt", b"\x89PNG\r\n\x1a\n", "in UTF-8"),
        ("a.png", b"\x89PNG\r\n\x1a\n", r"expected a vocabulary as a \.json"),
        ("a.pkl", pickle.dumps(["cat"]), r"expected a vocabulary as a \.json"),
        ("a.npz", b"PK\x03\x04", r"expected a vocabulary as a \.json"),
        ("a.pth", b"PK\x03\x04", r"expected a vocabulary as a \.json"),
        ("a.zip", b"PK\x03\x04", r"expected a vocabulary as a \.json"),
        ("a.safetensors", b"cat\n", r"expected a vocabulary in .*a\.safetensors"),
    ],
)
def test_binary_files_and_other_encodings_are_refused(
    tmp_path: Path, file: str, content: bytes, message: str
) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Vocabulary.load(str(tmp_path / file))


def test_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="got a folder"):
        Vocabulary.load(str(tmp_path))
    (tmp_path / "a.txt").mkdir()
    with pytest.raises(ValueError, match="got a folder"):
        Vocabulary.load(str(tmp_path / "a.txt"))


def test_text_embeddings_give_their_vocabulary(tmp_path: Path) -> None:
    classes = Vocabulary.from_names(["kite", "owl"], novel=["owl"])
    TextEmbeddings(torch.eye(2), classes, 0.01, "tiny").save(tmp_path / "text.safetensors")
    assert Vocabulary.load(str(tmp_path / "text.safetensors")) == classes
    save_file({"x": torch.eye(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="without a vocabulary"):
        Vocabulary.load(str(tmp_path / "other.safetensors"))


@settings(max_examples=int(os.environ.get("VILD_EXAMPLES", "60")), deadline=None)
@given(
    kind=st.sampled_from([".json", ".txt", ".yaml", ".csv", ".safetensors", ".png", ""]),
    content=st.one_of(
        st.binary(max_size=60),
        st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.text("019.:,;-[]{}\"'\n\t #n", max_size=40).map(str.encode),
    ),
)
def test_any_content_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, kind: str, content: bytes
) -> None:
    file = tmp_path_factory.getbasetemp() / f"any{kind}"
    file.write_bytes(content)
    try:
        vocabulary = Vocabulary.load(file)
    except ValueError:
        return
    assert len(vocabulary) > 0


def test_a_list_as_long_as_imagenets(tmp_path: Path) -> None:
    names = [f"thing {row}, Res {row}" for row in range(22_047)]
    (tmp_path / "a.txt").write_text("\n".join(names), encoding="utf-8")
    assert Vocabulary.load(str(tmp_path / "a.txt")).names == tuple(names)
    (tmp_path / "a.json").write_text(json.dumps(names), encoding="utf-8")
    assert len(Vocabulary.load(str(tmp_path / "a.json"), novel=names[:2])) == 22_047
