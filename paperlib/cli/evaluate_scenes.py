"""`paperlib evaluate` on scenes: judge a classifier, and show which classes it takes for which."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import typer

from paperlib import figures, files
from paperlib.classifiers.base import Classifier
from paperlib.data import SCENE_DATASETS, SceneDataset, load_scene_dataset
from paperlib.data.own import SPLIT_MARK, folder_formats
from paperlib.data.scene_folders import SCENES_PREFIX
from paperlib.deploy.description import load_description
from paperlib.evaluation.scenes import SceneMetrics, evaluate_scenes
from paperlib.figures import tables
from paperlib.network_files import load_network


def is_scenes(place: str, split: str) -> bool:
    """Return whether a user's data are scenes: by name, or because they are a folder of folders without boxes."""
    if place in SCENE_DATASETS or place.startswith(SCENES_PREFIX):
        return True
    folder = Path(place.replace(SPLIT_MARK, split))
    return folder.is_dir() and not folder_formats(folder) and any(child.is_dir() for child in folder.iterdir())


def evaluate_classifier(model: Path, place: str, split: str, images: Path | None, out: Path) -> None:
    """Print the metrics of a classifier on scenes, and write them with a figure into a folder.

    Args:
        model: file of `save_network`.
        place: name of a data set, or a folder of class folders; with `{split}` in it, one such folder for each split.
        split: `train`, `val` or `test`.
        images: folder of a data set by name, if it is not the usual one.
        out: gets `metrics.json`, `confusion.json`, `table_classes.csv` and a figure.

    Raises:
        FileNotFoundError, ValueError: the model or the data are missing or damaged, the model is no classifier, or
            both have other classes.
    """
    if model.suffix != ".safetensors":
        raise ValueError(f"{model}: only .safetensors files are judged on scenes")
    classifier = load_network(model)
    if not isinstance(classifier, Classifier):
        raise ValueError(f"{model}: is a detector; scenes such as {place} need a classifier (pl.build_classifier)")
    name = place if place in SCENE_DATASETS else f"{SCENES_PREFIX}{place.removeprefix(SCENES_PREFIX)}"
    dataset = load_scene_dataset(name, split, images)
    known = load_description(model)
    _check_classes(dataset, known.classes if known else None, classifier.num_classes, model)
    metrics = evaluate_scenes(classifier, dataset, image_size=known.image_size if known else None)
    table = tabulate_classes(metrics, dataset)
    files.write_json_atomically(out / "metrics.json", metrics.to_dict())
    files.write_json_atomically(out / "confusion.json", {"classes": list(dataset.classes), "counts": metrics.confusion})
    files.write_text_atomically(out / "table_classes.csv", tables.render_table(table)["csv"])
    figures.use_style()
    figure = figures.plot_confusion_matrix(metrics.confusion, dataset.classes)
    figures.write_figure(figure, out / "figure_confusion.png")
    typer.echo(tables.to_markdown(table))
    typer.echo(f"top-1 {100 * metrics.top1:.1f} %, top-5 {100 * metrics.top5:.1f} %")
    typer.echo(f"See {out}")


def tabulate_classes(metrics: SceneMetrics, dataset: SceneDataset) -> pd.DataFrame:
    """Tabulate recall and precision of each class in percent; a class that is never predicted has no precision."""
    counts = dataset.counts()
    table = pd.DataFrame({"class": dataset.classes, "images": [counts[name] for name in dataset.classes]})
    for title, found in (("recall / %", metrics.recall), ("precision / %", metrics.precision)):
        table[title] = [f"{100 * found[name]:.1f}" if name in found else "–" for name in dataset.classes]
    return table


def _check_classes(dataset: SceneDataset, known: tuple[str, ...] | None, count: int, model: Path) -> None:
    if known is not None and known != dataset.classes:
        raise ValueError(f"{dataset.name}: has the classes {', '.join(dataset.classes)}; {model}: {', '.join(known)}")
    if len(dataset.classes) != count:
        raise ValueError(f"{dataset.name}: has {len(dataset.classes)} classes; {model}: {count}")
