"""A notebook's hand: settings in, results out; several seeds at a time."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pandas as pd
import psutil
import pytest
import tiny
import workers
from matplotlib.figure import Figure

from paperlib.data.toy import album
from paperlib.evaluation.evaluate import Metrics
from paperlib.experiments import assistants as experiments
from paperlib.experiments import equal_cost
from paperlib.experiments.case import Splits
from paperlib.experiments.parameters import validate_settings
from paperlib.experiments.study import Study
from paperlib.progress.processes import run_jobs
from paperlib.progress.report import VARIABLE
from paperlib.store.results import find_faults

TINY = {
    "width": 0.1, "image_size": tiny.SIDE, "epochs": 1, "fine_tune_epochs": 1, "batch_size": 4, "warmup_epochs": 0.0,
    "seeds": [0], "workers": 1,
}  # fmt: skip
CHEAP = "# Parameters\nweights = 'nowhere.weights'"
"""Parameters that are accepted, and end `begin` right after: the file is not there."""


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    for name in ("STORE", "RESULTS", "DATA", "WEIGHTS"):
        monkeypatch.setenv(f"PAPERLIB_{name}", str(tmp_path / name.lower()))
    # Into the empty store of each test all of `toy-aerial` would be drawn.
    monkeypatch.setattr(album, "draw_split", lambda split: tiny.drawn(split, 4))
    return tmp_path


def study(notebook="00_start_here", **changes):
    made = Study(notebook, validate_settings(notebook, TINY | changes))
    for case in made.cases.values():
        case.splits = small_splits()
    return made


def small_splits(test=4):
    splits = Splits("toy-aerial")
    splits.train, splits.val, splits.test = tiny.dataset(), tiny.dataset("val", 4), tiny.dataset("test", test)
    return splits


def begin(*cells, notebook="00_start_here"):
    """What happens in a kernel in which these cells have been run."""
    namespace = {"In": ["", *cells, "study = pl.Study.begin(…)"]}
    for cell in cells:
        exec(cell, namespace)
    return Study.begin(notebook, namespace)


@pytest.fixture(scope="module")
def two_seeds(tmp_path_factory):
    """Settings that processes can read data by: a file, for what a test draws stays with the test."""
    folder = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test"):
        tiny.write_coco(folder, split, tiny.dataset(split), images=".")
    return TINY | {"seeds": [0, 1], "workers": 2, "dataset": f"coco:{folder}/{{split}}.json"}


@pytest.fixture(scope="module")
def begun(two_seeds):
    injected = "\n".join(f"{name} = {value!r}" for name, value in two_seeds.items())
    return begin("import os\nx = 3", "# Parameters\nepochs = 3\nratio = 0.4", f"# Parameters\n{injected}\n")


def test_a_study_takes_its_settings_from_the_notebooks_variables(begun, two_seeds):
    made = begun
    assert made.settings == validate_settings("00_start_here", two_seeds | {"ratio": 0.4})
    assert made.case.blueprint.anchors[0] == (5.0, 7.0)
    bench = made.case.make_workbench(seed=3)
    assert (bench.recipe.epochs, bench.recipe.seed, bench.recipe.ema) == (1, 3, made.settings.ema)
    assert (bench.fine_tuning.epochs, bench.fine_tuning.warmup_epochs) == (made.settings.fine_tune_epochs, 0.0)


@pytest.mark.parametrize(
    ("cells", "complaint"),
    [
        (["# Parameters\nepoch = 3"], r"parameters: unknown key 'epoch', did you mean 'epochs'\? \(known: "),
        (["# Parameters\nepochs = 3", "# Parameters\nepoch: int = 3\n"], "parameters: unknown key 'epoch'"),
        (["# Parameters\nepoch = 3", "# Parameters\nepochs = 3\n"], "parameters: unknown key 'epoch'"),
        (["# Parameters\nepochs = '3'"], r"parameters: epochs: .*valid integer \(found '3'\)"),
        (["# Parameters\nratio = 1.2"], r"parameters: ratio: .*less than 1 \(found 1.2\)"),
        (
            ["# Parameters\ndetector = 'yolov5'"],
            r"parameters: detector: unknown detector 'yolov5', did you mean 'yolov4'\? \(known: yolov3, ",
        ),
        (["# Parameters\ndataset = 'toy'"], "unknown data set 'toy'"),
        (
            ["# Parameters\ndataset = 'coco:own.json'"],
            r"'coco:own.json' would be train, val and test at once; .*\{split\}",
        ),
    ],
)
def test_a_parameter_that_is_unknown_or_wrong_is_refused_by_name(cells, complaint):
    with pytest.raises(ValueError, match=complaint):
        begin(*cells)


def test_a_parameter_may_be_corrected_without_a_new_kernel():
    with pytest.raises(FileNotFoundError, match=r"nowhere\.weights: no such weights file"):
        begin("# Parameters\nepoch = 3", "pass  # pl.Study.begin refused it", CHEAP)


def test_data_and_weights_that_are_not_there_are_named(places):
    with pytest.raises(FileNotFoundError, match=f"{places}/weights/nowhere.weights: no such weights file"):
        begin(CHEAP)
    with pytest.raises(FileNotFoundError, match=f"{places}/data"):
        begin("# Parameters\ndataset = 'vhr10'")
    assert list(places.iterdir()) == []


def test_metrics_are_written_last_and_say_that_the_notebook_is_done(places):
    made = study()
    made.run(workers.dense)
    made.save_table(made.frame(), "all")
    made.save_figure(Figure(), "empty")
    folder = places / "results" / "scratch" / "00_start_here"
    assert folder == made.folder
    names = {f"table_all.{kind}" for kind in ("csv", "md", "tex")} | {"figure_empty.svg", "figure_empty.png"}
    assert {path.name for path in folder.iterdir()} == names

    with pytest.raises(ValueError, match="summary"):
        made.finish({"summary": object()})
    names.add("detections.npz")
    assert {path.name for path in folder.iterdir()} == names
    assert made.finish({"learned": True}) == {"learned": True}
    written = json.loads((folder / "metrics.json").read_text())
    [model] = written["models"]
    assert written["summary"] == {"learned": True}
    assert Metrics(**model["metrics"]) == made.runs[0].metrics
    assert model["cost"]["size_mb"] == model["mb"] > 0

    born = json.loads((folder / "provenance.json").read_text())
    assert born["settings"] == made.settings.model_dump()
    assert born["data_digest"] == {"toy-aerial": made.case.splits.collect_digests()}
    assert born["steps"] == [made.runs[0].model.digest]
    assert born["training_seconds"] == pytest.approx(made.runs[0].model.history()["seconds"].sum(), abs=1e-3)
    assert born.keys() >= {"code", "versions", "machine", "seeds", "wall_seconds", "finished"}
    assert born["files"].keys() == {*names, "metrics.json"} and not find_faults(folder)

    made.save_table(made.frame(), "all")
    assert not (folder / "metrics.json").exists(), "half of the results are new, yet they count as done"


def finish(made):
    """Finish without drawing all of `toy-aerial`."""
    for case in made.cases.values():
        case.splits = small_splits()
    made.finish({})


@pytest.mark.parametrize(
    ("cell", "difference"),
    [
        ("epochs = 3", "epochs: 12 -> 3"),
        ("seeds = [1]", r"seeds: \[0\] -> \[1\]"),
        ("profile = 'laptop'", "[a-z_]+: .* and [0-9]+ more"),
        ("profile = 'mine'", "mine: no such profile"),
    ],
)
def test_other_settings_than_the_profiles_write_to_scratch_and_say_so(cell, difference, places, capsys):
    made = begin(f"# Parameters\n{cell}")
    assert made.folder == places / "results" / "scratch" / "00_start_here"
    [line] = capsys.readouterr().out.splitlines()
    profile = made.settings.profile
    assert re.fullmatch(
        rf"The settings differ from the profile {profile} \({difference}\): the results go to "
        r"results/scratch/00_start_here, which no claim reads\.",
        line,
    )
    finish(made)
    assert not (places / "results" / profile).exists()


def test_the_settings_of_a_profile_write_to_its_scale_and_say_nothing(places, capsys):
    made = begin("# Parameters\nepochs = 12")
    finish(made)
    assert made.folder == places / "results" / "quick" / "00_start_here"
    assert not capsys.readouterr().out and not find_faults(made.folder)


def test_a_cell_that_is_run_again_does_not_count_its_seeds_twice():
    made = study(seeds=[3])
    first = made.run(workers.dense)
    assert made.run(workers.dense) == first
    assert list(made.frame()["seed"]) == [3]
    assert made.frame()["map50"].tolist() == [first[3]["dense"].metrics.map50]


def trainings(places):
    return sum(len(list((places / "store").glob(f"{kind}-*/step.json"))) for kind in ("train", "distil"))


def test_the_pruning_ratio_is_scanned_from_one_sparse_model(places):
    made = study("02_pruning_ratio", ratios=[0.3, 0.9], cases={"": {}})
    runs = made.run(experiments.pruning_ratio)[0]
    assert list(runs) == ["baseline", "sparse", "pruned 30%", "fine-tuned 30%", "pruned 90%", "fine-tuned 90%"]
    sizes = [runs[name].cost.size_mb for name in runs]
    assert sizes[0] == sizes[1] > sizes[2] == sizes[3] > sizes[4] == sizes[5]
    assert trainings(places) == experiments.TRAININGS[experiments.pruning_ratio](made.settings).both_kinds == 4


def test_table_1_compares_students_of_one_shape_that_start_from_the_same_weights(places):
    made = study("03_components", ratios=[0.3, 0.6], assistants=True)
    parts = (experiments.baseline, experiments.components)
    first = made.run(*parts)[0]
    assert trainings(places) == sum(experiments.TRAININGS[part](made.settings).both_kinds for part in parts) == 7
    runs = first | made.run(experiments.controls)[0]
    assert trainings(places) == 8, "the control starts from the student's shape, which is there"
    students = ("pruned", "SCP", "SCP + KD", "SCP + TAKD", "scratch")
    assert len({runs[name].cost for name in students}) == 1
    assert runs["sparse"].cost == runs["baseline"].cost

    def parents(name):
        return json.loads((runs[name].model.folder / "step.json").read_text())["step"]["parents"]

    pruned, teacher = runs["pruned"].model.digest, runs["sparse"].model.digest
    assert parents("pruned")[1:] == [teacher], "a layer's floor is a share of what it had in the original"
    assert parents("SCP") == [pruned]
    assert parents("SCP + KD") == [pruned, teacher]
    assert parents("SCP + TAKD")[0] == pruned
    assert parents("SCP + TAKD")[1] == runs["assistant 30%"].model.digest
    plan, whole = runs["pruned"].model.plan(), runs["sparse"].model.detector()
    channels = sum(whole.get_submodule(name).out_channels for name in plan.kept)
    assert plan.channels_kept / channels == pytest.approx(0.4, abs=0.05)


def test_figure_5_differs_in_the_term_of_eq_4_alone(places):
    made = study("01_scale_factor", sparsities=[0.0, 0.001], proximal=[0.001, 2.0])
    runs = made.run(experiments.scale_factor, experiments.proximal_step)[0]
    assert list(runs) == ["λ = 0", "λ = 0.001", "λ = 0.001, proximal", "λ = 2, proximal"]
    parts = (experiments.scale_factor, experiments.proximal_step)
    counts = [experiments.TRAININGS[part](made.settings).both_kinds for part in parts]
    assert trainings(places) == sum(counts) == 4
    steps = [json.loads((run.model.folder / "step.json").read_text())["step"] for run in runs.values()]
    terms = [step["settings"].pop("sparsity") for step in steps]
    assert terms[0] is None and terms[1:] == [
        {"strength": strength, "method": method}
        for strength, method in ((0.001, "subgradient"), (0.001, "proximal"), (2.0, "proximal"))
    ]
    assert all(step["settings"] == steps[0]["settings"] and step["parents"] == steps[0]["parents"] for step in steps)


def test_the_assistants_of_a_chain_are_spread_evenly():
    assert experiments.spread_chains(3) == {"TK": (), "TAK1": (2,), "TAK2": (1, 3), "TAK3": (1, 2, 3)}
    for assistants in range(1, 9):
        for count, links in enumerate(experiments.spread_chains(assistants).values()):
            places = [0, *links, assistants + 1]
            gaps = [after - before for before, after in pairwise(places)]
            assert len(links) == count and min(gaps) >= 1 >= max(gaps) - min(gaps)


def test_figure_8_teaches_one_student_through_each_chain_and_distils_no_assistant_twice(places):
    made = study("04_assistant_count", ratios=[0.2, 0.4, 0.6])
    runs = made.run(experiments.assistant_count)[0]
    assert trainings(places) == experiments.TRAININGS[experiments.assistant_count](made.settings).both_kinds
    students = ["pruned", "SCP", "TK", "TAK1", "TAK2"]
    assert len({runs[name].cost for name in students}) == 1
    taught_by = {"TK": "teacher", "TAK1": "TAK1: assistant 40%", "TAK2": "TAK2: assistant 40%"}
    for name, teacher in taught_by.items():
        step = json.loads((runs[name].model.folder / "step.json").read_text())["step"]
        assert step["parents"] == [runs["pruned"].model.digest, runs[teacher].model.digest]
    assert len({runs[teacher].model.digest for teacher in taught_by.values()}) == 3
    sizes = [runs[name].cost.size_mb for name in ("teacher", "TAK2: assistant 20%", "TAK2: assistant 40%", "TAK2")]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4


def test_table_5_cuts_the_same_weights_to_one_size_by_each_criterion(places):
    made = study("06_pruning_methods", size_share=0.4)
    parts = (experiments.pruning_methods, experiments.without_sparsity, experiments.at_equal_compute)
    runs = made.run(*parts)[0]
    assert trainings(places) == 9, "the second part finds the baseline in the store, and the third makes nothing"
    assert [experiments.TRAININGS[part](made.settings).both_kinds for part in parts] == [6, 4, 0]
    share = {name: run.cost.size_mb / runs["baseline"].cost.size_mb for name, run in runs.items()}
    for model, names in {
        "sparse": ["gamma", "l1", "l1-layerwise", "taylor"],
        "baseline": ["l1 without Eq. 4", "l1-layerwise without Eq. 4", "taylor without Eq. 4"],
    }.items():
        for name in names:
            pruned, whole = runs[f"{name} pruned"].model, runs[model].model
            step = json.loads((pruned.folder / "step.json").read_text())["step"]
            assert step["parents"] == [whole.digest]
            assert pruned.plan().importance == name.split()[0]
            assert share[name] == share[f"{name} pruned"] == pytest.approx(0.4, abs=0.04)


def test_table_5_also_compares_the_criteria_at_equal_compute(places):
    made = study("06_pruning_methods", compute_share=0.5)
    runs = made.run(experiments.at_equal_compute)[0]
    gmacs = {name: run.cost.gmacs for name, run in runs.items()}
    criteria = ("gamma", "l1-layerwise", "taylor")
    assert set(gmacs) == {f"{name} at equal compute{end}" for name in criteria for end in ("", " pruned")}
    assert max(gmacs.values()) == pytest.approx(min(gmacs.values()), rel=0.15)


def test_seeds_in_processes_give_the_numbers_that_they_give_one_after_the_other(begun, two_seeds, places, monkeypatch):
    begun.run(workers.dense, workers.untrained)
    assert VARIABLE not in os.environ
    monkeypatch.setenv("PAPERLIB_STORE", str(places / "other"))
    alone = Study("00_start_here", validate_settings("00_start_here", two_seeds | {"workers": 1}))
    alone.case.splits = begun.case.splits
    alone.run(workers.dense, workers.untrained)
    assert list(alone.frame()["seed"]) == [0, 1, 0, 1]
    pd.testing.assert_frame_equal(begun.frame(), alone.frame(), check_exact=True)
    made = [{path.parent.name for path in (places / name).glob("*/step.json")} for name in ("store", "other")]
    assert made[0] == made[1]
    weights = [[run.model.detector() for run in one.runs] for one in (begun, alone)]
    assert all(map(tiny.equal, *weights))


def still_alive(folder):
    return [path for path in Path(folder).glob("*.pid") if psutil.pid_exists(int(path.stem))]


def test_a_seed_that_fails_ends_the_others_and_its_error_is_raised(tmp_path):
    with pytest.raises(ValueError, match="seed 1 does not like its data"):
        run_jobs(workers.wait_or_fail, [(str(tmp_path), seed) for seed in (0, 1)], [1, 1], 2)
    assert len(list(tmp_path.glob("*.pid"))) == 1
    assert not still_alive(tmp_path)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel's help is needed")
def test_the_processes_of_the_seeds_die_with_the_one_that_started_them(tmp_path):
    script = "import sys, workers\nfrom paperlib.progress.processes import run_jobs\n"
    script += "if __name__ == '__main__': run_jobs(workers.wait, [(sys.argv[1], 0), (sys.argv[1], 1)], [1, 1], 2)\n"
    (tmp_path / "main.py").write_text(script)
    places = [Path(workers.__file__).parent, Path(tiny.__file__).parents[1]]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, places))}
    command = [sys.executable, str(tmp_path / "main.py"), str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as process:
        wait_until(lambda: len(still_alive(tmp_path)) == 2)
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not still_alive(tmp_path))


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def test_examples_are_spread_over_the_test_images_with_some_objects():
    case = study().case
    case.splits = small_splits(test=30)
    chosen = case.examples(4, 0)
    assert len(set(chosen)) == 4 and chosen == sorted(chosen)
    assert all(3 <= len(case.splits.test.records[index].labels) <= 12 for index in chosen)


def test_cases_stand_side_by_side_under_their_names(places):
    made = study(cases={"thin": {"width": 0.05}, "small": {"image_size": 32}})
    runs = made.run(workers.untrained)[0]
    assert {name: run.case for name, run in runs.items()} == {"thin untrained": "thin", "small untrained": "small"}
    thin, small = runs.values()
    assert thin.cost.size_mb < small.cost.size_mb and thin.cost.gmacs > small.cost.gmacs / 2
    assert made.collect_origin()["data_digest"].keys() == {"toy-aerial"}


def test_controls_of_equal_cost_have_the_students_shape_and_the_stated_length(places):
    made = study("03_components", ratios=[0.3, 0.6], epochs=1, rows=list(equal_cost.ROWS), longer=2.0)
    runs = made.run(experiments.components, equal_cost.equal_cost)[0]
    same_shape = [name for name in runs if name.startswith(("SCP", "scratch")) and name != "SCP without Eq. 4"]
    assert len(same_shape) == 10 and len({runs[name].cost for name in same_shape}) == 1
    assert runs["baseline, longer"].cost == runs["sparse, longer"].cost == runs["sparse"].cost
    short = made.settings.fine_tune_epochs
    epochs = {name: len(runs[name].model.history()) for name in ("SCP, longer", "SCP, then KD", "sparse, longer")}
    assert epochs == {"SCP, longer": 2 * short, "SCP, then KD": short, "sparse, longer": 1 + 2 * short}
    assert len(runs["scratch, twice"].model.history()) == 2

    def parents(name):
        return json.loads((runs[name].model.folder / "step.json").read_text())["step"]["parents"]

    assert parents("SCP, then KD") == [runs["SCP"].model.digest, runs["sparse"].model.digest]
    assert parents("SCP + TAKD, longer") == parents("SCP + TAKD")
    settings = made.settings
    counted = sum(
        experiments.TRAININGS[part](settings).both_kinds for part in (experiments.components, equal_cost.equal_cost)
    )
    assert trainings(places) <= counted
