"""Non-maximum suppression inside an ONNX file: the selection that the detectors of this package make in PyTorch."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from paperlib.detectors.suppression import MAX_CANDIDATES
from paperlib.extras import load_later

if TYPE_CHECKING:
    import onnx
else:
    onnx = load_later("runtimes", lambda: import_module("onnx"))

SELECTED = ("boxes", "labels", "scores", "image_index")
"""Outputs of a file that selects its detections: of all images one after the other, best first in each image."""

PEAKS = """
  heat_size = Constant <value = int64[4] {{0, {classes}, {rows}, {columns}}}> ()
  heat = Reshape (all_by_class, heat_size)
  highest = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (heat)
  is_peak = Equal (heat, highest)
  peaks = Where (is_peak, heat, zero)
  flat_size = Constant <value = int64[3] {{0, {classes}, -1}}> ()
  by_class = Reshape (peaks, flat_size)
"""
"""Keeps the scores of a heat map's cells, line by line, where no neighbour has a higher one."""

SELECTION = """
<ir_version: {ir_version}, opset_import: ["" : {opset}]>
select (float[B, R, 4] raw_boxes, float[B, R, C] raw_scores)
  => (float[N, 4] boxes, int64[N] labels, float[N] scores, int64[N] image_index)
{{
  zero = Constant <value = float {{0.0}}> ()
  one = Constant <value = int64 {{1}}> ()
  first = Constant <value = int64[1] {{0}}> ()
  second = Constant <value = int64[1] {{1}}> ()
  third = Constant <value = int64[1] {{2}}> ()
  end = Constant <value = int64[1] {{4}}> ()

  limit = Constant <value = float[4] {{{width}, {height}, {width}, {height}}}> ()
  not_above = Min (raw_boxes, limit)
  clipped = Max (not_above, zero)

  top_left = Slice (clipped, first, third, third)
  bottom_right = Slice (clipped, third, end, third)
  sides = Sub (bottom_right, top_left)
  shorter = ReduceMin <keepdims = 1> (sides, third)
  has_area = Greater (shorter, zero)
  all_by_class = Transpose <perm = [0, 2, 1]> (raw_scores)
  {peaks}
  area_by_class = Transpose <perm = [0, 2, 1]> (has_area)
  possible = Where (area_by_class, by_class, zero)

  line = Constant <value = int64[2] {{0, -1}}> ()
  lines = Reshape (possible, line)
  candidates = Constant <value = int64[1] {{{candidates}}}> ()
  best, best_index = TopK (lines, candidates)
  least = ReduceMin <keepdims = 1> (best, second)
  least_of_image = Unsqueeze (least, third)
  is_candidate = GreaterOrEqual (possible, least_of_image)
  candidate_scores = Where (is_candidate, possible, zero)

  most = Constant <value = int64 {{{most}}}> ()
  iou = Constant <value = float {{{iou}}}> ()
  threshold = Constant <value = float {{{threshold}}}> ()
  triples = NonMaxSuppression (clipped, candidate_scores, most, iou, threshold)
  images = Slice (triples, first, second, second)
  classes = Slice (triples, second, third, second)
  rows = Slice (triples, third, end, second)
  image = Squeeze (images, second)
  label_from_0 = Squeeze (classes, second)
  label = Add (label_from_0, one)
  places = Concat <axis = 1> (images, rows)
  box = GatherND (clipped, places)
  score = GatherND (candidate_scores, triples)

  score_column = Unsqueeze (score, second)
  score_line = Unsqueeze (score, first)
  image_line = Unsqueeze (image, first)
  is_higher = Greater (score_line, score_column)
  is_equal = Equal (score_line, score_column)
  all = Shape (score)
  numbers = ConstantOfShape <value = int64[1] {{1}}> (all)
  axis = Constant <value = int64 {{0}}> ()
  positions = CumSum (numbers, axis)
  position_column = Unsqueeze (positions, second)
  position_line = Unsqueeze (positions, first)
  is_earlier = Less (position_line, position_column)
  wins_tie = And (is_equal, is_earlier)
  is_before = Or (is_higher, wins_tie)
  is_same_image = Equal (image_line, images)
  is_better = And (is_before, is_same_image)
  counted = Cast <to = 7> (is_better)
  rank = ReduceSum <keepdims = 0> (counted, second)

  is_kept = Less (rank, most)
  kept_column = NonZero (is_kept)
  kept = Squeeze (kept_column, first)
  kept_rank = Gather (rank, kept)
  kept_image = Gather (image, kept)
  image_start = Mul (kept_image, most)
  place = Add (image_start, kept_rank)
  kept_count = Shape (kept)
  ordered_place, order = TopK <largest = 0> (place, kept_count)
  index = Gather (kept, order)
  boxes = Gather (box, index)
  labels = Gather (label, index)
  scores = Gather (score, index)
  image_index = Gather (image, index)
}}
"""
"""The graph, in ONNX's own notation.

Boxes are clipped to the image, and those in the padding have no area left. Per image, the candidates with the highest
scores go into the suppression of each class. A detection's rank is the number of better ones in its image.
"""


def add_selection(
    model: onnx.ModelProto, size: tuple[int, int], *, iou: float, peaks: bool, threshold: float, most: int
) -> onnx.ModelProto:
    """Return the graph of a one-stage detector with the selection of its detections.

    Args:
        model: a graph with the outputs `boxes` `[B, R, 4]` and `scores` `[B, R, C]`, in 8 bits or not.
        size: the images' `(height, width)` in pixels.
        iou: of two boxes of a class that overlap by more, only the one with the higher score stays.
        peaks: first keep only the peaks of the heat map whose cells the R boxes are, line by line.
        threshold: scores must exceed this.
        most: the largest number of detections of an image.

    Returns:
        A graph with the outputs `boxes` `[N, 4]` within the image, `labels` `[N]` in 1..C, `scores` `[N]` and
        `image_index` `[N]` in 0..B-1.
    """
    height, width = size
    _, count, classes = (dimension.dim_value for dimension in model.graph.output[1].type.tensor_type.shape.dim)
    stride = round((height * width / count) ** 0.5)
    grid = {"classes": classes, "rows": height // stride, "columns": width // stride}
    (opset,) = (each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    selection = onnx.parser.parse_model(
        SELECTION.format(
            ir_version=model.ir_version, opset=opset, width=float(width), height=float(height), most=most, iou=iou,
            candidates=min(MAX_CANDIDATES, count * classes), threshold=threshold,
            peaks=PEAKS.format(**grid) if peaks else "by_class = Identity (all_by_class)",
        )
    )  # fmt: skip
    body = onnx.compose.add_prefix(model, "detect/", rename_inputs=False)
    tail = onnx.compose.add_prefix(selection, "select/", rename_inputs=False, rename_outputs=False)
    pairs = [(f"detect/{name}", f"raw_{name}") for name in ("boxes", "scores")]
    joined = onnx.compose.merge_models(body, tail, io_map=pairs)
    onnx.helper.set_model_props(joined, {entry.key: entry.value for entry in model.metadata_props})
    onnx.checker.check_model(joined, full_check=True)
    return joined
