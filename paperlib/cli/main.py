"""The command `paperlib`. Bad input gives one line on stderr and exit status 2."""

import importlib.metadata
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from paperlib import limits
from paperlib.cli import data, store
from paperlib.cli.errors import describe_error, describe_usage
from paperlib.cli.streams import prepare_streams, quiet_libraries
from paperlib.extras import DISTRIBUTION, MissingExtraError
from paperlib.progress import group


class OneLineErrors(TyperGroup):
    """Commands whose errors of bad input are one line on stderr; `--debug` keeps the traceback."""

    def main(self, *arguments: Any, standalone_mode: bool = True, **options: Any) -> Any:
        """Run the command line; in standalone mode this ends the process with the exit status.

        Raises:
            SystemExit: always in standalone mode.
        """
        prepare_streams()
        quiet_libraries()
        if not standalone_mode:
            return super().main(*arguments, standalone_mode=False, **options)
        try:
            status = super().main(*arguments, standalone_mode=False, **options) or 0
        except TyperException as error:
            if group.may_speak():
                typer.echo(describe_usage(error), err=True)
            status = 2
        except typer.Abort:
            typer.echo("paperlib: aborted", err=True)
            status = 1
        except BrokenPipeError:
            raise
        except OSError as error:  # the answer to --help or --version cannot be written
            typer.echo(describe_error(error), err=True)
            status = 2
        _flush_output()
        sys.exit(status)

    # The base class has the context type of a click that typer carries inside, which has no public name.
    def invoke(self, ctx: Any) -> object:
        """Run the command that `ctx` names.

        Raises:
            typer.Exit: with status 2, after a ValueError, an OSError or a package of an extra that is not installed.
        """
        try:
            return super().invoke(ctx)
        except BrokenPipeError:
            raise  # the reader of our output has gone, as `head` does; typer ends the process quietly
        except (ValueError, OSError, MissingExtraError, group.LostProcessError) as error:
            if ctx.params.get("debug"):
                raise
            if group.may_speak():
                typer.echo(describe_error(error), err=True)
            raise typer.Exit(1 if isinstance(error, group.LostProcessError) else 2) from error


def _flush_output() -> None:
    """Write out what stdout still holds; if it cannot be written, do not try again at the end of the process."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


CLASSES = "Number of classes of the head."
SIDE = "Side of the square input in pixels."
WIDTH = "Factor on the number of channels."
DATA = "A COCO file, a YOLO data.yaml, a folder in COCO, YOLO, Pascal VOC or DOTA format, or a name such as vhr10."
IMAGES = "Folder of the images. Default: where the annotations imply."
BadBoxes = Annotated[str, typer.Option(help="As in `paperlib compress`: error, clip or skip.")]
DataClasses = Annotated[
    str | None,
    typer.Option("--classes", help="Of your own data, only boxes of these classes count. Default: those of the model."),
]

app = typer.Typer(
    cls=OneLineErrors,
    help="Prune, distil and measure aerial object detectors, and regenerate every result of the paper.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(data.app, name="data")
app.add_typer(store.app, name="store")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"paperlib {importlib.metadata.version(DISTRIBUTION)}")
        raise typer.Exit


@app.callback()
def read_options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Read the options that stand before the command."""


@app.command()
def reproduce(
    notebooks: Annotated[
        list[str] | None, typer.Argument(metavar="[NOTEBOOK]…", help="E.g. 03_components. Default: all.")
    ] = None,
    profile: Annotated[str, typer.Option(help="The scale: quick, laptop or paper.")] = "quick",
    cores: Annotated[
        int | None, typer.Option(min=1, max=limits.MOST_THREADS, help="Number of CPU cores. Default: all.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Run notebooks again that are up to date.")] = False,
    executor: Annotated[
        Literal["local", "slurm", "kubernetes"],
        typer.Option(help="Where the jobs run: here, in the queue of a SLURM cluster, or on Kubernetes."),
    ] = "local",
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=limits.LARGEST_COUNT,
            help="How many jobs are queued or run at a time. Default: the cores; 16 on a cluster.",
        ),
    ] = None,
    gpu: Annotated[
        bool | None,
        typer.Option("--gpu/--no-gpu", help="Ask for a GPU for each training on a cluster. Default: if it has some."),
    ] = None,
) -> None:
    """Run notebooks as a batch and fill results/PROFILE. After an interruption the same command continues."""
    from paperlib.cli import reproduce

    options = {"cores": cores, "force": force, "executor": executor, "jobs": jobs, "gpu": gpu}
    raise typer.Exit(reproduce.reproduce(notebooks or [], profile, **options))


@app.command()
def cost(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A detector or classifier, e.g. yolov4-tiny, or a .safetensors file.")
    ],
    num_classes: Annotated[int, typer.Option(min=1, max=limits.MOST_CLASSES, help=CLASSES)] = 10,
    image_size: Annotated[
        int | None,
        typer.Option(min=32, max=limits.LARGEST_SIDE, help=SIDE + " Default: what a file says, or 800."),
    ] = None,
    width: Annotated[float, typer.Option(min=limits.LEAST_WIDTH, max=limits.MOST_WIDTH, help=WIDTH)] = 1.0,
) -> None:
    """Print the parameters, the size and the multiply-accumulates of a detector or of a classifier of scenes."""
    from paperlib.costs import cost
    from paperlib.deploy.description import load_description
    from paperlib.network_files import family_of, load_network

    if name.endswith(".safetensors"):
        network, described = load_network(name), load_description(Path(name))
        side = image_size or (described.image_size if described else 800)
        typer.echo(f"{name}, {side} x {side}")
    else:
        network = family_of(name).build_without_weights(name=name, num_classes=num_classes, width=width)
        side = image_size or 800
        typer.echo(f"{name}, {num_classes} classes, width {width:g}, {side} x {side}")
    measured = cost(network, image_size=side)
    typer.echo(f"parameters  {measured.parameters:,}")
    typer.echo(f"size        {measured.size_mb:.1f} MB")
    typer.echo(f"compute     {measured.gmacs:.2f} GMACs")


@app.command()
def export(
    detector: Annotated[Path, typer.Argument(metavar="DETECTOR.safetensors", help="A file of pl.save_network.")],
    onnx: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    image_size: Annotated[
        int | None,
        typer.Option(min=32, max=limits.LARGEST_SIDE, help=SIDE + " Default: what the file says, or 800."),
    ] = None,
    classes: Annotated[
        str, typer.Option(help="Class names for the metadata, separated by commas. Default: what the file says.")
    ] = "",
    nms: Annotated[bool, typer.Option("--nms", help="Include non-maximum suppression in the file.")] = False,
) -> None:
    """Write a detector or classifier as an ONNX file, and compare its outputs in ONNX Runtime with PyTorch's."""
    import paperlib as pl
    from paperlib.deploy.description import load_description

    described = load_description(detector)
    side = image_size or (described.image_size if described else 800)
    names = classes.split(",") if classes else None
    network = pl.load_network(detector)
    difference = pl.export_onnx(network, onnx, side, classes=names, description=described, nms=nms)
    typer.echo(f"{onnx}: {side} x {side}, largest difference from PyTorch {difference:.1e}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A detector: .safetensors or .onnx.")],
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE…", help="Pictures, folders, patterns such as 'a/*.jpg', or films.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to fill.")] = Path("predictions"),
    confidence: Annotated[
        float | None, typer.Option(min=0, max=1, help="Lowest score. Default: what the model's file says, or 0.25.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=32, max=limits.LARGEST_SIDE, help=SIDE + " Default: what the file says.")
    ] = None,
    classes: Annotated[str, typer.Option(help="Class names separated by commas. Default: those of the file.")] = "",
    tile: Annotated[
        int | None,
        typer.Option(min=32, max=limits.LARGEST_SIDE, help="Cut large scenes into tiles of this side, in pixels."),
    ] = None,
    runtime: Annotated[
        Literal["torch", "onnxruntime", "openvino"] | None,
        typer.Option(help="For .onnx files: onnxruntime (the default) or openvino."),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(min=1, max=limits.MOST_THREADS, help="Number of CPU threads. Default: all.")
    ] = None,
    draw: Annotated[bool, typer.Option(help="Draw the pictures.")] = True,
) -> None:
    """Detect on pictures and films: write drawn copies, predictions.json (COCO results) and predictions.csv."""
    from paperlib.cli import predict

    options = predict.Options(out, confidence, image_size, classes.split(",") if classes else None, tile, draw)
    raise typer.Exit(predict.run_prediction(model, sources, runtime, threads, options))


@app.command()
def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A detector: .safetensors or .onnx.")],
    data: Annotated[str, typer.Argument(metavar="DATA", help=DATA)],
    split: Annotated[
        Literal["train", "val", "test"], typer.Option(help="Which split of data that have some.")
    ] = "test",
    images: Annotated[Path | None, typer.Option(help=IMAGES)] = None,
    bad_boxes: BadBoxes = "error",
    data_classes: DataClasses = None,
    out: Annotated[Path, typer.Option(help="Folder to fill.")] = Path("evaluation"),
    confidence: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Lowest score. Default: what the file says, or the one of the best F1 here."),
    ] = None,
    runtime: Annotated[
        Literal["torch", "onnxruntime", "openvino"] | None,
        typer.Option(help="For .onnx files: onnxruntime (the default) or openvino."),
    ] = None,
) -> None:
    """Judge a detector on a data set: mAP, precision and recall, its curves, confusions and worst images.

    On scenes (toy-scenes, resisc45, …, or a folder of class folders) it judges a classifier: top-1, top-5, recall and
    precision of each class, and the confusion matrix.
    """
    from paperlib.cli.evaluate_scenes import evaluate_classifier, is_scenes

    if is_scenes(data, split):
        evaluate_classifier(model, data, split, images, out)
        return
    from paperlib.cli.evaluate import load_data, write_evaluation
    from paperlib.deploy.runtime import open_model

    opened = open_model(model, runtime)
    known = opened.description.classes if opened.description else None
    judged = load_data(data, split, images, known, bad_boxes=bad_boxes, classes=data_classes)
    write_evaluation(opened, judged, out, confidence)


@app.command()
def quantise(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="A file of `paperlib export` or `compress`.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    data: Annotated[str, typer.Option(help="Training data for calibration: " + DATA)],
    val: Annotated[str | None, typer.Option(help="Validation data, which judge the result: as --data.")] = None,
    images: Annotated[Path | None, typer.Option(help=IMAGES)] = None,
    val_images: Annotated[Path | None, typer.Option(help="Folder of the validation images.")] = None,
    bad_boxes: BadBoxes = "error",
    data_classes: DataClasses = None,
    count: Annotated[int, typer.Option(min=1, max=limits.LARGEST_COUNT, help="Number of calibration images.")] = 64,
    nms: Annotated[bool, typer.Option("--nms", help="Include non-maximum suppression in the file.")] = False,
) -> None:
    """Write a detector in 8-bit integers: about a quarter of the size, and faster on processors that have them."""
    from paperlib.cli.evaluate import load_data
    from paperlib.deploy.int8 import quantise
    from paperlib.deploy.runtime import include_selection, open_model

    description = open_model(model).description
    known = description.classes if description else None
    how = {"bad_boxes": bad_boxes, "classes": data_classes}
    train = load_data(data, "train", images, known, **how)
    judged = load_data(val, "val", val_images or images, known, **how) if val else None
    made = quantise(model, out, train, validation=judged, count=count)
    if nms:
        include_selection(out)
    size = f"{out}: {out.stat().st_size / 1e6:.3g} MB instead of {model.stat().st_size / 1e6:.3g} MB"
    if made.float32 and made.int8:
        size += f", mAP50 {100 * made.int8.map50:.1f} % instead of {100 * made.float32.map50:.1f} %"
    typer.echo(f"{size}; output layers in {'float32' if made.way.float_heads else '8 bits'}")


@app.command()
def claims(
    profile: Annotated[str, typer.Option(help="The scale: quick, laptop or paper.")] = "quick",
) -> None:
    """Print the verdict on every claim of the paper at one scale, and write results/PROFILE/claims.md."""
    from paperlib import paths
    from paperlib.claims import scoreboard

    results = scoreboard.write_page(profile)
    typer.echo(scoreboard.format_listing(results))
    typer.echo(scoreboard.count_verdicts(results, profile))
    typer.echo(f"See {paths.results_root() / profile / scoreboard.PAGE}")


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def compress(context: typer.Context) -> None:
    """Compress a detector on your own data: prune, fine-tune and distil (Algorithm 1), then report."""
    # Before anything can fail, so that one of several processes tells why all of them end.
    group.join_group()
    # The options are the fields of the request, read here, because other commands can do without pydantic.
    from paperlib.cli.options import run_with_options
    from paperlib.compression.request import CompressRequest

    def run(request: CompressRequest) -> int:
        from paperlib.compression.command import run_compression

        return run_compression(request)

    # `context.args` holds everything after the command's name, `--help` included.
    raise typer.Exit(run_with_options(context.args, CompressRequest, run, context.command_path, context.command.help))
