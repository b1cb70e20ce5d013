"""What honest clients measure is what is promised, and what no rows have is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError
from atlas_flwr.fingerprint.promised import Asked, check, shapes
from atlas_flwr.fingerprint.subspace import subspace
from atlas_flwr.fingerprint.summary import summarise, summarise_vectors
from atlas_flwr.types import Tensors

ROWS = 90


def features(width: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.normal(2.0, 1.0, (ROWS, width)), rng.integers(0, 3, ROWS)


def measured(options: dict[str, Any], width: int) -> Tensors:
    x, y = features(width)
    rng = np.random.default_rng(1)
    match options["kind"]:
        case "subspace":
            sets = 3 if options["class-wise"] else 1
            return subspace(x, y, sets, options["dimensions"], seed=0)
        case "mean_gradient":
            return summarise_vectors(x[:2], (44, 46))
        case kind:
            own, classes = (y, 3) if kind == "class_means" else (np.zeros_like(y), 1)
            clip, noise = options["clip"] or None, options["noise"]
            return summarise(x, own, classes, seed=0, rng=rng, clip=clip, noise=noise)


def plain(kind: str, clip: float = 0.0, noise: float = 0.0) -> dict[str, Any]:
    return {"kind": kind, "clip": clip, "noise": noise}


HONEST = [
    *(plain(kind) for kind in ("class_means", "embedding", "mean_gradient")),
    *(plain("class_means", 3.0), plain("embedding", 3.0), plain("class_means", 3.0, 1.0)),
    {"kind": "subspace", "dimensions": 3, "class-wise": False},
    {"kind": "subspace", "dimensions": 3, "class-wise": True},
]


def test_no_rows_have_noise_of_fewer_dimensions_than_are_let_pass() -> None:
    """Rows on a line, with one far out, of two values: the least is 1 for many rows."""
    rng, ways = np.random.default_rng(0), 4
    for trial in range(1500):
        rows, classes = int(rng.integers(2, 40)), int(rng.integers(1, 4))
        line = rng.normal(size=(1, 8))
        x = (
            rng.normal(size=(rows, 8)),
            rng.normal(size=(rows, 1)) * line,
            np.clip(rng.standard_cauchy(size=(rows, 1)), -1e3, 1e3) * line,
            rng.integers(0, 2, size=(rows, 1)) + 1e-3 * rng.normal(size=(rows, 8)),
        )[trial % ways]
        own = summarise(x, rng.integers(0, classes, rows), classes, seed=0, rng=rng)
        check(own, Asked(plain("class_means"), classes, 8), rows)
        crowded = own["facts"].copy()
        crowded[-1] = 0.02
        if rows > 24:
            with pytest.raises(AggregationError, match=r"facts: noise of 0\.02 dimensions"):
                check({**own, "facts": crowded}, Asked(plain("class_means"), classes, 8), rows)


@pytest.mark.parametrize("noise", [0.1, 1.0, 8.0])
@pytest.mark.parametrize("counts", [(1, 1), (299, 1), (2, 0), (150, 150)])
def test_honest_noise_passes_however_few_rows_a_mean_has(
    counts: tuple[int, int], noise: float
) -> None:
    """And what is ten times as long as noise makes it does not, unless it says it is worth less."""
    rng, clip, rows = np.random.default_rng(0), 3.0, sum(counts)
    y = np.repeat([0, 1], counts)
    asked = Asked(plain("class_means", clip, noise), 2, 64)
    for _ in range(50):
        x = 5 * rng.normal(size=(rows, 64))
        own = summarise(x, y, 2, seed=0, rng=rng, clip=clip, noise=noise)
        check(own, asked, rows)
        long = own["sketch"].astype(np.float64)
        long[:-1] *= 12
        if np.linalg.norm(long[:-1], axis=1).max() > 12 * clip:
            with pytest.raises(AggregationError, match=r"at most .* with its noise"):
                check({**own, "sketch": long}, asked, rows)


def test_a_spread_that_makes_all_alike_is_refused() -> None:
    """In deviations that are wide enough, or of noise of no dimension, nobody differs."""
    for noise in (0.0, 1.0):
        options = plain("class_means", 3.0, noise)
        asked, own = Asked(options, 3, 16), measured(options, 16)
        check(own, asked, ROWS)
        crowded = own["facts"].copy()
        crowded[-1] = 1e-3
        with pytest.raises(AggregationError, match=r"facts: noise of 0\.001 dimensions"):
            check({**own, "facts": crowded}, asked, ROWS)
        if noise:
            for spread in (0.0, 6e4, 1.1 * own["sketch"][-1]):
                wide = own["sketch"].copy()
                wide[-1] = spread
                with pytest.raises(AggregationError, match=r"a spread that is not 0\.75"):
                    check({**own, "sketch": wide}, asked, ROWS)


@pytest.mark.parametrize("width", [9, 16, 768, 1200])
@pytest.mark.parametrize("options", HONEST, ids=str)
def test_honest_fingerprints_are_as_promised(options: dict[str, Any], width: int) -> None:
    told = measured(options, width)
    given = {name: tensor.shape for name, tensor in told.items()}
    for known in (0, width):
        asked = Asked(options, 3, known)
        promised = shapes(asked, given)
        assert {n: (t.shape, str(t.dtype)) for n, t in told.items()} == promised
        check(told, asked, ROWS)


@pytest.mark.parametrize("options", HONEST, ids=str)
def test_a_shape_that_no_fingerprint_has_is_refused(options: dict[str, Any]) -> None:
    told = measured(options, 40)
    for name, change in (("grown", (1, 0)), ("wide", (0, 10**6)), ("flat", None)):
        given = {
            n: (t.size,) if change is None else (t.shape[0] + change[0], t.shape[1] + change[1])
            for n, t in told.items()
            if t.ndim > 1
        }
        with pytest.raises(AggregationError):
            shapes(Asked(options, 3), given)
        assert name
    with pytest.raises(AggregationError):
        shapes(Asked(options, 3), {})


def lies(told: Tensors) -> dict[str, Tensors]:
    if "basis" in told:
        return {
            "long": {"basis": 2 * told["basis"]},
            "zero": {"basis": 0 * told["basis"]},
            "nan": {"basis": told["basis"] * np.float16("nan")},
        }
    facts = told["facts"]
    return {
        "more rows": {**told, "facts": 1000 * facts},
        "negative rows": {**told, "facts": -facts},
        "rows without end": {**told, "facts": np.full_like(facts, np.inf)},
        "negative spread": {**told, "sketch": -np.abs(told["sketch"])},
    }


@pytest.mark.parametrize("options", HONEST, ids=str)
def test_numbers_that_no_rows_have_are_refused(options: dict[str, Any]) -> None:
    told = measured(options, 16)
    for kind, bad in lies(told).items():
        with np.errstate(invalid="ignore"), pytest.raises(AggregationError):
            check(bad, Asked(options, 3), ROWS)
        assert kind


def test_counts_sum_to_the_rows_and_means_stay_within_the_clip() -> None:
    told = measured(plain("class_means", 3.0), 16)
    asked = Asked(plain("class_means", 3.0), 3)
    for rows in (ROWS - 1, ROWS + 1):
        with pytest.raises(AggregationError, match="rows"):
            check(told, asked, rows)
    with pytest.raises(AggregationError, match="the clip is 1"):
        check(told, Asked(plain("class_means", 1.0), 3), ROWS)
    gradient = measured(plain("mean_gradient"), 16)
    far = {**gradient, "sketch": gradient["sketch"] * np.float16(2)}
    with pytest.raises(AggregationError, match="not 1"):
        check(far, Asked(plain("mean_gradient"), 3), ROWS)
