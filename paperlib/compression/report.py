"""The report of a compression: one Markdown text, and the same as a page that needs no other file.

Everything in it follows from the models, the data and `timing.json`; only what clocks measured differs from run to run.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markdown_it import MarkdownIt
from matplotlib.figure import Figure

from paperlib import figures
from paperlib.data.records import Dataset
from paperlib.evaluation.evaluate import detect
from paperlib.figures import style, tables
from paperlib.workbench.algorithm_1 import Compressed, Stage, channel_counts
from paperlib.workbench.options import Compression

EXAMPLES = 4
MARKUP = re.compile(r"[\\`*\[\]|]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
"""What Markdown would read as more than text; an underscore only at the edge of a word."""
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class Report:
    """All that is told of one compression.

    Attributes:
        name: of the detector, for the title.
        compressed: the run that is handed over.
        settings: of Algorithm 1.
        runs: one row a model and seed, as `Study.frame` has them: teacher, student and their rivals.
        timing: content of `timing.json`.
        notes: what a reader must know, one sentence each.
        trained_before: whether the detector came in trained, so that its accuracy is worth a row.
    """

    name: str
    compressed: Compressed
    settings: Compression
    runs: pd.DataFrame
    timing: dict[str, Any]
    notes: Sequence[str] = ()
    trained_before: bool = False

    def markdown(self) -> str:
        """The report as Markdown; pictures stand at the end of the file, as addresses that hold them."""
        shown = _Markdown(self.pictures)
        text = self._text(shown.picture, page=False)
        return f"{text}\n{shown.definitions()}"

    def html(self) -> str:
        """The report as a page, light or dark as the reader's system is."""
        text = self._text(_Page(self.pictures).picture, page=True)
        body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
        return _template("report.html").render(title=f"{self.name}, compressed", body=body)

    @property
    def teacher(self) -> Stage:
        """The sparsely trained original."""
        return self.compressed.chain[0]

    @property
    def student(self) -> Stage:
        """The end of the chain."""
        return self.compressed.chain[-1]

    @cached_property
    def pictures(self) -> dict[str, tuple[str, Callable[[], Figure], str]]:
        """By name: what it shows, how it is drawn, and in which format."""
        before, after = (stage.final.detector() for stage in (self.teacher, self.student))
        data = self.compressed.bench.validation
        return {
            "chain": (
                "Accuracy over size along the chain",
                lambda: figures.plot_compression_chain(self.compressed.table, self.settings.max_drop),
                "svg",
            ),
            "classes": (
                "Average precision of each class",
                lambda: figures.plot_class_changes(
                    self.teacher.metrics.per_class, self.student.metrics.per_class, data.box_counts()
                ),
                "svg",
            ),
            "latency": ("Latency", lambda: figures.plot_latency(self.latency), "svg"),
            "channels": (
                "Channels left in each layer",
                lambda: figures.plot_channel_bars(channel_counts(before), channel_counts(after)),
                "svg",
            ),
            "detections": ("Detections side by side", self._draw_detections, "png"),
        }

    @property
    def latency(self) -> pd.DataFrame:
        """One row a runtime and model: `runtime`, `model` ("before", "after"), `median_ms`, `iqr_ms`, `nms_ms`."""
        return pd.DataFrame(self.timing["latency"])

    def _draw_detections(self) -> Figure:
        bench = self.compressed.bench
        chosen = examples(bench.validation)
        side = bench.recipe.image_size
        stages = {"before": self.teacher, "after": self.student}
        found = {name: detect(stage.final.detector(), chosen, image_size=side) for name, stage in stages.items()}
        confidence = {name: stage.metrics.confidence for name, stage in stages.items()}
        return figures.draw_detections(chosen, range(len(chosen)), found, confidence)

    def _text(self, picture: Callable[[str], str], *, page: bool) -> str:
        bench = self.compressed.bench
        return _template("report.md").render(
            report=self,
            compressed=self.compressed,
            settings=self.settings,
            bench=bench,
            teacher=self.teacher,
            student=self.student,
            page=page,
            picture=picture,
            tiles=self._tiles(),
            chain=_in_words(self.compressed.table),
            classes=self._classes(),
            latency=self._latency(),
            layers=self._layers(),
            rivals=tables.format_averages(tables.average_seeds(self.runs)),
            seeds=sorted(self.runs["seed"].unique()),
            given=bench.evaluate(self.compressed.given, "val") if self.trained_before else None,
            training=pd.DataFrame(self.timing["training"]).round(2),
            markdown=_as_markdown,
            plain=_plain,
            count=lambda number, what: f"{number} {what}" + "s" * (number != 1),
        )

    def _tiles(self) -> list[dict[str, str]]:
        """The headline: what, before, after, and how they compare."""
        old, new = self.teacher, self.student
        times = self.latency.pivot(index="runtime", columns="model", values="median_ms")
        rows = [
            ("Size", old.cost.size_mb, new.cost.size_mb, "MB"),
            ("Compute", old.cost.gmacs, new.cost.gmacs, "GMACs"),
            *((f"Time, {name}", row["before"], row["after"], "ms") for name, row in times.iterrows()),
        ]
        tiles = [
            {"what": what, "before": f"{a:.3g}", "after": f"{b:.3g} {unit}", "change": _compared(b, a)}
            for what, a, b, unit in rows
        ]
        change = f"{_points(new.metrics.map50 - old.metrics.map50)} points"
        accuracy = {"before": f"{100 * old.metrics.map50:.1f}", "after": f"{100 * new.metrics.map50:.1f} %"}
        return [{"what": "mAP at IoU 0.5", **accuracy, "change": change}, *tiles]

    def _classes(self) -> pd.DataFrame:
        counts = self.compressed.bench.validation.box_counts()
        old, new = self.teacher.metrics.per_class, self.student.metrics.per_class
        rows = [
            {"class": name, "validation boxes": counts[name], "AP before / %": f"{100 * old[name]:.1f}",
             "AP after / %": f"{100 * new[name]:.1f}", "change": _points(new[name] - old[name])}
            for name in old
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _latency(self) -> pd.DataFrame:
        rows = [
            {"runtime": row.runtime, "model": row.model, "median / ms": f"{row.median_ms:.2f}",
             "middle half / ms": f"± {row.iqr_ms / 2:.2f}",
             "suppression / ms": "included" if pd.isna(row.nms_ms) else f"{row.nms_ms:.2f}", "runs": row.runs}
            for row in self.latency.itertuples()
        ]  # fmt: skip
        return pd.DataFrame(rows)

    def _layers(self) -> pd.DataFrame:
        before, after = (channel_counts(stage.final.detector()) for stage in (self.teacher, self.student))
        rows = [
            (name, count, after.get(name, 0), f"{after.get(name, 0) / count:.0%}") for name, count in before.items()
        ]
        return pd.DataFrame(rows, columns=["layer", "before", "after", "kept"])


def examples(data: Dataset, count: int = EXAMPLES) -> Dataset:
    """Images to look at: spread evenly over those with objects, not picked by hand."""
    return data.subset(data.spaced_indices(count, min_objects=1), data.name)


def _compared(after: float, before: float) -> str:
    if max(before, after) < 1.05 * min(before, after):
        return "about the same"
    return f"{before / after:.2g} times less" if after < before else f"{after / before:.2g} times more"


def _points(change: float) -> str:
    """A difference of shares in percentage points, with a typographer's minus."""
    return f"{100 * change:+.1f}".replace("-", "−")


def _plain(value: object) -> str:
    """What people named their classes is text in one line, not markup."""
    text = html.escape(" ".join(str(value).split()), quote=False)
    return MARKUP.sub(lambda found: f"&#{ord(found[0])};", text)


def _as_markdown(table: pd.DataFrame) -> str:
    """A table with numbers on the right."""
    shown = table.map(_plain)
    sides = ["left", *["right"] * (len(table.columns) - 1)]
    return shown.to_markdown(index=False, disable_numparse=True, colalign=sides)


def _in_words(table: pd.DataFrame) -> pd.DataFrame:
    """The chain for people."""
    shown = table[["model", "role", "channels"]].copy()
    shown["MB"], shown["GMACs"] = table["mb"].map("{:.3g}".format), table["gmacs"].map("{:.3g}".format)
    for title, column in (("mAP / %", "map50"), ("distilled, mAP / %", "map50_distilled")):
        shown[title] = ["" if pd.isna(value) else f"{100 * value:.1f}" for value in table[column]]
    return shown


@dataclass
class _Markdown:
    """Pictures as references, so that the text stays readable: their content comes after it."""

    pictures: Mapping[str, tuple[str, Callable[[], Figure], str]]

    def picture(self, name: str) -> str:
        return f"![{self.pictures[name][0]}][{name}]"

    def definitions(self) -> str:
        with style.use_theme(style.LIGHT):
            drawn = {name: style.encode_figure(draw(), kind) for name, (_, draw, kind) in self.pictures.items()}
        return "".join(f"[{name}]: {address}\n" for name, address in drawn.items())


@dataclass
class _Page:
    """Pictures in place, drawn twice: the reader's system picks the light or the dark one."""

    pictures: Mapping[str, tuple[str, Callable[[], Figure], str]]

    def picture(self, name: str) -> str:
        title, draw, kind = self.pictures[name]
        addresses = []
        for colours in (style.LIGHT, style.DARK):
            with style.use_theme(colours):
                addresses.append(style.encode_figure(draw(), kind))
        light, dark = addresses
        dark = f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
        return f'<picture>{dark}<img alt="{title}" src="{light}"></picture>'


def _template(name: str) -> jinja2.Template:
    loader = jinja2.FileSystemLoader(TEMPLATES)
    options = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    return jinja2.Environment(loader=loader, undefined=jinja2.StrictUndefined, **options).get_template(name)
