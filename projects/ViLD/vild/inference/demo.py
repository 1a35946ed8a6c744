"""Detection in image files, a video or a webcam's frames; the body of tools/demo.py."""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from vild.config import read_config, register_datasets
from vild.data import read_image
from vild.inference import OpenVocabularyPredictor
from vild.inference.arguments import predictor_from_arguments
from vild.inference.detection_files import NamedDetectionsWriter, require_format
from vild.inference.inputs import SUFFIXES, VIDEO_SUFFIXES, find_images
from vild.reporting import draw_detections
from vild.reporting.image_writer import safe_stem, save_image
from vild.utils.files import atomic_path, require_writable_file, require_writable_folder
from vild.utils.formatting import format_size

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff")
VIDEO_OUTPUTS = (".mp4", ".mkv", ".avi")


# fraction of the announced frames; containers estimate their number from the duration
_LEAST_READ = 0.9


def detect(args: argparse.Namespace) -> list[str]:
    """Detect in the inputs of the command line; return the failures, one line each.

    Raises:
        ValueError: see the called functions.
        OSError: an output cannot be written.
    """
    failed: list[str] = []
    files = find_images(args.input) if args.input else []
    check_outputs(args, files)
    cfg = read_config(args.config_file, args.opts)
    register_datasets(cfg)
    predictor = predictor_from_arguments(cfg, args, args.precision)
    with ExitStack() as stack:
        results = None
        if args.results is not None:
            results = stack.enter_context(NamedDetectionsWriter(args.results, predictor.vocabulary))
        if args.input:
            failed += detect_images(predictor, args, files, results).values()
        else:
            failed += filter(None, [detect_video(predictor, args, results)])
    return failed


def check_outputs(args: argparse.Namespace, files: list[Path]) -> None:
    """Check, before the model is loaded, that the outputs can be written.

    Args:
        args: parsed arguments.
        files: the images; empty for a video.

    Raises:
        ValueError: an extension is not supported, an input would be overwritten, or an output
            cannot be written.
    """
    if args.results is not None:
        require_format(args.results)
        require_writable_file(args.results, "--results")
    if args.output is None:
        if args.results is None and not args.input:
            raise ValueError("expected --output FILE.mp4 or --results FILE for a video")
        return
    if not files:
        if args.output.suffix.lower() not in VIDEO_OUTPUTS:
            raise ValueError(f"expected a video as {', '.join(VIDEO_OUTPUTS)}, got {args.output}")
        if args.video_input is not None and _is_same_file(args.output, args.video_input):
            raise ValueError(f"expected --output to differ from the video, got {args.output}")
        require_writable_file(args.output, "--output")
    elif _is_folder(args.output):
        for file, target in _targets(args.output, files).items():
            if _is_same_file(target, file):
                raise ValueError(
                    f"expected --output to differ from the folder of the images, got "
                    f"{args.output}: {file} would be overwritten"
                )
        require_writable_folder(args.output, "--output")
    else:
        _check_image_output(args.output, files)
        require_writable_file(args.output, "--output")


def _check_image_output(output: Path, files: list[Path]) -> None:
    if output.suffix.lower() not in IMAGE_SUFFIXES:
        raise ValueError(
            f"expected a folder, or one of {', '.join(IMAGE_SUFFIXES)} for one image, got {output}"
        )
    if len(files) > 1:
        raise ValueError(
            f"expected a folder as --output for {len(files)} images, got the file {output}"
        )
    if _is_same_file(output, files[0]):
        raise ValueError(f"expected --output to differ from the image, got {output}")


def _is_folder(output: Path) -> bool:
    suffix = output.suffix.lower()
    return output.is_dir() or not (suffix in SUFFIXES or suffix in VIDEO_SUFFIXES)


def _is_same_file(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def _targets(output: Path, files: list[Path]) -> dict[Path, Path]:
    """Return the output file for each image."""
    if not _is_folder(output):
        return {files[0]: output}
    # the full path if stems are not unique
    count = Counter(file.stem for file in files)
    names = {file: file.stem if count[file.stem] == 1 else str(file) for file in files}
    return {file: output / f"{safe_stem(name)}.jpg" for file, name in names.items()}


def detect_images(
    predictor: OpenVocabularyPredictor,
    args: argparse.Namespace,
    files: list[Path],
    results: NamedDetectionsWriter | None,
) -> dict[Path, str]:
    """Detect in images one by one; return those that failed, with the reason."""
    failed: dict[Path, str] = {}
    threshold = args.confidence_threshold
    targets = _targets(args.output, files) if args.output is not None else {}
    for file in tqdm(files, unit="image", disable=None):
        try:
            found = predictor(np.ascontiguousarray(read_image(file)[:, :, ::-1]))["instances"]
            found = found[found.scores >= threshold]
            if file in targets:
                drawn = draw_detections(
                    read_image(file), found, predictor.vocabulary, threshold=threshold
                )
                save_image(drawn, targets[file])
        except (ValueError, OSError, MemoryError) as error:
            failed[file] = str(error) or f"not enough memory for {file}"
            continue
        if results is not None:
            results.add(str(file), found)
        else:
            tqdm.write(f"{file}: {_describe(predictor, found)}")
    return failed


def _describe(predictor: OpenVocabularyPredictor, found) -> str:  # type: ignore[no-untyped-def]
    names = predictor.vocabulary.names
    pairs = zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    return ", ".join(f"{names[row]} {score:.2f}" for row, score in pairs) or "nothing"


def detect_video(
    predictor: OpenVocabularyPredictor,
    args: argparse.Namespace,
    results: NamedDetectionsWriter | None,
) -> str | None:
    """Detect in a video or a webcam's frames; return what is missing, if the video ended early.

    Raises:
        ValueError: the video cannot be opened, or has no frames.
        OSError: the video with the detections cannot be written.
    """
    source = 0 if args.webcam else str(args.video_input)
    capture = cv2.VideoCapture(source)
    try:
        if not capture.isOpened():
            what = "the first camera" if args.webcam else f"the video {source}"
            raise ValueError(f"OpenCV cannot open {what}")
        rate = capture.get(cv2.CAP_PROP_FPS) or 25.0
        total = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if not args.webcam else 0
        if args.max_frames is not None:
            total = min(total or args.max_frames, args.max_frames)
        with ExitStack() as stack, tqdm(total=total or None, unit="frame", disable=None) as bar:
            write, number = None, -1
            if args.output is not None:
                write = stack.enter_context(_video_writer(args.output, rate))
            for number, frame in enumerate(_frames(capture, args.max_frames)):
                found = predictor(frame)["instances"]
                found = found[found.scores >= args.confidence_threshold]
                if write is not None:
                    rgb = np.ascontiguousarray(frame[:, :, ::-1])
                    drawn = draw_detections(rgb, found, predictor.vocabulary, threshold=0.0)
                    write(np.ascontiguousarray(drawn[:, :, ::-1]))
                if results is not None:
                    results.add(str(source), found, number)
                bar.update()
            if number < 0:
                raise ValueError(f"expected frames in {source}, got none: is the video complete?")
        if number + 1 < _LEAST_READ * total and not args.webcam:
            return f"{source}: expected about {total} frames, could read only {number + 1}"
    except KeyboardInterrupt:
        if not args.webcam:
            raise
    finally:
        capture.release()
    return None


def _frames(capture: cv2.VideoCapture, limit: int | None) -> Iterator[np.ndarray]:
    count = 0
    while limit is None or count < limit:
        has_frame, frame = capture.read()
        if not has_frame:
            return
        yield frame
        count += 1


@contextmanager
def _video_writer(path: Path, rate: float):  # type: ignore[no-untyped-def]
    """Yield a function that appends a frame (H, W, 3) BGR; all frames get the first one's size."""
    opened: list[cv2.VideoWriter] = []
    frames = [0]
    with atomic_path(path) as temporary:

        def write(frame: np.ndarray) -> None:
            height, width = frame.shape[:2]
            # codecs need even sizes
            size = (width // 2 * 2, height // 2 * 2)
            if not opened:
                code = cv2.VideoWriter.fourcc(*"mp4v")
                opened.append(cv2.VideoWriter(str(temporary), code, rate, size))
                if not opened[0].isOpened():
                    raise ValueError(f"OpenCV cannot write a video to {path}")
            opened[0].write(frame[: size[1], : size[0]])
            frames[0] += 1

        try:
            yield write
        finally:
            for writer in opened:
                writer.release()
        _check_video(temporary, path, frames[0])


def _check_video(temporary: Path, path: Path, frames: int) -> None:
    """Check that all frames were written, because OpenCV does not report a full disk.

    Raises:
        OSError: frames are missing.
    """
    capture = cv2.VideoCapture(str(temporary))
    found = int(capture.get(cv2.CAP_PROP_FRAME_COUNT)) if capture.isOpened() else 0
    capture.release()
    if found < _LEAST_READ * frames:
        free = format_size(shutil.disk_usage(path.parent).free)
        raise OSError(
            f"expected {frames} frames in {path}, {found} were written: is the disk full? "
            f"{free} are free"
        )
