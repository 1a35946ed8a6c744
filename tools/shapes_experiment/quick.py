"""The short experiment of `make quickstart`: fewer images and iterations than the recipes."""

from __future__ import annotations

from pathlib import Path

from shapes_experiment.methods import METHODS
from shapes_experiment.pipeline import Pipeline
from vild.engine.stages import Stage
from vild.precision import resolve_precision

# rows of the table -> names of their evaluation stages
ROWS = {
    "both_heads": "ViLD-ensemble",
    "text_head": "its text head alone (ViLD-text)",
    "image_head": "its image head alone (ViLD-image)",
    "clip": "CLIP on cropped regions",
}
IMAGES = (1200, 400)


def quick_pipeline(
    folder: Path = Pipeline.folder,
    seed: int = 0,
    options: tuple[str, ...] = (),
    prefix: str = "",
    images: tuple[int, int] = IMAGES,
) -> Pipeline:
    """Return a pipeline with fewer images, in bf16 if the processor supports it."""
    precision = resolve_precision("auto", "cpu")
    return Pipeline(folder, seed, options, prefix, images, precision)


def quick_stages(pipeline: Pipeline) -> list[Stage]:
    """Return all stages in order: the first draws the images, and each of ``ROWS`` has one."""
    ensemble = "vild_ensemble"
    stages = pipeline.prepare("quick_baseline")
    title = "evaluate the CLIP itself on cropped regions"
    stages.append(pipeline.evaluate("clip", "clip_on_crops", title, trained="rpn_baseline"))
    stages.append(
        pipeline.train(
            *("ensemble", "quick_ensemble", "train ViLD-ensemble on base classes"),
            weights=pipeline.baseline,
            test=False,
            seconds=120,
        )
    )
    for name, title, options in (
        ("both_heads", "evaluate ViLD-ensemble", ()),
        ("text_head", "evaluate its text head alone", METHODS["text_head"].options),
        ("image_head", "evaluate its image head alone", METHODS["image_head"].options),
    ):
        stages.append(pipeline.evaluate(name, ensemble, title, *options, trained="ensemble"))
    return stages
