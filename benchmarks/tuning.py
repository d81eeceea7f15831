"""Tune fine-tuning, KD and TAKD of Table 1 with the same number of trials, on validation images.

    python benchmarks/tuning.py --trials 9 --seeds 0 --threads 1 --log tuning.jsonl

Trial 0 has the settings of the profile. The others draw learning rate, warm-up and length, the same for all arms, and
for the distillations the temperature and the weights of Eqs. 10 and 11. Lengths are compared separately, because a
longer training is usually better. Every finished training is kept in the store, so an interrupted search continues.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch
from recipe import settings

from paperlib.experiments.case import Case, Splits, fold_of
from paperlib.experiments.parameters import Components
from paperlib.progress.processes import keep_memory
from paperlib.store import provenance
from paperlib.workbench.algorithm_1 import distil_chain, prune_to_ratios
from paperlib.workbench.options import DistillationOptions
from paperlib.workbench.steps import Model, Workbench

ARMS = ("fine-tuning", "KD", "TAKD")
LENGTHS = (1.0, 2.0)


@dataclass(frozen=True)
class Trial:
    """The settings of a trial.

    Attributes:
        number: of the trial; 0 has the profile's settings.
        rate: factor on the profile's learning rate.
        warmup: epochs of linear warm-up.
        times: factor on the profile's number of epochs.
        taught: temperature and weights of a distillation.
    """

    number: int
    rate: float
    warmup: float
    times: float
    taught: DistillationOptions


def draw_trials(count: int, chosen: Components) -> list[Trial]:
    """Draw the trials, the same for every arm and seed."""
    generator = torch.Generator().manual_seed(0)

    def choose(*values: float) -> float:
        return values[int(torch.randint(len(values), (), generator=generator))]

    trials = [Trial(0, 1.0, chosen.fine_tune_warmup_epochs, 1.0, chosen.select(DistillationOptions))]
    for number in range(1, count):
        taught = DistillationOptions(
            temperature=choose(1.0, 2.0, 4.0), soft_weight=choose(0.25, 0.5, 0.75), bound_weight=choose(0.0, 0.5, 1.0)
        )
        # In turn, so that every length gets as many trials.
        times = LENGTHS[number % len(LENGTHS)]
        trials.append(Trial(number, choose(0.25, 0.5, 1.0, 2.0), choose(0.0, 1.0), times, taught))
    return trials


@dataclass
class Start:
    """The models of one seed that all trials start from."""

    bench: Workbench
    teachers: dict[str, Model]
    student: Model

    @classmethod
    def prepare(cls, chosen: Components, seed: int) -> Start:
        """Train the teacher, prune it to the student, and distil the assistants with the profile's settings."""
        bench = Case("", chosen, Splits(chosen.dataset, fold_of(chosen, seed))).make_workbench(seed)
        teacher = bench.train_sparse(bench.build_detector())
        *assistants, student = prune_to_ratios(bench, teacher, chosen.ratios)
        *_, assistant = distil_chain(bench, teacher, assistants)
        return cls(bench, {"KD": teacher, "TAKD": assistant}, student)

    def run(self, arm: str, trial: Trial) -> dict[str, Any]:
        """Train the student as a trial says; return the row of the log, with mAP50 on the validation images."""
        usual = self.bench.fine_tuning
        changed = {"learning_rate": trial.rate * usual.learning_rate, "warmup_epochs": trial.warmup}
        bench = replace(self.bench, fine_tuning=usual.model_copy(update=changed))
        taught = trial.taught.model_dump() if arm in self.teachers else {}
        label = f"{arm}, trial {trial.number}"
        if taught:
            model = bench.distil(self.student, self.teachers[arm], label, times=trial.times, **taught)
        else:
            model = bench.fine_tune(self.student, label, times=trial.times)
        row = {"arm": arm, "seed": usual.seed, "trial": trial.number, "rate": trial.rate, "warmup": trial.warmup}
        return row | {"times": trial.times, **taught, "map50": bench.evaluate(model, "val").map50}


def tabulate_best(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """Return the best trial of each arm and length by its mean over the seeds, and the trial that changes nothing."""
    every = pd.DataFrame(rows)
    keys = [name for name in every.columns if name not in ("seed", "map50")]
    means = every.groupby(keys, dropna=False)["map50"].agg(["mean", "count"]).reset_index()
    best = means.sort_values("mean", ascending=False).drop_duplicates(["arm", "times"])
    return pd.concat([best, means.query("trial == 0")]).drop_duplicates().sort_values(["times", "arm", "trial"])


def main() -> None:
    """Run the trials, write each into the log, and print the best."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="laptop")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings that differ")
    parser.add_argument("--trials", type=int, default=9, help="of each arm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], help="each on the fold of its number")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--log", type=Path, default=Path("tuning.jsonl"))
    asked = parser.parse_args()
    keep_memory()
    torch.set_num_threads(asked.threads)
    chosen = cast(Components, settings(asked.profile, asked.set))
    print(f"{provenance.describe_machine()}; {' '.join(asked.set)}")
    rows: list[dict[str, Any]] = []
    for seed in asked.seeds:
        start = Start.prepare(chosen, seed)
        for trial in draw_trials(asked.trials, chosen):
            for arm in ARMS:
                rows.append(start.run(arm, trial))
                asked.log.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(tabulate_best(rows).to_markdown(index=False, floatfmt=".3g"))


if __name__ == "__main__":
    main()
