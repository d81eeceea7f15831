"""Reader of folders of scenes: one folder per class, its name is the class, every image in it belongs to the class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from paperlib.data.layouts import PublishedFolders, find_splits, require_file
from paperlib.data.scenes import SceneDataset, SceneRecord
from paperlib.files import quote_value

SCENES_PREFIX = "scenes:"
"""Begins the name of your own scenes in `load_dataset`; see `own_scenes`."""
SUFFIXES = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp", ".webp")
"""Endings of image files, in upper or lower case; other files in a class folder are not read."""


@dataclass(frozen=True)
class SceneLayout(PublishedFolders):
    """The folders of a published scene data set.

    Attributes:
        parts: folders below it that each hold the class folders; empty if it holds them itself. They are read as one,
            because the split is our own.
        published_names: the names of all images, if they follow a rule: a split can then be drawn without the images.
    """

    parts: tuple[str, ...] = ()
    published_names: tuple[str, ...] = ()

    def all_folders(self, root: Path) -> list[Path]:
        """Return every folder of the layout."""
        return [root, *(root / part for part in self.parts)]

    def image_names(self, root: Path) -> list[str]:
        """Return the names of all images under `root`, sorted: their paths below it, with forward slashes."""
        names = []
        for part in self.parts or ("",):
            names += [str(PurePosixPath(part, name)) for name in scene_names(root / part)]
        return sorted(names)

    def has_name(self, name: str) -> bool:
        """Return whether this can be the name of an image: a part, if there are any, a class and a file."""
        folders = name.split("/")
        return len(folders) == (3 if self.parts else 2) and (not self.parts or folders[0] in self.parts)


UCMERCED_CLASSES = (
    "agricultural", "airplane", "baseballdiamond", "beach", "buildings", "chaparral", "denseresidential", "forest",
    "freeway", "golfcourse", "harbor", "intersection", "mediumresidential", "mobilehomepark", "overpass", "parkinglot",
    "river", "runway", "sparseresidential", "storagetanks", "tenniscourt",
)  # fmt: skip
UCMERCED_NAMES = tuple(f"{name}/{name}{number:02d}.tif" for name in UCMERCED_CLASSES for number in range(100))
LAYOUTS = (
    SceneLayout("resisc45", "NWPU-RESISC45", "nwpu-resisc45"),
    SceneLayout("ucmerced", "UC Merced Land Use", "ucmerced", published_names=UCMERCED_NAMES),
    SceneLayout("rsd46-whu", "RSD46-WHU", "rsd46-whu", ("train", "val")),
)


def scene_names(root: Path) -> list[str]:
    """Return the images below a folder of class folders, sorted, as `class/file`.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no class folder or only one, or a class folder holds no image.
    """
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder of class folders")
    classes = read_class_folders(root)
    for fault in class_faults(root, classes):
        raise ValueError(fault)
    return [f"{folder}/{file}" for folder, files in classes.items() for file in files]


def read_class_folders(root: Path) -> dict[str, list[str]]:
    """Return the image files of each class folder below `root`, both sorted."""
    # Hidden folders belong to the operating system or to other programs.
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {folder.name: sorted(path.name for path in folder.iterdir() if is_image_file(path)) for folder in folders}


def class_faults(root: Path, classes: Mapping[str, Sequence[str]]) -> list[str]:
    """Return why the class folders below `root` are no scene data set, one line each."""
    if not classes:
        return [f"{root}: holds no class folder; put the images of each class into a folder of its name"]
    faults = [
        f"{root / name}: holds no image; put images of its class there, or remove the folder"
        for name, files in classes.items()
        if not files
    ]
    if len(classes) == 1:
        faults.append(f"{root}: holds one class folder, {next(iter(classes))}; at least two classes are needed")
    return faults


def is_image_file(path: Path) -> bool:
    """Return whether a path is a file with the ending of an image."""
    return path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file()


def scene_class(name: str) -> str:
    """Return the class of an image by its name."""
    return name.split("/")[-2]


def load_scene_split(layout: SceneLayout, split: str, root: Path) -> SceneDataset:
    """Read one split of a published scene data set from `root`.

    Raises:
        FileNotFoundError: a folder or file of the layout, or the split itself, is missing.
        ValueError: an unknown split, images that are in no split, or a class that is not in every split.
    """
    names = find_splits(layout, split, root)
    for name in names[split]:
        require_file(root / name)
    classes = common_classes(names, layout.name)
    return read_scenes(f"{layout.name}/{split}", classes, {name: root / name for name in names[split]})


def common_classes(names: Mapping[str, Sequence[str]], place: str) -> list[str]:
    """Return the classes of all splits, sorted.

    Args:
        names: the names of the images of each split.
        place: what messages name.

    Raises:
        ValueError: a class is not in every split.
    """
    classes = {split: {scene_class(name) for name in found} for split, found in names.items()}
    for name in sorted(set().union(*classes.values())):
        without = [split for split, found in classes.items() if name not in found]
        if without:
            raise ValueError(f"{place}: class {quote_value(name)} has no image in split {', '.join(without)}")
    return sorted(set().union(*classes.values()))


def read_scenes(title: str, classes: Sequence[str], files: Mapping[str, Path]) -> SceneDataset:
    """Return the data set called `title` of some files, by name; the class is a part of the name."""
    label_of = {name: label for label, name in enumerate(classes)}
    records = [SceneRecord(name, file, label_of[scene_class(name)]) for name, file in files.items()]
    return SceneDataset(title, classes, records)
