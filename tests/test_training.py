"""One training loop: a function of what it is given, whatever interrupts it."""

import os
import pickle
import random
import shutil
import signal
import time
from dataclasses import asdict, replace

import pandas as pd
import pytest
import tiny
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from safetensors.torch import load_file

from paperlib.data import Dataset
from paperlib.data.augment import augment
from paperlib.data.toy.aerial import CLASSES
from paperlib.detectors.files import load_detector
from paperlib.distillation.answers import match_channels
from paperlib.distillation.assistants import Distillation
from paperlib.distillation.dynamic import DynamicDistillation
from paperlib.evaluation.evaluate import evaluate
from paperlib.network_files import load_network
from paperlib.partners.extend import extend
from paperlib.partners.partnership import Partnership
from paperlib.pruning import Sparsity, absolute_gammas
from paperlib.seeding import derive_seed
from paperlib.training import running
from paperlib.training.batches import draw_batches
from paperlib.training.folder import BEST, HISTORY, LAST
from paperlib.training.loop import fit
from paperlib.training.recipe import Recipe

SPARSE = tiny.recipe(epochs=6, ema=0.9, mosaic=0.5, warmup_epochs=1.0, schedule="cosine", weight_decay=1e-3)
DISTILLED = tiny.recipe(epochs=6, precision="bf16")
SAMPLED = tiny.recipe(epochs=6, ema=0.9)
PARTNERED = tiny.recipe(epochs=6, ema=0.8)
SCENES = tiny.recipe(epochs=6, ema=0.7, image_size=tiny.SCENE_SIDE, batch_size=3)
PARTNERED_SCENES = tiny.recipe(epochs=6, image_size=tiny.SCENE_SIDE, batch_size=3)
DYNAMIC = tiny.recipe(epochs=6, ema=0.75)


class Learned(torch.nn.Module):
    """An objective with parameters, a statistic and a count of its steps."""

    def __init__(self):
        super().__init__()
        self.factor = torch.nn.Parameter(torch.ones(1))
        self.register_buffer("mean", torch.zeros(()))
        self.steps, self.told = 0, None

    def start_training(self, steps):
        self.told, self.steps = steps, 0
        self.mean.zero_()

    def forward(self, detector, images, targets):
        self.steps += 1
        losses = {name: self.factor.sum() * loss for name, loss in detector(images, targets).items()}
        self.mean.lerp_(sum(losses.values()).detach(), 0.1)
        return losses | {"apart": (self.factor - self.mean).square().sum() / self.steps}

    def get_extra_state(self):
        return self.steps

    def set_extra_state(self, state):
        self.steps = state

    def describe(self):
        return {"kind": "learned"}

    def epoch_values(self):
        return {"mean": float(self.mean), "factor": self.factor.item()}


@pytest.fixture(autouse=True)
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("PAPERLIB_STORE", str(tmp_path / "store"))
    return tmp_path / "store"


def train(recipe, folder):
    running.SECONDS_BETWEEN_STATES = 0
    detector, actors = tiny.detector(), {"regulariser": Sparsity(1e-2)}
    data = {"dataset": tiny.dataset(), "validation": tiny.dataset("val", 4)}
    if recipe == DISTILLED:
        teacher = Distillation(tiny.detector(seed=7, width=0.2))
        actors = {"objective": teacher, "regulariser": Sparsity(1e-2, "proximal")}
    elif recipe == SAMPLED:
        detector = tiny.two_stage()
    elif recipe == PARTNERED:
        detector, actors = extend(detector), {"regulariser": Partnership(0.1, "output")}
    elif recipe == DYNAMIC:
        teacher = tiny.detector(seed=7, width=0.2)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            adapter = match_channels(detector, teacher)
        actors = {"objective": DynamicDistillation(teacher, adapter=adapter, last_fraction=0.25)}
    elif recipe == SCENES:
        detector, actors = tiny.classifier(), {}
    elif recipe == PARTNERED_SCENES:
        detector, actors = extend(tiny.classifier()), {"regulariser": Partnership(0.1)}
    if recipe in (SCENES, PARTNERED_SCENES):
        data = {"dataset": tiny.scenes(), "validation": tiny.scenes("val", 6)}
    fit(detector, recipe=recipe, folder=folder, **data, **actors)


def a_state_is_half_written(folder):
    return any(folder.glob("state-*.partial"))


def a_new_state_stands_beside_the_old(folder):
    return len(list(folder.glob("state-*[0-9]"))) > 1


def chance(seconds):
    """Some moment after the training has begun."""
    end = []

    def reached(folder):
        if not end and any(folder.glob("state-*")):
            end.append(time.monotonic() + seconds)
        return end and time.monotonic() > end[0]

    return reached


def killed_at(moment, recipe, folder):
    """Whether SIGKILL met the training alive, at that moment."""
    process = tiny.processes.Process(target=train, args=(recipe, folder))
    process.start()
    while process.is_alive() and not moment(folder):
        time.sleep(0.0005)
    process.kill()
    process.join()
    return process.exitcode == -signal.SIGKILL


RECIPES = {
    "sparse": SPARSE,
    "distilled": DISTILLED,
    "sampled": SAMPLED,
    "partnered": PARTNERED,
    "dynamic": DYNAMIC,
    "scenes": SCENES,
    "partnered scenes": PARTNERED_SCENES,
}


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_killed_at_any_moment_and_started_again_it_ends_with_the_same_bits(recipe, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    moments = [
        a_state_is_half_written,
        chance(random.uniform(0, 0.1)),
        a_new_state_stands_beside_the_old,
        a_state_is_half_written,
        chance(random.uniform(0, 0.1)),
    ]
    assert sum(killed_at(moment, recipe, killed) for moment in moments) >= 3
    for folder in (whole, killed):
        assert not killed_at(lambda _: False, recipe, folder)

    for name in (LAST, BEST):
        one, other = load_file(whole / name), load_file(killed / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    histories = [pd.read_json(folder / HISTORY, lines=True).drop(columns="seconds") for folder in (whole, killed)]
    assert list(histories[1]["epoch"]) == list(range(1, recipe.epochs + 1))
    pd.testing.assert_frame_equal(*histories, check_exact=True)


def two_states_stand_and_a_third_is_half_written(folder):
    return len(list(folder.glob("state-*[0-9]"))) == 2 and a_state_is_half_written(folder)


@pytest.fixture(scope="module")
def trained_half_way(tmp_path_factory):
    """Train until killed while a state is being written."""
    folder = tmp_path_factory.mktemp("killed") / "fit"
    while not killed_at(two_states_stand_and_a_third_is_half_written, SPARSE, folder):
        shutil.rmtree(folder)  # it was quicker than the signal
    return folder


@pytest.fixture
def half_way(trained_half_way, tmp_path):
    """Copy the folder of that training, and return its two whole states."""
    shutil.copytree(trained_half_way, tmp_path / "fit")
    return sorted((tmp_path / "fit").glob("state-*[0-9]"))[-2:]


def flip_one_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "a flipped bit in the weights": lambda state: flip_one_bit(state / "detector.safetensors"),
    "a cut file": lambda state: (state / "optimiser.safetensors").write_bytes(b"cut"),
    "an empty list of contents": lambda state: (state / "state.json").write_text(""),
    "a missing running mean": lambda state: (state / "average.safetensors").unlink(),
    "a damaged history": lambda state: flip_one_bit(state.parent / HISTORY),
    "damaged best weights": lambda state: (state.parent / BEST).write_bytes(b""),
    "a damaged name of the training": lambda state: (state.parent / "training.json").write_text("{"),
}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert not killed_at(lambda _: False, SPARSE, folder)
    return folder


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_killed_training_whose_newest_state_is_damaged_ends_with_the_same_bits(damage, uninterrupted, half_way):
    *_, newest = half_way
    damage(newest)
    assert not killed_at(lambda _: False, SPARSE, newest.parent)
    for name in (LAST, BEST):
        assert (newest.parent / name).read_bytes() == (uninterrupted / name).read_bytes()


def test_a_file_that_would_run_code_when_unpickled_is_not_touched_on_resume(half_way, tmp_path):
    state, newest = half_way

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "attacked"),)

    for folder in (state, newest):
        for name in ("custom_checkpoint_0.pkl", "random_states_0.pkl", "optimizer.bin", "detector.safetensors"):
            (folder / name).write_bytes(pickle.dumps(Attack()))
    assert not killed_at(lambda _: False, SPARSE, newest.parent)
    assert (newest.parent / LAST).exists() and not (tmp_path / "attacked").exists()


def test_without_a_folder_the_state_goes_to_the_store_and_a_second_call_trains_nothing(store):
    first, second, data = tiny.detector(), tiny.detector(), tiny.dataset()
    folder = fit(first, data, tiny.recipe()).folder
    assert folder.parent == store / "fit"
    written = (folder / HISTORY).stat().st_mtime_ns
    history = fit(second, tiny.dataset(), tiny.recipe())
    assert (history.folder, (folder / HISTORY).stat().st_mtime_ns) == (folder, written)
    assert tiny.equal(first, second)
    assert list(history.epochs["epoch"]) == [1, 2]
    assert not first.training and not second.training


def test_what_was_drawn_before_changes_no_training_and_what_is_drawn_after_is_not_changed_by_one(tmp_path):
    ends, after = [], []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        detector = tiny.two_stage()
        if len(ends) > 0:
            fit(detector, tiny.dataset(), tiny.recipe(ema=0.9), folder=tmp_path / str(len(ends)))
        ends.append(detector)
        after.append(torch.rand(()))
    assert tiny.equal(*ends[1:])
    assert after[0] == after[1] != after[2]


def halved(detector, images, targets):
    return {name: loss / 2 for name, loss in detector(images, targets).items()}


def test_no_training_is_taken_for_another():
    usual = {"dataset": tiny.dataset(), "recipe": tiny.recipe(epochs=1)}
    changes = [
        {},
        {"detector": tiny.detector(seed=1)},
        {"detector": tiny.detector(anchors=[(2 * w, 2 * h) for w, h in tiny.ANCHORS])},
        {"dataset": tiny.dataset(count=7)},
        {"recipe": tiny.recipe(epochs=1, seed=1)},
        {"objective": halved},
        {"objective": Distillation(tiny.detector(seed=2))},
        {"objective": Distillation(tiny.detector(seed=2), temperature=2.0)},
        {"objective": Distillation(tiny.detector(seed=3))},
        {"regulariser": Sparsity(1e-2)},
        {"validation": tiny.dataset("val", 4)},
    ]
    folders = [fit(**{"detector": tiny.detector(), **usual, **change}).folder for change in changes]
    assert len(set(folders)) == len(changes)


def test_an_objective_learns_along_is_told_the_number_of_steps_and_adds_to_the_history(tmp_path):
    objective, recipe = Learned(), tiny.recipe(epochs=3)
    first = fit(tiny.detector(), tiny.dataset(), recipe, objective=objective, folder=str(tmp_path / "one"))
    assert objective.told == objective.steps == 6 and objective.factor != 1
    assert list(first.epochs["mean"])[-1] == objective.mean
    assert first.epochs["factor"].nunique() == 3
    # Its parameters are where a training starts from, so another training follows; what it measured is forgotten.
    again = fit(tiny.detector(), tiny.dataset(), recipe, objective=objective)
    assert again.epochs["mean"][0] != first.epochs["mean"][0] and objective.steps == 6
    with pytest.raises(ValueError, match="holds the state of another training"):
        fit(tiny.detector(), tiny.dataset(), recipe, objective=objective, folder=tmp_path / "one")


def test_an_objective_whose_parameters_could_not_be_saved_is_refused():
    def objective(detector, images, targets):
        return detector(images, targets)

    objective.parameters = lambda: [torch.nn.Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="it has parameters"):
        fit(tiny.detector(), tiny.dataset(), tiny.recipe(), objective=objective)


def test_two_objectives_that_cannot_be_told_apart_never_share_a_training(store):
    trained = []
    for factor in (1.0, 1e4):
        trained.append(tiny.detector())
        weighted = lambda *batch, by=factor: {"x": halved(*batch)["box"] * by}  # noqa: E731
        fit(trained[-1], tiny.dataset(), tiny.recipe(), objective=weighted)
    assert not tiny.equal(*trained)


def test_a_folder_of_another_training_is_refused_and_left_alone(tmp_path):
    fit(tiny.detector(), tiny.dataset(), tiny.recipe(), folder=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=rf"{tmp_path}: holds the state of another training"):
        fit(tiny.detector(), tiny.dataset(), tiny.recipe(epochs=3), folder=tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_starting_over_forgets_the_training_and_nothing_else_in_the_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    fit(tiny.detector(seed=1), tiny.dataset(), tiny.recipe(), folder=tmp_path, validation=tiny.dataset())
    fresh, alone = tiny.detector(), tiny.detector()
    fit(fresh, tiny.dataset(), tiny.recipe(), folder=tmp_path, resume=False)
    fit(alone, tiny.dataset(), tiny.recipe(), folder=tmp_path / "alone")
    assert tiny.equal(fresh, alone)
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert not (tmp_path / BEST).exists(), "the best weights of the other training are still there"


class Recorder:
    """A regulariser that does nothing and writes down when."""

    def __init__(self):
        self.calls = []

    def before_step(self, module, learning_rate):
        gradients = [p.grad for p in module.parameters()]
        assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
        self.weights = [p.detach().clone() for p in module.parameters()]
        self.calls.append(("before", learning_rate))

    def after_step(self, module, learning_rate):
        assert not all(map(torch.equal, self.weights, module.parameters())), "the step has not been taken"
        self.calls.append(("after", learning_rate))

    def penalty(self, module):
        return torch.tensor(3.0)

    def describe(self):
        return {}


def test_the_regulariser_acts_once_before_and_once_after_each_step_and_is_logged():
    recorder, recipe = Recorder(), tiny.recipe(epochs=4, batch_size=3)
    history = fit(tiny.detector(), tiny.dataset(), recipe, regulariser=recorder)
    steps = [recipe.rate(epoch + number / 2) for epoch in range(4) for number in range(2)]
    assert recorder.calls == [(when, rate) for rate in steps for when in ("before", "after")]
    assert list(history.epochs["learning_rate"]) == steps[1::2]
    assert list(history.epochs["penalty"]) == [3.0] * 4


@pytest.mark.parametrize("method", ["subgradient", "proximal"])
def test_sparse_training_presses_the_scale_factors_down(method):
    def mean_gamma(regulariser):
        detector = tiny.detector()
        history = fit(detector, tiny.dataset(), tiny.recipe(learning_rate=1e-2), regulariser=regulariser).epochs
        assert history["gamma_p50"].iloc[-1] < history["gamma_p90"].iloc[-1]
        return torch.cat([*absolute_gammas(detector).values()]).mean()

    assert mean_gamma(Sparsity(5.0, method)) < mean_gamma(None) - 0.02


class LearnThenUnlearn:
    """The detector's own loss, and after a number of batches its opposite."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, detector, images, targets):
        self.left -= 1
        return {name: loss if self.left >= 0 else -loss for name, loss in detector(images, targets).items()}


def test_the_best_weights_are_those_of_the_epoch_that_validation_liked_best(tmp_path):
    data, detector = tiny.dataset(count=4), tiny.detector(width=0.2)
    still = {"symmetries": False, "zoom": 1.0, "shift": 0.0, "schedule": "cosine"}
    recipe = tiny.recipe(epochs=40, learning_rate=2e-2, validate_every=7, **still)
    history = fit(detector, data, recipe, validation=data, objective=LearnThenUnlearn(24))
    judged = history.epochs.dropna(subset="map50")
    assert list(judged["epoch"]) == [*range(7, 41, 7), 40]
    assert judged["map50"].max() > judged["map50"].iloc[-1], "nothing was unlearned, so nothing is tested"
    assert evaluate(history.best(), data, image_size=tiny.SIDE).map50 == judged["map50"].max()
    assert tiny.equal(load_detector(history.folder / LAST), detector)
    assert evaluate(detector, data, image_size=tiny.SIDE).map50 == judged["map50"].iloc[-1]


def test_a_classifier_learns_and_its_best_epoch_is_that_of_the_highest_top_1(tmp_path):
    data, validation = tiny.scenes(), tiny.scenes("val", 6)
    classifier = tiny.classifier()
    before = evaluate(classifier, validation, image_size=tiny.SCENE_SIDE).top1
    recipe = tiny.recipe(epochs=12, image_size=tiny.SCENE_SIDE, learning_rate=1e-2, colour=0.0)
    history = fit(classifier, data, recipe, validation=validation, folder=tmp_path)
    judged = history.epochs.dropna(subset="top1")
    assert list(judged["epoch"]) == [2, 4, 6, 8, 10, 12]
    assert judged["top1"].max() > before and (judged["top5"] == 1).all()
    assert (history.epochs["loss"] == history.epochs["classes"]).all()
    best = history.best()
    assert type(best) is type(classifier)
    assert evaluate(best, validation, image_size=tiny.SCENE_SIDE).score == judged["top1"].max()
    assert tiny.equal(load_network(tmp_path / LAST), classifier)


def test_precisions_may_follow_each_other_in_one_process(tmp_path):
    trained = {}
    for turn, precision in enumerate(("no", "bf16", "no")):
        trained[turn] = tiny.detector()
        fit(trained[turn], tiny.dataset(), tiny.recipe(precision=precision), folder=tmp_path / str(turn))
    assert tiny.equal(trained[0], trained[2])
    assert not tiny.equal(trained[0], trained[1])


@pytest.mark.parametrize(
    ("capabilities", "chosen"),
    [({"amx_bf16": True}, "bf16"), ({"avx512_bf16": True, "amx_bf16": False}, "bf16"), ({"avx2": True}, "no")],
)
def test_automatic_precision_is_what_the_processor_multiplies_and_part_of_the_identity(
    monkeypatch, capabilities, chosen
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert tiny.recipe(precision="auto") == tiny.recipe(precision=chosen)


def test_a_loss_that_is_not_finite_ends_the_training_with_the_epoch():
    def broken(detector, images, targets):
        return {"box": detector(images, targets)["box"] * float("nan")}

    with pytest.raises(ValueError, match=r"epoch 1: the loss is not finite: {'box': nan}"):
        fit(tiny.detector(), tiny.dataset(), tiny.recipe(), objective=broken)


def test_a_batch_of_detection_data_holds_the_bits_that_every_stored_result_was_trained_on():
    """The order and the number of random draws decide every figure of the notebooks, so they must never change."""
    data, recipe = tiny.dataset(), tiny.recipe(batch_size=3, mosaic=0.5, seed=7)
    boxed = data.letterboxed(tiny.SIDE)
    batches = list(draw_batches(data, recipe, 2, Accelerator()))
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(derive_seed(7, 2)))
    for number, (images, targets) in enumerate(batches):
        chosen = order[3 * number : 3 * number + 3]
        annotations = [boxed.boxes[i] for i in chosen], [boxed.labels[i] for i in chosen]
        generator = torch.Generator().manual_seed(derive_seed(7, 2, number, 0))
        expected, objects = augment(boxed.images[chosen], *annotations, recipe.augmentation(), generator)
        assert torch.equal(images, expected)
        for one, other in zip(targets, objects, strict=True):
            assert torch.equal(one["boxes"], other["boxes"]) and torch.equal(one["labels"], other["labels"])
    assert len(batches) == 2


def test_without_grey_padding_a_batch_is_as_narrow_as_its_images():
    wide = [replace(record, image=record.image[:20], boxes=record.boxes[:0], labels=record.labels[:0])
            for record in tiny.dataset().records]  # fmt: skip
    seen = []

    def note_shape(detector, images, targets):
        seen.append(tuple(images.shape[2:]))
        return detector(images, targets)

    fit(
        tiny.detector(),
        Dataset("wide", CLASSES, wide),
        tiny.recipe(crop_padding=True, batch_size=2),
        objective=note_shape,
    )
    assert set(seen) == {(32, 64), (64, 32)}


def test_no_images_are_refused():
    with pytest.raises(ValueError, match="nobody: no images"):
        fit(tiny.detector(), tiny.dataset().subset([], "nobody"), tiny.recipe())


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"epoch": 3}, "epoch"),
        ({"epochs": "3"}, "epochs"),
        ({"epochs": 0}, "epochs"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"ema": 1.0}, "ema"),
        ({"zoom": 0.5}, "zoom"),
        ({"schedule": "linear"}, "schedule"),
    ],
)
def test_a_recipe_refuses_unknown_keys_and_wrong_values(change, place):
    with pytest.raises(ValidationError, match=rf"^1 validation error for Recipe\n{place}\n"):
        Recipe(**change)


def test_the_papers_schedule_divides_the_rate_by_ten_at_half_and_three_quarters():
    recipe = Recipe()
    assert [recipe.rate(at) for at in (0, 149.99, 150, 224.99, 225, 299.99)] == pytest.approx(
        [1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5], rel=1e-12
    )


def test_the_cosine_falls_to_a_hundredth_and_warm_up_is_linear():
    recipe = Recipe(epochs=100, schedule="cosine", warmup_epochs=2.0)
    assert [recipe.rate(at) for at in (50, 100)] == pytest.approx([0.505e-3, 1e-5], rel=1e-12)
    plain = Recipe(epochs=100, schedule="cosine")
    assert recipe.rate(0.5) == pytest.approx(plain.rate(0.5) / 4, rel=1e-12)
    assert recipe.rate(2.0) == plain.rate(2.0)


def test_the_strengths_of_augmentation_are_the_recipes():
    chosen = {"zoom": 1.7, "shift": 0.2, "symmetries": False, "colour": 0.4, "mosaic": 0.6}
    assert asdict(Recipe(**chosen).augmentation()).items() >= chosen.items()
