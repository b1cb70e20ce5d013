"""(e) What does the exact mean of low-rank updates cost, and does it grow with the clients?"""

from __future__ import annotations

import statistics
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from atlas_flwr.aggregation.product_mean import ProductMean
from atlas_flwr.aggregation.products import spectrum, svd
from atlas_flwr.types import Adapter, LoraFactors, ModelParts
from benchmarks.measure import Ratio, seconds_of
from benchmarks.sizes import Size
from strategies.folds import FlatMean, Tally

RANKS = (4, 4, 4, 4, 8, 8, 8, 8, 8, 8, 16, 16)  # twelve clients, R = 96
# (d_out, d_in): q, v, out, lin1 and lin2 of DistilBERT's six layers, and one module of LLaMA-7B
DISTILBERT = {(768, 768): 18, (3072, 768): 6, (768, 3072): 6}
LARGE = {(4096, 4096): 1}
MODULES, WIDTH, RANK = 2, 768, 8  # of the federation that grows
COUNTS = (10, 50, 100, 200, 1000)  # its clients

Shape = tuple[int, int]
Clients = list[LoraFactors]


def products(size: Size) -> Ratio:
    """Dense mean and SVD ÷ the factored ones on a DistilBERT's modules."""
    quick = size.repetitions == 1
    shapes = {(96, 96): 2, (384, 96): 1} if quick else DISTILBERT
    return dense_or_factored("30 DistilBERT modules", shapes, 1 if quick else 3)


def products_large(size: Size) -> Ratio:
    """The same on one large module, timed once: the dense side takes half a minute."""
    shapes = {(256, 256): 1} if size.repetitions == 1 else LARGE
    return dense_or_factored("one 4096×4096 module", shapes, 1)


def dense_or_factored(name: str, shapes: dict[Shape, int], repetitions: int) -> Ratio:
    cohorts = {shape: clients_of(shape) for shape in shapes}
    modules = [cohorts[shape] for shape, count in shapes.items() for _ in range(count)]

    def dense() -> None:
        for clients in modules:
            dense_work(clients)

    def factored() -> None:
        for clients in modules:
            factored_work(clients)

    with threadpool_limits(1, "blas"):
        dense_work(clients_of((256, 128)))  # warm-up
        factored()
        pairs = tuple((seconds_of(dense), seconds_of(factored)) for _ in range(repetitions))
        if repetitions == 1:
            pairs += tuple((pairs[0][0], seconds_of(factored)) for _ in range(2))
        parts = {f"{do}x{di}": parts_of(c, 7) for (do, di), c in cohorts.items()}
    settings = {"clients": len(RANKS), "R": sum(RANKS), "threads": 1, "parts_seconds": parts}
    return Ratio(f"dense mean + SVD, {name}", "factored", pairs, ">=", 30.0, settings)


def clients_of(shape: Shape) -> Clients:
    """Return float32 updates, as clients send them."""
    rng, (d_out, d_in) = np.random.default_rng(0), shape
    return [
        LoraFactors(
            rng.standard_normal((rank, d_in), np.float32),
            rng.standard_normal((d_out, rank), np.float32),
            0.5,
        )
        for rank in RANKS
    ]


def dense_work(clients: Clients) -> None:
    """Form the dense mean in float64 and decompose it (thin, all singular values)."""
    mean = np.zeros_like(clients[0].product())
    for factors in clients:
        mean += factors.product() / len(clients)
    np.linalg.svd(mean, full_matrices=False)


def factored_mean(clients: Clients) -> LoraFactors:
    mean = ProductMean()
    for factors in clients:
        mean.add({"module": factors}, 1.0)
    return mean.result()["module"]


def factored_work(clients: Clients) -> None:
    svd(factored_mean(clients))


def parts_of(clients: Clients, repetitions: int) -> dict[str, float]:
    """Return the median seconds of each step of the factored side on one module.

    What is left of the last is applying the two Qs to the core's bases, and the signs.
    """
    stacked = factored_mean(clients)
    r_b, r_a = (np.asarray(np.linalg.qr(m, mode="r")) for m in (stacked.b, stacked.a.T))
    core = r_b @ r_a.T
    steps: dict[str, Callable[[], object]] = {
        "checks and stacking": lambda: factored_mean(clients),
        "QR of both and the core's SVD, values only": lambda: spectrum(stacked),
        "SVD of the core alone": lambda: np.linalg.svd(core),
        "all after stacking": lambda: svd(stacked),
    }
    return {
        name: statistics.median(seconds_of(work) for _ in range(repetitions))
        for name, work in steps.items()
    }


# ---------------------------------------------------------------- as the clients grow


@dataclass(frozen=True)
class Peaks(Ratio):
    """A ratio of traced peaks: the pairs are MB, not seconds."""

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain values, the pairs as MB."""
        facts = super().to_dict()
        return facts | {
            "top_mb": facts.pop("top_seconds"),
            "bottom_mb": facts.pop("bottom_seconds"),
        }


def tally_memory(size: Size) -> Ratio:
    """Peak of what FedIT folds a round into, at 1,000 clients ÷ at 200."""
    return growth("FedIT's tally", Fedit, size)


def exact_memory(size: Size) -> Ratio:
    """Peak of the exact product mean at 1,000 clients ÷ at 200, where its sum is dense."""
    return growth("ProductMean()", ProductMean, size)


class Fedit:
    """A round's ``Tally`` as `strategies.base.Method.tally` fills it: the merge and, beside it, P*.

    Every rule for LoRA factors has the latter: its ``aggregation_error`` is measured against it.
    """

    def __init__(self) -> None:
        self._tally = Tally(lambda group: FlatMean())

    def add(self, adapter: Adapter, weight: float) -> None:
        """Fold one client, as ``ProductMean.add`` does."""
        self._tally.body("global", ModelParts(adapter), weight)
        self._tally.products("global", adapter, weight)

    def result(self) -> object:
        """Return the merge and the exact mean."""
        return self._tally.bodies(), self._tally.exact()


def growth(name: str, empty: Callable[[], Fedit | ProductMean], size: Size) -> Ratio:
    # Smoke: a tenth of the clients on modules a tenth as wide.
    tenth = 10 if size.repetitions == 1 else 1
    width = WIDTH // tenth
    with threadpool_limits(1, "blas"):
        taken = {count: served(empty(), count // tenth, width) for count in COUNTS}
    pairs = ((taken[1000]["peak_mb"], taken[200]["peak_mb"]),)
    settings = {
        "modules": f"{MODULES} of {width}x{width}",
        "rank": RANK,
        "threads": 1,
        "by_clients": {str(count // tenth): facts for count, facts in taken.items()},
    }
    label = f"peak MB of {name}, {1000 // tenth} clients"
    return Peaks(label, f"{200 // tenth} clients", pairs, "<=", 1.1, settings)


def served(mean: Fedit | ProductMean, clients: int, width: int) -> dict[str, float]:
    """Fold so many clients and return the peak MB, what is held before the result, and seconds.

    The peak is ``tracemalloc``'s, result included: it sees all of NumPy's arrays, not LAPACK's
    workspaces. The clients' own making is in the peak (one client at a time), not in the seconds.
    """
    spent = 0.0
    tracemalloc.start()
    for adapter in federation(clients, width):
        spent += seconds_of(lambda given=adapter: mean.add(given, 1.0))  # type: ignore[misc]
    held = tracemalloc.get_traced_memory()[0]
    spent += seconds_of(mean.result)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return {"peak_mb": peak / 1e6, "held_mb": held / 1e6, "seconds": spent}


def federation(clients: int, width: int) -> Iterator[Adapter]:
    """Yield updates that share a direction: common factors plus a third as much of their own."""
    rng = np.random.default_rng(0)

    def draw() -> np.ndarray:
        return rng.standard_normal((RANK, width), np.float32)

    shared = [(draw(), draw()) for _ in range(MODULES)]
    for _ in range(clients):
        yield {
            f"layer.{index}": LoraFactors(a + draw() / 3, (b + draw() / 3).T, 0.5)
            for index, (a, b) in enumerate(shared)
        }
