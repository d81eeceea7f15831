"""`paperlib evaluate`: judge a model on a data set, and show where it goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import typer

from paperlib import figures, files
from paperlib.data import DATASETS, SCENE_DATASETS, load_detection_dataset
from paperlib.data.annotated import ReadOptions, make_options
from paperlib.data.own import load_own, name_own
from paperlib.data.records import Dataset
from paperlib.deploy.predict import describe_use
from paperlib.deploy.runtime import OpenModel
from paperlib.evaluation.evaluate import detect
from paperlib.evaluation.metrics import compute_metrics
from paperlib.evaluation.mistakes import count_confusions, find_mistakes, precision_recall_curves
from paperlib.figures import tables

WORST = 9
"""How many images with the most mistakes are drawn."""


def load_data(
    place: str, split: str, images: Path | None = None, known: Sequence[str] | None = None, *,
    bad_boxes: str = "error", classes: str | None = None,
) -> Dataset:  # fmt: skip
    """Load data that a user names: a data set of `paperlib data list`, or a file or folder in any known format.

    Args:
        place: the name, the file or the folder.
        split: `train`, `val` or `test`.
        images: folder of the images.
        known: the classes of a model. Own data are matched by these names, whatever their order in the file is.
        bad_boxes: see `ReadOptions`.
        classes: names with commas between them: boxes of all other classes are left out.

    Raises:
        FileNotFoundError, ValueError: see `paperlib.data.load_dataset`; or options of own data go with another name.
    """
    options = make_options(bad_boxes, classes, allow_outside=False)
    if place in (*DATASETS, *SCENE_DATASETS):
        if options != ReadOptions():
            raise ValueError(f"{place}: --bad-boxes and --classes go with your own data alone")
        return load_detection_dataset(place, split, images)
    if known and options.classes is None:
        # Objects of a class that the model does not know are refused: left out, they would flatter it.
        options = replace(options, classes=tuple(known), complete=True)
    elif known and sorted(known) == sorted(options.classes or ()):
        options = replace(options, classes=tuple(known))
    return load_own(name_own(place), split, images, options)


def write_evaluation(model: OpenModel, dataset: Dataset, out: Path, confidence: float | None) -> None:
    """Print the metrics of a model on a data set, and write them with figures into a folder.

    Args:
        model: open; its file should say its image size and classes.
        dataset: images and ground truth; its classes are those of the model, in the same order.
        out: gets `metrics.json`, `confusion.json`, `table_classes.csv` and three figures.
        confidence: replaces what the model's file says.

    Raises:
        ValueError: model and data have other classes, or the model does not say its image size.
    """
    use = describe_use(model, confidence, None, None)
    if model.description and tuple(dataset.classes) != use.classes:
        raise ValueError(
            f"{dataset.name}: has the classes {', '.join(dataset.classes)}; {model.name}: {', '.join(use.classes)}"
        )
    if len(dataset.classes) != len(use.classes):
        raise ValueError(f"{dataset.name}: has {len(dataset.classes)} classes; {model.name}: {len(use.classes)}")
    found = detect(model.detector, dataset, image_size=use.image_size)
    known = model.description.confidence if model.description else None
    metrics = compute_metrics(found, dataset, known if confidence is None else confidence)
    chosen = metrics.confidence
    files.write_json_atomically(out / "metrics.json", metrics.to_dict())
    table = tables.tabulate_classes({"here": [metrics]}, dataset.box_counts())
    files.write_text_atomically(out / "table_classes.csv", tables.render_table(table)["csv"])
    mistakes = find_mistakes(found, dataset, chosen)
    worst = sorted(range(len(dataset)), key=lambda index: -mistakes[index].count)[:WORST]
    confusions = count_confusions(found, dataset, chosen).tolist()
    figures.use_style()
    drawn = {
        "figure_precision_recall": figures.plot_precision_recall(
            precision_recall_curves(found, dataset), metrics.per_class
        ),
        # The last row are detections on background, the last column objects that were missed.
        "figure_confusion": figures.plot_confusion_matrix(confusions, [*dataset.classes, "background"]),
        "figure_worst_images": figures.draw_mistakes(dataset, worst, mistakes),
    }
    for name, figure in drawn.items():
        figures.write_figure(figure, out / f"{name}.png")
    files.write_json_atomically(out / "confusion.json", {"classes": list(dataset.classes), "counts": confusions})
    typer.echo(tables.to_markdown(table))
    typer.echo(f"mAP50 {100 * metrics.map50:.1f} %, COCO mAP {100 * metrics.map:.1f} %")
    typer.echo(
        f"at confidence {chosen:.2f}: precision {100 * metrics.precision:.1f} %, recall {100 * metrics.recall:.1f} %"
    )
    typer.echo(f"See {out}")
