"""Prompts: cleaned names, articles, "This is", and the templates of ViLD's public demo."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from vild.data import Vocabulary, clean_name, fill, vild_templates
from vild.data.prompts import SINGLE_TEMPLATE, article, check_templates

PUBLISHED = Path(__file__).parents[3] / "shared" / "data" / "vild_prompt_templates.txt"


@pytest.mark.parametrize(
    ("name", "cleaned"),
    [
        ("cat", "cat"),
        ("Cat", "cat"),
        ("alarm_clock", "alarm clock"),
        ("bow_(decorative_ribbons)", "bow (decorative ribbons)"),
        ("wiper_(for_windshield/screen)", "wiper (for windshield or screen)"),
        ("football_(American)", "football (american)"),
        ("salt/pepper", "salt or pepper"),
        ("salt / pepper", "salt or pepper"),
        ("cat.", "cat"),
        ("cat...", "cat"),
        ("cat. ", "cat"),
        ("St. Bernard", "st. bernard"),
        ("  red \t panda\n", "red panda"),
        ("__red__panda__", "red panda"),
        ("t-shirt", "t-shirt"),
        ("cafe\u0301", "café"),
        ("\uff23\uff21\uff34\uff3f\uff12", "cat 2"),
        ("ﬁre\u00a0truck…", "fire truck"),
        ("🦦 {x}", "🦦 {x}"),
        ("cr\u200bow\u200d", "crow"),
        ("\u202eowl\u200f\ufeff", "owl"),
        ("fire\u00adfly", "firefly"),
        ("e\u200b\u0301mu", "ému"),
        ("🐦\u200d⬛\u200d", "🐦\u200d⬛"),
        ("می\u200cروم", "می\u200cروم"),
        ("\u200b\u200d", ""),
        ("_.", ""),
        ("", ""),
    ],
)
def test_names_are_cleaned(name: str, cleaned: str) -> None:
    assert clean_name(name) == cleaned
    assert clean_name(cleaned) == cleaned


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        *((name, "an") for name in ("apple", "egg", "ice cube", "otter", "umbrella")),
        *((name, "a") for name in ("cat", "yak", "hat", "7up can", "🦦", "")),
    ],
)
def test_articles(name: str, expected: str) -> None:
    assert article(name) == expected


@pytest.mark.parametrize(
    ("template", "name", "prompt"),
    [
        (SINGLE_TEMPLATE, "cat", "This is a photo of a cat."),
        (SINGLE_TEMPLATE, "Alarm_clock", "This is a photo of an alarm clock."),
        ("the toy {}.", "cat", "This is the toy cat."),
        ("an embroidered {}.", "cat", "This is an embroidered cat."),
        ("itap of {article} {}.", "otter", "itap of an otter."),
        ("There is the {} in the scene.", "cat", "There is the cat in the scene."),
        ("{article} {}", "egg", "This is an egg"),
        ("{}", "cat", "cat"),
        # any "a…" or "the…", as in the public demo
        ("{}", "apple", "This is apple"),
        ("{}", "theatre", "This is theatre"),
        ("{} and {}", "cat", "cat and cat"),
    ],
)
def test_prompts_are_filled(template: str, name: str, prompt: str) -> None:
    assert fill(template, name) == prompt


@pytest.mark.parametrize(
    "name", ["{}", "{article}", "{0}", "{x!r}", "a {} b", "{", "}", "🦦", "%s"]
)
@pytest.mark.parametrize("template", ["see {article} {}.", "see my {}."])
def test_braces_and_emoji_survive(template: str, name: str) -> None:
    prefix = f"see {article(name)} " if "{article}" in template else "see my "
    assert fill(template, name) == f"{prefix}{name}."


def test_there_are_63_templates() -> None:
    templates = vild_templates()
    assert len(set(templates)) == len(templates) == 63
    assert all(template.count("{}") == 1 for template in templates)
    assert all(template == template.strip() for template in templates)
    assert SINGLE_TEMPLATE in templates


@pytest.mark.skipif(not PUBLISHED.is_file(), reason=f"no published list of templates: {PUBLISHED}")
def test_templates_are_the_published_ones() -> None:
    assert list(vild_templates()) == PUBLISHED.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize(
    ("templates", "message"),
    [
        ([], "x: expected at least one prompt template, got none"),
        (["a {}.", ""], "x: expected '{}' where the class name goes, got the template ''"),
        (["a {article} photo"], "where the class name goes, got the template 'a {article} photo'"),
        (["a {0}."], "expected '{}' where the class name goes, got the template 'a {0}.'"),
    ],
)
def test_bad_templates_are_refused(templates: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        check_templates(templates, "x")


def test_good_templates_are_kept_in_order() -> None:
    assert check_templates(["the {}", "{article} {}"], "x") == ("the {}", "{article} {}")


@pytest.mark.parametrize("name", ["lvis_v1_val", "coco_2017_val", "shapes_val"])
def test_the_built_in_names_have_one_spelling_in_unicode(name: str) -> None:
    """Normalisation does not change the prompts of built-in names."""
    for own in Vocabulary.from_dataset(name).synonyms:
        for word in own:
            text = " ".join(word.lower().replace("_", " ").replace("/", " or ").split())
            assert clean_name(word) == text.rstrip(". ")


def test_lvis_has_63_prompts_a_class_and_no_two_classes_share_one() -> None:
    prompts = [
        [fill(template, name) for template in vild_templates()]
        for name in Vocabulary.load("lvis_v1_val").names
    ]
    assert len(prompts) == 1203
    assert len({prompt for own in prompts for prompt in own}) == 1203 * 63
    flat = " ".join(prompt for own in prompts for prompt in own)
    assert not any(sign in flat for sign in "_/{}")
    assert " ." not in flat
    assert "  " not in flat
