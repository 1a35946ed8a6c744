import codecs

import pytest

from vild.data.files import read_text


@pytest.mark.parametrize(
    "content",
    [
        "é, 犬".encode(),
        codecs.BOM_UTF8 + "é, 犬".encode(),
        "é, 犬".encode("utf-16"),
        codecs.BOM_UTF16_BE + "é, 犬".encode("utf-16-be"),
        "é, 犬".encode("utf-32"),
    ],
)
def test_encodings_with_a_mark_are_read(tmp_path, content):
    (tmp_path / "words.txt").write_bytes(content)
    assert read_text(tmp_path / "words.txt", "a list of classes") == "é, 犬"


@pytest.mark.parametrize(
    "content", ["crème".encode("latin-1"), "cat".encode("utf-16-le"), b"\xff\xfe\x00", b"\x00\x01"]
)
def test_others_are_refused_by_name(tmp_path, content):
    (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ValueError, match=r"words\.txt: expected a list of classes in UTF-8"):
        read_text(tmp_path / "words.txt", "a list of classes")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"a list of classes at .*words\.txt: No such file"):
        read_text(tmp_path / "words.txt", "a list of classes")
