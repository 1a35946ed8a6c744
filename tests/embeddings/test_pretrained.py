"""Local files and earlier downloads use the preprocessing that their weights were trained with."""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import clip
import huggingface_hub
import open_clip
import pytest
import torch
from safetensors.torch import save_file

from vild.embeddings import OpenClipTeacher, build_teacher
from vild.embeddings.pretrained import SHAPES_FOLDER, find_source

TOWERS = {
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 64, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 1, "layers": 1},
}
CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
SIGLIP = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear"}
SIGLIP["resize_mode"] = "squash"
TAGS: dict[str, dict[str, Any]] = {
    "tiny": {"tiny_400m": {**SIGLIP, "url": "", "hf_hub": "someone/tiny/"}},
    "tiny-clip": {
        "openai": {**CLIP, "quick_gelu": True, "hf_hub": "", "url": ""},
        "laion": {**CLIP, "url": "", "hf_hub": "someone/laion/weights.bin"},
    },
    "tiny-both": {"one": CLIP, "two_b": SIGLIP},
    "tiny-alone": {},
}


@pytest.fixture(autouse=True)
def published(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Register one-layer models with open_clip, and use empty caches."""
    for name, tags in TAGS.items():
        config = {"embed_dim": 16, **TOWERS}
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
        monkeypatch.setitem(open_clip.pretrained._PRETRAINED, name, tags)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {k: v.clone() for k, v in open_clip.CLIP(16, **TOWERS).state_dict().items()}


@pytest.fixture
def file(tmp_path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save(state, tmp_path / "weights.pt")
    return tmp_path / "weights.pt"


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Refuse connections, and return the list of attempted ones."""
    tried: list[object] = []

    def refuse(*args: object, **kwargs: object) -> None:
        tried.append(args)
        raise OSError("no connection")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr("open_clip.factory.download_pretrained", refuse)
    return tried


def preprocess(teacher: OpenClipTeacher) -> dict[str, Any]:
    return teacher.describe()["preprocess"]


def cache(folder: Path, repository: str, name: str, content: bytes | Path) -> None:
    """Put a file where huggingface_hub stores its downloads."""
    place = folder / "hub" / f"models--{repository.replace('/', '--')}"
    snapshot = place / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True, exist_ok=True)
    (place / "refs").mkdir(exist_ok=True)
    (place / "refs" / "main").write_text("0123abcd", encoding="utf-8")
    (snapshot / name).write_bytes(content if isinstance(content, bytes) else content.read_bytes())


def test_a_file_is_preprocessed_as_all_published_weights_of_its_model(file: Path) -> None:
    teacher = build_teacher("tiny", str(file), "cpu")
    assert preprocess(teacher) == {**SIGLIP, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert teacher.interpolation == "bilinear"
    crops = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = teacher.model.encode_image((crops - 0.5) / 0.5, normalize=True)
    torch.testing.assert_close(teacher.encode_image(crops), expected)


@pytest.mark.parametrize(
    ("model", "mean", "interpolation"),
    [
        ("PE-Core-B-16", (0.5,) * 3, "bilinear"),
        ("MobileCLIP2-S0", (0.0,) * 3, "bilinear"),
        ("ViT-B-16-SigLIP2", (0.5,) * 3, "bicubic"),
        ("ViT-L-14-CLIPA", (0.485, 0.456, 0.406), "bilinear"),
        ("ViT-B-32-quickgelu", CLIP["mean"], "bicubic"),
    ],
)
def test_files_of_published_models(
    model: str, mean: tuple[float, ...], interpolation: str, file: Path
) -> None:
    found = find_source(model, str(file)).preprocess
    assert found is not None
    assert (found["mean"], found["interpolation"]) == (mean, interpolation)


def test_a_file_whose_preprocessing_is_ambiguous_needs_a_tag(file: Path) -> None:
    with pytest.raises(ValueError, match=r"(?s)tiny-both differ: .*--pretrained TAG=.*weights\.pt"):
        build_teacher("tiny-both", str(file), "cpu")
    for tag in ("two_b", "Two-B"):
        teacher = build_teacher("tiny-both", f"{tag}={file}", "cpu")
        assert (teacher.name, teacher.interpolation) == ("tiny-both/two_b", "bilinear")
    assert build_teacher("tiny-both", f"one={file}", "cpu").interpolation == "bicubic"
    with pytest.raises(ValueError, match=r"ViT-L-14 differ: .*laion2b_s32b_b82k"):
        build_teacher("ViT-L-14", str(file), "cpu")


def test_a_model_without_published_weights(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = build_teacher("tiny-alone", str(file), "cpu")
    assert preprocess(teacher)["interpolation"] == "bicubic"
    assert "publishes no weights of tiny-alone" in caplog.text
    with pytest.raises(ValueError, match=r"one of the tags \(none exist\) for tiny-alone"):
        build_teacher("tiny-alone", "openai", "cpu")


def test_a_tag_before_a_file_gives_its_activation(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quick = build_teacher("tiny-clip", f"openai={file}", "cpu")
    assert quick.name == "tiny-clip/openai"
    assert not caplog.records or "GELU" not in caplog.text
    plain = build_teacher("tiny-clip", str(file), "cpu")
    assert "QuickGELU (openai), give their tag, as in --pretrained openai=" in caplog.text
    assert not torch.allclose(quick.encode_text(["a"]), plain.encode_text(["a"]), atol=1e-6)
    assert quick.fingerprint != plain.fingerprint
    assert plain.fingerprint == build_teacher("tiny-clip", f"laion={file}", "cpu").fingerprint


@pytest.mark.parametrize(
    ("model", "tag"),
    [
        ("ViT-B-32", "OpenAI"),
        ("ViT-B/32", "openai"),
        ("ViT-B-32", "metaclip_400m"),
        ("ViT-B-32-quickgelu", "openai"),
    ],
)
def test_a_tag_s_activation_in_any_spelling(model: str, tag: str) -> None:
    assert find_source(model, tag).architecture["quick_gelu"] is True


def test_equal_models_have_equal_architectures() -> None:
    named, tagged = find_source("ViT-B-32-quickgelu", None), find_source("ViT-B-32", "openai")
    assert named.architecture == tagged.architecture
    assert named.architecture != find_source("ViT-B-32", None).architecture


def test_openai_s_archive_has_openai_s_activation(tmp_path: Path) -> None:
    """OpenAI's own files are TorchScript archives."""
    torch.manual_seed(0)
    model = clip.model.CLIP(16, 32, 1, 64, 16, 77, 49408, 64, 1, 1).eval()
    inputs = torch.zeros(1, 3, 32, 32), torch.zeros(1, 77, dtype=torch.long)
    traced = torch.jit.trace_module(model, {"forward": inputs}, check_trace=False)
    traced.save(str(tmp_path / "tiny.pt"))
    for pretrained in (f"{tmp_path}/tiny.pt", f"openai={tmp_path}/tiny.pt"):
        teacher = build_teacher("tiny-clip", pretrained, "cpu")
        with torch.no_grad():
            expected = model.encode_text(clip.tokenize(["a red kite"]))
        expected = torch.nn.functional.normalize(expected)
        torch.testing.assert_close(teacher.encode_text(["a red kite"]), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["open_clip_model.safetensors", "open_clip_pytorch_model.bin"])
def test_an_earlier_download_needs_no_network(
    name: str, file: Path, state: dict[str, torch.Tensor], tmp_path: Path, offline: list[object]
) -> None:
    with pytest.raises(
        ValueError, match=r"fetch .* of someone/tiny .*--pretrained tiny_400m=/path"
    ):
        build_teacher("tiny", "tiny_400m", "cpu")
    offline.clear()
    if name.endswith(".safetensors"):
        save_file(state, tmp_path / name)
        file = tmp_path / name
    cache(tmp_path, "someone/tiny", name, file)
    teacher = build_teacher("tiny", "tiny_400m", "cpu")
    assert offline == []
    assert (teacher.name, teacher.interpolation) == ("tiny/tiny_400m", "bilinear")
    assert teacher.fingerprint == build_teacher("tiny", f"tiny_400m={file}", "cpu").fingerprint


def test_a_download_of_openai_s_package_is_found(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, offline: list[object]
) -> None:
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    url = f"https://openaipublic.azureedge.net/clip/models/{digest}/tiny.pt"
    monkeypatch.setitem(TAGS["tiny-clip"]["openai"], "url", url)
    folder = tmp_path / "home" / ".cache" / "clip"
    folder.mkdir(parents=True)
    (folder / "tiny.pt").write_bytes(file.read_bytes())
    assert build_teacher("tiny-clip", "openai", "cpu").name == "tiny-clip/openai"
    assert offline == []
    (folder / "tiny.pt").write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="'openai' of tiny-clip could not be downloaded"):
        build_teacher("tiny-clip", "openai", "cpu")


def test_a_hub_s_model_that_was_downloaded_before(tmp_path: Path, offline: list[object]) -> None:
    for name in ("open_clip_config.json", "open_clip_model.safetensors"):
        cache(tmp_path, "someone/shapes", name, SHAPES_FOLDER / name)
    teacher = build_teacher("hf-hub:someone/shapes", "openai", "cpu")  # the tools' default tag
    assert offline == []
    assert teacher.name == "hf-hub:someone/shapes"
    assert teacher.fingerprint == build_teacher("vild-shapes", device="cpu").fingerprint


def own_model(folder: Path, **changes: Any) -> str:
    """Copy the packaged teacher with another configuration; return its model name."""
    config = json.loads((SHAPES_FOLDER / "open_clip_config.json").read_text(encoding="utf-8"))
    for key, value in changes.items():
        part, _, option = key.partition("__")
        config[part][option] = value
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    weights = (SHAPES_FOLDER / "open_clip_model.safetensors").read_bytes()
    (folder / "open_clip_model.safetensors").write_bytes(weights)
    return f"local-dir:{folder}"


@pytest.mark.parametrize(
    "changes",
    [
        {"model_cfg__quick_gelu": True},
        {"preprocess_cfg__mean": [0.5, 0.5, 0.5]},
        {"preprocess_cfg__std": 0.5},
        {"preprocess_cfg__interpolation": "bilinear"},
        {"preprocess_cfg__resize_mode": "shortest"},
    ],
)
def test_fingerprint_follows_more_than_the_weights(changes: dict[str, Any], tmp_path: Path) -> None:
    packaged = build_teacher("vild-shapes", device="cpu").fingerprint
    assert build_teacher(own_model(tmp_path), None, "cpu").fingerprint == packaged
    assert build_teacher(own_model(tmp_path, **changes), None, "cpu").fingerprint != packaged


VISION = {"timm_model_name": "test_byobnet", "timm_pool": "avg", "timm_proj": "linear"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preprocess_cfg__interpolation": "nearest"}, "bicubic or bilinear .*, got 'nearest'"),
        ({"preprocess_cfg__fill_color": 128}, r"fill_color 0\), got 128"),
        ({"preprocess_cfg__mean": [0.5]}, r"three finite numbers each, .*got \[0\.5\]"),
        ({"preprocess_cfg__std": [0, 1, 1]}, "the deviation positive, got"),
        ({"model_cfg__vision_cfg": {**VISION, "image_size": [48, 32]}}, "square inputs.*48, 32"),
        ({"model_cfg__vision_cfg": 3}, r"expected a folder with open_clip_config\.json"),
        ({"model_cfg__surprise": 3}, "unexpected keyword argument 'surprise'"),
    ],
)
def test_folders_that_are_refused(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        build_teacher(own_model(tmp_path, **changes), None, "cpu")


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    model = own_model(tmp_path)
    (tmp_path / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"could not be loaded, .*Required pretrained weights"):
        build_teacher(model, None, "cpu")


def test_weights_beside_a_model_that_has_its_own(tmp_path: Path, file: Path) -> None:
    for model in (own_model(tmp_path), "vild-shapes"):
        plain = build_teacher(model, None, "cpu")
        assert build_teacher(model, "openai", "cpu").fingerprint == plain.fingerprint
        with pytest.raises(
            ValueError, match=r"expected no separate weights for .*omit --pretrained"
        ):
            build_teacher(model, str(file), "cpu")


def write_json(path: Path) -> None:
    path.write_text('{"a": 1}', encoding="utf-8")


def write_yaml(path: Path) -> None:
    path.write_text("MODEL:\n  META: 3\n", encoding="utf-8")


BAD_FILES = {
    "json": write_json,
    "yaml": write_yaml,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello", encoding="utf-8"),
    "objects": lambda path: torch.save({"args": argparse.Namespace()}, path),
    "module": lambda path: torch.save(torch.nn.Linear(1, 1), path),
    "list": lambda path: torch.save([1, 2], path),
    "no tensor": lambda path: torch.save({}, path),
    "detector": lambda path: torch.save({"model": {"backbone.w": torch.zeros(1)}}, path),
}


@pytest.mark.parametrize("ending", ["pt", "safetensors", "npz"])
@pytest.mark.parametrize("kind", BAD_FILES)
def test_files_that_are_no_checkpoint(kind: str, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"file.{ending}"
    BAD_FILES[kind](path)
    with pytest.raises(ValueError, match=r"file\.\w+ could not be loaded as a checkpoint") as error:
        build_teacher("tiny", str(path), "cpu")
    assert "\n" not in str(error.value)


def test_truncated_and_broken_weights(file: Path, state: dict[str, torch.Tensor]) -> None:
    content = file.read_bytes()
    for part in (content[: len(content) // 2], content[:-1000]):
        file.write_bytes(part)
        with pytest.raises(ValueError, match=r"weights\.pt could not be loaded as a checkpoint"):
            build_teacher("tiny", str(file), "cpu")
    state["visual.proj"][0, 0] = torch.nan
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"expected finite weights, got NaN .*weights\.pt"):
        build_teacher("tiny", str(file), "cpu")


@pytest.mark.parametrize(
    ("pretrained", "message"),
    [
        ("{folder}", "expected a checkpoint file of tiny-clip, got the folder .*local-dir:/"),
        ("openai={folder}/none.pt", "a checkpoint of tiny-clip at .*none.pt: no such file"),
        ("opneai={folder}/weights.pt", "TAG=FILE with one of the tags openai, laion .*'opneai="),
        ("some/where", "a checkpoint of tiny-clip at some/where: no such file"),
        ("~/none.pt", "a checkpoint of tiny-clip at .*home/none.pt: no such file"),
    ],
)
def test_places_without_a_checkpoint(
    pretrained: str, message: str, tmp_path: Path, file: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build_teacher("tiny-clip", pretrained.format(folder=tmp_path), "cpu")


def test_a_file_may_have_an_equals_sign_in_its_name(file: Path) -> None:
    named = file.with_name("lr=1.pt")
    file.rename(named)
    assert build_teacher("tiny", str(named), "cpu").interpolation == "bilinear"


def test_random_weights_are_preprocessed_as_published_ones() -> None:
    assert build_teacher("tiny", "", "cpu").interpolation == "bilinear"
    assert build_teacher("tiny-both", None, "cpu").interpolation == "bicubic"


def test_a_tokenizer_that_needs_transformers_is_named_first(
    monkeypatch: pytest.MonkeyPatch, file: Path
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.setattr(open_clip, "create_model", lambda *_, **__: pytest.fail("built too early"))
    for pretrained in (None, "webli", str(file)):
        with pytest.raises(ValueError, match=r"ViT-B-16-SigLIP needs .*pip install transformers"):
            build_teacher("ViT-B-16-SigLIP", pretrained, "cpu")


def test_a_tokenizer_of_the_hub(
    monkeypatch: pytest.MonkeyPatch, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Use earlier downloads first, then the network; without one, say what to copy."""
    asked: list[bool] = []
    reachable = False

    def from_pretrained(name: str, local_files_only: bool = False, **options: object) -> object:
        asked.append(local_files_only)
        if not reachable:
            raise OSError("We couldn't connect\nto 'https://huggingface.co'")

        def encode(texts: list[str], max_length: int, **options: object) -> SimpleNamespace:
            rows = [[len(text) % 7, *[0] * (max_length - 1)] for text in texts]
            return SimpleNamespace(input_ids=torch.tensor(rows))

        return encode

    fake = SimpleNamespace(AutoTokenizer=SimpleNamespace(from_pretrained=from_pretrained))
    monkeypatch.setitem(sys.modules, "transformers", fake)
    text = {**TOWERS["text_cfg"], "hf_tokenizer_name": "someone/words"}
    config = {"embed_dim": 16, **TOWERS, "text_cfg": text}
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "tiny", config)
    with pytest.raises(
        ValueError, match=r"someone/words on the .*get_tokenizer\('tiny'\)"
    ) as error:
        build_teacher("tiny", str(file), "cpu")
    assert "HF_HOME" in str(error.value)
    assert "\n" not in str(error.value)
    assert asked == [True, False]
    reachable = True
    caplog.set_level(logging.ERROR)
    assert build_teacher("tiny", str(file), "cpu").encode_text(["a", "bc"]).shape == (2, 16)
    assert asked == [True, False, True]
