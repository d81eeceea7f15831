"""`paperlib predict`: detect on pictures and films, and write what was found as pictures, JSON and CSV."""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from paperlib import files
from paperlib.data.pictures import decode_image
from paperlib.deploy.description import Description
from paperlib.deploy.predict import Prediction, describe_use, find_objects
from paperlib.deploy.runtime import Runtime, open_model
from paperlib.deploy.sources import FilmWriter, Source, find_sources, frame_rate, read_frames
from paperlib.figures.annotate import annotate_picture
from paperlib.progress.report import track_items

JSON, CSV = "predictions.json", "predictions.csv"
COLUMNS = ("file", "frame", "class", "score", "left", "top", "right", "bottom")


@dataclass(frozen=True)
class Options:
    """What may be chosen.

    Attributes:
        out: the folder that gets `predictions.json` (COCO results), `predictions.csv`, drawn pictures and films.
        confidence, image_size, classes: replace what the model's file says.
        tile: side of the tiles that large scenes are cut into.
        draw: whether pictures are drawn.
    """

    out: Path
    confidence: float | None = None
    image_size: int | None = None
    classes: list[str] | None = None
    tile: int | None = None
    draw: bool = True


@dataclass
class Findings:
    """What was found so far: COCO results, and the rows of the table."""

    results: list[dict[str, Any]] = field(default_factory=list)
    rows: list[tuple[Any, ...]] = field(default_factory=list)
    pictures: int = 0
    faults: list[str] = field(default_factory=list)

    def add_picture(self, source: Source, frame: int | None, found: Prediction) -> None:
        """Add the objects of a picture, or of a frame of a film."""
        self.pictures += 1
        for box, label, name, score in zip(
            found.boxes.tolist(), found.labels.tolist(), found.names, found.scores.tolist(), strict=True
        ):
            left, top, right, bottom = (round(side, 2) for side in box)
            result = {"image_id": self.pictures, "file_name": str(source.path)}
            if frame is not None:
                result["frame"] = frame
            size = [round(right - left, 2), round(bottom - top, 2)]
            self.results.append(result | {"category_id": label, "bbox": [left, top, *size], "score": round(score, 5)})
            self.rows.append((source.path, frame, name, round(score, 5), left, top, right, bottom))

    def write_files(self, folder: Path) -> None:
        """Write both tables, also after an interruption."""
        files.write_json_atomically(folder / JSON, self.results)
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        table.writerow(COLUMNS)
        table.writerows(self.rows)
        files.write_text_atomically(folder / CSV, text.getvalue())


def run_prediction(
    model: Path, places: list[str], runtime: Runtime | None, threads: int | None, options: Options
) -> int:  # fmt: skip
    """Detect on every source; one that cannot be read is named on stderr and passed over.

    Returns:
        The exit status: 0, or 1 if a source was passed over.

    Raises:
        FileNotFoundError, ValueError: a fault of the model, the places or the options, before any work.
    """
    if threads:
        torch.set_num_threads(threads)
    sources = find_sources(places)
    opened = open_model(model, runtime, threads)
    use = describe_use(opened, options.confidence, options.image_size, options.classes)
    findings = Findings()
    try:
        for source in track_items(sources, "picture"):
            try:
                _predict_source(opened.detector, use, source, findings, options)
            except ValueError as error:
                findings.faults.append(str(error))
                print(f"paperlib: {error}", file=sys.stderr)
    finally:
        findings.write_files(options.out)
    print(
        f"{options.out}: {len(findings.results)} objects in {findings.pictures} pictures, "
        f"confidence at least {use.confidence:.2f}"
    )
    return 1 if findings.faults else 0


def _predict_source(
    detector: nn.Module, use: Description, source: Source, findings: Findings, options: Options
) -> None:
    target = options.out / source.name
    if not source.is_film:
        pixels = decode_image(source.path)
        found = find_objects(detector, use, pixels, options.tile)
        findings.add_picture(source, None, found)
        if options.draw:
            with files.replace_file(target.with_name(f"{source.name}.jpg")) as path:
                Image.fromarray(annotate_picture(pixels, found)).save(path, quality=92)
        return
    frames = _predict_frames(detector, use, source, findings, options.tile)
    first = next(frames)  # a file that is no film is found before anything is written
    if not options.draw:
        for _ in frames:
            pass
        return
    with files.replace_file(target.with_name(f"{source.name}.mp4")) as path:
        with closing(FilmWriter(path, frame_rate(source.path))) as film:
            film.write_frame(annotate_picture(*first))
            for pixels, found in frames:
                film.write_frame(annotate_picture(pixels, found))


def _predict_frames(
    detector: nn.Module, use: Description, source: Source, findings: Findings, tile: int | None
) -> Iterator[tuple[np.ndarray, Prediction]]:
    for number, pixels in enumerate(read_frames(source.path)):
        found = find_objects(detector, use, pixels, tile)
        findings.add_picture(source, number, found)
        yield pixels, found
