"""Groups of images that show the same ground, which no split may cut: `python -m paperlib.data.overlap NAME`.

The command compares all images of a data set in pairs and writes `data/overlap/<name>.json`. Pairs with many matching
features are accepted; pairs with a few are *doubtful*, and somebody looks at them, on the contact sheet that `--sheet`
draws, and writes them under `confirmed` or `refused` in that file. A second run keeps these decisions. An interrupted
run goes on where it ended.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from paperlib import paths
from paperlib.data.contact_sheet import draw_contact_sheet
from paperlib.data.layouts import Layout
from paperlib.data.matching import Features, compare_images, find_features, require_opencv
from paperlib.data.records import Dataset
from paperlib.files import read_json, write_text_atomically
from paperlib.progress.report import track_items

SURE = 12
"""Agreeing matches from which a pair is accepted without a look."""
DOUBTFUL = 6
"""Agreeing matches from which somebody looks at a pair."""
SHOWN = 40
"""Pairs on a contact sheet."""
TILE_MARK = "@"
"""Stands between the name of an image and the corner of its tile."""
KINDS = ("pairs", "confirmed", "refused")
Pair = tuple[str, str, int]
"""The names of two images, and how many matches agree on one placement."""


def overlap_path(name: str) -> Path:
    """Return the file of a data set's groups."""
    return paths.source_root() / "data" / "overlap" / f"{name}.json"


def load_pairs(name: str) -> dict[str, list[Pair]]:
    """Read the pairs of images that share ground; empty lists if nobody has looked for them.

    Returns:
        `pairs`, accepted by their many matches; `confirmed` and `refused`, by eye.

    Raises:
        ValueError: the file is damaged.
    """
    path = overlap_path(name)
    content = read_json(path) if path.is_file() else {}
    try:
        return {kind: [(str(a), str(b), int(count)) for a, b, count in content.get(kind, [])] for kind in KINDS}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"{path}: expected lists of [image, image, matches] under {', '.join(KINDS)}") from None


def load_groups(name: str) -> list[list[str]]:
    """Return the groups of images of a data set that share ground, each of at least two images."""
    pairs = load_pairs(name)
    return connect((a, b) for a, b, _ in pairs["pairs"] + pairs["confirmed"])


def connect(pairs: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Return the connected components of pairs, each sorted, in the order of their first members."""
    group_of: dict[str, set[str]] = {}
    for pair in pairs:
        merged = set(pair).union(*(group_of.get(name, ()) for name in pair))
        group_of.update(dict.fromkeys(merged, merged))
    return sorted(sorted(group) for group in {id(group): group for group in group_of.values()}.values())


def group_images(dataset: Dataset) -> np.ndarray:
    """Return int64 `[I]`, a number for each image of a split; images of one number show the same ground."""
    groups = load_groups(dataset.name.partition("/")[0])
    group_of = {name: f"group {number}" for number, group in enumerate(groups) for name in group}
    # Tiles of one image belong together; their names begin with its name.
    keys = [group_of.get(record.name, record.name.partition(TILE_MARK)[0]) for record in dataset.records]
    return np.unique(keys, return_inverse=True)[1]


def find_cut_groups(groups: Iterable[Sequence[str]], split_of: Mapping[str, str]) -> list[list[str]]:
    """Return the groups of which images are in different splits."""
    return [list(group) for group in groups if len({split_of[name] for name in group if name in split_of}) > 1]


def find_overlap(layout: Layout, root: Path, cache: Path) -> list[Pair]:
    """Compare all images of a data set in pairs; return those with at least `DOUBTFUL` agreeing matches.

    Args:
        layout: the data set.
        root: its folder.
        cache: a folder for features and finished rows, from which an interrupted search goes on.

    Raises:
        RuntimeError: OpenCV is missing.
    """
    require_opencv()
    names = layout.image_names(root)
    cache.mkdir(parents=True, exist_ok=True)
    images = [
        _load_features(layout, root, name, cache) for name in track_items(names, f"finding features in {layout.title}")
    ]
    done = _finished_rows(cache / "rows.jsonl")
    # Without a last line that was cut off, to which the next row would be joined.
    write_text_atomically(cache / "rows.jsonl", "".join(f"{json.dumps(row)}\n" for row in done.items()))
    with (cache / "rows.jsonl").open("a") as file:
        for first in track_items(range(len(names)), f"comparing the images of {layout.title}"):
            if first not in done:
                found = (compare_images(images, first, second) for second in range(first + 1, len(names)))
                done[first] = [[match.second, match.inliers] for match in found if match.inliers >= DOUBTFUL]
                print(json.dumps([first, done[first]]), file=file, flush=True)
    return [(names[first], names[second], count) for first in sorted(done) for second, count in done[first]]


def _load_features(layout: Layout, root: Path, name: str, cache: Path) -> Features:
    path = cache / f"{name.replace('/', '-')}.npz"
    if not path.is_file():
        found = find_features(layout.read_record(root, name).read_pixels())
        part = path.with_suffix(".part.npz")
        np.savez(part, points=found.points, descriptors=found.descriptors.astype(np.float16))
        part.replace(path)
    with np.load(path) as stored:
        return Features(stored["points"], stored["descriptors"].astype(np.float32))


def _finished_rows(path: Path) -> dict[int, list[list[int]]]:
    """Read the finished rows; a last line that was cut off is left out."""
    lines = path.read_text().splitlines() if path.is_file() else []
    whole = [json.loads(line) for line in lines if line.endswith("]]")]
    return dict(whole)


def write_pairs(name: str, found: Sequence[Pair]) -> list[Pair]:
    """Write the accepted pairs, keep what was decided by eye, and return the doubtful pairs that nobody looked at."""
    known = load_pairs(name)
    seen = {frozenset(pair[:2]) for kind in ("confirmed", "refused") for pair in known[kind]}
    unseen = [pair for pair in found if frozenset(pair[:2]) not in seen]
    accepted = [pair for pair in unseen if pair[2] >= SURE]
    content: dict[str, Any] = {"how": f"python -m paperlib.data.overlap {name}", "sure": SURE, "doubtful": DOUBTFUL}
    content |= {**known, "pairs": accepted}
    overlap_path(name).parent.mkdir(exist_ok=True)
    write_text_atomically(overlap_path(name), _format_pairs(content))
    return [pair for pair in unseen if pair[2] < SURE]


def _format_pairs(content: Mapping[str, Any]) -> str:
    """Return JSON with one pair a line."""
    head = {key: value for key, value in content.items() if key not in KINDS}
    lists = [f' "{kind}": [' + ",".join(f"\n  {json.dumps(pair)}" for pair in content[kind]) + "\n ]" for kind in KINDS]
    return json.dumps(head, indent=1)[:-2] + ",\n" + ",\n".join(lists) + "\n}\n"


def _draw_weakest(layout: Layout, found: Sequence[Pair], path: Path) -> None:
    root = paths.data_root() / layout.folder
    weakest = sorted(found, key=lambda pair: pair[2])[:SHOWN]
    pictures = (
        (f"{a} {b}: {count}", layout.read_record(root, a).read_pixels(), layout.read_record(root, b).read_pixels())
        for a, b, count in weakest
    )
    draw_contact_sheet(pictures, path)


def main(arguments: Sequence[str] | None = None) -> None:
    """Find a data set's groups and write their file."""
    from paperlib.data import LAYOUTS

    parser = argparse.ArgumentParser(prog="python -m paperlib.data.overlap", description=__doc__)
    parser.add_argument("name", choices=LAYOUTS)
    parser.add_argument("--sheet", type=Path, help=f"PNG file for the {SHOWN} weakest pairs")
    chosen = parser.parse_args(arguments)
    layout = LAYOUTS[chosen.name]
    try:
        found = find_overlap(layout, paths.data_root() / layout.folder, paths.store_root() / "overlap" / chosen.name)
    except (RuntimeError, OSError, ValueError) as error:
        parser.exit(2, f"{error}\n")
    doubtful = write_pairs(chosen.name, found)
    groups = load_groups(chosen.name)
    print(f"{overlap_path(chosen.name)}: {sum(map(len, groups))} images in {len(groups)} groups share ground")
    if chosen.sheet and found:
        _draw_weakest(layout, found, chosen.sheet)
    if doubtful:
        print(f"{len(doubtful)} doubtful pairs: look at them, and list each under confirmed or refused")


if __name__ == "__main__":
    main()
