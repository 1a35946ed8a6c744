"""The teacher of this project: any CLIP model that open_clip knows.

Shapes: N texts or crops, D embedding, S side of a crop in pixels. All embeddings that this module
returns are float32 and L2-normalised.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional
from tqdm import tqdm

from vild.embeddings.crops import INTERPOLATIONS
from vild.embeddings.teacher import OPENAI_MODEL, OPENAI_TAG
from vild.precision import PRECISIONS, autocast

if TYPE_CHECKING:
    import open_clip

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


class OpenClipTeacher:
    """A frozen CLIP model with its tokenizer and temperature; a :class:`Teacher`.

    Args:
        model: the model, in evaluation mode; gradients are disabled here.
        tokenizer: maps texts (N) to token ids (N, context).
        name: the model's name as the user gave it; recorded in every artefact.
        mean: per-channel mean (RGB) of the model's training images; a single number applies to
            all channels.
        std: per-channel standard deviation, likewise.
        interpolation: how the training images were resized, ``bicubic`` or ``bilinear``.
        resize_mode: open_clip's name for how they were made square. It is only recorded: the crop
            rule defines what is done here.
        architecture: open_clip's configuration of the model, part of the fingerprint. With None,
            the types of its modules are used instead.
        precision: precision of matrix products, ``fp32``, ``bf16`` or ``fp16``. The weights are
            not converted (autocast), so the fingerprint does not depend on it.

    Attributes:
        interpolation: interpolation to resize crops with.

    Raises:
        ValueError: unknown precision or interpolation, or mean and deviation that are not three
            finite numbers with positive deviations.

    Build one with :meth:`load`.
    """

    def __init__(
        self,
        model: open_clip.CLIP,
        tokenizer: open_clip.SimpleTokenizer,
        *,
        name: str,
        mean: Sequence[float] | float = CLIP_MEAN,
        std: Sequence[float] | float = CLIP_STD,
        interpolation: str = "bicubic",
        resize_mode: str = "shortest",
        architecture: Mapping[str, Any] | None = None,
        precision: str = "fp32",
    ) -> None:
        if precision not in PRECISIONS:
            raise ValueError(f"expected a precision of {sorted(PRECISIONS)}, got {precision!r}")
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"expected a teacher whose images are resized by {' or '.join(INTERPOLATIONS)} "
                f"interpolation, got {interpolation!r} for {name}"
            )
        means, deviations = _three_numbers(mean), _three_numbers(std)
        if not means or not deviations or min(deviations) <= 0:
            raise ValueError(
                f"expected the mean and deviation of {name} to be three finite numbers each, the "
                f"deviation positive, got {mean} and {std}"
            )
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.name = name
        self.precision = precision
        self.interpolation, self.resize_mode = interpolation, resize_mode
        self._statistics = torch.tensor(means), torch.tensor(deviations)
        self._architecture = architecture

    @classmethod
    def load(
        cls,
        model: str = OPENAI_MODEL,
        pretrained: str | None = OPENAI_TAG,
        device: str | torch.device | None = None,
        precision: str = "fp32",
    ) -> OpenClipTeacher:
        """Load a teacher.

        Args:
            model: an open_clip model name, ``local-dir:FOLDER`` or ``hf-hub:NAME``;
                ``vild-shapes`` is the teacher of the shapes benchmark.
            pretrained: an open_clip tag (downloaded once), a checkpoint file, or ``TAG=FILE``: a
                file with the weights of that tag, using its preprocessing and activation. For a
                file without a tag, the preprocessing is that shared by all published weights of
                the model. None gives random weights, unless ``model`` includes its own.
            device: a GPU if available, by default.
            precision: ``fp32``, ``bf16`` or ``fp16``.

        Raises:
            ValueError: unknown model or tag, unreadable file, a file whose preprocessing is
                ambiguous, inputs that are not square, or unavailable weights or tokenizer; the
                message says what to download or install and how to specify it.
        """
        import open_clip  # imported here because most commands need no teacher

        from vild.embeddings.pretrained import find_source

        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        source = find_source(model, pretrained)
        tokenizer = source.load_tokenizer()  # before anything large is downloaded or built
        network = source.build(device)
        preprocess = open_clip.get_model_preprocess_cfg(network)
        if preprocess.get("fill_color"):
            raise ValueError(
                f"expected a teacher whose images are padded with black (fill_color 0), got "
                f"{preprocess['fill_color']} for {source.name}"
            )
        teacher = cls(
            network,
            tokenizer,
            name=source.name,
            mean=preprocess.get("mean", CLIP_MEAN),
            std=preprocess.get("std", CLIP_STD),
            interpolation=preprocess.get("interpolation", "bicubic"),
            resize_mode=preprocess.get("resize_mode", "shortest"),
            architecture=source.architecture,
            precision=precision,
        )
        _ = teacher.image_size  # raises if inputs are not square
        return teacher

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return next(self.model.parameters()).device

    @property
    def statistics(self) -> tuple[Tensor, Tensor]:
        """(mean, deviation) of the model's training images, (3,) each, on the weights' device."""
        device, (mean, std) = self.device, self._statistics
        if mean.device != device:
            self._statistics = mean.to(device), std.to(device)
        return self._statistics

    @property
    def temperature(self) -> float:
        """1 / logit scale, the divisor of cosines; 0.01 for OpenAI's models."""
        return 1.0 / float(self.model.logit_scale.detach().float().exp())

    @cached_property
    def image_size(self) -> int:
        """S, side of the square crops in pixels.

        Raises:
            ValueError: the model's inputs are not square.
        """
        size = self.model.visual.image_size
        sides = tuple(size) if isinstance(size, tuple | list) else (size,)
        if len(set(sides)) != 1:
            raise ValueError(
                f"expected a teacher of square inputs, such as 224 x 224, got {size} (height, "
                f"width) for {self.name}"
            )
        return int(sides[0])

    @cached_property
    def dimension(self) -> int:
        """D, length of an embedding."""
        return int(self.encode_text(["a"]).shape[1])

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of weights, architecture and preprocessing; independent of the name.

        Equal weights with another activation or normalisation give other embeddings.
        """
        kinds = sorted({type(module).__name__ for module in self.model.modules()})
        recipe = {"architecture": self._architecture or kinds, **self._preprocess}
        recipe["image_size"] = self.image_size
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        for key, value in sorted(self.model.state_dict().items()):
            digest.update(key.encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()

    @property
    def _preprocess(self) -> dict[str, Any]:
        mean, std = (values.tolist() for values in self.statistics)
        own = {"interpolation": self.interpolation, "resize_mode": self.resize_mode}
        return {"mean": mean, "std": std, **own}

    def describe(self) -> dict[str, Any]:
        """Return a json description of the teacher, to be recorded in artefacts."""
        return {
            "name": self.name,
            "fingerprint": self.fingerprint,
            "dimension": self.dimension,
            "image_size": self.image_size,
            "precision": self.precision,
            "preprocess": self._preprocess,
        }

    @torch.inference_mode()
    def encode_text(
        self, texts: Sequence[str], batch_size: int = 256, progress: bool = False
    ) -> Tensor:
        """Embed sentences.

        Args:
            texts: N sentences; those longer than the model's context are truncated, as in CLIP.
            batch_size: sentences per batch; the result does not depend on it (to 1e-6).
            progress: show a progress bar.

        Returns:
            (N, D) float32 on the CPU, L2-normalised.

        Raises:
            ValueError: no sentences.
        """
        if not texts:
            raise ValueError("expected at least one sentence to embed, got none")
        tokens = self.tokenizer(list(texts))
        # A causal model reads a sentence only up to its end token; the rest is padding. Sentences
        # of similar length are batched and trimmed: the same result with less work.
        lengths = tokens.argmax(dim=1) + 1 if self._trims_padding else None
        order = torch.arange(len(tokens)) if lengths is None else lengths.argsort(stable=True)
        rows: list[Tensor] = []
        with tqdm(total=len(tokens), unit="prompt", disable=not progress) as bar:
            for index in order.split(batch_size):
                batch = tokens[index]
                if lengths is not None:
                    batch = batch[:, : int(lengths[index].max())]
                with autocast(self.precision, self.device):
                    embedded = self._embed_tokens(batch.to(self.device)).float()
                rows.append(functional.normalize(embedded, dim=1).cpu())
                bar.update(len(index))
        result = torch.empty(len(tokens), rows[0].shape[1])
        result[order] = torch.cat(rows)
        return result

    @property
    def _trims_padding(self) -> bool:
        import open_clip

        return (
            type(self.model) is open_clip.CLIP
            and self.model.text_pool_type == "argmax"
            and self.model.attn_mask is not None
        )

    def _embed_tokens(self, tokens: Tensor) -> Tensor:
        """Compute ``model.encode_text`` for sentences of any length up to the context."""
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
            normalised: whether :attr:`statistics` have already been applied to them.

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
            mean, std = (values[:, None, None] for values in self.statistics)
            crops = (crops - mean) / std
        with autocast(self.precision, self.device):
            embedded = self.model.encode_image(crops)
        return functional.normalize(embedded.float(), dim=1)


def _three_numbers(values: Any) -> tuple[float, ...]:
    """Return one number per channel; empty for anything else."""
    numbers = list(values) if isinstance(values, Sequence) else [values] * 3
    good = all(isinstance(v, int | float) and math.isfinite(v) for v in numbers)
    return tuple(map(float, numbers)) if good and len(numbers) == 3 else ()
