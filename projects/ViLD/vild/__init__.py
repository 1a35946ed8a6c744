"""ViLD: open-vocabulary object detection via vision and language knowledge distillation.

Importing the package registers its datasets and model parts with Detectron2. Data flows one way:
data → proposals → embeddings → modeling → evaluation → inference.
"""

__version__ = "0.1.0"

try:
    import detectron2  # noqa: F401
except ImportError as error:
    raise ImportError(
        "vild needs Detectron2, which is not on the package index under its own name. Run "
        "`make setup` in a checkout of this project, or `python tools/install_detectron2.py` in "
        "an environment of your own, or install an official build of Detectron2."
    ) from error

import vild.data  # registers the datasets
import vild.modeling  # noqa: F401  (registers the model parts)
