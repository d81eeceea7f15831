"""Run profiles of the paper scale without a GPU, on a copy of the repository with only a few real images.

    python benchmarks/few.py 01_scale_factor 03_components

Papermill runs each notebook with its profile of the `paper` scale: every case, 800 x 800 pixels, mixed precision, and
all steps (training, pruning, distillation, evaluation and timing). These settings are smaller: one seed, no folds; four
training images in batches of two, so that an epoch has two steps; one epoch after each pruning, two otherwise. Finished
notebooks and steps stay in `--folder`, so an interrupted run continues.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image

from paperlib import files, paths
from paperlib.data import LAYOUTS, load_dataset
from paperlib.data.layouts import PublishedFolders
from paperlib.data.records import Dataset, Record
from paperlib.data.scene_folders import LAYOUTS as SCENE_LAYOUTS
from paperlib.data.scene_folders import UCMERCED_CLASSES
from paperlib.data.tiles import Tiles
from paperlib.experiments.parameters import NOTEBOOKS, profile_path
from paperlib.store.results import CERTIFICATE, METRICS, SCOREBOARD, SCRATCH

RSOD_NAMES = {
    "airplane": "aircraft", "storage tank": "oiltank", "bridge": "overpass", "ground track field": "playground",
}  # fmt: skip
SCENES = next(layout for layout in SCENE_LAYOUTS if layout.name == "ucmerced")
COUNTS = {"train": 4, "val": 2, "test": 4}
SMALLER = {"epochs": 2, "fine_tune_epochs": 1, "batch_size": 2, "seeds": [0], "folds": None}
Counts = dict[str, int]
"""Images of each split."""


def few_images(root: Path, counts: Counts) -> None:
    """Fill an empty folder with links to this repository, except data, splits, results and finished steps.

    It has the images of NWPU VHR-10 that show the most classes, and the smallest samples of DOTA, one for each split.
    RSOD need not be present: pictures of NWPU VHR-10 replace it, with its classes under the names of RSOD. Nor need UC
    Merced: each class has one image of noise in each split.

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
    _stand_in_for_scenes(root, list(counts))


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


def _stand_in_for_scenes(root: Path, splits: Sequence[str]) -> None:
    generator = np.random.default_rng(0)
    names = {
        split: [f"{name}/{name}{number:02d}.tif" for name in UCMERCED_CLASSES] for number, split in enumerate(splits)
    }
    for name in (name for chosen in names.values() for name in chosen):
        target = root / "data" / SCENES.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (256, 256, 3), dtype=np.uint8)).save(target)
    _write_split(root, SCENES, names)


def _as_voc(name: str, boxes: list[list[float]]) -> str:
    objects = "".join(
        f"<object><name>{name}</name><bndbox><xmin>{left}</xmin><ymin>{top}</ymin>"
        f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for left, top, right, bottom in boxes
    )
    return f"<annotation>{objects}</annotation>"


def _write_split(root: Path, layout: PublishedFolders, names: dict[str, list[str]]) -> None:
    content = json.dumps({"how": "chosen by benchmarks/few.py", "splits": names}, indent=1)
    (root / "data" / "splits" / f"{layout.name}.json").write_text(content + "\n", encoding="utf-8")


def results_of(notebook: str, folder: Path) -> Path:
    """Return where a notebook's results are: those of settings that are not the profile's are kept apart."""
    return folder / "results" / SCRATCH / notebook


def run(notebook: str, folder: Path, threads: int) -> None:
    """Run a notebook of the paper scale on the few images below `folder`, unless it is done.

    Raises:
        CalledProcessError: it failed.
    """
    root, results = folder / "root", results_of(notebook, folder)
    results.mkdir(parents=True, exist_ok=True)
    moved = {"ROOT": root, "DATA": root / "data", "STORE": folder / "store", "RESULTS": folder / "results"}
    environment = os.environ | {f"PAPERLIB_{name}": str(place) for name, place in moved.items()}
    command = [sys.executable, "-m", "papermill", "--log-output", "-f", str(profile_path(notebook, "paper"))]
    for name, value in (SMALLER | {"threads": threads}).items():
        command += ["-y", f"{name}: {json.dumps(value)}"]
    if not (results / METRICS).exists():
        executed = f"{notebook}.ipynb"
        subprocess.run([*command, root / "notebooks" / executed, results / executed], env=environment, check=True)


def main() -> None:
    """Copy what is needed, and run the notebooks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", default=[name for name in NOTEBOOKS if name != SCOREBOARD])
    parser.add_argument("--folder", type=Path, default=paths.store_root() / "paper")
    parser.add_argument("--threads", type=int, default=2)
    chosen = parser.parse_args()
    folder = chosen.folder.absolute()
    if not (folder / "root").exists():
        unfinished = folder / "root.partial"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        few_images(unfinished, COUNTS)
        unfinished.rename(folder / "root")
    for notebook in chosen.notebooks:
        run(notebook, folder, chosen.threads)
        minutes = files.read_json(results_of(notebook, folder) / CERTIFICATE)["wall_seconds"] / 60
        print(f"{notebook}: done in {minutes:.1f} min", flush=True)


if __name__ == "__main__":
    main()
