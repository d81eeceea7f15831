"""The report of a compression: one Markdown text, and the same as a page that needs no other file.

Its content follows from the models, the data and `timing.json`; only measured times differ from run to run.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from markdown_it import MarkdownIt
from matplotlib.figure import Figure
from torch import Tensor

from paperlib import figures
from paperlib.compression.final_test import FinalTest
from paperlib.evaluation.evaluate import detect
from paperlib.evaluation.mistakes import count_confusions, precision_recall_curves
from paperlib.figures import style, tables
from paperlib.partners.extend import partner_gmacs
from paperlib.workbench.options import Compression
from paperlib.workbench.stages import Candidate, Compressed, Stage, channel_counts

EXAMPLES = 4
MARKUP = re.compile(r"[\\`*\[\]|]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
"""Characters that Markdown would not read as text; an underscore only at the edge of a word."""
SCRIPT = "detect_onnx.py"
"""Detects with an ONNX file and without this package; delivered beside the report, which shows it."""
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Picture:
    """A figure of the report, drawn once for each theme."""

    title: str
    draw: Callable[[], Figure]
    kind: Literal["svg", "png"] = "svg"

    def encode(self, colours: Mapping[str, str]) -> str:
        """Return the figure in the colours of a theme, as a `data:image/...` address."""
        with style.use_theme(colours):
            return style.encode_figure(self.draw(), self.kind)

    @cached_property
    def light(self) -> str:
        """Return the figure in light colours, which Markdown and page share."""
        return self.encode(style.LIGHT)


@dataclass(frozen=True)
class Report:
    """Everything that the report of one compression shows.

    Attributes:
        name: name of the detector, for the title.
        compressed: result of Algorithm 1.
        settings: settings of Algorithm 1.
        runs: one row per model and seed, as in `Study.frame`: teacher, student and controls.
        timing: content of `timing.json`.
        notes: what a reader must know, one sentence each.
        trained_before: whether the given detector was trained already, so that its accuracy is reported.
        int8: size and accuracy of the student in 8-bit integers; None if there is none.
        has_onnx: whether the student could be written as ONNX.
        test: the result on test data; None if there are none.
    """

    name: str
    compressed: Compressed
    settings: Compression
    runs: pd.DataFrame
    timing: dict[str, Any]
    notes: Sequence[str] = ()
    trained_before: bool = False
    int8: dict[str, Any] | None = None
    has_onnx: bool = True
    test: FinalTest | None = None

    def render_markdown(self) -> str:
        """Return the report as Markdown."""
        text = self._render(lambda name: f"![{self.pictures[name].title}][{name}]", page=False)
        # The pictures themselves come after the text, so that the text stays readable.
        pictures = [f"[{name}]: {picture.light}\n" for name, picture in self.pictures.items()]
        return f"{text}\n{''.join(pictures)}"

    def render_html(self) -> str:
        """Return the report as a page, light or dark as the reader's system is."""
        # The template contains HTML; text from users is escaped before it comes here.
        body = MarkdownIt("commonmark", {"html": True}).enable("table").render(self._render(self._embed, page=True))
        title = f"{self.name}, compressed"
        return style.load_template(TEMPLATES / "report.html").render(title=title, body=body)

    @property
    def teacher(self) -> Stage:
        """Return the sparsely trained original."""
        return self.compressed.chain[0]

    @property
    def student(self) -> Stage:
        """Return the last model of the chain."""
        return self.compressed.chain[-1]

    @property
    def delivered(self) -> Candidate:
        """Return the student that is handed over."""
        return self.compressed.delivered

    @property
    def partner_gmacs(self) -> float:
        """Return the GMACs that partners added to a pass of the student in training."""
        return partner_gmacs(self.delivered.model.detector(), self.compressed.workbench.recipe.image_size)

    @property
    def seeds(self) -> list[int]:
        """Return the seeds of the runs, in order."""
        return sorted(set(self.runs["seed"].tolist()))

    @property
    def latency(self) -> pd.DataFrame:
        """Return `runtime`, `model` ("before" or "after"), `median_ms`, `iqr_ms`, `nms_ms` and `runs`, in rows."""
        return pd.DataFrame(self.timing["latency"])

    @cached_property
    def pictures(self) -> dict[str, Picture]:
        """Return the figures by name."""
        old = self.teacher
        boxes = self.compressed.workbench.validation.box_counts()
        return {
            "chain": Picture(
                "Accuracy over size along the chain",
                lambda: figures.plot_compression_chain(self.compressed.table, self.settings.max_drop),
            ),
            "classes": Picture(
                "Average precision of each class",
                lambda: figures.plot_class_changes(old.metrics.per_class, self.delivered.metrics.per_class, boxes),
            ),
            "curves": Picture("Precision over recall of each class", self._plot_curves),
            "confusion": Picture("What the objects of each class are taken for", self._plot_confusions),
            "latency": Picture("Latency", lambda: figures.plot_latency(self.latency)),
            "channels": Picture(
                "Channels left in each layer", lambda: figures.plot_channel_bars(*self._channel_counts())
            ),
            "detections": Picture("Detections side by side", self._draw_detections, "png"),
        }

    def explain_choice(self) -> str:
        """Return in a sentence which candidate is handed over, and by how much it is more accurate than the next."""
        delivered = self.delivered
        accuracy = f"mAP {100 * delivered.metrics.map50:.1f} %"
        others = [each for each in self.student.candidates if each != delivered]
        if not others:
            return f"The student was {delivered.name} ({accuracy})."
        gain = delivered.metrics.map50 - others[0].metrics.map50
        compared = f"{abs(100 * gain):.1f} points {'above' if gain >= 0 else 'below'}"
        if self.compressed.pure:
            return (
                f"The student is the {delivered.name} one, as Algorithm 1 has it ({accuracy}), {compared} the "
                f"{others[0].name} one."
            )
        return (
            f"Of {len(others) + 1} candidates the one that was {delivered.name} is the most accurate on the validation "
            f"images ({accuracy}), {compared} the next, which was {others[0].name}."
        )

    def tabulate_candidates(self) -> pd.DataFrame:
        """Return the candidates, the most accurate first, formatted for people."""
        candidates = self.student.candidates
        shown = pd.DataFrame({"the student was": [each.name for each in candidates]})
        shown["mAP / %"] = [f"{100 * each.metrics.map50:.1f}" for each in candidates]
        return shown.assign(**{"": ["handed over" if each == self.delivered else "" for each in candidates]})

    def describe_int8(self) -> str:
        """Return in a sentence what 8-bit integers change; empty if there is no such file."""
        if self.int8 is None:
            return ""
        times = self.latency.set_index(["model", "runtime"])["median_ms"]
        runtime = "onnxruntime"
        before, after, int8 = (times[model, runtime] for model in ("before", "after", "after, int8"))
        accuracy = {name: f"{100 * value:.1f}" for name, value in self.int8["map50"].items()}
        return (
            f"`student.int8.onnx` holds the student in 8-bit integers: {self.int8['mb']:.3g} MB, a mAP of "
            f"{accuracy['int8']} % (the same file in float32: {accuracy['float32']} %), and {int8:.3g} ms instead of "
            f"{after:.3g} ms in ONNX Runtime, {before / int8:.2g} times as fast as the original in float32."
        )

    def compare_headlines(self) -> list[dict[str, str]]:
        """Return the headline numbers: `what`, `before`, `after`, `change`."""
        old, new = self.teacher, self.student
        times = self.latency.query("model != 'after, int8'").pivot(index="runtime", columns="model", values="median_ms")
        accuracies = [100 * each.metrics.map50 for each in (old, self.delivered)]
        change = f"{_format_points((accuracies[1] - accuracies[0]) / 100)} points"
        accuracy = {"before": f"{accuracies[0]:.1f}", "after": f"{accuracies[1]:.1f} %"}
        costs = {
            "Size": (old.cost.size_mb, new.cost.size_mb, "MB"),
            "Compute": (old.cost.gmacs, new.cost.gmacs, "GMACs"),
            **{f"Time, {name}": (row["before"], row["after"], "ms") for name, row in times.iterrows()},
        }
        tiles = [{"what": "mAP at IoU 0.5", **accuracy, "change": change}]
        for what, (before, after, unit) in costs.items():
            change = _describe_change(before, after)
            tiles.append({"what": what, "before": f"{before:.3g}", "after": f"{after:.3g} {unit}", "change": change})
        return tiles

    def tabulate_chain(self) -> pd.DataFrame:
        """Return one row per model of the iterations, formatted for people."""
        table = self.compressed.table
        shown = pd.DataFrame(table[["model", "role", "channels"]])
        shown["MB"] = table["mb"].map("{:.3g}".format)
        shown["GMACs"] = table["gmacs"].map("{:.3g}".format)
        for title, column in (("mAP / %", "map50"), ("distilled, mAP / %", "map50_distilled")):
            shown[title] = ["" if pd.isna(value) else f"{100 * value:.1f}" for value in table[column]]
        return shown

    def tabulate_classes(self) -> pd.DataFrame:
        """Return the average precision of each class before and after."""
        boxes = self.compressed.workbench.validation.box_counts()
        after = self.delivered.metrics.per_class
        rows = []
        for name, score in self.teacher.metrics.per_class.items():
            change = _format_points(after[name] - score)
            rows.append((name, boxes[name], f"{100 * score:.1f}", f"{100 * after[name]:.1f}", change))
        return pd.DataFrame(rows, columns=["class", "validation boxes", "AP before / %", "AP after / %", "change"])

    def tabulate_latency(self) -> pd.DataFrame:
        """Return the latency of each runtime and model, formatted for people."""
        times = self.latency
        shown = pd.DataFrame(times[["runtime", "model"]])
        shown["median / ms"] = times["median_ms"].map("{:.2f}".format)
        # Half the interquartile range, because the table shows a distance to either side.
        shown["middle half / ms"] = (times["iqr_ms"] / 2).map("± {:.2f}".format)
        shown["suppression / ms"] = ["included" if pd.isna(ms) else f"{ms:.2f}" for ms in times["nms_ms"]]
        return shown.assign(runs=times["runs"])

    def tabulate_layers(self) -> pd.DataFrame:
        """Return the channels of each prunable layer before and after."""
        before, after = self._channel_counts()
        rows = [
            (name, count, after.get(name, 0), f"{after.get(name, 0) / count:.0%}") for name, count in before.items()
        ]
        return pd.DataFrame(rows, columns=["layer", "before", "after", "kept"])

    def _render(self, picture: Callable[[str], str], *, page: bool) -> str:
        """Return the text; `picture` gives the reference to a picture by its name."""
        bench = self.compressed.workbench
        return style.load_template(TEMPLATES / "report.md").render(
            report=self,
            bench=bench,
            page=page,
            picture=picture,
            controls=tables.format_averages(tables.average_seeds(self.runs)),
            given=bench.evaluate(self.compressed.given, "val") if self.trained_before else None,
            training=pd.DataFrame(self.timing["training"]).round(2),
            markdown=_to_markdown,
            script=(TEMPLATES / SCRIPT).read_text(encoding="utf-8"),
            plain=_escape_text,
            count=lambda number, what: f"{number} {what}" + "s" * (number != 1),
        )

    def _embed(self, name: str) -> str:
        """Return a picture as HTML in both themes; the reader's system chooses one."""
        picture = self.pictures[name]
        dark = f'<source media="(prefers-color-scheme: dark)" srcset="{picture.encode(style.DARK)}">'
        return f'<picture>{dark}<img alt="{picture.title}" src="{picture.light}"></picture>'

    def _channel_counts(self) -> tuple[dict[str, int], dict[str, int]]:
        return channel_counts(self.teacher.final.detector()), channel_counts(self.delivered.model.detector())

    @cached_property
    def _found(self) -> list[dict[str, Tensor]]:
        bench = self.compressed.workbench
        return detect(self.delivered.model.detector(), bench.validation, image_size=bench.recipe.image_size)

    def _plot_curves(self) -> Figure:
        curves = precision_recall_curves(self._found, self.compressed.workbench.validation)
        return figures.plot_precision_recall(curves, self.delivered.metrics.per_class)

    def _plot_confusions(self) -> Figure:
        data = self.compressed.workbench.validation
        confusions = count_confusions(self._found, data, self.delivered.metrics.confidence)
        return figures.plot_confusion_matrix(confusions.tolist(), [*data.classes, "background"])

    def _draw_detections(self) -> Figure:
        bench = self.compressed.workbench
        data, side = bench.validation, bench.recipe.image_size
        shown = data.subset(data.spaced_indices(EXAMPLES, min_objects=1), data.name)
        shown_models = {"before": self.teacher.candidates[0], "after": self.delivered}
        found = {name: detect(one.model.detector(), shown, image_size=side) for name, one in shown_models.items()}
        confidence = {name: one.metrics.confidence for name, one in shown_models.items()}
        return figures.draw_detections(shown, range(len(shown)), found, confidence)


def _describe_change(before: float, after: float) -> str:
    # A difference of less than 5 % is not worth a number.
    if max(before, after) < 1.05 * min(before, after):
        return "about the same"
    return f"{before / after:.2g} times less" if after < before else f"{after / before:.2g} times more"


def _format_points(change: float) -> str:
    """Return a difference of fractions in percentage points, with a typographer's minus."""
    return f"{100 * change:+.1f}".replace("-", "−")


def _escape_text(value: object) -> str:
    """Return a text, such as the name of a user's class, in one line and without markup."""
    # Markdown decodes character references only after it has looked for markup.
    text = html.escape(" ".join(str(value).split()), quote=False)
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def _to_markdown(table: pd.DataFrame) -> str:
    return tables.to_markdown(pd.DataFrame(table.map(_escape_text)))
