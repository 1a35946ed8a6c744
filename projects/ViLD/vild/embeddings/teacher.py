"""The frozen teacher: any CLIP model that open_clip knows.

Shapes: N texts or crops, D embedding, S pixels a side of a crop. All embeddings that leave this
module are float32 and L2-normalised.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path

import open_clip
import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

logger = logging.getLogger(__name__)

OPENAI_MODEL, OPENAI_TAG = "ViT-B-32", "openai"  # the paper's teacher
SHAPES_MODEL = "vild-shapes"  # the embedded benchmark's, in this package
SHAPES_FOLDER = Path(__file__).parent / "shapes_teacher"  # its config and weights
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class Teacher:
    """A frozen CLIP model with its tokenizer and its own temperature.

    Args:
        model: the model, in evaluation mode; gradients are switched off here.
        tokenizer: texts (N) -> token ids (N, context).
        name: how the model was asked for; recorded in every artefact.
        mean: per-channel mean (RGB) of the crops that the model was trained on.
        std: per-channel deviation, likewise.
        precision: of the matrix products, ``fp32``, ``bf16`` or ``fp16``. The weights stay as they
            are (autocast), so that the fingerprint does not depend on it.

    Attributes:
        statistics: (mean, deviation) of the model's training pictures, (3,) each.

    Build one with :meth:`load`.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        tokenizer: open_clip.SimpleTokenizer,
        *,
        name: str,
        mean: Sequence[float] = CLIP_MEAN,
        std: Sequence[float] = CLIP_STD,
        precision: str = "fp32",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"expected a precision of {sorted(PRECISIONS)}, got {precision!r}")
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.precision = precision
        self.statistics = torch.tensor(mean), torch.tensor(std)

    @classmethod
    def load(
        cls,
        model: str = OPENAI_MODEL,
        pretrained: str | None = OPENAI_TAG,
        device: str | torch.device | None = None,
        precision: str = "fp32",
    ) -> Teacher:
        """Load a teacher.

        Args:
            model: an open_clip model name, ``local-dir:FOLDER`` or ``hf-hub:NAME``;
                ``vild-shapes`` is the embedded benchmark's own.
            pretrained: an open_clip tag (downloaded once) or a checkpoint file. None gives random
                weights, unless ``model`` brings its own.
            device: GPU when there is one, by default.
            precision: ``fp32``, ``bf16`` or ``fp16``.

        Raises:
            ValueError: unknown model or tag, unreadable file, or weights that could not be had;
                the message says what to fetch and how to name it.
        """
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        name = model
        if model == SHAPES_MODEL:
            model, pretrained = f"local-dir:{SHAPES_FOLDER}", None
        elif pretrained:
            name = f"{model}/{pretrained}"
        # OpenAI trained with QuickGELU; open_clip only warns when its plain models load them
        quick_gelu = pretrained == OPENAI_TAG
        try:
            network = open_clip.create_model(
                model, pretrained=pretrained, device=device, force_quick_gelu=quick_gelu
            )
            tokenizer = open_clip.get_tokenizer(model)
        except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
            raise ValueError(_loading_advice(model, pretrained, error)) from error
        preprocess = open_clip.get_model_preprocess_cfg(network)
        return cls(
            network,
            tokenizer,
            name=name,
            mean=preprocess.get("mean", CLIP_MEAN),
            std=preprocess.get("std", CLIP_STD),
            precision=precision,
        )

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.model.parameters()).device

    @property
    def temperature(self) -> float:
        """1 / logit scale: what cosines are divided by; 0.01 for OpenAI's models."""
        return 1.0 / float(self.model.logit_scale.detach().float().exp())

    @cached_property
    def image_size(self) -> int:
        """S, pixels a side of the square crops."""
        size = self.model.visual.image_size
        return int(size[0] if isinstance(size, tuple | list) else size)

    @cached_property
    def dimension(self) -> int:
        """D, length of an embedding."""
        return int(self.encode_text(["a"]).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the weights: equal names may hide different checkpoints."""
        digest = hashlib.sha256()
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    def describe(self) -> dict[str, str | int]:
        """What an artefact records of its teacher; plain json."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "image_size": self.image_size,
            "precision": self.precision,
        }

    @torch.inference_mode()
    def encode_text(
        self, texts: Sequence[str], batch_size: int = 256, progress: bool = False
    ) -> Tensor:
        """Embed sentences.

        Args:
            texts: N sentences; longer ones than the model reads are cut off, as in CLIP.
            batch_size: sentences at a time; the result does not depend on it (to 1e-6).
            progress: show a progress bar.

        Returns:
            (N, D) float32 on the CPU, L2-normalised.

        Raises:
            ValueError: no sentence.
        """
        if not texts:
            raise ValueError("expected at least one sentence to embed, got none")
        tokens = self.tokenizer(list(texts))
        # A causal model's sentence ends at its end token: what follows is padding that nothing
        # looks at. Sentences of like length go together and are cut there: same result, less work.
        lengths = tokens.argmax(dim=1) + 1 if self._trims_padding else None
        order = torch.arange(len(tokens)) if lengths is None else lengths.argsort(stable=True)
        rows: list[Tensor] = []
        with tqdm(total=len(tokens), unit="prompt", disable=not progress) as bar:
            for index in order.split(batch_size):
                batch = tokens[index]
                if lengths is not None:
                    batch = batch[:, : int(lengths[index].max())]
                with self._autocast():
                    embedded = self._embed_tokens(batch.to(self.device)).float()
                rows.append(functional.normalize(embedded, dim=1).cpu())
                bar.update(len(index))
        result = torch.empty(len(tokens), rows[0].shape[1])
        result[order] = torch.cat(rows)
        return result

    @property
    def _trims_padding(self) -> bool:
        return (
            type(self.model) is open_clip.CLIP
            and self.model.text_pool_type == "argmax"
            and self.model.attn_mask is not None
        )

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        """What ``model.encode_text`` computes, for sentences of any length up to the context."""
        model = self.model
        length = tokens.shape[1]
        if not self._trims_padding:
            return model.encode_text(tokens)
        dtype = model.transformer.get_cast_dtype()
        x = model.token_embedding(tokens).to(dtype)
        x = x + model.positional_embedding[:length].to(dtype)
        x = model.transformer(x, attn_mask=model.attn_mask[:length, :length])
        x = model.ln_final(x)
        x = x[torch.arange(len(x), device=x.device), tokens.argmax(dim=-1)]
        projection = model.text_projection
        if projection is None:
            return x
        return projection(x) if isinstance(projection, torch.nn.Module) else x @ projection

    @torch.inference_mode()
    def encode_image(self, crops: Tensor, normalised: bool = False) -> Tensor:
        """Embed crops.

        Args:
            crops: (N, 3, S, S) RGB in [0, 1], any float type, on any device.
            normalised: whether :attr:`statistics` were applied to them already.

        Returns:
            (N, D) float32 on the teacher's device, L2-normalised.

        Raises:
            ValueError: crops of another shape.
        """
        expected = (3, self.image_size, self.image_size)
        if crops.ndim != 4 or tuple(crops.shape[1:]) != expected:
            raise ValueError(
                f"expected crops of shape (N, {', '.join(map(str, expected))}) for {self.name}, "
                f"got {tuple(crops.shape)}"
            )
        crops = crops.to(self.device, torch.float32)
        if not normalised:
            mean, std = (v.to(self.device)[:, None, None] for v in self.statistics)
            crops = (crops - mean) / std
        with self._autocast():
            embedded = self.model.encode_image(crops)
        return functional.normalize(embedded.float(), dim=1)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, PRECISIONS[self.precision])


def _loading_advice(model: str, pretrained: str | None, error: Exception) -> str:
    """One message for everything that can go wrong when weights are loaded."""
    if model not in open_clip.list_models() and ":" not in model:
        return (
            f"expected an open_clip model, got {model!r}. "
            "`python -c 'import open_clip; print(open_clip.list_models())'` lists them."
        )
    if pretrained and Path(pretrained).suffix and not Path(pretrained).is_file():
        return f"expected a checkpoint of {model} at {pretrained}: no such file"
    tags = open_clip.list_pretrained_tags_by_model(model) if ":" not in model else []
    if pretrained in tags:
        config = open_clip.get_pretrained_cfg(model, pretrained)
        hub = (config.get("hf_hub") or "").strip("/")
        source = f"open_clip_model.safetensors of {hub} on the Hugging Face hub"
        # a plain file says nothing of its activation, so the model's name has to
        quick = f"{model}-quickgelu"
        named = quick if pretrained == OPENAI_TAG and quick in open_clip.list_models() else model
        return (
            f"the weights {pretrained!r} of {model} could not be downloaded. On a machine with a "
            f"connection fetch {source if hub else config.get('url')}, copy the file here and name "
            f"it: --model {named} --pretrained /path/to/file. Copying that machine's Hugging Face "
            "cache (HF_HOME) works, too."
        )
    if pretrained and not Path(pretrained).is_file():
        return (
            f"expected a checkpoint file or one of the tags {', '.join(tags)} for {model}, got "
            f"{pretrained!r}"
        )
    return f"{pretrained or model} could not be loaded as a checkpoint of {model}: {error}"
