"""`--test`: images that no step of a compression uses, on which original and student are judged once, at the end."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from paperlib.compression.request import CompressRequest
from paperlib.data.annotated import ReadOptions
from paperlib.data.own import load_own, name_own
from paperlib.data.records import Dataset
from paperlib.deploy.runtime import open_model
from paperlib.evaluation.evaluate import evaluate
from paperlib.evaluation.metrics import Metrics
from paperlib.progress.report import begin_step
from paperlib.workbench.checks import check_data
from paperlib.workbench.stages import Compressed

INT8 = "student.int8.onnx"


@dataclass(frozen=True)
class FinalTest:
    """The test images, and how well each model does on them.

    Attributes:
        data: the test images.
        metrics: by model: `original`, `student` and, if there is one, `student, int8`.
    """

    data: Dataset
    metrics: dict[str, Metrics]

    def to_dict(self) -> dict[str, Any]:
        """Return what `metrics.json` says of the test."""
        return {
            "images": len(self.data),
            "boxes": sum(self.data.box_counts().values()),
            "models": {name: metrics.to_dict() for name, metrics in self.metrics.items()},
        }

    def describe(self) -> str:
        """Return the mAP of each model in a sentence."""
        accuracies = [f"{name} {100 * metrics.map50:.1f} %" for name, metrics in self.metrics.items()]
        return (
            f"On {len(self.data)} test images, which took part in no training and no choice and were judged once, the "
            f"mAP is: {', '.join(accuracies)}."
        )


def load_test(request: CompressRequest, train: Dataset) -> Dataset | None:
    """Load the test data, None if there are none, and check that they have boxes and no other classes.

    They are loaded before any training, so that a fault is found first, and again at the end; what is read first is
    compared with the other images, and forgotten.

    Raises:
        FileNotFoundError, ValueError: one line names file, place and fault.
    """
    if request.test is None:
        return None
    options = ReadOptions(
        request.bad_boxes, train.classes, complete=request.classes is None, allow_outside=request.allow_outside
    )
    test = load_own(name_own(str(request.test)), "test", request.test_images or request.images, options)
    test.name = f"{request.test}, test" if request.test == request.data else str(request.test)
    check_data(train, test, may_lack=train.classes)
    return test


def judge_test(request: CompressRequest, compressed: Compressed) -> FinalTest | None:
    """Judge the original, the student and its 8-bit file on the test data; None if there are none.

    The confidence of precision and recall is that of the validation data.
    """
    test = load_test(request, compressed.workbench.train_set)
    if test is None:
        return None
    begin_step("judge on the test images")
    workbench = replace(compressed.workbench, test=test)
    chosen = {"original": compressed.chain[0].final, "student": compressed.delivered.model}
    metrics = {name: workbench.evaluate(model, "test") for name, model in chosen.items()}
    if (file := request.out / INT8).exists():
        confidence = compressed.delivered.metrics.confidence
        side = workbench.recipe.image_size
        detector = open_model(file).detector
        metrics["student, int8"] = evaluate(detector, test, image_size=side, confidence=confidence)
    return FinalTest(test, metrics)
