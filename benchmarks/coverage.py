"""Coverage of the pooled intervals: how often the 90 % interval of a difference contains the true one, by simulation.

    python benchmarks/coverage.py --trials 4000

Runs are drawn with noise that all models of a run share, noise of each model, and noise of the test images, which all
runs share or which goes through five folds. `uneven` doubles the noise of one model in four, and the difference is
between two ordinary ones.
"""

from __future__ import annotations

import argparse

import numpy as np

from paperlib.claims.noise import ImageNoise, interval_half_width, pool_noise

SHARED, OWN, IMAGES = 0.010, 0.012, 0.015
"""Standard deviations: of a run, of a model in a run, and of a difference by the choice of the images."""
CASES = {
    "3 runs, one split": (3, None, False),
    "5 runs, five folds": (5, 5, False),
    "10 runs, five folds": (10, 5, False),
    "5 runs, five folds, uneven": (5, 5, True),
}


def draw_interval(
    generator: np.random.Generator, runs: int, folds: int | None, uneven: bool, models: int = 7
) -> tuple[float, float]:
    """Draw one scale of two notebooks; return the error of a difference and half the width of its interval."""
    scale = np.where(np.arange(models) % 4 == 3, 2.0 if uneven else 1.0, 1.0)[:, None]
    split = np.arange(runs) % folds if folds else np.zeros(runs, int)
    tables, first = [], None
    for _ in range(2):
        # Half of the variance of a difference belongs to each of its models.
        images = generator.normal(0, IMAGES / 2**0.5, (models, split.max() + 1))[:, split]
        own = generator.normal(0, OWN, (models, runs)) * scale
        values = 0.8 + own + images + generator.normal(0, SHARED, runs)
        tables.append({f"model {row}": dict(enumerate(each.tolist())) for row, each in enumerate(values)})
        first = values if first is None else first
    noise = pool_noise(tables, paired=True, relative=False)
    assert noise is not None and first is not None
    # The bootstrap's variance is itself uncertain by 15 %, with a hundred replicates.
    variance = IMAGES**2 * generator.chisquare(99) / 99
    half_width = interval_half_width(noise, runs, ImageNoise(variance, folds))
    return float((first[0] - first[1]).mean()), half_width


def measure_coverage(trials: int, runs: int, folds: int | None, uneven: bool, seed: int = 0) -> float:
    """Return the fraction of intervals that contain the true difference, 0."""
    generator = np.random.default_rng(seed)
    drawn = [draw_interval(generator, runs, folds, uneven) for _ in range(trials)]
    return float(np.mean([abs(error) <= half_width for error, half_width in drawn]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Coverage of the pooled 90 % intervals, by simulation.")
    parser.add_argument("--trials", type=int, default=4000)
    trials = parser.parse_args().trials
    for name, case in CASES.items():
        print(f"{name}: {100 * measure_coverage(trials, *case):.1f} % of the 90 % intervals contain the true value")
