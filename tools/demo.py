#!/usr/bin/env python
r"""Detect anything that can be named, in images, a video or what a webcam sees.

python tools/demo.py --config-file configs/LVIS/vild_ensemble_r50_fpn_lsj.yaml \
    --input photos --vocabulary "red kite, osprey" --output found \
    --opts MODEL.WEIGHTS model_final.pth
python tools/demo.py --config-file ... --video-input walk.mp4 --output found.mp4 --opts ...

Words of --vocabulary count as novel, unless the detector was trained on them as base classes or
--novel says otherwise. Pictures that cannot be read are reported at the end. Exit code: 0, or 3
where there were such pictures, or 2 for an error.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
from detectron2.structures import Instances
from PIL import Image
from tqdm import tqdm

from vild.config import read_config, register_datasets
from vild.data import fraction, positive_int, read_image
from vild.data.files import atomic_path
from vild.inference import OpenVocabularyPredictor, PictureWriter, draw_detections
from vild.inference.arguments import add_vocabulary_arguments, predictor_from_arguments
from vild.inference.inputs import SUFFIXES, find_pictures
from vild.inference.named import NamedDetectionsWriter
from vild.inference.pictures import safe_stem

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_SUFFIXES = (".mp4", ".mkv", ".avi")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, metavar="FILE")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", nargs="+", help="files, folders or patterns ('photos/*.jpg')")
    source.add_argument("--video-input", type=Path, help="a video")
    source.add_argument("--webcam", action="store_true", help="the first camera, until Ctrl-C")
    add_vocabulary_arguments(parser)
    parser.add_argument("--confidence-threshold", type=fraction, default=0.3, help="0.3 by default")
    parser.add_argument(
        "--output", type=Path, help="folder for images, file for one image or for the video"
    )
    parser.add_argument("--results", type=Path, help=".json (COCO's results format) or .csv")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--max-frames", type=positive_int, help="of a video or a webcam")
    parser.add_argument("--opts", nargs=argparse.REMAINDER, default=[], help="KEY VALUE pairs")
    return parser


def detect_pictures(
    predictor: OpenVocabularyPredictor,
    args: argparse.Namespace,
    results: NamedDetectionsWriter | None,
) -> dict[Path, str]:
    """Detect in images one by one; return those that failed, with the reason.

    Raises:
        ValueError: no image, or ``--output`` names a file that cannot take what is found.
    """
    files, failed = find_pictures(args.input), {}
    write = _picture_writer(predictor, args, files)
    for file in tqdm(files, unit="picture", disable=None):
        try:
            found = predictor(np.ascontiguousarray(read_image(file)[:, :, ::-1]))
            found = found[found.scores >= args.confidence_threshold]
            if write is not None:
                write(file, found)
        except (ValueError, OSError) as error:
            failed[file] = str(error)
            continue
        if results is not None:
            results.add(str(file), found)
        else:
            tqdm.write(f"{file}: {_in_words(predictor, found)}")
    return failed


def _picture_writer(
    predictor: OpenVocabularyPredictor, args: argparse.Namespace, files: list[Path]
) -> Callable[[Path, Instances], None] | None:
    """Return a function that draws the detections of an image, if ``--output`` asks for it."""
    output, threshold = args.output, args.confidence_threshold
    if output is None:
        return None
    suffix = output.suffix.lower()
    if output.is_dir() or not (suffix in SUFFIXES or suffix in VIDEO_SUFFIXES):
        names = _unique_names(files)
        for file in files:
            target = output / f"{safe_stem(names[file])}.jpg"
            if target.exists() and target.samefile(file):
                raise ValueError(
                    f"expected another folder as --output than that of the images, got {output}: "
                    f"{file} would be overwritten"
                )
        writer = PictureWriter(output, predictor.vocabulary, threshold=threshold)

        def write_into_folder(file: Path, found: Instances) -> None:
            writer.write({"image_id": names[file], "file_name": str(file)}, found)

        return write_into_folder
    if suffix not in IMAGE_SUFFIXES:
        raise ValueError(
            f"expected a folder, or one of {', '.join(IMAGE_SUFFIXES)} for one image, got {output}"
        )
    if len(files) > 1:
        raise ValueError(
            f"expected a folder as --output for {len(files)} images, got the file {output}"
        )
    if output.exists() and output.samefile(files[0]):
        raise ValueError(f"expected another file as --output than the image itself, got {output}")

    def write_file(file: Path, found: Instances) -> None:
        drawn = draw_detections(read_image(file), found, predictor.vocabulary, threshold=threshold)
        with atomic_path(output) as temporary:
            options = {"quality": 90, "subsampling": 0} if suffix in (".jpg", ".jpeg") else {}
            Image.fromarray(drawn).save(temporary, **options)

    return write_file


def _unique_names(files: list[Path]) -> dict[Path, str]:
    """The stem of each file; where two are alike, their whole paths."""
    count = Counter(file.stem for file in files)
    return {file: file.stem if count[file.stem] == 1 else str(file) for file in files}


def _in_words(predictor: OpenVocabularyPredictor, found) -> str:  # type: ignore[no-untyped-def]
    names = predictor.vocabulary.names
    pairs = zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    return ", ".join(f"{names[row]} {score:.2f}" for row, score in pairs) or "nothing"


def detect_video(
    predictor: OpenVocabularyPredictor,
    args: argparse.Namespace,
    results: NamedDetectionsWriter | None,
) -> None:
    """A video or a webcam, frame by frame.

    Raises:
        ValueError: it cannot be opened, or has no frame.
    """
    source = 0 if args.webcam else str(args.video_input)
    if not args.webcam and not args.video_input.is_file():
        raise ValueError(f"expected a video at {args.video_input}: no such file")
    if args.output is None and results is None:
        raise ValueError("expected --output FILE.mp4 or --results FILE for a video")
    output = None if args.webcam else args.output
    if output is not None and output.exists() and output.samefile(args.video_input):
        raise ValueError(f"expected another file as --output than the video, got {output}")
    capture = cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            what = "a camera at the first place" if args.webcam else f"a video in {source}"
            raise ValueError(f"expected {what}, but OpenCV cannot open it")
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if not args.webcam else 0
        if args.max_frames is not None:
            total = min(total or args.max_frames, args.max_frames)
        with ExitStack() as stack, tqdm(total=total or None, unit="frame", disable=None) as bar:
            write, number = None, -1
            if args.output is not None:
                write = stack.enter_context(_video_writer(args.output, rate))
            for number, frame in enumerate(_frames(capture, args.max_frames)):
                found = predictor(frame)
                found = found[found.scores >= args.confidence_threshold]
                if write is not None:
                    rgb = np.ascontiguousarray(frame[:, :, ::-1])
                    drawn = draw_detections(rgb, found, predictor.vocabulary, threshold=0.0)
                    write(np.ascontiguousarray(drawn[:, :, ::-1]))
                if results is not None:
                    results.add(str(source), found, number)
                bar.update()
            if number < 0:
                raise ValueError(f"expected frames in {source}, found none: is it a whole video?")
    except KeyboardInterrupt:
        if not args.webcam:
            raise
    finally:
        capture.release()


def _frames(capture: cv2.VideoCapture, limit: int | None) -> Iterator[np.ndarray]:
    count = 0
    while limit is None or count < limit:
        there, frame = capture.read()
        if not there:
            return
        yield frame
        count += 1


@contextmanager
def _video_writer(path: Path, rate: float):  # type: ignore[no-untyped-def]
    """A function that appends a frame (H, W, 3) BGR; all have the size of the first."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise ValueError(f"expected a video as .mp4, .mkv or .avi, got {path}")
    opened: list[cv2.VideoWriter] = []
    with atomic_path(path) as temporary:

        def write(frame: np.ndarray) -> None:
            height, width = frame.shape[:2]
            # the coders want even numbers
            size = (width // 2 * 2, height // 2 * 2)
            if not opened:
                code = cv2.VideoWriter_fourcc(*"mp4v")
                opened.append(cv2.VideoWriter(str(temporary), code, rate, size))
                if not opened[0].isOpened():
                    raise ValueError(f"OpenCV cannot write a video to {path}")
            opened[0].write(frame[: size[1], : size[0]])

        try:
            yield write
        finally:
            for writer in opened:
                writer.release()


def main() -> int:
    """Command line entry; returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    parser = build_parser()
    args = parser.parse_args()
    failed: dict[Path, str] = {}
    try:
        cfg = read_config(args.config_file, args.opts)
        register_datasets(cfg)
        predictor = predictor_from_arguments(cfg, args, args.precision)
        with ExitStack() as stack:
            results = None
            if args.results is not None:
                results = stack.enter_context(
                    NamedDetectionsWriter(args.results, predictor.vocabulary)
                )
            if args.input:
                failed = detect_pictures(predictor, args, results)
            else:
                detect_video(predictor, args, results)
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    for path in (args.output, args.results):
        if path is not None and path.exists():  # one image may have failed
            print(f"wrote {path}")
    for reason in failed.values():
        print(f"failed: {reason}", file=sys.stderr)
    return 3 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
