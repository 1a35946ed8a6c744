"""Vocabularies keep names, synonyms and novel flags together, whatever their source."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from vild.data import Vocabulary
from vild.data.vocabulary import MAX_NAME_LENGTH
from vild_cli.words import join_words, split_words

ODD_NAMES = ("🦦 otter", "a {brace}", "{}", "{article}", 'say "hi"', "crème brûlée", "猫")


def write(folder: Path, text: str, name: str = "words.json") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_names_alone_are_all_novel() -> None:
    vocabulary = Vocabulary.from_names([" cat", "red panda "])
    assert vocabulary.names == ("cat", "red panda")
    assert vocabulary.synonyms == (("cat",), ("red panda",))
    assert vocabulary.novel == (True, True)
    assert len(vocabulary) == 2


def test_novel_names_are_flagged_at_their_rows() -> None:
    assert Vocabulary.from_names(list("abc"), novel=[" b "]).novel == (False, True, False)
    assert Vocabulary.from_names(list("abc"), novel=[]).novel == (False, False, False)


@pytest.mark.parametrize(
    ("names", "novel", "message"),
    [
        ([], None, "expected at least one class name, got an empty vocabulary"),
        (["cat", "dog", "cat"], None, "expected every class once, got 'cat' 2 times"),
        (["cat", " cat"], None, "expected every class once, got 'cat' 2 times"),
        (["cat"], ["dog"], "the novel class 'dog' is not in the vocabulary of 1 classes"),
        (["cat", ""], None, "expected words for every class, got the name ''"),
        (["cat", "  "], None, "expected words for every class, got the name ''"),
        (["cat", "\u200b"], None, r"expected words for every class, got the name '\\u200b'"),
        (["cat\0"], None, r"got 'cat\\x00' with the character '\\x00': remove it"),
        (["a\x1b[2J"], None, r"with the character '\\x1b': remove it"),
        (["\ud800"], None, r"got '\\ud800' with the character '\\ud800': remove it"),
        (["cat", "_"], None, "expected words for every class, got the name '_'"),
        (["_._ ."], None, r"expected words for every class, got the name '_\._ \.'"),
        (
            ["n" * (MAX_NAME_LENGTH + 1)],
            None,
            f"the name 'n{{40}}…' has {MAX_NAME_LENGTH + 1} characters; at most {MAX_NAME_LENGTH}",
        ),
    ],
)
def test_bad_names_are_refused(names: list[str], novel: list[str] | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_names(names, novel)


def test_the_longest_name_is_allowed() -> None:
    assert len(Vocabulary.from_names(["n" * MAX_NAME_LENGTH]).names[0]) == MAX_NAME_LENGTH


@pytest.mark.parametrize(
    ("synonyms", "novel", "message"),
    [
        ((("cat",),), (True, False), "one entry in synonyms per class, got 1 for 2 names"),
        ((("cat",), ("dog",)), (True,), "one entry in novel per class, got 1 for 2 names"),
        ((("cat",), ("hound", "dog")), (True, True), "synonyms of 'dog' must begin with the name"),
        ((("cat",), ()), (True, True), "synonyms of 'dog' must begin with the name"),
    ],
)
def test_misaligned_lists_are_refused(
    synonyms: tuple[tuple[str, ...], ...], novel: tuple[bool, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary(("cat", "dog"), synonyms, novel)


def test_lvis_and_coco_come_with_their_flags() -> None:
    lvis = Vocabulary.from_dataset("lvis_v1_val")
    assert (len(lvis), sum(lvis.novel)) == (1203, 337)
    assert lvis.synonyms[3] == ("alarm_clock",)
    assert lvis.synonyms[0] == ("aerosol_can", "spray_can")
    coco = Vocabulary.from_dataset("coco_2017_ovd_val")
    assert (len(coco), sum(coco.novel)) == (65, 17)
    assert coco.novel[coco.names.index("snowboard")]


def test_detectron2s_own_data_sets_have_no_novel_class() -> None:
    vocabulary = Vocabulary.from_dataset("coco_2017_val")
    assert (len(vocabulary), any(vocabulary.novel)) == (80, False)
    assert vocabulary.synonyms[0] == ("person",)


def test_unknown_data_sets_are_refused(request: pytest.FixtureRequest) -> None:
    with pytest.raises(ValueError, match=r"'lvis_v2', which is not registered.*'lvis_v1_train'"):
        Vocabulary.from_dataset("lvis_v2")
    DatasetCatalog.register("nameless", list)
    request.addfinalizer(lambda: DatasetCatalog.remove("nameless"))
    request.addfinalizer(lambda: MetadataCatalog.pop("nameless", None))
    with pytest.raises(ValueError, match=r"class names \(thing_classes\) of 'nameless', got none"):
        Vocabulary.from_dataset("nameless")


LVIS_LIKE = [
    {"id": 7, "name": "cat", "frequency": "f", "synonyms": ["cat", "kitty"]},
    {"id": 2, "name": "otter", "frequency": "r", "synonyms": ["sea otter", "otter"]},
]
# supported json forms -> names, synonyms, novel flags
FORMS = {
    "coco": (
        {"images": [], "categories": [{"id": 9, "name": "dog"}, {"id": 3, "name": "cat"}]},
        *(("cat", "dog"), (("cat",), ("dog",)), (True, True)),
    ),
    "lvis": (
        {"annotations": [], "categories": LVIS_LIKE},
        *(("otter", "cat"), (("otter", "sea otter"), ("cat", "kitty")), (True, False)),
    ),
    "names": (["dog", "cat"], ("dog", "cat"), (("dog",), ("cat",)), (True, True)),
    "objects": (
        [{"name": "dog", "synonyms": ["hound"]}, {"name": "cat", "novel": True}],
        *(("dog", "cat"), (("dog", "hound"), ("cat",)), (False, True)),
    ),
    "objects without flags": (
        [{"name": "dog"}, "cat"],
        *(("dog", "cat"), (("dog",), ("cat",)), (True, True)),
    ),
    "a flag goes before a frequency": (
        [{"name": "dog", "frequency": "r", "novel": False}, {"name": "cat", "frequency": "r"}],
        *(("dog", "cat"), (("dog",), ("cat",)), (False, True)),
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_json_is_read(tmp_path: Path, form: str) -> None:
    contents, *expected = FORMS[form]
    vocabulary = Vocabulary.from_file(write(tmp_path, json.dumps(contents)))
    assert [vocabulary.names, vocabulary.synonyms, vocabulary.novel] == expected


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary.from_names(ODD_NAMES, novel=ODD_NAMES[::2]),
        Vocabulary(("b", "a"), (("b", "bee"), ("a",)), (False, True)),
        Vocabulary.from_names(["b", "a"], novel=[]),
        Vocabulary.from_dataset("lvis_v1_train"),
    ],
    ids=["odd", "synonyms", "no novel class", "lvis"],
)
def test_json_round_trip(tmp_path: Path, vocabulary: Vocabulary) -> None:
    assert Vocabulary.from_file(write(tmp_path, vocabulary.to_json())) == vocabulary


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cat, dog", r"words\.json is not a json file \("),
        ('{"images": []}', r"expected a list under 'categories', got the keys \['images'\]"),
        ('{"categories": {"cat": 1}}', "expected a list under 'categories'"),
        ('[{"name": "cat"}, {"id": 3}]', r"expected class 1 to have a 'name', got {'id': 3}"),
        ('["cat", 3]', "expected class 1 to have a 'name', got 3"),
        ('[{"name": 3}]', "expected class 0 to have a 'name', got {'name': 3}"),
        ("[]", "got an empty vocabulary"),
        ('["cat", "cat"]', "expected every class once, got 'cat' 2 times"),
        *((text, r"words\.json") for text in ("5", "null", '"cat"')),
    ],
)
def test_other_jsons_are_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Vocabulary.from_file(write(tmp_path, text))


@pytest.mark.parametrize("synonyms", ["kitty", 3, [3], ["kitty", " "]])
def test_synonyms_that_are_no_list_of_names_are_refused(tmp_path: Path, synonyms: Any) -> None:
    path = write(tmp_path, json.dumps([{"name": "cat", "synonyms": synonyms}]))
    with pytest.raises(ValueError, match=r"words\.json"):
        Vocabulary.from_file(path)


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    (tmp_path / "words.json").write_bytes(b'["\xe9t\xe9"]')
    with pytest.raises(ValueError, match=r"words\.json: expected a vocabulary in UTF-8"):
        Vocabulary.from_file(tmp_path / "words.json")


def test_a_missing_json_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a vocabulary at .*gone\.json: No such file"):
        Vocabulary.from_file(tmp_path / "gone.json")


def test_load_takes_a_data_set() -> None:
    assert Vocabulary.load("lvis_v1_val") == Vocabulary.from_dataset("lvis_v1_val")


def test_load_takes_a_json(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(LVIS_LIKE))
    assert Vocabulary.load(path) == Vocabulary.from_file(path)
    with pytest.raises(ValueError, match=r"expected a vocabulary at .*gone\.json"):
        Vocabulary.load(str(tmp_path / "gone.json"))


@pytest.mark.parametrize("name", ["words.txt", "words"])
def test_load_takes_a_text_file(tmp_path: Path, name: str) -> None:
    text = "# animals\nred panda\n\n  cat, tabby \n   \r\n#dog\n🦦\n"
    assert Vocabulary.load(write(tmp_path, text, name)).names == ("red panda", "cat, tabby", "🦦")


def test_load_names_a_missing_text_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"expected a vocabulary at .*gone\.txt: no such file\. To"
    ):
        Vocabulary.load(str(tmp_path / "gone.txt"))


@pytest.mark.parametrize(
    ("source", "names"),
    [
        ("cat", ("cat",)),
        ("cat, red panda ,,", ("cat", "red panda")),
        ("{},🦦", ("{}", "🦦")),
        (",".join(f"a name of some length {n}" for n in range(300)), None),
    ],
    ids=["one", "blanks", "odd", "longer than a path"],
)
def test_load_takes_a_comma_list(source: str, names: tuple[str, ...] | None) -> None:
    vocabulary = Vocabulary.load(source)
    assert vocabulary.names == (names or tuple(source.split(",")))
    assert all(vocabulary.novel)


@pytest.mark.parametrize("source", ["", " ", ", ,"])
def test_load_refuses_nothing(source: str) -> None:
    with pytest.raises(ValueError, match="got an empty vocabulary"):
        Vocabulary.load(source)


def test_load_with_novel_names_keeps_everything_else(tmp_path: Path) -> None:
    path = write(tmp_path, json.dumps(LVIS_LIKE))
    plain, changed = Vocabulary.load(path), Vocabulary.load(path, novel=["cat"])
    assert plain.novel == (False, True)
    assert changed.novel == (True, False)
    assert (changed.names, changed.synonyms) == (plain.names, plain.synonyms)
    assert Vocabulary.load(path, novel=[]).novel == (False, False)
    with pytest.raises(ValueError, match="the novel class 'dog' is not in the vocabulary of 2"):
        Vocabulary.load(path, novel=["dog"])


@pytest.mark.parametrize(
    ("one", "other", "read"),
    [
        ("Cat", "cat", "cat"),
        ("traffic light", "Traffic_Light", "traffic light"),
        ("traffic light.", "traffic  light", "traffic light"),
        ("salt/pepper", "salt or pepper", "salt or pepper"),
        ("cafe\u0301", "café", "café"),
        ("\uff23\uff21\uff34", "cat", "cat"),
        ("red\u00a0kite", "red kite", "red kite"),
        ("cr\u200bow", "crow", "crow"),
        ("crow\u200d", "crow", "crow"),
    ],
)
def test_one_class_in_two_spellings_is_refused(
    tmp_path: Path, one: str, other: str, read: str
) -> None:
    for load in (
        lambda: Vocabulary.from_names([one, "dog", other]),
        lambda: Vocabulary.load(f"{one}, {other}"),
        lambda: Vocabulary.from_file(write(tmp_path, json.dumps([one, other]))),
    ):
        with pytest.raises(ValueError, match="have the same prompts") as refused:
            load()
        for name in (one, other, read):
            assert repr(name) in str(refused.value)


def test_synonyms_may_coincide() -> None:
    synonyms = (("cat", "Cat", "pet"), ("dog", "pet"))
    assert Vocabulary(("cat", "dog"), synonyms, (True, True)).synonyms == synonyms


def test_novel_names_may_have_another_spelling() -> None:
    names = ["alarm_clock", "Red kite"]
    assert Vocabulary.from_names(names, novel=["Alarm Clock"]).novel == (True, False)
    assert Vocabulary.from_names(names, novel="red_kite, alarm clock.").novel == (True, True)
    assert Vocabulary.load("alarm_clock, Red kite", novel=["red kite"]).novel == (False, True)
    with pytest.raises(ValueError, match=r"'red kit' is not in .*\. Did you mean Red kite\?"):
        Vocabulary.from_names(names, novel=["red kit"])


@pytest.mark.parametrize("names", [b"cat", ["cat", None], [3], [Path("cat")], 3, None, True])
def test_names_have_to_be_a_list_of_text(names: Any) -> None:
    with pytest.raises(ValueError, match="expected a list of class names"):
        Vocabulary.from_names(names)
    if names is not None:
        with pytest.raises(ValueError, match="expected a list of novel classes"):
            Vocabulary.from_names(["cat"], novel=names)
    with pytest.raises(ValueError, match="expected a list of class names, got the text 'cat'"):
        Vocabulary.from_names("cat")


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "birds.txt",
            r"expected a vocabulary at birds\.txt: no such file\. Did you mean bird\.txt",
        ),
        ("birds.CSV", r"expected a vocabulary at birds\.CSV: no such file"),
        ("birds.pth", r"expected a vocabulary at birds\.pth: no such file"),
        ("./words", r"expected a vocabulary at \./words: no such file"),
        ("../words", "no such file"),
        ("/words", "no such file"),
        ("~/no such words", "no such file"),
        ("~nobody-of-this-name/words", "no such file"),
        (r"C:\words", "no such file"),
        ("https://example.org/words", "no such file"),
        ("lists/birds", "no such file"),
        ("lists", "got a folder"),
        ("lvis_v1_vall", "registered dataset, got 'lvis_v1_vall'. Did you mean lvis_v1_val"),
        ("LVIS_V1_val", "Did you mean lvis_v1_val"),
        ("lvis_v1", "Did you mean lvis_v1_"),
        ("coco_2017", "Did you mean coco_2017_"),
        ("birds_val", "Register your own datasets with --dataset-yaml"),
        ("birds_train_base", "Register your own datasets with --dataset-yaml"),
    ],
)
def test_a_word_that_looks_like_something_else_has_to_be_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "crow", "bird.txt")
    (tmp_path / "lists").mkdir()
    with pytest.raises(ValueError, match=message) as refused:
        Vocabulary.load(word)
    assert "double quotes: '\"" in str(refused.value)
    for source in (f'"{word}"', f"{word},", f"crow, {word}"):
        assert Vocabulary.load(source).names[-1] == word
    assert Vocabulary.from_names([word]).names == (word,)


@pytest.mark.parametrize(
    "word",
    [
        *("red kite", "t-shirt", "alarm_clock", "and/or", "router/modem", "St. Bernard", "node"),
        *("bullet_train", "railroad_train", "baseball_base", "bullet train", "No. 7", "Dr.Pepper"),
        *("wiper_(for_windshield/screen)", "shapes", "a.b", "C++", "!!!", "data", "data/x"),
    ],
)  # fmt: skip
def test_ordinary_words_need_no_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert Vocabulary.load(word).names == (word,)


def test_every_class_of_lvis_and_coco_is_an_ordinary_word(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("lvis_v1_val", "coco_2017_val", "shapes_val"):
        for word in sum(Vocabulary.from_dataset(name).synonyms, ()):
            assert Vocabulary.load(word).names == (word,)


def test_short_names_of_data_sets() -> None:
    assert Vocabulary.load("lvis") == Vocabulary.from_dataset("lvis_v1_val")
    assert Vocabulary.load("COCO") == Vocabulary.from_dataset("coco_2017_ovd_val")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b;c\nd\r\ne", ["a", "b", "c", "d", "e"]),
        ('"bow, tie", cat', ["bow, tie", "cat"]),
        ('"cat", "dog"', ["cat", "dog"]),
        ('say "hi", 12" record', ['say "hi"', '12" record']),
        (' , ;"", " "', []),
        ('"open, cat', ['"open', "cat"]),
    ],
)
def test_comma_lists(text: str, words: list[str]) -> None:
    assert split_words(text) == words
    assert split_words(join_words(words)) == words


@pytest.mark.parametrize(
    "text",
    [
        *("['cat','dog']", '["cat", "dog"]', "('cat', 'dog')", "[cat, dog]", "{'cat': 1, 'a': 2}"),
        *("'cat', 'dog'", "['cat']", "“cat”, “dog”", "bow (ribbon, silk), cat", "`cat`"),
    ],
)  # fmt: skip
def test_lists_of_a_program_and_cut_words_are_refused(text: str) -> None:
    for read in (split_words, Vocabulary.load):
        with pytest.raises(
            ValueError, match="without brackets or quotes around them, got"
        ) as error:
            read(text)
        assert "\n" not in str(error.value)


def test_words_that_look_like_a_list_may_be_quoted() -> None:
    words = ["[cat", "'n'", "smile :)", "rock 'n' roll", "bow (ribbon, silk)", "cat's"]
    assert split_words(join_words(words)) == words
    assert split_words("rock 'n' roll, bow (silk), {}") == ["rock 'n' roll", "bow (silk)", "{}"]


@pytest.mark.parametrize("text", ["\n" * 300_000, " " * 300_000, '"' * 300_000, '" ' * 150_000])
def test_long_comma_lists_are_read_in_linear_time(text: str) -> None:
    begin = time.perf_counter()
    split_words(text)
    assert time.perf_counter() - begin < 2
