"""Folds of a data set, so that every image is tested once: `python -m paperlib.data.folds NAME`.

Images that show the same ground (`paperlib.data.overlap`) or are equal stay in one fold, and each fold has its share of
the boxes of every class. For fold *k*, the test split is fold *k*; the validation split is drawn from the other folds
in the same way. `data/folds/<name>.json` holds both, and a test compares it with what the command draws.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from paperlib import paths
from paperlib.data.layouts import Layout
from paperlib.data.overlap import find_cut_groups, load_groups
from paperlib.data.records import Record
from paperlib.data.splits import SEED, draw_splits
from paperlib.files import read_json, write_text_atomically
from paperlib.progress.report import track_items

COUNT = 5
VALIDATION = 0.1
"""Fraction of all images in the validation split of a fold."""


def folds_path(name: str) -> Path:
    """Return the file of a data set's folds."""
    return paths.source_root() / "data" / "folds" / f"{name}.json"


def draw_folds(
    records: Sequence[Record], num_classes: int, groups: Sequence[Sequence[str]], seed: int = SEED
) -> dict[str, list[list[str]]]:
    """Distribute images over folds, whole groups at a time, stratified by class as `draw_splits` does.

    Args:
        records: the images.
        num_classes: C; labels are 1..C.
        groups: names of images that stay together.
        seed: of the order in which images are distributed.

    Returns:
        `folds` and `val`: for each fold, the names of its test images and of its validation images.
    """
    group_of = {name: group[0] for group in groups for name in group}

    def bundle(record: Record) -> bytes:
        if (first := group_of.get(record.name)) is not None:
            return first.encode()
        return hashlib.sha256(record.read_pixels().tobytes()).digest()

    # Read once: images are distributed six times.
    keys = {record.name: bundle(record) for record in track_items(records, "comparing images")}
    equal = {str(fold): 1 / COUNT for fold in range(COUNT)}
    folds = list(draw_splits(records, num_classes, equal, seed, lambda record: keys[record.name]).values())
    validation = []
    for test in folds:
        others = [record for record in records if record.name not in set(test)]
        share = VALIDATION * COUNT / (COUNT - 1)
        shares = {"train": 1 - share, "val": share}
        validation.append(draw_splits(others, num_classes, shares, seed, lambda record: keys[record.name])["val"])
    return {"folds": folds, "val": validation}


def draw_fold_file(layout: Layout, root: Path) -> dict[str, Any]:
    """Draw the content of `data/folds/<name>.json` from the data set in `root`."""
    names = layout.image_names(root)
    records = [layout.read_record(root, name) for name in track_items(names, f"reading {layout.title}")]
    how = f"python -m paperlib.data.folds {layout.name}: stratified by class, images that share ground kept together"
    return {"how": how, "seed": SEED, **draw_folds(records, len(layout.classes), load_groups(layout.name))}


def stored_fold(name: str, fold: int) -> dict[str, list[str]]:
    """Return the image names of each split of a fold.

    Raises:
        FileNotFoundError: no folds have been drawn.
        ValueError: there is no such fold, or the file is damaged.
    """
    path = folds_path(name)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no folds have been drawn; with the data in place, python -m paperlib.data.folds {name}"
        )
    content = read_json(path)
    try:
        folds, validation = ([set(map(str, names)) for names in content[key]] for key in ("folds", "val"))
    except (KeyError, TypeError):
        raise ValueError(f"{path}: expected lists of image names under folds and val") from None
    if not 0 <= fold < len(folds) == len(validation):
        raise ValueError(f"{name} has folds 0 to {len(folds) - 1}, not {fold}")
    if sum(map(len, folds)) > len(every := set[str]().union(*folds)) or validation[fold] & folds[fold]:
        raise ValueError(f"{path}: an image is in two splits of fold {fold}")
    splits = {"train": every - folds[fold] - validation[fold], "val": validation[fold], "test": folds[fold]}
    return {split: sorted(names) for split, names in splits.items()}


def find_cut_folds(name: str) -> list[int]:
    """Return the folds of a data set that cut a group of images that share ground."""
    groups = load_groups(name)
    return [fold for fold in range(COUNT) if find_cut_groups(groups, _split_of(stored_fold(name, fold)))]


def _split_of(splits: dict[str, list[str]]) -> dict[str, str]:
    return {name: split for split, names in splits.items() for name in names}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw a data set's folds and write their file."""
    from paperlib.data import LAYOUTS

    parser = argparse.ArgumentParser(prog="python -m paperlib.data.folds", description="Draw a data set's folds.")
    parser.add_argument("name", choices=LAYOUTS)
    layout = LAYOUTS[parser.parse_args(arguments).name]
    drawn = draw_fold_file(layout, paths.data_root() / layout.folder)
    lists = {key: drawn.pop(key) for key in ("folds", "val")}
    rows = [f' "{key}": [\n  ' + ",\n  ".join(map(json.dumps, names)) + "\n ]" for key, names in lists.items()]
    folds_path(layout.name).parent.mkdir(exist_ok=True)
    write_text_atomically(
        folds_path(layout.name), json.dumps(drawn, indent=1)[:-2] + ",\n" + ",\n".join(rows) + "\n}\n"
    )
    print(folds_path(layout.name))


if __name__ == "__main__":
    main()
