"""What several test files share: tiny detectors, pictures for them, and the real data where there is some."""

import gc
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from torch import Tensor, nn

from paperlib import paths
from paperlib.detectors import build_detector, usual_anchors

# No deadline: a busy machine is slow, and that is no fault. The same examples in every run, so that a run of CI says
# something about the change; `pytest --hypothesis-profile=search` looks for others.
settings.register_profile("search", deadline=None)
settings.register_profile("repeat", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("repeat")
TINY_SIDE = 64
TINY_DEPTH = 0.25
YOLOS = ("yolov3", "yolov3-spp", "yolov4", "yolov4-tiny")


LONGEST = (
    "test_slurm", "test_delivery", "test_reproduce", "test_partner_steps", "test_training", "test_study",
    "test_compression", "test_candidates", "test_examples", "test_wheel", "test_predict", "test_jobs", "test_processes",
    "test_workbench", "test_own_detector", "test_final_test", "test_extras",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest, so that all processes end at about the same time."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))


def pytest_collection_finish() -> None:
    """Spare what every test would pay for: collections of all that is imported by now, and waiting for the disk.

    What the tests write need not outlast a power cut.
    """
    gc.freeze()
    os.fsync = lambda _: None


def pytest_unconfigure() -> None:
    """Let the interpreter clean up at its end."""
    gc.unfreeze()


def make_tiny_detector(
    num_classes: int = 3, seed: int = 0, dtype: torch.dtype = torch.float32, *, name: str = "yolov4-tiny"
) -> nn.Module:
    """A YOLO at an eighth of its width, with lively batch norms, for pictures of `TINY_SIDE` pixels."""
    anchors = tuple((w * TINY_SIDE / 416, h * TINY_SIDE / 416) for w, h in usual_anchors(name))
    depth = {} if name == "yolov4-tiny" else {"depth": TINY_DEPTH}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        detector = build_detector(name, num_classes, width=0.125, anchors=anchors, **depth)
        for norm in (m for m in detector.modules() if isinstance(m, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.2, 1.0)
            nn.init.normal_(norm.bias, std=0.3)
            nn.init.normal_(norm.running_mean, std=0.3)
            nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return detector.to(dtype)


def make_tiny_batch(seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[dict[str, Tensor]]]:
    """Two pictures, one with four boxes of various sizes and one without any."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(2, 3, TINY_SIDE, TINY_SIDE, generator=generator, dtype=dtype)
    boxes = torch.tensor([[2, 3, 5, 6], [10, 20, 20, 28], [5, 5, 30, 34], [1, 2, 62, 60]], dtype=dtype)
    full = {"boxes": boxes, "labels": torch.tensor([1, 2, 3, 1])}
    return images, [full, {"boxes": boxes[:0], "labels": full["labels"][:0]}]


def snapshot(detector: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in detector.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(autouse=True)
def as_many_threads_as_before():
    """Sums depend on them, so no test leaves another number to the next."""
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def tiny_detector() -> Callable[..., nn.Module]:
    return make_tiny_detector


@pytest.fixture
def tiny_batch() -> Callable[..., tuple[Tensor, list[dict[str, Tensor]]]]:
    return make_tiny_batch


@pytest.fixture(scope="session")
def data_root() -> Path:
    if not os.environ.get("PAPERLIB_DATA"):
        pytest.skip("PAPERLIB_DATA names no folder with the real data")
    return paths.data_root()


@pytest.fixture(scope="session")
def coco_weights(data_root: Path) -> Path:
    path = paths.weights_root() / "yolov4-tiny.weights"
    if not path.is_file():
        pytest.skip(f"no official weights: {path}")
    return path


@pytest.fixture(scope="session")
def timed_files() -> dict[int, Path]:
    """The file that `one_export_is_timed` times for each image size."""
    return {}


@pytest.fixture
def one_export_is_timed(monkeypatch, tmp_path_factory, timed_files):
    """For tests of `compress` that look at no time: its two exports for timing are a third of a small run."""
    time_one_export(monkeypatch, tmp_path_factory, timed_files)


def time_one_export(monkeypatch, tmp_path_factory, timed_files) -> None:
    from paperlib.deploy.latency import export_for_timing  # here, since most tests export nothing

    def export(network, folder, image_size, name):
        if image_size not in timed_files:
            timed_files[image_size] = export_for_timing(network, tmp_path_factory.mktemp("timed"), image_size)
        return timed_files[image_size]

    monkeypatch.setattr("paperlib.compression.outputs.export_for_timing", export)


@pytest.fixture(scope="session")
def written_files() -> dict[tuple[int, tuple[str, ...]], Path]:
    """The file that `outputs_are_quick` writes for each image size and list of classes."""
    return {}


@pytest.fixture
def figures_are_not_drawn(monkeypatch):
    """For tests of `compress` that look at no figure of the report."""
    monkeypatch.setattr("paperlib.compression.report.Picture.encode", lambda *_: "data:,")


@pytest.fixture
def outputs_are_quick(monkeypatch, tmp_path_factory, one_export_is_timed, figures_are_not_drawn, written_files):
    """For tests of `compress` that neither open `student.onnx`, which is another detector's, nor look at a figure.

    Exports and figures are three quarters of a small run.
    """
    from paperlib.deploy.onnx import export_onnx

    def export(network, path, image_size, *, description):
        kind = image_size, tuple(description.classes)
        if kind not in written_files:
            written_files[kind] = tmp_path_factory.mktemp("written") / "detector.onnx"
            export_onnx(network, written_files[kind], image_size, description=description)
        shutil.copyfile(written_files[kind], path)

    monkeypatch.setattr("paperlib.compression.outputs.export_onnx", export)


@pytest.fixture
def styled_figures():
    """The companion's style, without a screen, for one test."""
    import matplotlib.pyplot as plt  # here, since most tests draw nothing

    from paperlib import figures

    with plt.rc_context({"backend": "agg"}):
        figures.use_style()
        yield
        plt.close("all")
