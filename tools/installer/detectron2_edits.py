"""Patches of Detectron2 v0.6 for current Python, torch, numpy, Pillow and setuptools.

The effect of each patch is tested in tests/detectron2_stack/. Upstream's main branch has since made
equivalent changes; the wording here is our own.
"""

from __future__ import annotations

from installer.mending import Edit

_NUMPY = "np.int, np.bool, np.float and np.str are gone from numpy 1.24"
_EXTENSION = "the compiled extension is optional: importing must work without it"


def _numpy_alias(file: str, *lines: str) -> tuple[Edit, ...]:
    """Return edits that replace the removed numpy aliases in ``lines`` by Python types."""
    edits = []
    for line in lines:
        new = line
        for alias in ("int", "bool", "float", "str"):
            new = new.replace(f"np.{alias}", alias)
        edits.append(Edit(file, line, new, _NUMPY))
    return tuple(edits)


_GUARDED_EXTENSION = """\
try:
    from detectron2 import _C
except ImportError:
    from detectron2.utils.missing_extension import MissingExtension

    _C = MissingExtension()
"""

MISSING_EXTENSION_MODULE = '''\
"""Stands in for the compiled extension ``detectron2._C`` in the pure-Python build."""


class MissingExtension:
    """Any use of it raises an ImportError that names the operator."""

    def __getattr__(self, name):
        raise ImportError(
            f"detectron2._C.{name} is a compiled operator, and this is the pure-Python build of "
            "Detectron2. Rotated boxes and deformable convolutions need an official build: "
            "https://detectron2.readthedocs.io/tutorials/install.html"
        )
'''

DETECTRON2_EDITS: tuple[Edit, ...] = (
    Edit(
        "data/transforms/transform.py",
        "def __init__(self, src_rect, output_size, interp=Image.LINEAR, fill=0):",
        "def __init__(self, src_rect, output_size, interp=Image.BILINEAR, fill=0):",
        "Image.LINEAR is gone from Pillow 10; BILINEAR is the same filter",
    ),
    *(
        Edit(file, "from detectron2 import _C\n", _GUARDED_EXTENSION, _EXTENSION)
        for file in (
            "layers/deform_conv.py",
            "layers/rotated_boxes.py",
            "layers/roi_align_rotated.py",
        )
    ),
    Edit(
        "evaluation/coco_evaluation.py",
        "from detectron2.evaluation.fast_eval_api import COCOeval_opt\n",
        """\
try:
    from detectron2.evaluation.fast_eval_api import COCOeval_opt
except ImportError:  # the C++ evaluator is not built: pycocotools' own gives the same figures
    COCOeval_opt = COCOeval
""",
        _EXTENSION,
    ),
    Edit(
        "model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "",
        "pkg_resources is gone from setuptools 82",
    ),
    Edit(
        "model_zoo/model_zoo.py",
        """\
    cfg_file = pkg_resources.resource_filename(
        "detectron2.model_zoo", os.path.join("configs", config_path)
    )
""",
        """\
    cfg_file = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs", config_path)
""",
        "pkg_resources is gone from setuptools 82",
    ),
    Edit(
        "export/__init__.py",
        "from .api import *\n",
        """\
try:
    from .api import *
except ImportError:  # caffe2, which this exporter needs, is no longer part of torch
    pass
""",
        "caffe2 is gone from torch; TracingAdapter and TorchScript export do not need it",
    ),
    Edit(
        "data/common.py",
        "cur_idx = self._rng.sample(self._fallback_candidates, k=1)[0]",
        "cur_idx = self._rng.choice(sorted(self._fallback_candidates))",
        "random.sample no longer takes a set (Python 3.11)",
    ),
    Edit(
        "engine/hooks.py",
        "if isinstance(self.scheduler, torch.optim.lr_scheduler._LRScheduler):",
        "if isinstance(self.scheduler, torch.optim.lr_scheduler.LRScheduler):",
        "torch's schedulers no longer derive from _LRScheduler: their state was silently not saved",
        count=2,
    ),
    Edit(
        "engine/launch.py",
        "    assert torch.cuda.is_available(), "
        '"cuda is not available. Please check your installation."\n',
        "    has_gpu = torch.cuda.is_available()\n",
        "several processes on CPU (gloo)",
    ),
    Edit(
        "engine/launch.py",
        '            backend="NCCL",\n',
        '            backend="NCCL" if has_gpu else "GLOO",\n',
        "several processes on CPU (gloo)",
    ),
    Edit(
        "engine/launch.py",
        """\
    assert num_gpus_per_machine <= torch.cuda.device_count()
    torch.cuda.set_device(local_rank)
""",
        """\
    if has_gpu:
        assert num_gpus_per_machine <= torch.cuda.device_count()
        torch.cuda.set_device(local_rank)
""",
        "several processes on CPU (gloo)",
    ),
    Edit(
        "modeling/anchor_generator.py",
        "shift_y, shift_x = torch.meshgrid(shifts_y, shifts_x)",
        'shift_y, shift_x = torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        "torch warns that it will require the indexing argument",
    ),
    *_numpy_alias(
        "data/build.py",
        "histogram = np.zeros((num_classes,), dtype=np.int)",
        '[x["category_id"] for x in annos if not x.get("iscrowd", 0)], dtype=np.int\n',
    ),
    *_numpy_alias(
        "structures/masks.py",
        "return np.zeros((height, width)).astype(np.bool)",
        "return mask_util.decode(rle).astype(np.bool)",
        "return torch.from_numpy(np.asarray(keep, dtype=np.bool))",
    ),
    *_numpy_alias("data/datasets/pascal_voc.py", "fileids = np.loadtxt(f, dtype=np.str)"),
    *_numpy_alias(
        "evaluation/pascal_voc_evaluation.py",
        'difficult = np.array([x["difficult"] for x in R]).astype(np.bool)',
    ),
    *_numpy_alias(
        "evaluation/sem_seg_evaluation.py",
        "pred = np.array(output, dtype=np.int)",
        "gt = np.array(Image.open(f), dtype=np.int)",
        "acc = np.full(self._num_classes, np.nan, dtype=np.float)",
        "iou = np.full(self._num_classes, np.nan, dtype=np.float)",
        "tp = self._conf_matrix.diagonal()[:-1].astype(np.float)",
        "pos_gt = np.sum(self._conf_matrix[:-1, :-1], axis=0).astype(np.float)",
        "pos_pred = np.sum(self._conf_matrix[:-1, :-1], axis=1).astype(np.float)",
    ),
    *_numpy_alias(
        "utils/visualizer.py",
        "return (self._seg != empty_ids[0]).numpy().astype(np.bool)",
        "yield (self._seg == sid).numpy().astype(np.bool), sinfo",
        "mask = (self._seg == sid).numpy().astype(np.bool)",
    ),
    *_numpy_alias(
        "utils/video_visualizer.py", "is_crowd = np.zeros((len(instances),), dtype=np.bool)"
    ),
)
