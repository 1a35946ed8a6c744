"""The commands of the experiment, from generating the data to evaluating each method.

LVIS needs the same commands, with other configurations.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from experiments.stages import Stage
from vild.data.shapes.dataset import FORMAT, shapes_folder
from vild.embeddings.teacher import SHAPES_FOLDER
from vild.reporting.runs import read_runs
from vild.storage.layout import MANIFEST

TRAIN_NET = "projects/ViLD/train_net.py"
PROPOSALS = 100  # per image in the stores


@dataclass(frozen=True)
class Pipeline:
    """Stages of one data seed.

    Attributes:
        folder: folder of all outputs but the images; the configurations use `output/shapes`.
        seed: seed of the data and of the trainings.
        options: KEY VALUE pairs of the configuration, for every training and evaluation.
        prefix: prefix of the stages' names, to run several pipelines together.
        images: number of training and of validation images; None: the defaults of make_shapes.py.
        precision: precision of trainings, evaluations and the extraction of proposals: ``fp32``
            or ``bf16``.
        regions: proposals per training image that the teacher embeds.
    """

    folder: Path = Path("output/shapes")
    seed: int = 0
    options: tuple[str, ...] = ()
    prefix: str = ""
    images: tuple[int, int] | None = None
    precision: str = "fp32"
    regions: int = 60

    @property
    def data(self) -> str:
        """The prefix of the datasets' names."""
        return f"shapes_seed{self.seed}" if self.seed else "shapes"

    @property
    def baseline(self) -> Path:
        """The checkpoint that yields the proposals and initialises every detector."""
        return self.folder / "rpn_baseline" / "model_final.pth"

    def prepare(self, baseline: str = "rpn_baseline") -> list[Stage]:
        """Return the stages up to the region embeddings; the first makes the images.

        Args:
            baseline: configuration of the proposal detector, a file in configs/shapes
                without its extension.
        """
        images, text = shapes_folder(self.seed), self.folder / "text.safetensors"
        splits = (f"{self.data}_train_base", f"{self.data}_val")
        make = ["tools/make_shapes.py"]
        if self.seed:
            make += ["--seed", str(self.seed)]
        if self.images:
            make += ["--train-images", str(self.images[0]), "--val-images", str(self.images[1])]
        stages = [
            Stage(
                self._name("shapes"),
                "draw the images of `shapes`",
                tuple(make),
                (images / "shapes.json",),
                seconds=17,
                keep=True,
                version=f"format {FORMAT}",
            ),
            Stage(
                self._name("text_embeddings"),
                "embed the class names with the small CLIP in the package",
                (
                    *("tools/extract_text_embeddings.py", "--vocabulary", f"{self.data}_val"),
                    *("--model", "vild-shapes", "--out", str(text)),
                ),
                (text,),
                (self._name("shapes"),),
                seconds=6,
                version=teacher_version(),
            ),
            self.train(
                "rpn_baseline",
                baseline,
                "train the class-agnostic detector on base classes",
                weights=None,
                test=False,
                seconds=140,
            ),
        ]
        proposals, embeddings = self.folder / "proposals", self.folder / "embeddings"
        stages.append(
            Stage(
                self._name("proposals"),
                "extract its proposals",
                (
                    *("tools/extract_proposals.py", "--weights", str(self.baseline)),
                    *("--config-file", "configs/shapes/rpn_baseline.yaml"),
                    *("--topk", str(PROPOSALS), "--out-dir", str(proposals)),
                    *("--precision", self.precision, "--no-recall"),
                    *(word for split in splits for word in ("--split", split)),
                ),
                tuple(path for split in splits for path in _store(proposals / split)),
                (self._name("rpn_baseline"),),
                seconds=45,
            )
        )
        for split, regions, stem in zip(
            splits, (self.regions, PROPOSALS), ("train", "val"), strict=True
        ):
            stages.append(
                Stage(
                    self._name(f"embeddings_{stem}"),
                    f"embed the regions of {split} by the CLIP",
                    (
                        *("tools/extract_image_embeddings.py", "--split", split),
                        *("--proposals", str(proposals / split), "--regions", str(regions)),
                        *("--model", "vild-shapes", "--pretrained", ""),
                        *("--out-dir", str(embeddings)),
                    ),
                    _store(embeddings / split),
                    (self._name("proposals"),),
                    seconds=45 if stem == "train" else 20,
                )
            )
        return stages

    def train(
        self,
        name: str,
        config: str,
        title: str,
        *options: str,
        weights: Path | None,
        test: bool = True,
        seconds: float = 200,
    ) -> Stage:
        """Return the stage of a training.

        Args:
            name: name of the stage and of its folder.
            config: file in configs/shapes, without its extension.
            title: title of the stage.
            *options: KEY VALUE pairs.
            weights: initial weights; None: random.
            test: whether to evaluate it at the end.
            seconds: estimated duration.
        """
        after = ("embeddings_train", "embeddings_val") if weights else ("shapes", "text_embeddings")
        begin = ("MODEL.WEIGHTS", str(weights)) if weights else ()
        if self.precision != "fp32":
            options += ("SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.PRECISION", self.precision)
        weights_file = self.folder / name / "model_final.pth"
        return Stage(
            self._name(name),
            title,
            (
                *(TRAIN_NET, "--resume", "--config-file", f"configs/shapes/{config}.yaml"),
                *(*begin, *self._paths(name, True, test), *options, *self.options),
            ),
            (self.folder / name, weights_file, *((self.metrics(name),) if test else ())),
            tuple(map(self._name, after)),
            seconds,
        )

    def evaluate(
        self,
        name: str,
        config: str,
        title: str,
        *options: str,
        trained: str,
        seconds: float = 25,
    ) -> Stage:
        """Return a stage that evaluates the checkpoint of a training.

        Args:
            name: name of the stage and of its folder.
            config: file in configs/shapes, without its extension.
            title: title of the stage.
            *options: KEY VALUE pairs.
            trained: stage of the training.
            seconds: estimated duration.
        """
        weights = self.folder / trained / "model_final.pth"
        return Stage(
            self._name(name),
            title,
            (
                *(TRAIN_NET, "--eval-only", "--eval", "bbox"),
                *(("--precision", self.precision) if self.precision != "fp32" else ()),
                *("--config-file", f"configs/shapes/{config}.yaml", "MODEL.WEIGHTS", str(weights)),
                *(*self._paths(name, False, True), *options, *self.options),
            ),
            (self.folder / name, self.metrics(name)),
            tuple(map(self._name, (trained, "embeddings_val"))),
            seconds,
        )

    def metrics(self, name: str) -> Path:
        """Return the metrics file of a stage."""
        return self.folder / name / f"{self.data}_val_metrics.json"

    def figures(self, name: str) -> Mapping[str, float]:
        """Return the box metrics of a stage, in percent.

        Raises:
            ValueError: the file is missing or has no box metrics.
        """
        (run,) = read_runs([self.metrics(name)])
        if "bbox" not in run.results:
            raise ValueError(f"{self.metrics(name)}: expected box metrics (bbox)")
        return run.results["bbox"]

    def _name(self, name: str) -> str:
        return f"{self.prefix}{name}"

    def _paths(self, name: str, train: bool, test: bool) -> tuple[str, ...]:
        """Return the options that replace the paths and names of the configurations."""
        options = ["OUTPUT_DIR", str(self.folder / name)]
        own = (self.folder, self.seed) != (Pipeline.folder, Pipeline.seed)
        embeddings = self.folder / "embeddings"
        if own:
            options += ["MODEL.VILD.TEXT_EMBEDDINGS", str(self.folder / "text.safetensors")]
        if own and train:
            options += ["SEED", str(self.seed)]
            options += ["DATASETS.TRAIN", f'("{self.data}_train_base",)']
            options += ["MODEL.VILD.DISTILL.STORE", str(embeddings / f"{self.data}_train_base")]
        if own and test:
            options += ["DATASETS.TEST", f'("{self.data}_val",)']
            options += ["DATASETS.PROPOSAL_FILES_TEST", f'("{embeddings / self.data}_val",)']
        if not test:
            options += ["DATASETS.TEST", "()"]
        return tuple(options)


def _store(folder: Path) -> tuple[Path, Path]:
    """Return the outputs of an extraction; the manifest is written last."""
    return folder, folder / MANIFEST


def teacher_version() -> str:
    """Return a digest of the shipped weights, so that new weights make the stages run again."""
    weights = SHAPES_FOLDER / "open_clip_model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()
