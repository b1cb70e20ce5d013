"""Energy is what NumPy says a rank captures; importances are shares."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_flwr.errors import AggregationError
from atlas_flwr.ranks.importance import averaged, energy, normalised, utilities

RNG = np.random.default_rng(0)
STACKS = {"q": RNG.standard_normal((9, 5)), "up": 3 * RNG.standard_normal((7, 12))}
SPECTRA = {m: np.linalg.svd(x, compute_uv=False) for m, x in STACKS.items()}


def test_energy_is_what_the_best_approximation_of_each_rank_captures():
    x = STACKS["q"]
    u, s, vt = np.linalg.svd(x, full_matrices=False)
    gains = energy(s)
    for rank in range(1, 6):
        kept = np.linalg.norm((u[:, :rank] * s[:rank]) @ vt[:rank]) ** 2 / np.linalg.norm(x) ** 2
        assert sum(gains[:rank]) == pytest.approx(kept, rel=1e-12)
    assert gains == sorted(gains, reverse=True) == pytest.approx(energy(s[::-1]))
    assert energy(s, 1.0) == pytest.approx(list(s**2))


def test_tiny_and_zero_spectra_have_gains():
    assert energy(1e-200 * SPECTRA["q"]) == pytest.approx(energy(SPECTRA["q"]))
    assert energy(np.zeros(3)) == [0, 0, 0]
    assert utilities({"a": np.zeros(2)}) == {"a": [0, 0]}


def test_utilities_share_the_energy_of_all_modules():
    gains = utilities(SPECTRA)
    total = sum(np.linalg.norm(x) ** 2 for x in STACKS.values())
    for module, x in STACKS.items():
        assert sum(gains[module]) == pytest.approx(np.linalg.norm(x) ** 2 / total)
    tiny = utilities({m: 1e-180 * s for m, s in SPECTRA.items()})
    assert tiny["up"] == pytest.approx(gains["up"])


def test_importances_are_shares_and_a_clients_unit_drops_out():
    one, other = {"a": 1.0, "b": 3.0}, {"a": 1.0, "b": 1.0}
    assert normalised(one) == {"a": 0.25, "b": 0.75}
    assert normalised({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    loud = {m: 1e6 * v for m, v in one.items()}
    assert averaged([loud, other]) == pytest.approx({"a": 0.375, "b": 0.625})
    assert averaged([one, other], [3, 1]) == pytest.approx({"a": 0.3125, "b": 0.6875})


BAD = {
    "finite and not negative": lambda: energy(np.array([1.0, -1.0])),
    "positive and finite": lambda: energy(np.ones(2), 0.0),
    "a: importance": lambda: normalised({"a": float("nan")}),
    "no client": lambda: averaged([]),
    "b: not every client": lambda: averaged([{"a": 1.0}, {"a": 1.0, "b": 1.0}]),
    "weights": lambda: averaged([{"a": 1.0}], [0.0]),
}


@pytest.mark.parametrize("text", BAD)
def test_what_is_no_importance_is_refused(text):
    with pytest.raises(AggregationError, match=text):
        BAD[text]()
