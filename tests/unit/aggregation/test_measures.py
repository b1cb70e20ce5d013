"""The honest numbers against dense NumPy."""

from __future__ import annotations

import math

import numpy as np
import pytest

from atlas_flwr.aggregation.measures import effective_rank, relative_error, tail
from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.aggregation.products import compress, stack
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors

SHAPES = {"q": (9, 7), "v": (5, 11)}
ZERO = LoraFactors(np.ones((2, 7)), np.zeros((9, 2)), 1.0)


def adapter(seed: int, rank: int = 3, scale: float = 0.5) -> dict[str, LoraFactors]:
    rng = np.random.default_rng(seed)
    return {
        name: LoraFactors(rng.standard_normal((rank, di)), rng.standard_normal((do, rank)), scale)
        for name, (do, di) in SHAPES.items()
    }


def dense(*adapters: dict[str, LoraFactors]) -> np.ndarray:
    return np.concatenate([f.product().ravel() for each in adapters for f in each.values()])


def with_values(*values: float) -> LoraFactors:
    """Return a 9 × 7 product of these singular values."""
    rng = np.random.default_rng(0)
    u, _ = np.linalg.qr(rng.standard_normal((9, len(values))))
    v, _ = np.linalg.qr(rng.standard_normal((7, len(values))))
    return LoraFactors(v.T, u * np.array(values), 1.0)


def test_the_relative_error_is_the_dense_one_over_all_pairs_and_modules() -> None:
    applied, exact = (adapter(0, 4, 2.0), adapter(1)), (adapter(2), adapter(3, 5))
    oracle = np.linalg.norm(dense(*applied) - dense(*exact)) / np.linalg.norm(dense(*exact))
    assert relative_error(zip(applied, exact, strict=True)) == pytest.approx(oracle, rel=1e-12)


def test_exact_is_zero_up_to_rounding_whatever_the_factors_are() -> None:
    exact = adapter(0)
    same = {name: compress(factors)[0] for name, factors in exact.items()}
    error = relative_error([(same, exact)])
    assert error is not None
    assert error < 1e-14


def test_a_measure_that_does_not_exist_is_none() -> None:
    assert relative_error([]) is None
    assert relative_error([({}, {})]) is None
    assert relative_error([({"q": ZERO}, {"q": ZERO})]) is None
    assert relative_error([({"q": with_values(1.0)}, {"q": ZERO})]) == math.inf
    assert relative_error([({"q": ZERO}, {"q": with_values(1.0)})]) == pytest.approx(1.0)
    for adapters in ([], [{}], [{"q": ZERO}]):
        assert effective_rank(adapters) is None
        assert tail(adapters, lambda _: 1) is None


def test_the_odd_module_is_named() -> None:
    with pytest.raises(AggregationError, match="v: only one"):
        relative_error([({"q": ZERO}, adapter(0))])
    with pytest.raises(AggregationError, match="shape"):
        relative_error([({"q": with_values(1.0)}, {"q": adapter(0)["v"]})])


def test_effective_rank_of_known_spectra() -> None:
    assert effective_rank([{"q": with_values(3.0)}]) == pytest.approx(1.0, rel=1e-12)
    assert effective_rank([{"q": with_values(2.0, 2.0, 2.0)}]) == pytest.approx(3.0, rel=1e-12)
    share = np.array([0.8, 0.2])  # of σ²: 4 and 1
    oracle = math.exp(-(share * np.log(share)).sum())
    one, flat = {"q": with_values(2.0, 1.0, 0.0)}, {"q": with_values(1.0, 1.0, 1.0)}
    assert effective_rank([one]) == pytest.approx(oracle, rel=1e-12)
    assert effective_rank([one, flat, {"q": ZERO}]) == pytest.approx((oracle + 3) / 2, rel=1e-12)
    assert effective_rank([{"q": with_values(2e-200, 1e-200)}]) == pytest.approx(oracle, rel=1e-12)


def test_a_product_that_cancels_is_a_zero_product() -> None:
    one = adapter(0)["q"]
    left = {"q": stack([(1.0, one), (-1.0, one)])}
    assert effective_rank([left]) is None
    assert tail([left], lambda _: 1) is None


@pytest.mark.parametrize("shape", [(9, 7), (768, 384)])
def test_clients_that_cancel_have_no_mean_to_be_far_from(shape: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((8, shape[1])), rng.standard_normal((shape[0], 8))
    one, other = LoraFactors(a, b, 0.7), LoraFactors(-2 * a, b / 2, 0.7)  # P and −P
    mean = ProductMean()
    for factors in (one, other):
        mean.add({"q": factors}, 3.0)
    exact = mean.result()
    nothing = {"q": LoraFactors(np.zeros((8, shape[1])), b, 1.0)}
    assert relative_error([(nothing, exact)]) is None
    assert relative_error([(exact, exact)]) is None
    assert relative_error([({"q": LoraFactors(1e-3 * a, b, 1.0)}, exact)]) == math.inf
    # Beside a module that does not cancel it counts as zero, and the other decides.
    right = LoraFactors(a, b, 1.0)
    error = relative_error([({"q": nothing["q"], "v": right}, {"q": exact["q"], "v": one})])
    assert error == pytest.approx(0.3 / 0.7, rel=1e-9)


def test_rows_of_very_different_size_do_not_drown_each_other() -> None:
    """Rounding is judged term by term: (1e8 b, 1e-8 a) is as good a direction as (b, a)."""
    one = adapter(0)["q"]
    size = np.array([1e8, 1.0, 1e-8])
    same = LoraFactors(one.a / size[:, None], one.b * size, one.scale)
    assert effective_rank([{"q": same}]) == pytest.approx(effective_rank([{"q": one}]) or 0.0)
    assert compress(same)[0].rank == 3
    assert relative_error([({"q": same}, {"q": one})]) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_the_tail_is_the_dense_one_and_truncation_attains_it(rank: int) -> None:
    exact = [adapter(0), adapter(1, 4)]
    ranks = {"q": rank, "v": rank + 1}
    values = [
        (np.linalg.svd(f.product(), compute_uv=False), ranks[name])
        for each in exact
        for name, f in each.items()
    ]
    cut = math.sqrt(sum((s[r:] ** 2).sum() for s, r in values))
    whole = math.sqrt(sum((s**2).sum() for s, _ in values))
    assert tail(exact, ranks.__getitem__) == pytest.approx(cut / whole, rel=1e-10, abs=1e-14)
    if rank:
        kept = [{n: compress(f, ranks[n])[0] for n, f in each.items()} for each in exact]
        error = relative_error(zip(kept, exact, strict=True))
        assert error == pytest.approx(cut / whole, rel=1e-10, abs=1e-14)


def test_no_rank_r_factors_beat_the_tail() -> None:
    exact = [adapter(0, 5)]
    bound = tail(exact, lambda _: 2)
    assert bound is not None
    for name in SHAPES:  # the first two rows and columns: how unordered truncation cuts
        factors = exact[0][name]
        rough = LoraFactors(factors.a[:2], factors.b[:, :2], factors.scale)
        alone = tail([{name: factors}], lambda _: 2)
        error = relative_error([({name: rough}, {name: factors})])
        assert alone is not None
        assert error is not None
        assert error >= alone
