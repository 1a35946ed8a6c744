"""The packages that are downloaded from the index, patched and installed as wheels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from installer.detectron2_edits import DETECTRON2_EDITS, MISSING_EXTENSION_MODULE
from installer.mending import Edit


@dataclass(frozen=True)
class MendedPackage:
    """A distribution on the index and the wheel built from it.

    Attributes:
        name: name of the distribution.
        module: the top-level package that the wheel installs.
        version: version of the wheel; the local part marks it as not upstream's.
        summary: one line for the wheel's metadata.
        source: requirement to download from the package index.
        sha256: checksum of the only accepted file.
        upstream: home page of the original project.
        license_file: path of the licence inside the unpacked file.
        edits: replacements, relative to the folder of ``module``.
        requires: the wheel's dependencies.
        extra_packages: source folders that become sub-packages (dotted name -> path).
        added_files: new files in the package (path -> text).
        data: patterns of data files in ``module``.
    """

    name: str
    module: str
    version: str
    summary: str
    source: str
    sha256: str
    upstream: str
    license_file: str
    edits: tuple[Edit, ...]
    requires: tuple[str, ...]
    extra_packages: dict[str, str] = field(default_factory=dict)
    added_files: dict[str, str] = field(default_factory=dict)
    data: tuple[str, ...] = ()

    @property
    def recipe(self) -> str:
        """Return a digest of all attributes; it differs for an older build."""
        return hashlib.sha256(repr(self).encode()).hexdigest()


DETECTRON2 = MendedPackage(
    name="detectron2",
    module="detectron2",
    version="0.6+pure",
    summary="Detectron2 v0.6 as pure Python, with the edits that today's dependencies need",
    source="pb1-detectron2==0.6",
    sha256="5d2e9e51e523ec72f6a31cca04b0a515492e9514b773a3d134cedc0677170b29",
    upstream="https://github.com/facebookresearch/detectron2",
    license_file="LICENSE",
    edits=DETECTRON2_EDITS,
    # v0.6's list without needless pins (black, iopath < 0.1.10) and without packages that only its
    # caffe2 exporter used (future, pydot). Like upstream, it leaves torch to the user.
    requires=(
        "Pillow>=10",
        "cloudpickle",
        "fvcore>=0.1.5,<0.1.6",
        "hydra-core>=1.1",
        "iopath>=0.1.7",
        "matplotlib",
        "numpy>=1.26",
        "omegaconf>=2.1",
        "pycocotools>=2.0.2",
        "tabulate",
        "tensorboard",
        "termcolor>=1.1",
        "tqdm>4.29.0",
        "yacs>=0.1.8",
    ),
    # upstream's setup.py installs these three projects below detectron2.projects
    extra_packages={
        "detectron2.projects.point_rend": "projects/PointRend/point_rend",
        "detectron2.projects.deeplab": "projects/DeepLab/deeplab",
        "detectron2.projects.panoptic_deeplab": "projects/Panoptic-DeepLab/panoptic_deeplab",
    },
    added_files={"utils/missing_extension.py": MISSING_EXTENSION_MODULE},
    data=("model_zoo/configs/**/*",),
)

LVIS = MendedPackage(
    name="lvis",
    module="lvis",
    version="0.5.3+mended",
    summary="The LVIS API 0.5.3, running on numpy 2 and with OpenCV's headless build",
    source="lvis==0.5.3",
    sha256="4f07153330df342b3161fafb46641ce7c02864113a8ddf0d6ffab6b02407bef0",
    upstream="https://github.com/lvis-dataset/lvis-api",
    license_file="lvis-0.5.3.dist-info/LICENSE",
    edits=tuple(
        Edit(
            "eval.py",
            f"{name}_sum = np.cumsum({name}s, axis=1).astype(dtype=np.float)",
            f"{name}_sum = np.cumsum({name}s, axis=1).astype(dtype=float)",
            "np.float is gone from numpy 1.24",
        )
        for name in ("tp", "fp")
    ),
    # opencv-python needs libGL; the headless build has everything that lvis calls
    requires=("matplotlib", "numpy>=1.18.2", "opencv-python-headless>=4.1", "pycocotools>=2.0.2"),
)

CLIP = MendedPackage(
    name="clip-anytorch",
    module="clip",
    version="2.6.0+mended",
    summary="OpenAI's CLIP (clip-anytorch 2.6.0), importing without pkg_resources",
    source="clip-anytorch==2.6.0",
    sha256="ebc0afed243851b9dc7e16ab8afb665237e8a5838986e97cd99f123ae4ce94ce",
    upstream="https://github.com/rom1504/CLIP",
    license_file="clip_anytorch-2.6.0.dist-info/LICENSE",
    edits=(
        Edit(
            "clip.py",
            "from pkg_resources import packaging\n",
            "import packaging.version\n",
            "pkg_resources is gone from setuptools 82",
        ),
    ),
    requires=("ftfy", "packaging", "regex", "torch", "torchvision", "tqdm"),
    data=("*.txt.gz",),
)

MENDED_PACKAGES = (DETECTRON2, LVIS, CLIP)
