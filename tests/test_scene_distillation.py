"""Distillation of classifiers: the losses of the definitions, and heads that train along and are dropped."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paperlib.distillation.scenes import SceneDistillation, SelfDistillation


class Net(nn.Module):
    """Three stages and a linear head; like every classifier it returns losses in training mode."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.num_classes = classes
        self.one = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.two = nn.Sequential(nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2))
        self.three = nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU())
        self.fc = nn.Linear(8, classes)

    def stages(self, images: Tensor) -> list[Tensor]:
        one = self.one(images)
        two = self.two(one)
        return [one, two, self.three(two)]

    def logits(self, images: Tensor) -> Tensor:
        return self.fc(self.stages(images)[-1].mean((2, 3)))

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor | dict[str, Tensor]:
        logits = self.logits(images)
        return {"classes": F.cross_entropy(logits, labels)} if self.training and labels is not None else logits


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(6, 3, 16, 16, dtype=torch.float64, generator=generator), torch.arange(6) % 5


def net(seed: int) -> Net:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().double()


def test_plain_distillation_is_equation_9() -> None:
    student, teacher, (images, labels) = net(0).train(), net(1), batch()
    loss = SceneDistillation(teacher, soft_weight=0.3, temperature=2.0)(student, images, labels)["distillation"]
    own, other = student.logits(images), teacher.logits(images)
    soft = (other / 2).softmax(1) * ((other / 2).log_softmax(1) - (own / 2).log_softmax(1))
    assert loss.item() == pytest.approx((0.7 * F.cross_entropy(own, labels) + 0.3 * 4 * soft.sum(1).mean()).item())
    assert not any(p.requires_grad for p in teacher.parameters()) and not teacher.training
    # A student like its teacher is only pulled to the labels, as by its own loss.
    [alone] = SceneDistillation(net(0), soft_weight=0.0)(student, images, labels).values()
    assert alone.item() == pytest.approx(student(images, labels)["classes"].item())


def test_self_distillation_teaches_the_early_stages_by_constants() -> None:
    student, (images, labels) = net(0).train(), batch()
    objective = SelfDistillation(student, seed=1).double()
    losses = objective(student, images, labels)
    plain = student(images, labels)["classes"]
    assert losses["classes"].item() == pytest.approx(plain.item())
    assert len(objective.heads) == 2 and all(loss > 0 for loss in losses.values())
    torch.stack(list(losses.values())).sum().backward()
    slopes = [layer.weight.grad.clone() for layer in (student.one[0], student.fc, objective.heads[0].linear)]
    assert all(slope.abs().sum() > 0 for slope in slopes)
    # The deepest stage is a teacher: neither its answers nor its features feel the early classifiers.
    student.zero_grad()
    plain.backward()
    torch.testing.assert_close(student.fc.weight.grad, slopes[1])
    assert (student.one[0].weight.grad - slopes[0]).abs().max() > 1e-6


def test_the_hint_vanishes_for_a_stage_that_already_is_the_deepest(monkeypatch: pytest.MonkeyPatch) -> None:
    student, (images, labels) = net(0).train(), batch()
    maps = student.stages(images)[-1].detach()
    monkeypatch.setattr(student, "stages", lambda _: [maps, maps])
    objective = SelfDistillation(student, soft_weight=0.0).double()
    with torch.no_grad():
        objective.heads[0].adapter.weight.copy_(torch.eye(8).view(8, 8, 1, 1))
        objective.heads[0].norm.weight.copy_(maps.var((0, 2, 3), unbiased=False).add(1e-5).sqrt())
        objective.heads[0].norm.bias.copy_(maps.mean((0, 2, 3)))
    assert objective(student, images, labels)["hint"].item() == pytest.approx(0, abs=1e-12)


def test_the_heads_depend_on_the_seed_alone_and_leave_the_network_as_it_was() -> None:
    student = net(0).train()
    torch.manual_seed(7)
    one = SelfDistillation(student, seed=3)
    torch.manual_seed(8)
    other = SelfDistillation(student, seed=3)
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
    assert student.training


def test_what_cannot_be_distilled_is_refused_in_one_line() -> None:
    images, labels = batch()
    with pytest.raises(ValueError, match="soft_weight 2 is not in"):
        SceneDistillation(net(0), soft_weight=2)
    with pytest.raises(ValueError, match="the student has 5 classes and its teacher 7"):
        SceneDistillation(Net(7).double())(net(0), images, labels)
    with pytest.raises(ValueError, match="temperature 0 is not positive"):
        SelfDistillation(net(0), temperature=0)
