"""Packaging of the ViLD project. Use ``make setup``: it also provides Detectron2."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="vild",
    version="0.1.0",
    description="ViLD: open-vocabulary detection by vision and language knowledge distillation, "
    "as a Detectron2 project",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    package_dir={"": "projects/ViLD"},
    packages=find_packages("projects/ViLD"),
    package_data={"vild": ["**/*.txt", "**/*.json", "**/*.safetensors", "**/*.yaml", "**/*.html"]},
    install_requires=[
        "torch>=2.4",
        "torchvision>=0.19",  # NMS, RoIAlign
        # Detectron2 is not listed: nobody publishes it on the index under its own name, so a
        # requirement "detectron2" would install whatever a stranger puts there.
        # tools/install_detectron2.py provides it; `import vild` says so where it is missing.
        "fvcore>=0.1.5,<0.1.6",  # configuration nodes, checkpoints (Detectron2's base library)
        "iopath>=0.1.7",  # file access by path or URL, as Detectron2 does it
        "lvis>=0.5.3",  # the official LVIS evaluator
        "pycocotools>=2.0.8",  # COCO evaluator, mask encoding; 2.0.8 is the first for numpy 2
        "open_clip_torch>=3.0",  # the teacher: OpenAI's CLIP weights and hundreds of others
        "ftfy",  # text repair in CLIP's tokenizer
        "regex",  # pattern classes in CLIP's tokenizer
        "safetensors>=0.4",  # embeddings and checkpoints on disk, without pickle
        "opencv-python-headless>=4.9",  # images and video; this build needs no libGL
        "numpy>=1.26",
        "Pillow>=10",
        "msgspec>=0.18",  # typed decoding of annotations and results
        "filelock",  # one writer a shard of a store
        "tqdm",  # progress bars
        "matplotlib",  # images and curves
        "PyYAML",  # descriptions of datasets, word lists
        "tensorboard",  # training curves
        "jinja2",  # result pages
    ],
    extras_require={
        "demo": ["gradio>=6"],  # the web page
        "export": ["onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.3"],  # tools/export_model.py
        # tokenizers of SigLIP and other models of the Hugging Face hub
        "hf": ["transformers", "sentencepiece"],
        "convert": ["tensorflow-cpu>=2.16"],  # reads the official checkpoints
        "slurm": ["submitit>=1.5"],  # tools/submit_train.py
        "dev": [
            "clip-anytorch",  # OpenAI's own CLIP code, which tests compare the teacher with
            "pytest>=8",
            "hypothesis",  # property tests of the intake
            "pytest-xdist",
            "playwright",  # drives the Chromium of the system; downloads none
            "gradio>=6",  # as in demo
            "supervision>=0.25",  # takes the predictor's detections
            *("onnx>=1.16", "onnxruntime>=1.18", "onnxscript>=0.3"),  # as in export
            "submitit>=1.5",
            # pinned here and nowhere else: `make lint`, CI and pre-commit run these
            "ruff==0.17.6",
            "mypy==2.4.1",
            "codespell==2.4.3",
            "pre-commit",
        ],
    },
)
