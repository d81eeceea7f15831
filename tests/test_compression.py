"""Algorithm 1: what it keeps, when it stops, whom it lets teach, and on which data."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from paperlib.costs import cost
from paperlib.data import Dataset
from paperlib.data.records import Record
from paperlib.detectors import build_detector
from paperlib.progress.report import plan_work, read_report, report_file
from paperlib.store.store import Store
from paperlib.training.recipe import Recipe
from paperlib.workbench import algorithm_1, candidates
from paperlib.workbench.algorithm_1 import channel_counts, select_unlike
from paperlib.workbench.candidates import compress
from paperlib.workbench.options import Compression

OPEN_ENDED = {"step": 0.25, "max_drop": 1.0, "similar": 1.0}
TRAIN, VAL = tiny.of_classes(tiny.dataset(), tiny.dataset("val", 4))


def start(data=TRAIN):
    return tiny.detector(num_classes=len(data.classes))


def run(root, detector=None, train=TRAIN, val=VAL, recipe=None, **settings):
    chosen = Compression(**{**OPEN_ENDED, **settings})
    return compress(detector or start(train), train, val, recipe or tiny.recipe(), chosen, store=Store(root))


def record(model):
    return json.loads((model.folder / "step.json").read_text())["step"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    return root, run(root)


# --- the listing ----------------------------------------------------------------------------------------


def test_each_iteration_removes_a_share_of_the_original_down_to_a_floor_of_the_original(done):
    _, made = done
    assert (made.stopped, made.stages[-1].role) == ("floor", "student")
    counts = [stage.channels for stage in made.stages]
    assert all(after <= before - 0.25 * counts[0] for before, after in pairwise(counts[:-1]))
    whole, least = channel_counts(start()), channel_counts(made.student)
    assert all(least[name] >= 0.1 * whole[name] for name in whole)
    assert sum(least.values()) < 0.2 * counts[0]


def test_each_distilled_model_is_the_next_ones_teacher_and_replaces_the_fine_tuned_one(done):
    _, made = done
    assert [stage.role for stage in made.chain] == ["teacher", *["assistant"] * (len(made.chain) - 2), "student"]
    assert len(made.chain) >= 4
    for above, stage in pairwise(made.chain):
        assert record(stage.final)["parents"] == [stage.model.digest, above.final.digest]
        assert record(stage.final)["kind"] == "distil" and stage.final != stage.model
    pure = replace(made, pure=True)
    assert tiny.equal(pure.student, made.chain[-1].final.detector())
    assert list(made.table["map50_distilled"].notna()) == [stage.role != "teacher" for stage in made.stages]


def test_the_student_that_is_handed_over_is_the_most_accurate_on_validation_unless_pure(done):
    _, made = done
    last = made.chain[-1]
    for tuned, distilled, name in ((0.5, 0.4, "fine-tuned"), (0.4, 0.5, "distilled"), (0.5, 0.5, "distilled")):
        stage = replace(last, tuned=replace(last.tuned, map50=tuned))
        stage = replace(stage, distilled=(last.final, replace(last.metrics, map50=distilled)))
        changed = replace(made, stages=[*made.stages[:-1], stage])
        assert (changed.delivered.name, changed.delivered.metrics.map50) == (name, max(tuned, distilled))
        assert changed.delivered.model == (stage.model if name == "fine-tuned" else stage.final)
        assert replace(changed, pure=True).delivered.name == "distilled"
        assert tiny.equal(changed.student, changed.delivered.model.detector())


def test_pruned_models_are_fine_tuned_under_eq_4_and_distilled_without(done):
    _, made = done
    for stage in made.chain:
        assert record(stage.model)["settings"]["sparsity"] == {"strength": 5e-3, "method": "subgradient"}
        if stage.distilled:
            assert record(stage.final)["settings"]["sparsity"] is None


def test_called_again_it_finds_everything_done(done):
    root, made = done
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"}
    again = run(root)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"} == before
    assert again.table.equals(made.table) and again.stopped == made.stopped


def test_it_stops_at_the_size_that_is_aimed_at(done):
    root, made = done
    sizes = [stage.cost.size_mb for stage in made.stages]
    target = 0.5 * (sizes[1] + sizes[2])
    aimed = run(root, target_mb=target)
    assert (aimed.stopped, len(aimed.stages)) == ("target", 3)
    assert sizes[2] < cost(aimed.student, tiny.SIDE).size_mb <= target
    assert aimed.stages[1].model == made.stages[1].model


PLAIN = {"zoom": 1.0, "shift": 0.0, "symmetries": False, "colour": 0.0}
[FOUR] = tiny.of_classes(tiny.dataset(count=4))


def run_learned(root, step):
    """A detector that knows four pictures by heart; what pruning costs it, one idle epoch does not bring back."""
    by_heart = tiny.recipe(epochs=40, learning_rate=1e-2, schedule="cosine", validate_every=40, **PLAIN)
    idle = tiny.recipe(epochs=1, learning_rate=1e-6, **PLAIN)
    detector = tiny.detector(width=0.25, num_classes=len(FOUR.classes))
    chosen = {"step": step, "max_drop": 0.05, "sparsity": 1e-3, "compensate": "exact", "fine_tuning": idle}
    return run(root, detector, FOUR, FOUR, by_heart, **chosen)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    return tmp_path_factory.mktemp("learned")


def test_it_begins_at_e0_and_ends_before_the_first_model_that_lost_delta(learned):
    """With the listing's E_p = 0 it would end before it began, for E_0 is far above delta."""
    made = run_learned(learned, 0.05)
    e_0 = made.stages[0].tuned.map50
    assert e_0 > 0.5 and made.stopped == "drop"
    assert [stage.role for stage in made.stages if e_0 - stage.tuned.map50 >= 0.05] == ["rejected"]
    assert made.stages[-1].role == "rejected" and made.stages[-1].distilled is None
    assert made.chain[-1].role == "student" and made.chain[-1] == made.stages[-2]
    assert f"lost {100 * (e_0 - made.stages[-1].tuned.map50):.1f} points" in made.explain_stop()


def test_if_the_first_step_costs_too_much_the_original_is_all_there_is(learned):
    made = run_learned(learned, 0.6)
    assert [stage.role for stage in made.stages] == ["teacher", "rejected"]
    assert [stage.role for stage in made.chain] == ["teacher"]
    assert tiny.equal(made.student, made.stages[0].model.detector())


# --- fixed ratios ---------------------------------------------------------------------------------------


class Recorder:
    """A workbench that makes nothing: a model is the text of the step that would make it."""

    def prune(self, model, ratio, *, original):
        return f"prune({model}, {ratio:.4f}, {original})"

    def fine_tune(self, model, label, *, sparse):
        return f"tune({model}, {sparse})"

    def distil(self, student, teacher, label):
        return f"distil({student}, {teacher})"


def test_with_given_ratios_the_last_model_is_not_fine_tuned_and_nothing_is_evaluated():
    first, second, third = algorithm_1.prune_to_ratios(Recorder(), "T", [0.2, 0.4, 0.7])
    assert first == "prune(T, 0.2000, None)"
    assert second == f"prune(tune({first}, True), 0.2500, T)"
    assert third == f"prune(tune({second}, True), 0.5000, T)"
    taught = [*algorithm_1.distil_chain(Recorder(), "T", [first, second, third])]
    assert taught[0] == f"distil({first}, T)" and taught[1:] == [
        f"distil({student}, {teacher})" for student, teacher in ((second, taught[0]), (third, taught[1]))
    ]


# --- similar models -------------------------------------------------------------------------------------

CAPACITIES = st.lists(st.floats(0.01, 100), min_size=1, max_size=9, unique=True).map(lambda v: sorted(v, reverse=True))


@given(sizes=CAPACITIES, similar=st.floats(0.05, 1.0))
def test_of_similar_models_one_stays_and_the_ends_always_do(sizes, similar):
    stay = select_unlike(sizes, similar)
    assert stay == sorted(set(stay)) and {0, len(sizes) - 1} <= set(stay)
    inner = [sizes[place] for place in stay]
    if len(stay) > 2:
        assert all(lower <= similar * upper for upper, lower in pairwise(inner))
    for place in set(range(len(sizes))) - set(stay):
        below = next(sizes[other] for other in stay if other > place)
        assert below > similar * sizes[place] or sizes[place] > similar * sizes[0]


def test_a_chain_of_equal_steps_keeps_two_assistants():
    sizes = [(1 - number / 10) ** 2 for number in range(7)]
    assert select_unlike(sizes, 0.67) == [0, 3, 5, 6]


def test_dropped_assistants_teach_nobody(done):
    root, made = done
    thin = run(root, similar=0.3)
    roles = [stage.role for stage in thin.stages]
    assert "similar" in roles and "assistant" in roles
    assert [stage.model for stage in thin.stages] == [stage.model for stage in made.stages]
    assert all(stage.distilled is None for stage in thin.stages if stage.role == "similar")


# --- controls -------------------------------------------------------------------------------------------


def test_rivals_have_the_students_shape_or_its_origin_and_their_share_of_epochs(done):
    _, made = done
    rivals = candidates.train_controls(made)
    dense, tuned, taught, scratch, longer = rivals.values()
    prices = {name: cost(model.detector(), tiny.SIDE) for name, model in rivals.items()}
    assert [*prices.values()] == [made.stages[0].cost, *[made.stages[-1].cost] * 4]
    assert [len(model.history()) for model in rivals.values()] == [2, 1, 1, 2, 4]
    student, teacher = made.chain[-1].model.digest, made.chain[0].model.digest
    assert record(tuned)["parents"] == [student] and record(taught)["parents"] == [student, teacher]
    assert record(scratch)["parents"] == record(longer)["parents"] != [student]
    assert record(dense)["settings"]["sparsity"] is None


def test_with_its_controls_the_progress_display_knows_all_there_is_to_train(done, tmp_path):
    _, made = done
    with report_file() as (path, _):
        plan_work(0)
        later = candidates.most_control_epochs(made.workbench)
        again = algorithm_1.run_algorithm_1(made.workbench, made.given, Compression(**OPEN_ENDED), later=later)
        candidates.train_controls(again)
        report = read_report(path)
    assert report.done == report.total > 0


# --- data that cannot be used ---------------------------------------------------------------------------


def emptied(data, label):
    return Dataset(
        data.name, data.classes,
        [Record(r.name, r.image, r.boxes[r.labels != label], r.labels[r.labels != label]) for r in data.records],
    )  # fmt: skip


FAULTS = {
    "classes-differ": (TRAIN, Dataset("v", ["ship"], []), "tiny/train and v differ in their classes: .*'ship'$"),
    "never-shown": (emptied(TRAIN, 2), VAL, f"tiny/train: category '{TRAIN.classes[1]}' has no boxes"),
    "no-images": (TRAIN, VAL.subset([], "v"), "v: no boxes, so nothing can be evaluated"),
}


@pytest.mark.parametrize(("train", "val", "fault"), FAULTS.values(), ids=FAULTS.keys())
def test_data_that_cannot_be_used_is_refused_before_anything_is_begun(train, val, fault, tmp_path):
    with pytest.raises(ValueError, match=fault):
        run(tmp_path, detector=start(), train=train, val=val)
    assert list(tmp_path.iterdir()) == []


def test_a_detector_of_other_classes_or_of_another_package_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"tiny/train: {len(TRAIN.classes)} classes, the detector has 3"):
        run(tmp_path, detector=build_detector("yolov4-tiny", 3, width=0.1))
    foreign = torch.nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="Conv2d was not made by build_detector or load_detector"):
        run(tmp_path, detector=foreign)


def test_a_side_that_the_detector_cannot_take_is_refused(tmp_path):
    detector = start()
    detector.image_multiple = 48
    with pytest.raises(ValueError, match=f"image size {tiny.SIDE} is not a multiple of 48 pixels"):
        run(tmp_path, detector=detector)


# --- all six --------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov3-spp", "yolov4", "centernet-resnet50", "faster-rcnn-resnet101"])
def test_a_chain_with_an_assistant_runs_for_every_kind_of_detector(name, tmp_path):
    """All but YOLOv4-tiny, which the other tests compress, and YOLOv3, which is YOLOv3-SPP without its pooling."""
    side = 96 if name == "faster-rcnn-resnet101" else 64
    train, val = tiny.of_classes(tiny.dataset("train", 4, side), tiny.dataset("val", 2, side))
    recipe = Recipe(epochs=1, batch_size=4, image_size=side)
    settings = Compression(step=0.3, max_drop=1.0, similar=1.0, target_mb=None, keep_floor=0.45)
    detector = tiny.quick(name, len(train.classes), side=side)
    made = compress(detector, train, val, recipe, settings, store=Store(tmp_path))
    assert [stage.role for stage in made.chain] == ["teacher", "assistant", "student"]
    sizes = [stage.cost.size_mb for stage in made.chain]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < 0.6 * sizes[0]
    assert all((stage.final.history()["bound"] >= 0).all() for stage in made.chain[1:])
