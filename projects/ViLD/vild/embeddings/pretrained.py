"""Find the architecture, weights, preprocessing and tokenizer of an open_clip model.

open_clip knows the preprocessing and activation of published weights by their tag. A local file
contains neither, so both are looked up here before a model is built.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import torch
from open_clip.constants import HF_CONFIG_NAME, HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME
from safetensors import SafetensorError

from vild.embeddings.teacher import OPENAI_TAG, SHAPES_FOLDER, SHAPES_MODEL
from vild.embeddings.torchscript import as_safetensors, is_archive
from vild.storage.safe_pickle import ForbiddenError
from vild.storage.torch_files import check_archive, forbidden_name

logger = logging.getLogger(__name__)

LOCAL, HUB = "local-dir:", "hf-hub:"  # models that include weights and preprocessing
# Errors with useful messages; the messages of others depend on which code happened to fail.
_READABLE = (
    *(RuntimeError, OSError, ValueError, ImportError, AssertionError, SafetensorError),
    *(zipfile.BadZipFile, ForbiddenError),
)
TORCH_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")
PREPROCESS = ("mean", "std", "interpolation", "resize_mode")


@dataclass(frozen=True)
class Source:
    """Everything that open_clip needs to build a teacher.

    Attributes:
        name: the teacher's name in artefacts.
        model: argument for ``open_clip.create_model``.
        tokenizer: argument for ``open_clip.get_tokenizer``.
        architecture: the model's configuration, without values equal to open_clip's defaults.
        tag: tag of the published weights; empty if unknown.
        file: file of the weights; None if open_clip finds them, or for random ones.
        preprocess: ``PREPROCESS`` of the weights; None leaves it to open_clip.
    """

    name: str
    model: str
    tokenizer: str
    architecture: Mapping[str, Any]
    tag: str = ""
    file: Path | None = None
    preprocess: Mapping[str, Any] | None = None

    def build(self, device: str | torch.device) -> open_clip.CLIP:
        """Build the model and load its weights.

        Raises:
            ValueError: the weights cannot be downloaded or read, or belong to another model.
        """
        try:
            with self._weights() as weights:
                network = open_clip.create_model(
                    self.model,
                    pretrained=weights,
                    device=device,
                    force_quick_gelu=bool(self.architecture.get("quick_gelu")),
                    force_preprocess_cfg=dict(self.preprocess or {}),
                    pretrained_text=False,  # random weights are random in both towers
                    # otherwise open_clip only warns about missing weights
                    require_pretrained=self.model.startswith((LOCAL, HUB)),
                )
        # files of other kinds fail in many ways: pickle, zip, missing attributes, ...
        except Exception as error:
            raise ValueError(self._advice(error)) from error
        if not all(bool(torch.isfinite(weight).all()) for weight in network.parameters()):
            raise ValueError(
                f"expected finite weights, got NaN or infinity in {self.file or self.name}"
            )
        return network

    @contextlib.contextmanager
    def _weights(self) -> Iterator[str | None]:
        """Yield what open_clip shall load: a tag, a safe file, or None for random weights."""
        if self.file and is_archive(self.file):
            with as_safetensors(self.file) as converted:
                yield str(converted)
            return
        if self.file and self.file.suffix in TORCH_ENDINGS:
            check_archive(self.file)
        yield str(self.file) if self.file else self.tag or None

    def load_tokenizer(self) -> open_clip.SimpleTokenizer:
        """Load the tokenizer.

        Raises:
            ValueError: it needs a package that is not installed, or its files are not available.
        """
        try:
            if self._hub_tokenizer:
                with contextlib.suppress(OSError):  # not downloaded before
                    return open_clip.get_tokenizer(self.tokenizer, local_files_only=True)
            return open_clip.get_tokenizer(self.tokenizer)
        except ImportError as error:
            raise ValueError(
                f"the tokenizer of {self.model} needs packages that are not installed: pip install "
                f"transformers sentencepiece, or this project's extra `hf` ({_reason(error)})"
            ) from error
        except Exception as error:  # transformers raises many exception types
            raise ValueError(self._tokenizer_advice(error)) from error

    @property
    def _hub_tokenizer(self) -> str:
        return self.architecture["text_cfg"].get("hf_tokenizer_name", "")

    def _tokenizer_advice(self, error: Exception) -> str:
        if self.tokenizer.startswith(LOCAL):
            return (
                f"the tokenizer of {self.model} could not be loaded: expected its files "
                f"(tokenizer.json, tokenizer_config.json) in that folder: {_reason(error)}"
            )
        return (
            f"the tokenizer of {self.model}, {self._hub_tokenizer} on the Hugging Face hub, could "
            'not be loaded. On a machine with a connection run python -c "import open_clip; '
            f"open_clip.get_tokenizer('{self.tokenizer}')\" and copy its Hugging Face cache "
            f"(HF_HOME) here: {_reason(error)}"
        )

    def _advice(self, error: Exception) -> str:
        """Return a one-line message for an error that occurred when loading weights."""
        if self.file:
            reason = "expected a state dict (tensors by name), got other content"
            if name := forbidden_name(error):
                reason = (
                    f"it asks for {name}, which could run code. If you trust its source, convert "
                    f"it once: python tools/convert_checkpoint.py {self.file} weights.safetensors "
                    "--trusted"
                )
            elif isinstance(error, _READABLE):
                reason = _reason(error)
            return f"{self.file} could not be loaded as a checkpoint of {self.model}: {reason}"
        if self.tag and isinstance(error, RuntimeError) and "download" in str(error):
            config = open_clip.get_pretrained_cfg(self.model, self.tag)
            hub, names = _hub_files(config)
            source = f"{names[0]} of {hub} on the Hugging Face hub" if hub else config.get("url")
            return (
                f"the weights {self.tag!r} of {self.model} could not be downloaded. On a machine "
                f"with a connection fetch {source}, copy the file here and say which weights it "
                f"holds: --model {self.model} --pretrained {self.tag}=/path/to/file. Copying that "
                "machine's Hugging Face cache (HF_HOME) works, too."
            )
        if self.model.startswith(LOCAL):
            return (
                f"{self.model} could not be loaded, expected a folder with {HF_CONFIG_NAME} and "
                f"{HF_SAFE_WEIGHTS_NAME}: {_reason(error)}"
            )
        return f"{self.name} could not be loaded: {_reason(error)}"


def find_source(model: str, pretrained: str | None) -> Source:
    """Look up everything about a teacher before downloading anything large.

    Args:
        model: an open_clip model name, ``local-dir:FOLDER``, ``hf-hub:NAME`` or ``vild-shapes``.
        pretrained: an open_clip tag, a checkpoint file, or ``TAG=FILE`` for a file with the weights
            of that tag. None gives random weights.

    Raises:
        ValueError: unknown model or tag, no such file, a file whose preprocessing is ambiguous, or
            weights given for a model that includes its own.
    """
    if model == SHAPES_MODEL or model.startswith((LOCAL, HUB)):
        if pretrained and pretrained != OPENAI_TAG:  # the default of every command is ignored
            raise ValueError(
                f"expected no separate weights for {model}, which includes them, got "
                f"{pretrained!r}: omit --pretrained"
            )
        return _self_contained(model)
    asked, model = model, model.replace("/", "-")  # OpenAI writes ViT-B/32
    config = open_clip.get_model_config(model)
    if config is None:
        raise ValueError(
            f"expected an open_clip model, got {asked!r}. "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists them; a folder "
            f"with {HF_CONFIG_NAME} and weights is {LOCAL}FOLDER."
        )
    tag, file = _tag_and_file(model, pretrained) if pretrained else ("", None)
    name = "/".join(part for part in (model, tag or pretrained or "") if part)
    tags = open_clip.list_pretrained_tags_by_model(model)
    if file and not tag:
        if OPENAI_TAG in tags and is_archive(file):
            tag = OPENAI_TAG  # only OpenAI publishes such archives
        else:
            _warn_of_activation(model, tags, bool(config.get("quick_gelu")), file)
    elif tag and not file:
        file = _downloaded(open_clip.get_pretrained_cfg(model, tag))
    published = open_clip.get_pretrained_cfg(model, tag) if tag else {}
    quick_gelu = bool(config.get("quick_gelu") or published.get("quick_gelu"))
    architecture = _architecture({**config, "quick_gelu": quick_gelu})
    preprocess = _preprocess(model, [tag] if tag else tags, file)
    return Source(name, model, model, architecture, tag, file, preprocess)


def _self_contained(model: str) -> Source:
    """Return the source of a model that includes its configuration, in a folder or on the hub."""
    place = f"{LOCAL}{SHAPES_FOLDER}" if model == SHAPES_MODEL else model
    if model.startswith(HUB) and (folder := _hub_snapshot(model.removeprefix(HUB))):
        place = f"{LOCAL}{folder}"
    try:
        config = open_clip.get_model_config(place)
        architecture = _architecture(config)
    except Exception as error:
        if model.startswith(HUB):
            hub = model.removeprefix(HUB)
            raise ValueError(
                f"{model} could not be downloaded. On a machine with a connection run "
                f"`hf download {hub}` and copy its Hugging Face cache (HF_HOME) here, or name the "
                f"folder of the files: --model {LOCAL}/path/to/folder: {_reason(error)}"
            ) from error
        raise ValueError(
            f"{model} could not be loaded, expected a folder with {HF_CONFIG_NAME} and in it "
            f"model_cfg with vision_cfg and text_cfg: {_reason(error)}"
        ) from error
    tokenizer = place  # in a folder, open_clip expects the tokenizer's files next to the weights
    if model.startswith(HUB) and architecture["text_cfg"].get("hf_tokenizer_name"):
        tokenizer = model
    return Source(model, place, tokenizer, architecture)


def _tag_and_file(model: str, pretrained: str) -> tuple[str, Path | None]:
    """Return the tag and the file of the weights, given as a tag, a file or ``TAG=FILE``."""
    tags = open_clip.list_pretrained_tags_by_model(model)
    if open_clip.is_pretrained_cfg(model, pretrained):
        return _clean(pretrained), None
    known = f"one of the tags {', '.join(tags) or '(none exist)'} for {model}"
    tag, path = "", pretrained
    if "=" in pretrained and not Path(pretrained).exists():
        tag, _, path = pretrained.partition("=")
        if not open_clip.is_pretrained_cfg(model, tag):
            raise ValueError(f"expected TAG=FILE with {known}, got {pretrained!r}")
    file = Path(path).expanduser()
    if file.is_dir():
        raise ValueError(
            f"expected a checkpoint file of {model}, got the folder {file}. A folder with "
            f"{HF_CONFIG_NAME} is a complete model: --model {LOCAL}{file}"
        )
    if not file.is_file():
        if not tag and not file.suffix and os.sep not in path:
            raise ValueError(f"expected a checkpoint file or {known}, got {pretrained!r}")
        raise ValueError(f"expected a checkpoint of {model} at {file}: no such file")
    return _clean(tag), file


def _clean(tag: str) -> str:
    """Normalise a tag like open_clip: LAION2B-s34b-b79k becomes laion2b_s34b_b79k."""
    return tag.lower().replace("-", "_")


def _preprocess(model: str, tags: list[str], file: Path | None) -> dict[str, Any] | None:
    """Return the preprocessing shared by all of these tags; None if they differ or there are none.

    Raises:
        ValueError: they differ, and the weights come from a file that does not say which applies.
    """
    by_value: dict[tuple[Any, ...], list[str]] = {}
    for tag in tags:
        config = open_clip.get_pretrained_cfg(model, tag)
        by_value.setdefault(tuple(config[key] for key in PREPROCESS), []).append(tag)
    if len(by_value) == 1:
        return dict(zip(PREPROCESS, next(iter(by_value)), strict=True))
    if file and by_value:
        choices = "; ".join(
            f"{', '.join(f'{key} {value}' for key, value in zip(PREPROCESS, values, strict=True))} "
            f"({', '.join(named)})"
            for values, named in by_value.items()
        )
        raise ValueError(
            f"{file} does not say how its images are preprocessed, and the published weights of "
            f"{model} differ: {choices}. Give the tag of its weights, or one with the same "
            f"preprocessing and activation: --pretrained TAG={file}"
        )
    if file:
        logger.warning(
            "%s: open_clip publishes no weights of %s, so crops are preprocessed like OpenAI's. "
            "For other preprocessing, use a folder with %s (--model %sFOLDER)",
            file,
            model,
            HF_CONFIG_NAME,
            LOCAL,
        )
    return None


def _warn_of_activation(model: str, tags: list[str], quick_gelu: bool, file: Path) -> None:
    """Warn if a file's weights may need QuickGELU: only the model's name decides the activation."""
    named = [tag for tag in tags if open_clip.get_pretrained_cfg(model, tag).get("quick_gelu")]
    if named and not quick_gelu:
        logger.warning(
            "%s is loaded with GELU, the activation of %s. If its weights were trained with "
            "QuickGELU (%s), give their tag, as in --pretrained %s=%s",
            file,
            model,
            ", ".join(named),
            named[0],
            file,
        )


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a model's configuration without defaults, so that equal models compare equal.

    Omitted: the image size, which the teacher itself provides, and the source of the towers' base
    weights.
    """
    reduced = {key: value for key, value in config.items() if value}
    for key, kind in (("vision_cfg", open_clip.CLIPVisionCfg), ("text_cfg", open_clip.CLIPTextCfg)):
        defaults = {field.name: field.default for field in dataclasses.fields(kind)}
        reduced[key] = {
            option: value
            for option, value in config[key].items()
            if value != defaults.get(option)
            and option != "image_size"
            and not option.endswith("_model_pretrained")
        }
    return reduced


def _hub_files(config: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Return the hub repository of a tag's weights (empty if there is none) and the file names."""
    repository, name = os.path.split(config.get("hf_hub") or "")
    if not name:
        return repository, [HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME]
    return repository, list(dict.fromkeys([Path(name).with_suffix(".safetensors").name, name]))


def _downloaded(config: Mapping[str, Any]) -> Path | None:
    """Return a tag's downloaded weights: in the hub's cache, then in open_clip's of plain URLs."""
    repository, names = _hub_files(config)
    for name in names if repository else ():
        if file := _in_hub_cache(repository, name):
            return file
    url = config.get("url") or ""
    file = Path("~/.cache/clip").expanduser() / url.rpartition("/")[2]
    if not url or not file.is_file():
        return None
    # both publishers include the checksum in the URL
    checksum = ""
    if "openaipublic" in url:
        checksum = url.split("/")[-2]
    elif "mlfoundations" in url:
        checksum = file.stem.rpartition("-")[2]
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while chunk := opened.read(2**20):
            digest.update(chunk)
    return file if digest.hexdigest().startswith(checksum) else None


def _hub_snapshot(repository: str) -> Path | None:
    """Return the folder of a hub model whose configuration and weights were downloaded before."""
    config = _in_hub_cache(repository, HF_CONFIG_NAME)
    weights = (_in_hub_cache(repository, name) for name in (HF_SAFE_WEIGHTS_NAME, HF_WEIGHTS_NAME))
    return config.parent if config and any(weights) else None


def _in_hub_cache(repository: str, name: str) -> Path | None:
    try:
        found = huggingface_hub.try_to_load_from_cache(repository, name)
    except ValueError:  # not a valid hub name: downloading reports that
        return None
    return Path(found) if isinstance(found, str) else None


def _reason(error: Exception) -> str:
    """Return the beginning of an error message on one line."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:200]} ..."
    return text if isinstance(error, _READABLE) else f"{type(error).__name__}: {text}"
