"""Make a copy of the repository with only a few real images, to try out programs that take long."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

from paperlib import paths
from paperlib.data import LAYOUTS, load_dataset
from paperlib.data.layouts import Layout
from paperlib.data.records import Dataset, Record
from paperlib.data.tiles import Tiles

RSOD_NAMES = {
    "airplane": "aircraft", "storage tank": "oiltank", "bridge": "overpass", "ground track field": "playground",
}  # fmt: skip
Counts = dict[str, int]
"""Images of each split."""


def few_images(root: Path, counts: Counts) -> None:
    """Fill an empty folder with links to this repository, except data, splits, results and finished steps.

    It has the images of NWPU VHR-10 that show the most classes, and the smallest samples of DOTA, one for each split.
    RSOD need not be present: pictures of NWPU VHR-10 replace it, with its classes under the names of RSOD.

    Raises:
        FileNotFoundError: NWPU VHR-10 or the samples of DOTA are missing.
    """
    for path in paths.repository_root().iterdir():
        if path.name not in {"data", "results"} and not path.name.startswith("."):
            (root / path.name).symlink_to(path)
    (root / "results").mkdir()
    (root / "results" / "reported").symlink_to(paths.repository_root() / "results" / "reported")
    (root / "data" / "splits").mkdir(parents=True)
    shutil.copy(paths.repository_root() / "data" / "registry.yaml", root / "data")
    vhr10 = {split: cast(Dataset, load_dataset("vhr10", split)).records for split in counts}
    _keep(root, "vhr10", {split: _most_classes(vhr10[split], count) for split, count in counts.items()})
    dota = [
        record
        for split in counts
        for record in cast(Tiles, load_dataset("dota", split)).full_images.records
        if len(record.labels)
    ]
    dota.sort(key=lambda record: record.size()[0] * record.size()[1])
    _keep(root, "dota", {split: [record] for split, record in zip(counts, dota, strict=False)})
    _stand_in_for_rsod(root, vhr10)


def _most_classes(records: Sequence[Record], count: int) -> list[Record]:
    return sorted(records, key=lambda record: -len(set(record.labels.tolist())))[:count]


def _keep(root: Path, name: str, records: dict[str, list[Record]]) -> None:
    """Link to the files of some images, and write their split."""
    layout = LAYOUTS[name]
    for record in (record for chosen in records.values() for record in chosen):
        sources = layout.image_files(paths.data_root() / layout.folder, record.name)
        for source, target in zip(sources, layout.image_files(root / "data" / layout.folder, record.name), strict=True):
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(source)
    _write_split(root, layout, {split: [record.name for record in chosen] for split, chosen in records.items()})


def _stand_in_for_rsod(root: Path, vhr10: Mapping[str, Sequence[Record]]) -> None:
    layout, classes, names = LAYOUTS["rsod"], LAYOUTS["vhr10"].classes, {}
    for split, records in vhr10.items():
        for ours, theirs in RSOD_NAMES.items():
            label = classes.index(ours) + 1
            record = next(record for record in records if label in record.labels)
            name = f"{theirs}/{record.name}"
            image, annotation = layout.image_files(root / "data" / layout.folder, name)
            for file in (image, annotation):
                file.parent.mkdir(parents=True, exist_ok=True)
            image.symlink_to(cast(Path, record.image))
            annotation.write_text(_as_voc(theirs, record.boxes[record.labels == label].tolist()), encoding="utf-8")
            names.setdefault(split, []).append(name)
    _write_split(root, layout, names)


def _as_voc(name: str, boxes: list[list[float]]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for left, top, right, bottom in boxes
    )
    return f"<annotation>{objects}</annotation>"


def _write_split(root: Path, layout: Layout, names: dict[str, list[str]]) -> None:
    content = json.dumps({"how": "chosen by benchmarks/few.py", "splits": names}, indent=1)
    (root / "data" / "splits" / f"{layout.name}.json").write_text(content + "\n", encoding="utf-8")
