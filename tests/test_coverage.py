"""The pooled intervals have their stated coverage, in a small simulation."""

import runpy

import pytest

from paperlib import paths


@pytest.mark.parametrize("case", ["3 runs, one split", "5 runs, five folds", "10 runs, five folds"])
def test_nine_of_ten_intervals_contain_the_true_value(case):
    script = runpy.run_path(str(paths.repository_root() / "benchmarks" / "coverage.py"))
    assert 0.86 < script["measure_coverage"](600, *script["CASES"][case]) < 0.94
