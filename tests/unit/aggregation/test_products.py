"""Low-rank algebra against dense NumPy, and against PEFT's own weighted adapters."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.aggregation.products import (
    compress,
    difference,
    gram_norm,
    norm,
    spectrum,
    stack,
    svd,
)
from atlas_flwr.errors import AggregationError
from atlas_flwr.types import LoraFactors

D_OUT, D_IN = 9, 7
close = {"rtol": 1e-11, "atol": 1e-12}


def random_factors(
    rng: np.random.Generator, rank: int, scale: float = 1.0, d_out: int = D_OUT, d_in: int = D_IN
) -> LoraFactors:
    return LoraFactors(rng.standard_normal((rank, d_in)), rng.standard_normal((d_out, rank)), scale)


def cohort(ranks: list[int], seed: int = 0) -> tuple[list[LoraFactors], list[float]]:
    """Mixed ranks, mixed scales, mixed weights."""
    rng = np.random.default_rng(seed)
    factors = [random_factors(rng, rank, 16.0 / (k + rank)) for k, rank in enumerate(ranks)]
    return factors, [float(n) for n in rng.integers(1, 500, len(ranks))]


def mean_of(factors: list[LoraFactors], weights: list[float], max_rank: int | None = None):
    mean = ProductMean(max_rank)
    for each, weight in zip(factors, weights, strict=True):
        mean.add({"m": each}, weight)
    return mean


def dense_mean(factors: list[LoraFactors], weights: list[float]) -> np.ndarray:
    return np.average([f.product() for f in factors], axis=0, weights=weights)


CASES = {
    "rank-1": [1],
    "mixed": [1, 4, 2],
    "R above min(d_out, d_in)": [4, 8, 3],
    "one client above it": [11],
}


@pytest.mark.parametrize("ranks", CASES.values(), ids=CASES)
def test_a_stack_is_the_dense_sum_with_weights_once(ranks: list[int]) -> None:
    factors, weights = cohort(ranks)
    stacked = stack(list(zip(weights, factors, strict=True)))
    assert (stacked.rank, stacked.scale) == (sum(ranks), 1.0)
    oracle = sum(w * f.product() for f, w in zip(factors, weights, strict=True))
    np.testing.assert_allclose(stacked.product(), oracle, **close)
    np.testing.assert_array_equal(stacked.b, np.hstack([f.b for f in factors]))  # untouched


@pytest.mark.parametrize("ranks", CASES.values(), ids=CASES)
def test_the_svd_is_numpys_of_the_dense_product(ranks: list[int]) -> None:
    factors, weights = cohort(ranks)
    stacked = stack(list(zip(weights, factors, strict=True)))
    ours, dense = svd(stacked), stacked.product()
    k = min(sum(ranks), D_OUT, D_IN)
    assert (ours.u.shape, ours.s.shape, ours.vt.shape) == ((D_OUT, k), (k,), (k, D_IN))
    oracle = np.linalg.svd(dense, full_matrices=False)
    np.testing.assert_allclose(ours.s, oracle[1][:k], rtol=1e-11)
    np.testing.assert_allclose(spectrum(stacked), ours.s, rtol=1e-12)
    np.testing.assert_allclose(np.abs(ours.u), np.abs(oracle[0][:, :k]), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose((ours.u * ours.s) @ ours.vt, dense, rtol=1e-11, atol=1e-9)
    np.testing.assert_allclose(ours.u.T @ ours.u, np.eye(k), atol=1e-13)
    np.testing.assert_allclose(ours.vt @ ours.vt.T, np.eye(k), atol=1e-13)
    assert (ours.u[np.abs(ours.u).argmax(axis=0), np.arange(k)] > 0).all()


def test_repeated_singular_values_and_dead_ones() -> None:
    rng = np.random.default_rng(3)
    u, _ = np.linalg.qr(rng.standard_normal((D_OUT, 5)))
    v, _ = np.linalg.qr(rng.standard_normal((D_IN, 5)))
    s = np.array([2.0, 2.0, 2.0, 0.5, 0.0])
    ours = svd(LoraFactors(s[:, None] * v.T, u, 1.0))
    np.testing.assert_allclose(ours.s, s, atol=1e-15)
    assert ours.numerical_rank == 4
    np.testing.assert_allclose((ours.u * ours.s) @ ours.vt, (u * s) @ v.T, atol=1e-14)


@pytest.mark.parametrize("rank", [1, 2, 4, 6])
def test_eckart_young_in_both_norms(rank: int) -> None:
    factors, weights = cohort([3, 4, 2])
    stacked = stack(list(zip(weights, factors, strict=True)))
    cut, lost = compress(stacked, rank)
    dense = stacked.product()
    s = np.linalg.svd(dense, compute_uv=False)
    assert (cut.rank, cut.scale) == (rank, 1.0)
    gap = dense - cut.product()
    assert np.linalg.norm(gap) == pytest.approx(math.sqrt((s[rank:] ** 2).sum()), rel=1e-10)
    assert np.linalg.norm(gap, 2) == pytest.approx(s[rank], rel=1e-10)
    assert lost == pytest.approx(np.linalg.norm(gap) / np.linalg.norm(dense), rel=1e-10)


def test_compression_balances_the_factors_at_the_numerical_rank() -> None:
    one = random_factors(np.random.default_rng(0), 3, 2.0)
    compressed, lost = compress(stack([(0.2, one), (0.8, one)]))
    assert (compressed.rank, lost) == (3, 0.0)
    np.testing.assert_allclose(compressed.product(), one.product(), **close)
    roots = np.diag(np.sqrt(svd(one).s))
    np.testing.assert_allclose(compressed.b.T @ compressed.b, roots**2, atol=1e-12)
    np.testing.assert_allclose(compressed.a @ compressed.a.T, roots**2, atol=1e-12)
    assert compress(one, 5)[0].rank == 3
    with pytest.raises(AggregationError, match="at least 1"):
        compress(one, 0)


def test_a_zero_product_is_fine() -> None:
    zero = LoraFactors(np.ones((2, D_IN)), np.zeros((D_OUT, 2)), 4.0)
    assert (norm(zero), gram_norm(zero)) == (0.0, 0.0)
    compressed, lost = compress(zero)
    assert (compressed.rank, lost, svd(zero).numerical_rank) == (1, 0.0, 0)
    mean = mean_of([zero] * 20, [1.0] * 20, max_rank=3)
    np.testing.assert_array_equal(mean.result()["m"].product(), np.zeros((D_OUT, D_IN)))
    assert mean.lost == 0.0


def test_norms_against_dense() -> None:
    for rank in (1, 4, 12):
        one = random_factors(np.random.default_rng(rank), rank, -0.5)
        oracle = np.linalg.norm(one.product())
        assert norm(one) == pytest.approx(oracle, rel=1e-13)
        assert gram_norm(one) == pytest.approx(oracle, rel=1e-13)


def test_the_norm_of_a_difference_of_equals_is_rounding_which_grams_can_not_say() -> None:
    rng = np.random.default_rng(0)
    one = random_factors(rng, 8, 2.0, d_out=60, d_in=40)
    gauge = rng.standard_normal((8, 8)) + 8 * np.eye(8)
    same = LoraFactors(np.linalg.solve(gauge, one.a), one.b @ gauge, 2.0)
    gap = difference(one, same)
    np.testing.assert_allclose(difference(one, one).product(), 0, atol=1e-12)
    assert norm(gap) < 1e-14 * norm(one)
    assert gram_norm(gap) < 1e-6 * norm(one)


def test_products_of_different_shapes_are_never_broadcast() -> None:
    rng = np.random.default_rng(0)
    with pytest.raises(AggregationError, match=r"\(1, 7\)"):
        stack([(1.0, random_factors(rng, 2)), (1.0, random_factors(rng, 2, d_out=1))])
    with pytest.raises(AggregationError, match="no product"):
        stack([])


def test_values_that_overflow_are_refused() -> None:
    huge = LoraFactors(np.full((1, D_IN), 1e200), np.full((D_OUT, 1), 1e200), 1.0)
    for work in (svd, norm, spectrum, compress):
        with pytest.raises(AggregationError, match="not finite"):
            work(huge)


@pytest.mark.parametrize("ranks", CASES.values(), ids=CASES)
def test_the_mean_is_the_dense_mean(ranks: list[int]) -> None:
    factors, weights = cohort(ranks)
    mean = mean_of(factors, weights)
    result = mean.result()["m"]
    assert (result.scale, result.a.dtype, result.b.dtype) == (1.0, np.float64, np.float64)
    assert (mean.weight, mean.lost) == (sum(weights), 0.0)
    np.testing.assert_allclose(result.product(), dense_mean(factors, weights), **close)


def test_streaming_with_recompression_is_all_at_once() -> None:
    factors, weights = cohort([1, 4, 2, 8, 3] * 20)
    mean = mean_of(factors, weights)
    at_once = stack([(w / sum(weights), f) for f, w in zip(factors, weights, strict=True)])
    assert mean.result()["m"].rank <= 2 * min(D_OUT, D_IN) < at_once.rank
    assert mean.lost == 0.0
    gap = norm(difference(mean.result()["m"], at_once))
    assert gap <= 1e-12 * norm(at_once)


@pytest.mark.parametrize("max_rank", [1, 3, 6])
def test_what_a_cap_cuts_is_bounded_by_lost(max_rank: int) -> None:
    factors, weights = cohort([2] * 30)
    mean = mean_of(factors, weights, max_rank)
    result = mean.result()["m"]
    assert result.rank <= 2 * max_rank
    gap = np.linalg.norm(result.product() - dense_mean(factors, weights))
    assert 0 < gap <= mean.lost * norm(result)
    assert mean.result()["m"].a.tobytes() == result.a.tobytes()  # asking changes nothing


def test_a_cap_that_is_never_reached_costs_nothing() -> None:
    factors, weights = cohort([2, 2, 2])
    assert mean_of(factors, weights, max_rank=3).lost == 0.0


def peak_of(clients: int, max_rank: int | None) -> tuple[int, int]:
    """Return the bytes held at the end and the traced peak of adding that many clients."""
    rng = np.random.default_rng(0)
    tracemalloc.start()
    mean = ProductMean(max_rank)
    for _ in range(clients):
        mean.add({"m": random_factors(rng, 4, d_out=60, d_in=40)}, 1.0)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return mean.held_bytes, peak


def test_memory_does_not_grow_with_clients() -> None:
    peak_of(10, 16)  # whatever is allocated once
    few, many = peak_of(10, 16), peak_of(200, 16)
    assert many[0] <= (60 + 40) * 8 * 2 * 16
    assert many[1] <= 1.25 * few[1]
    assert peak_of(200, None)[0] == 60 * 40 * 8


def test_weights_are_renormalised_among_a_modules_owners() -> None:
    rng = np.random.default_rng(1)
    both, first, second = (random_factors(rng, r) for r in (2, 3, 1))
    mean = ProductMean()
    mean.add({"shared": both, "mine": first}, 30.0)
    mean.add({"shared": second}, 10.0)
    result = mean.result()
    np.testing.assert_allclose(result["mine"].product(), first.product(), **close)
    np.testing.assert_allclose(
        result["shared"].product(), 0.75 * both.product() + 0.25 * second.product(), **close
    )


def test_half_precision_is_averaged_in_double_and_arrays_are_copied() -> None:
    half = LoraFactors(np.full((1, 3), 0.1, np.float16), np.full((2, 1), 0.1, np.float16), 1.0)
    oracle = half.product()
    mean = mean_of([half] * 500, [3.0] * 500)
    half.a[:] = 9
    np.testing.assert_allclose(mean.result()["m"].product(), oracle, rtol=1e-12)


def broken(**changes) -> LoraFactors:
    parts = {"a": np.ones((2, D_IN)), "b": np.ones((D_OUT, 2)), "scale": 1.0} | changes
    return LoraFactors(**parts)


NAN = np.full((2, D_IN), np.nan)
REFUSED = {
    "not a number": (broken(a=NAN), "not finite"),
    "infinite B": (broken(b=np.full((D_OUT, 2), np.inf)), "not finite"),
    "infinite scale": (broken(scale=math.inf), "not finite"),
    "two ranks": (broken(b=np.ones((D_OUT, 3))), "rank"),
    "another d_in": (broken(a=np.ones((2, 1))), "shape"),
    "another d_out": (broken(b=np.ones((1, 2))), "shape"),
    "absent": (broken(a=np.ones((0, D_IN)), b=np.ones((D_OUT, 0))), "absent"),
    "integers": (broken(a=np.ones((2, D_IN), int)), "dtype"),
    "not a matrix": (broken(a=np.ones(2)), "rank"),
}


@pytest.mark.parametrize(("factors", "says"), REFUSED.values(), ids=REFUSED)
def test_a_bad_client_is_refused_by_module_and_leaves_no_trace(factors, says: str) -> None:
    good = random_factors(np.random.default_rng(0), 2)
    mean = mean_of([good], [2.0])
    with pytest.raises(AggregationError, match=f"m: .*{says}"):
        mean.add({"new": good, "m": factors}, 1.0)
    assert (mean.weight, list(mean.result())) == (2.0, ["m"])
    np.testing.assert_allclose(mean.result()["m"].product(), good.product(), **close)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_bad_weights_are_refused(weight: float) -> None:
    with pytest.raises(AggregationError, match="weight"):
        ProductMean().add({}, weight)


def test_the_mean_of_no_client_and_a_cap_of_none_are_refused() -> None:
    with pytest.raises(AggregationError, match="no client"):
        ProductMean().result()
    with pytest.raises(AggregationError, match="at least 1"):
        ProductMean(0)


# ------------------------------------------------------------------ PEFT as the oracle


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(D_IN, D_OUT), nn.Linear(D_OUT, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(torch.tanh(self.up(x)))


SHAPES = {"up": (D_OUT, D_IN), "down": (5, D_OUT)}
CLIENTS = {"one": (2, 4.0), "two": (3, 12.0), "three": (1, 0.5)}  # rank, alpha


def peft_clients():
    """Return a PEFT model that holds three clients, and the same clients as our adapters."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    model, adapters = None, {}
    for name, (rank, alpha) in CLIENTS.items():
        config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=["up", "down"])
        if model is None:
            model = get_peft_model(Net().double(), config, adapter_name=name)
        else:
            model.add_adapter(name, config)
        adapters[name] = {
            module: random_factors(rng, rank, alpha / rank, *shape)
            for module, shape in SHAPES.items()
        }
        for module, factors in adapters[name].items():
            layer = getattr(model.base_model.model, module)
            layer.lora_A[name].weight.data = torch.from_numpy(factors.a.copy())
            layer.lora_B[name].weight.data = torch.from_numpy(factors.b.copy())
    return model, adapters


def peft_product(model, name: str, module: str) -> np.ndarray:
    layer = getattr(model.base_model.model, module)
    assert layer.lora_A[name].weight.dtype == torch.float64
    return layer.get_delta_weight(name).detach().numpy()


P = [0.5, 0.125, 0.375]  # exact in float32, which PEFT's svd rounds its weights to


def our_mean(adapters) -> dict[str, LoraFactors]:
    mean = ProductMean()
    for adapter, p in zip(adapters.values(), P, strict=True):
        mean.add(adapter, 100 * p)
    return mean.result()


def test_the_mean_is_pefts_concatenated_adapter() -> None:
    model, adapters = peft_clients()
    model.add_weighted_adapter(list(CLIENTS), P, "cat", combination_type="cat")
    for module, factors in our_mean(adapters).items():
        np.testing.assert_allclose(factors.product(), peft_product(model, "cat", module), **close)


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_truncation_is_pefts_svd_adapter(rank: int) -> None:
    model, adapters = peft_clients()
    model.add_weighted_adapter(list(CLIENTS), P, "svd", combination_type="svd", svd_rank=rank)
    for module, factors in our_mean(adapters).items():
        ours = compress(factors, rank)[0].product()
        np.testing.assert_allclose(ours, peft_product(model, "svd", module), rtol=1e-9, atol=1e-10)


def test_merged_weights_and_outputs_are_pefts() -> None:
    model, adapters = peft_clients()
    model.add_weighted_adapter(list(CLIENTS), P, "cat", combination_type="cat")
    model.set_adapter("cat")
    x = torch.randn(4, D_IN, dtype=torch.float64)
    model.eval()
    expected = model(x).detach()
    plain = model.unload()
    for module, factors in our_mean(adapters).items():
        getattr(plain, module).weight.data += torch.from_numpy(factors.product())
    torch.testing.assert_close(plain(x).detach(), expected, rtol=1e-11, atol=1e-11)
