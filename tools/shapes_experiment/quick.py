"""The experiment in short, as `make quickstart` runs it: less of everything than the recipes."""

from __future__ import annotations

from shapes_experiment.methods import METHODS
from shapes_experiment.pipeline import Pipeline
from vild.engine.stages import Stage

# rows of the table: names of the stages that evaluate them
ROWS = {
    "both_heads": "ViLD-ensemble",
    "text_head": "its text head alone (ViLD-text)",
    "image_head": "its image head alone (ViLD-image)",
    "clip": "CLIP on cropped regions",
}
# docs/SHAPES.md has what each of these costs in AP
IMAGES = (1200, 400)
REGIONS = 30
BASELINE = ("SOLVER.MAX_ITER", "200", "SOLVER.STEPS", "(150, 180)")
ENSEMBLE = (
    *("SOLVER.MAX_ITER", "300", "SOLVER.STEPS", "(225, 270)"),
    *("MODEL.BACKBONE.FREEZE_AT", "2", "MODEL.VILD.DISTILL.REGIONS", str(REGIONS)),
)


def quick_stages(pipeline: Pipeline) -> list[Stage]:
    """All stages, in order; the first draws the images, and each of ``ROWS`` has one.

    Args:
        pipeline: with ``images`` and ``regions`` as they are above.
    """
    ensemble = "vild_ensemble"
    stages = pipeline.prepare(BASELINE)
    title = "evaluate the CLIP itself on cropped regions"
    stages.append(pipeline.evaluate("clip", "clip_on_crops", title, trained="rpn_baseline"))
    stages.append(
        pipeline.train(
            *("ensemble", ensemble, "train ViLD-ensemble on base classes", *ENSEMBLE),
            weights=pipeline.baseline,
            test=False,
            seconds=150,
        )
    )
    for name, title, options in (
        ("both_heads", "evaluate ViLD-ensemble", ()),
        ("text_head", "evaluate its text head alone", METHODS["text_head"].options),
        ("image_head", "evaluate its image head alone", METHODS["image_head"].options),
    ):
        stages.append(pipeline.evaluate(name, ensemble, title, *options, trained="ensemble"))
    return stages
