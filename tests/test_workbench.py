"""The steps of the paper, remembered."""

import dataclasses
import importlib
import json
import os
import shutil
from functools import partial

import numpy as np
import pytest
import tiny
import torch

import paperlib
from paperlib.costs import cost
from paperlib.data import Dataset
from paperlib.detectors.files import load_detector
from paperlib.distillation.scenes import SelfDistillation
from paperlib.evaluation.evaluate import evaluate
from paperlib.partners.partnership import Partnership
from paperlib.pruning import Sparsity
from paperlib.pruning.soft_pruning import SoftPruning
from paperlib.store.code_digest import code_of
from paperlib.store.store import Store
from paperlib.training.folder import BEST, HISTORY
from paperlib.training.loop import fit
from paperlib.workbench import steps
from paperlib.workbench.checks import check_criterion
from paperlib.workbench.steps import DETECTOR, FITTED, Blueprint, PruningOptions, Workbench


class Watched(Dataset):
    """Knows whether anybody has looked at its images."""

    looked_at = False

    def letterboxed(self, side):
        self.looked_at = True
        return super().letterboxed(side)


def bench(root, *, train_set=None, seed=0, **changes):
    splits = {"train_set": train_set or tiny.dataset(), "validation": tiny.dataset("val", 4)}
    recipes = {"recipe": tiny.recipe(seed=seed), "fine_tuning": tiny.recipe(epochs=1, seed=seed)}
    start = {"blueprint": Blueprint("yolov4-tiny", 0.1, anchors=tiny.ANCHORS), "sparsity": Sparsity(1e-2)}
    chosen = {**splits, "test": tiny.dataset("test", 4), **recipes, **start, **changes}
    return Workbench(**chosen, store=Store(root))


def watched():
    data = tiny.dataset()
    return Watched(data.name, data.classes, data.records)


def every_step(steps):
    """One of each step, in the order of the paper, and its metrics."""
    new = steps.build_detector()
    sparse = steps.train_sparse(new)
    pruned = steps.prune(sparse, 0.5)
    tuned = steps.fine_tune(pruned)
    distilled = steps.distil(pruned, sparse)
    models = {"new": new, "dense": steps.train(new), "sparse": sparse, "pruned": pruned, "tuned": tuned}
    models |= {"distilled": distilled, "reset": steps.reset_weights(pruned)}
    return models, steps.evaluate(distilled)


def record(model):
    return json.loads((model.folder / "step.json").read_text())["step"]


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    root = tmp_path_factory.mktemp("store")
    return root, *every_step(bench(root))


def test_a_step_is_done_once_and_then_remembered(done):
    root, models, metrics = done
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"}
    again = bench(root, train_set=watched())
    assert every_step(again) == (models, metrics)
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.suffix != ".lock"} == before
    assert not again.train_set.looked_at


def test_all_steps_work_on_scenes(tmp_path):
    """Build, train, prune, fine-tune with partners, distil and evaluate a classifier, each step once."""
    splits = {"train_set": tiny.scenes(), "validation": tiny.scenes("val", 6), "test": tiny.scenes("test", 6)}
    recipe = tiny.recipe(image_size=tiny.SCENE_SIDE)
    blueprint = Blueprint("resnet50", 0.05, 0.2, stem_stride=2)
    scenes = bench(tmp_path, **splits, blueprint=blueprint, recipe=recipe, fine_tuning=recipe)

    def run():
        trained = scenes.train(scenes.build_detector())
        pruned = scenes.prune(trained, 0.4, importance="taylor")
        self_taught = partial(SelfDistillation, hint_weight=0.1)
        models = {
            "pruned": pruned,
            "reset": scenes.reset_weights(pruned),
            "partners": scenes.fine_tune(pruned, partners=Partnership(0.01)),
            "distilled": scenes.distil(pruned, trained),
            "self-taught": scenes.fine_tune(pruned, objective=self_taught),
            "soft": scenes.train(trained, term=SoftPruning(ratio=0.4)),
        }
        return models, scenes.evaluate(models["partners"])

    models, metrics = run()
    assert 0 <= metrics.top1 <= metrics.top5 == 1
    assert metrics.labels == [0, 1, 2, 0, 1, 2]
    assert models["partners"].detector().build_arguments["name"] == "resnet50"
    assert list(models["self-taught"].history()[["early", "hint", "top1"]]) == ["early", "hint", "top1"]
    assert record(models["self-taught"])["settings"]["objective"] == {"name": "SelfDistillation", "hint_weight": 0.1}
    assert len({model.digest for model in models.values()}) == len(models)
    count = len(list(tmp_path.iterdir()))
    assert run() == (models, metrics) and len(list(tmp_path.iterdir())) == count
    with pytest.raises(ValueError, match="tiny-scenes/test: scenes have no boxes: confidence, full_images and slices"):
        scenes.evaluate(models["pruned"], slices=True)
    with pytest.raises(ValueError, match="SoftPruning: a training with partners takes no other regulariser than Eq. 4"):
        scenes.train(models["pruned"], term=SoftPruning(ratio=0.4), partners=Partnership())


def test_another_seed_or_setting_is_another_step(done):
    root, models, _ = done
    names = {path.name for path in root.glob("*-*")}
    others = [
        bench(root, seed=1).build_detector(),
        bench(root, blueprint=Blueprint("yolov4-tiny", 0.1)).build_detector(),
    ]
    others.append(bench(root).prune(models["sparse"], 0.4))
    others.append(bench(root, pruning=PruningOptions(compensate="off")).prune(models["sparse"], 0.5))
    assert not names & {model.folder.name for model in others}
    assert len({model.digest for model in others}) == len(others)


CRITERION = """
def by_position(module, prunable):
    return {name: range(FIRST, FIRST + len(module.get_submodule(name).weight)) for name in prunable}
"""


def test_the_source_of_a_criterion_of_ones_own_belongs_to_the_step(done, tmp_path, monkeypatch):
    root, models, _ = done
    monkeypatch.syspath_prepend(tmp_path)

    def prune(name, first):
        (tmp_path / f"{name}.py").write_text(f"FIRST = {first}\n{CRITERION}")
        return bench(root, pruning=PruningOptions(importance=f"{name}:by_position")).prune(models["sparse"], 0.3)

    first, same, other = prune("criteria_a", 0), prune("criteria_a", 0), prune("criteria_b", 1)
    assert first == same != other
    assert first.plan().importance == "criteria_a:by_position"
    module = importlib.import_module("criteria_a")
    by_function = bench(root).prune(models["sparse"], 0.3, importance=module.by_position)
    assert by_function.plan().kept == first.plan().kept
    assert PruningOptions(importance=module.by_position).importance == "criteria_a:by_position"
    with pytest.raises(ValueError, match="importance '.*<lambda>' cannot be found by that name; call register_import"):
        PruningOptions(importance=lambda detector, prunable: {})
    with pytest.raises(ValueError, match="importance 'math:sin' cannot be called with"):
        check_criterion(models["sparse"].detector(), "math:sin")
    with pytest.raises(ValueError, match="importance 'gama' is not known; choose one of: gamma, l1"):
        PruningOptions(importance="gama")
    with pytest.raises(ValueError, match="importance 'criteria_a:nothing' cannot be imported"):
        PruningOptions(importance="criteria_a:nothing")


def test_the_chain_of_steps_gives_smaller_detectors_that_know_their_parents(done):
    _, models, _ = done
    prices = {name: cost(model.detector(), tiny.SIDE) for name, model in models.items()}
    assert prices["pruned"] == prices["tuned"] == prices["distilled"] == prices["reset"]
    assert prices["pruned"].parameters < 0.6 * prices["sparse"].parameters
    assert prices["sparse"] == prices["dense"] == prices["new"]
    assert models["pruned"].plan().ratio == 0.5
    assert record(models["distilled"])["parents"] == [models["pruned"].digest, models["sparse"].digest]
    assert record(models["tuned"])["parents"] == [models["pruned"].digest]
    assert list(models["distilled"].history()["bound"] > 0) == [True]
    assert not tiny.equal(models["distilled"].detector(), models["tuned"].detector())
    assert list(models["sparse"].history()["epoch"]) == [1, 2]
    written = {name: (models["sparse"].folder / name).stat().st_mtime_ns for name in (HISTORY, BEST, DETECTOR, FITTED)}
    assert max(written, key=written.get) == FITTED, "its presence is taken for the presence of all"
    assert not (models["sparse"].folder / "fit").exists(), "the optimiser's state is still there"


TRAININGS = {"train_sparse", "fine_tune", "distil", "train"}
ALL = {"build", "prune", "prune by taylor", "reset", "evaluate", *TRAININGS}
CHANGES = {
    "detectors/yolov4_tiny.py": ALL,
    "structure/shapes.py": ALL,
    "data/records.py": {*TRAININGS, "evaluate", "prune by taylor"},
    "training/loop.py": TRAININGS,
    "evaluation/evaluate.py": {*TRAININGS, "evaluate"},
    "distillation/assistants.py": {"distil"},
    "pruning/planner.py": {"prune", "prune by taylor", "train_sparse"},
    "costs.py": {"prune", "prune by taylor", "train_sparse"},
    "workbench/steps.py": {"prune", "prune by taylor"},
    "newcomer/__init__.py": TRAININGS,
}
"""Which steps become stale by a change in each of these files."""
IDLE = ("__init__.py", "experiments/study.py", "figures/tables.py", "files.py", "paths.py", "typed_options.py",
        "progress/report.py", "store/store.py", "workbench/algorithm_1.py", "deploy/onnx.py",
        "claims/verdicts.py")  # fmt: skip


@pytest.fixture
def digests(done, tmp_path, monkeypatch):
    """A copy of the package, and a function that tells each step's digest by the code in it."""
    parts = []
    monkeypatch.setattr(steps, "code_of", lambda *used: parts.append(used) or code_of(*used))
    own = bench(done[0])
    every_step(own)
    own.prune(done[1]["sparse"], 0.5, importance="taylor")
    order = ["build", "train_sparse", "prune", "fine_tune", "distil", "train", "reset", "evaluate", "evaluate"]
    used = dict(zip([*order, "prune by taylor"], parts, strict=True))
    package = tmp_path / "paperlib"
    shutil.copytree(paperlib.__path__[0], package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "newcomer").mkdir()
    (package / "newcomer" / "__init__.py").touch()
    with (package / "training" / "recipe.py").open("a") as recipe:
        recipe.write("\n\nfrom paperlib.newcomer import X\n")
    return package, lambda: {step: code_of(*used[step], root=package).digest for step in ALL}


def test_a_step_depends_on_the_code_that_can_change_its_numbers_and_on_no_other(digests):
    package, now = digests
    stale = {}
    for name in (*CHANGES, *IDLE):
        before = now()
        text = (package / name).read_text()
        changed = text.replace("image_size=self.recipe.image_size,\n            )", "image_size=800)")
        (package / name).write_text(changed if changed != text else text + "\nX = 1\n")
        after = now()
        stale[name] = {step for step in ALL if after[step] != before[step]}
    assert stale == CHANGES | {name: set() for name in IDLE}


def test_moving_and_renaming_files_modules_and_packages_makes_no_step_stale(digests):
    package, now = digests
    before = now()
    moves = {"seeding": "chance", "distillation": "teaching", "pruning.planner": "pruning.plans.maker"}
    for path in package.rglob("*.py"):
        text = path.read_text()
        for old, new in moves.items():
            text = text.replace(f"paperlib.{old} ", f"paperlib.{new} ").replace(f"paperlib.{old}.", f"paperlib.{new}.")
        path.write_text(text)
    (package / "seeding.py").rename(package / "chance.py")
    (package / "distillation").rename(package / "teaching")
    (package / "pruning" / "plans").mkdir()
    (package / "pruning" / "planner.py").rename(package / "pruning" / "plans" / "maker.py")
    assert now() == before


def test_reset_keeps_the_shape_and_draws_new_weights(done):
    root, models, _ = done
    pruned, fresh = models["pruned"].detector(), models["reset"].detector()
    assert [value.shape for value in fresh.state_dict().values()] == [
        value.shape for value in pruned.state_dict().values()
    ]
    kernels = [(old, new) for old, new in zip(pruned.parameters(), fresh.parameters(), strict=True) if old.ndim == 4]
    assert not any(torch.equal(old, new) for old, new in kernels)
    assert all(torch.all(m.weight == 0.5) for m in fresh.modules() if isinstance(m, torch.nn.BatchNorm2d))
    assert not tiny.equal(fresh, bench(root, seed=1).reset_weights(models["pruned"]).detector())


def test_the_confidence_for_the_test_split_is_chosen_on_validation(done):
    root, models, _ = done
    still = {"zoom": 1.0, "shift": 0.0, "symmetries": False, "colour": 0.0}
    by_heart = tiny.recipe(epochs=40, learning_rate=1e-2, schedule="cosine", **still)
    steps = bench(root, recipe=by_heart, validation=tiny.dataset(count=4))
    model = steps.train(steps.build_detector())
    chosen, judged = steps.evaluate(model, "val"), steps.evaluate(model)
    records = [json.loads(path.read_text())["step"] for path in root.glob("evaluate-*/step.json")]
    [mine] = [r for r in records if r["parents"] == [model.digest] and r["data"] == steps.test.digest]
    assert mine["settings"]["confidence"] == chosen.confidence == judged.confidence
    assert chosen.confidence > 0.01, "nothing was learned, so nothing is tested"
    again = evaluate(model.detector(), steps.test, image_size=tiny.SIDE, confidence=chosen.confidence)
    assert dataclasses.replace(judged, resampled={}) == again
    assert np.std(judged.resampled["map50"]) > 0 and steps.keep_detections(model).is_file()


def baseline(root, results):
    steps = bench(root, train_set=watched(), recipe=tiny.recipe(epochs=10))
    model = steps.train(steps.build_detector())
    results.put((steps.train_set.looked_at, model.digest))


def test_two_processes_that_need_the_same_baseline_train_it_once(tmp_path):
    results = tiny.processes.SimpleQueue()
    pair = [tiny.processes.Process(target=baseline, args=(tmp_path, results)) for _ in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join()
    assert [process.exitcode for process in pair] == [0, 0]
    (trained, digest), (also_trained, other) = results.get(), results.get()
    assert {trained, also_trained} == {True, False}
    assert digest == other
    assert len(list(tmp_path.glob("train-*/step.json"))) == 1


def leave(folder, *, fit_done=False, copied=(), tidied=False, damaged=None):
    """Put a finished step back to what a kill after the last epoch leaves behind."""
    partial = folder.with_name(f"{folder.name}.partial")
    os.rename(folder, partial)
    if not tidied:
        shutil.copytree(fit_done, partial / "fit")
    for name in {DETECTOR, HISTORY, BEST} - set(copied):
        (partial / name).unlink()
    if damaged:
        content = bytearray((partial / damaged).read_bytes())
        content[len(content) // 2] ^= 1
        (partial / damaged).write_bytes(content)


@pytest.mark.parametrize(
    "moment",
    [
        {"copied": ()},
        {"copied": (HISTORY,)},
        {"copied": (HISTORY, BEST, DETECTOR)},
        {"copied": (HISTORY, BEST, DETECTOR), "tidied": True},
        {"copied": (HISTORY, BEST, DETECTOR), "damaged": DETECTOR},
    ],
    ids=["before-copying", "while-copying", "before-tidying", "after-tidying", "damaged-before-tidying"],
)
def test_killed_between_the_last_epoch_and_the_end_a_step_is_finished_without_training(moment, tmp_path):
    first = bench(tmp_path / "store")
    new = first.build_detector()
    model = first.train(new)
    weights, written = model.detector(), {p.name: p.read_bytes() for p in model.folder.iterdir()}
    fit(new.detector(), first.train_set, first.recipe, validation=first.validation, folder=tmp_path / "fit")
    leave(model.folder, fit_done=tmp_path / "fit", **moment)

    second = bench(tmp_path / "store", train_set=watched())
    assert second.train(new) == model
    assert not second.train_set.looked_at
    assert tiny.equal(model.detector(), weights)
    assert {path.name for path in model.folder.iterdir()} == written.keys()
    assert load_detector(model.folder / BEST)


def test_a_weights_file_that_is_not_there_is_named(tmp_path):
    missing = tmp_path / "tiny.weights"
    steps = bench(tmp_path, blueprint=Blueprint("yolov4-tiny", weights=missing))
    with pytest.raises(FileNotFoundError, match=f"{missing}: no such weights file"):
        steps.build_detector()
    assert list(tmp_path.iterdir()) == []


def test_a_finished_model_cannot_be_changed(done):
    _, models, _ = done
    with pytest.raises(dataclasses.FrozenInstanceError):
        models["new"].digest = "0" * 64


def test_anyones_detector_is_adopted_as_it_is_and_needs_neither_blueprint_nor_test_split(done, tmp_path):
    root, models, _ = done
    detector, steps = models["pruned"].detector(), bench(tmp_path, blueprint=None, test=None)
    model = steps.adopt_detector(detector)
    assert (
        tiny.equal(model.detector(), detector) and steps.adopt_detector(load_detector(model.folder / DETECTOR)) == model
    )
    assert steps.adopt_detector(models["tuned"].detector()) != model
    assert steps.evaluate(model, "val") == bench(root).evaluate(models["pruned"], "val")
    with pytest.raises(ValueError, match="without a test split"):
        steps.evaluate(model)
    with pytest.raises(ValueError, match="without a blueprint"):
        steps.build_detector()


def test_a_sparse_training_of_another_strength_is_another_step_and_of_the_benchs_own_the_same(done):
    root, models, _ = done
    steps = bench(root)
    assert steps.train_sparse(models["new"], sparsity=Sparsity(1e-2)) == models["sparse"]
    other = steps.train_sparse(models["new"], sparsity=Sparsity(1e-2, "proximal"))
    assert other != models["sparse"]
    assert record(other)["settings"]["sparsity"] == {"strength": 1e-2, "method": "proximal"}


def test_a_student_is_taught_by_the_channels_that_it_kept_through_two_cuts_and_assistants(done, tmp_path):
    steps, models = bench(done[0]), done[1]
    again = steps.prune(models["tuned"], 0.3)
    by_teacher = steps.distil(again, models["sparse"], how="dynamic")
    assistant = steps.distil(models["pruned"], models["sparse"], how="dynamic", feature_weight=2.0)
    by_assistant = steps.distil(again, assistant, how="dynamic")
    folders = [models["pruned"].folder.name, again.folder.name]
    told = [record(one)["settings"]["distillation"] for one in (by_teacher, assistant, by_assistant)]
    assert [one["prunings"] for one in told] == [folders, folders[:1], folders[1:]]
    assert [one["feature_weight"] for one in told] == [1.0, 2.0, 1.0]
    assert {"features", "instances", "boxes", "selected", "status"} < set(by_assistant.history())
    # Fresh weights are no longer those of the teacher: a convolution that is trained along compares them.
    stranger = steps.distil(models["reset"], models["sparse"], how="dynamic")
    assert record(stranger)["settings"]["distillation"]["prunings"] is None
    by_instances = steps.distil(again, models["sparse"], how="instances", count=3)
    assert {"instance_features", "instance_relations", "instance_classes", "instance_boxes"} < set(
        by_instances.history()
    )


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"how": "magic"}, "distillation 'magic' is not known; choose one of: bounded, dynamic, instances"),
        ({"how": "dynamic", "feature_wait": 1}, "distillation dynamic: unknown key 'feature_wait', did you mean"),
        ({"how": "instances", "count": 0}, "distillation instances: count: Input should be greater than 0"),
    ],
)
def test_a_distillation_that_does_not_exist_is_refused_in_one_line(settings, complaint, done):
    with pytest.raises(ValueError, match=complaint):
        bench(done[0]).distil(done[1]["pruned"], done[1]["sparse"], **settings)


def test_it_prunes_to_any_target_and_by_any_criterion(done):
    root, models, _ = done
    steps, sparse = bench(root), models["sparse"]
    size = 0.6 * cost(sparse.detector(), tiny.SIDE).size_mb
    cut = {name: steps.prune(sparse, size_mb=size, importance=name) for name in ("gamma", "l1", "taylor")}
    assert all(model.plan().importance == name for name, model in cut.items())
    assert all(0.9 * size < cost(model.detector(), tiny.SIDE).size_mb <= size for model in cut.values())
    assert len({json.dumps(model.plan().kept) for model in cut.values()}) == 3
    assert steps.prune(sparse, channels=100).plan().channels_kept <= 100
    assert steps.plan(sparse, gmacs=1e-4).cost_after.gmacs <= 1e-4, "counted for the images of the recipe"


def test_a_criterion_that_looks_at_data_depends_on_them_and_no_other_does(done):
    root, models, _ = done
    others = bench(root, train_set=tiny.dataset("val"))
    for importance, same in (("gamma", True), ("taylor", False)):
        mine, theirs = (steps.prune(models["sparse"], 0.3, importance=importance) for steps in (bench(root), others))
        assert (mine == theirs) == same
