"""General instance distillation in closed form, in float64."""

import torch
import torch.nn.functional as F
from torch import Tensor

from paperlib.distillation.imitation import FeatureLevel
from paperlib.distillation.instances import (
    InstanceOptions,
    choose_instances,
    choose_level,
    instance_feature_losses,
    instance_response_losses,
)

PLAIN = InstanceOptions(side=1, feature_weight=1, relation_weight=1, class_weight=1, box_weight=1)
BOX, NEAR, FAR = [0.0, 0, 10, 10], [1.0, 0, 11, 10], [50.0, 50, 70, 60]


def tensor(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_instances_are_the_boxes_of_the_surer_network_where_both_disagree_most() -> None:
    own, its = tensor([[BOX, NEAR, FAR]]), tensor([[BOX, NEAR, FAR]]) + 1
    student = own, tensor([[[0.2, 0.1], [0.1, 0.1], [0.9, 0.3]]])
    teacher = its, tensor([[[0.8, 0.1], [0.6, 0.1], [0.4, 0.3]]])
    (found,) = choose_instances(student, teacher)
    # The second row disagrees by as much as the third, but overlaps the first; equal scores are no disagreement.
    assert found["boxes"].tolist() == [its[0, 0].tolist(), FAR] and found["labels"].tolist() == [1, 1]
    (one,) = choose_instances(student, teacher, InstanceOptions(count=1))
    assert one["boxes"].tolist() == [its[0, 0].tolist()]
    (none,) = choose_instances(teacher, teacher)
    assert none["boxes"].shape == (0, 4)


def test_an_instance_is_pooled_on_the_coarsest_level_on_which_it_has_enough_cells() -> None:
    boxes = tensor([[0.0, 0, 224, 224], [0.0, 0, 448, 112], [0.0, 0, 223, 223], [0.0, 0, 448, 448], [0.0, 0, 9, 9]])
    assert choose_level(boxes, torch.tensor([32, 16, 8])).tolist() == [1, 1, 2, 0, 2]
    assert choose_level(boxes, torch.tensor([8, 16])).tolist() == [1, 1, 0, 1, 0]


def level(values: list[float], stride: int = 8) -> FeatureLevel:
    """One image of cells in a row, each with one channel; the teacher's features are 0, 1, 4, 9, …"""
    teacher = tensor([number**2 for number in range(len(values))])[None, None, None]
    return FeatureLevel(tensor(values)[None, None, None].requires_grad_(), teacher, stride)


CELLS = [tensor([[8.0 * number, 0, 8 * number + 8, 8] for number in range(3)])]
"""Each box is one cell, and pooling to one cell with two samples averages within it."""


def test_features_are_compared_by_the_mean_square_of_their_cells() -> None:
    # A constant level, so that RoIAlign, which interpolates between cells, returns its value.
    constant = FeatureLevel(torch.full((1, 4, 3, 3), 2.0).double(), torch.full((1, 4, 3, 3), 5.0).double(), 8)
    losses = instance_feature_losses([constant], CELLS, PLAIN)
    torch.testing.assert_close(losses["features"], tensor(4 * 9.0))
    # All distances are 0 in both.
    assert losses["relations"] == 0


def pooled(values: Tensor) -> Tensor:
    """RoIAlign with two samples at a quarter and three quarters of each cell, constant beyond the first and last."""
    row = values.flatten()
    positions = torch.arange(len(row))[:, None] + tensor([-0.25, 0.25])
    low = positions.clamp(0, len(row) - 1).floor().long()
    high = (low + 1).clamp_max(len(row) - 1)
    part = positions.clamp(0, len(row) - 1) - low
    return ((1 - part) * row[low] + part * row[high]).mean(1)


def test_relations_are_distances_over_their_mean() -> None:
    one = level([3.0, 0.0, 7.0])
    relations = []
    for values in (one.student.detach(), one.teacher):
        distance = (pooled(values)[:, None] - pooled(values)[None]).abs()
        relations.append(distance / (distance.sum() / 6))
    expected = F.smooth_l1_loss(*relations, reduction="sum") / 6
    torch.testing.assert_close(instance_feature_losses([one], CELLS, PLAIN)["relations"], expected)
    scaled = FeatureLevel(5 * one.student, one.teacher, 8)
    torch.testing.assert_close(instance_feature_losses([scaled], CELLS, PLAIN)["relations"], expected)
    assert instance_feature_losses([one], [CELLS[0][:2]], PLAIN)["relations"] == 0


def test_responses_are_compared_with_the_teachers_on_the_assigned_rows() -> None:
    student, teacher = tensor([[0.0, 2.0], [1.0, -1.0]]), tensor([[0.0, 0.0], [3.0, -1.0]])
    boxes = tensor([[1.0, 2, 3, 4], [0.0, 0, 0, 0]]), tensor([[1.0, 2, 3, 0], [1.0, 1, 1, 1]])
    losses = instance_response_losses((student, teacher), boxes, PLAIN)
    label = teacher.sigmoid()
    entropy = -(label * student.sigmoid().log() + (1 - label) * (1 - student.sigmoid()).log()).sum() / 2
    torch.testing.assert_close(losses["classes"], entropy)
    torch.testing.assert_close(losses["boxes"], tensor((4 + 4) / 2))


def test_without_instances_all_losses_are_empty_sums_with_a_gradient() -> None:
    one = level([3.0, 0.0, 7.0])
    losses = instance_feature_losses([one], [torch.zeros(0, 4)]) | instance_response_losses(
        (one.student.new_zeros(0, 2), one.student.new_zeros(0, 2)), (torch.zeros(0, 4), torch.zeros(0, 4))
    )
    total = torch.stack([loss.double() for loss in losses.values()]).sum()
    total.backward()
    gradient = one.student.grad
    assert total == 0 and gradient is not None and not gradient.any()


def test_the_gradient_agrees_with_finite_differences_also_between_equal_instances() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 1, 2, 3, 3, generator=generator, dtype=torch.float64)
    boxes = [torch.cat([CELLS[0], CELLS[0][:1]])]  # one instance occurs twice

    def total(features: Tensor) -> Tensor:
        return torch.stack([*instance_feature_losses([FeatureLevel(features, teacher, 8)], boxes).values()]).sum()

    torch.autograd.gradcheck(total, student.requires_grad_(), atol=1e-6)
