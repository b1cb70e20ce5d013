"""Gaussian noise on what is released, and the ε that it buys.

Central differential privacy at the level of clients (Geyer et al. 2017; McMahan et al., ICLR 2018):
every update is clipped to an L2 norm C, the sum of m updates gets noise of standard deviation σ C,
σ the noise multiplier, so their mean gets σ C / m. Flower's functions of that purpose draw from
NumPy's global generator; here the generator is an argument.

What two runs may differ in ("neighbours") decides what ε means:

* ``zero_out``: one client's update counts as zero. The sum moves by at most C.
* ``replace_one``: one client's rows are another's. The sum moves by at most 2 C.

Needs the extra ``dp`` (Google's ``dp-accounting``) for the numbers, not for the noise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from importlib import import_module
from typing import Any

import numpy as np

from atlas_flwr.errors import ConfigError
from atlas_flwr.types import Array

# From weak promises, where low orders give the best ε, to strong ones.
ORDERS = (
    *(1 + x / 10 for x in range(1, 100)),
    *(float(x) for x in range(11, 65)),
    *(float(2**x) for x in range(7, 21)),
)
MAX_SAMPLED = 1024.0  # the bound for samples takes a sum as long as the order


def noise_std(noise_multiplier: float, clip: float, clients: int) -> float:
    """Return ``σ C / m``, the standard deviation on each number of a mean of m updates."""
    return noise_multiplier * clip / clients


def noisy(tensors: Mapping[str, Array], std: float, rng: np.random.Generator) -> dict[str, Array]:
    """Return the tensors with independent ``N(0, std²)`` added to each number, dtypes kept.

    Drawn in float64, tensor by tensor in order of their names.
    """
    found = {n: tensors[n] + std * rng.standard_normal(tensors[n].shape) for n in sorted(tensors)}
    return {name: found[name].astype(tensor.dtype) for name, tensor in tensors.items()}


def accounting() -> Any:
    """Return Google's ``dp_accounting``.

    Raises:
        ConfigError: It is not installed.
    """
    try:
        import_module("dp_accounting.rdp")
        return import_module("dp_accounting")
    except ImportError as error:
        raise ConfigError(
            "strategy.name: 'dp_fedavg' counts ε with the extra 'dp', which is not installed; "
            "pip install 'atlas-flwr[dp]'"
        ) from error


@lru_cache(maxsize=4096)
def epsilon(noise_multiplier: float, times: int, delta: float) -> Mapping[str, float]:
    """Return ε at δ of a client that takes part in so many releases, by neighbouring relation.

    Rényi composition of plain Gaussian mechanisms (Mironov 2017). It holds against whoever knows
    who took part when, for nothing is made of the draw.

    Args:
        noise_multiplier: σ, noise relative to the norm clipped to.
        times: Releases the client takes part in; 0 spends nothing.
        delta: δ.
    """
    if not times:
        return {"zero_out": 0.0, "replace_one": 0.0}
    dp = accounting()
    relations = dp.NeighboringRelation

    def spent(relation: Any, ratio: float) -> float:
        accountant = dp.rdp.RdpAccountant(ORDERS, relation)
        accountant.compose(dp.GaussianDpEvent(ratio), times)
        return float(accountant.get_epsilon(delta))

    return {
        "zero_out": spent(relations.REPLACE_SPECIAL, noise_multiplier),
        "replace_one": spent(relations.REPLACE_ONE, noise_multiplier / 2),
    }


@lru_cache(maxsize=4096)
def epsilon_sampled(
    noise_multiplier: float, clients: int, cohort: int, rounds: int, delta: float
) -> float:
    """Return ε at δ when each round draws a fixed number of clients without replacement.

    Wang, Balle & Kasiviswanathan (AISTATS 2019), for neighbours that differ in one client's rows:
    sensitivity 2 C. It holds only against whoever knows neither the seed nor who took part.

    Args:
        noise_multiplier: σ.
        clients: All there are.
        cohort: Clients drawn in each round.
        rounds: Releases.
        delta: δ.
    """
    dp = accounting()
    orders = [order for order in ORDERS if order <= MAX_SAMPLED]
    accountant = dp.rdp.RdpAccountant(orders, dp.NeighboringRelation.REPLACE_ONE)
    gaussian = dp.GaussianDpEvent(noise_multiplier / 2)
    accountant.compose(dp.SampledWithoutReplacementDpEvent(clients, cohort, gaussian), rounds)
    return float(accountant.get_epsilon(delta))


def said(epsilons: Mapping[str, float | None]) -> str:
    """Return ε by relation as words, e.g. ``zero_out 3.21, replace_one 7.02``."""
    numbers = (
        f"{name} {value:.3g}" if value is not None and math.isfinite(value) else f"{name} infinite"
        for name, value in epsilons.items()
    )
    return ", ".join(numbers)
