"""Too little memory: smaller batches, one line, and nothing kept of a job that failed."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import pytest
import torch

from atlas_flwr.errors import AtlasError
from atlas_flwr.fingerprint.features import KINDS, fingerprint, subspace_of
from atlas_flwr.models.adapter_io import initial_parts, write_parts
from atlas_flwr.models.backbone import LoadedModel, ModelSpec, load
from atlas_flwr.training.gradient import Passes, leading_gradient
from atlas_flwr.training.memory import memory_given_back, with_smaller_batches
from fakes import FakeTable

TABLE = FakeTable()
ROWS = np.arange(16)


def full(*_: object) -> None:
    """Fail as CUDA does."""
    raise torch.OutOfMemoryError("CUDA out of memory (a test)")


class Room:
    """Lets the model or its backbone pass no more than ``most`` rows at once."""

    def __init__(self, loaded: LoadedModel, most: int) -> None:
        self.most, self.refused = most, 0
        modules = (loaded.model, loaded.backbone.module)
        self._handles = [m.register_forward_pre_hook(self, with_kwargs=True) for m in modules]

    def __call__(self, module: object, args: object, kwargs: dict[str, torch.Tensor]) -> None:
        if "input_ids" in kwargs and len(kwargs["input_ids"]) > self.most:
            self.refused += 1
            full()

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()


@pytest.fixture
def loaded(folder_of) -> LoadedModel:
    model = load(ModelSpec(folder_of("bert")), 2, 0)
    write_parts(model, initial_parts(model.spec, 2, 4, 2.0, 0))
    return model


@pytest.mark.parametrize("most", [1, 2, 3, 8, 64])
def test_batches_are_halved_until_they_fit(most: int) -> None:
    asked: list[int] = []

    def run(rows: int) -> int:
        asked.append(rows)
        return rows if rows <= most else full()  # type: ignore[return-value]

    assert with_smaller_batches(run, 64, "a test") == max(n for n in (64, 8, 2, 1) if n <= most)
    assert asked == [64 >> i for i in range(len(asked))]


def test_not_even_one_row_fits() -> None:
    with pytest.raises(AtlasError, match=r"scoring: out of memory with a single row; lower model"):
        with_smaller_batches(full, 8, "scoring")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=pytest.mark.slow) if k == "mean_gradient" else k for k in KINDS]
)
def test_a_fingerprint_needs_no_more_memory_than_a_row(loaded: LoadedModel, kind) -> None:
    def printed() -> np.ndarray:
        tensors = fingerprint(
            loaded, TABLE, ROWS, 2, seed=0, rng=np.random.default_rng(1), kind=kind, device="cpu"
        )
        return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])

    whole = printed()
    with Room(loaded, 1) as room:
        np.testing.assert_allclose(printed(), whole, rtol=1e-3, atol=1e-5)
    assert room.refused or kind == "rms_gradient"  # which takes single rows by itself
    with Room(loaded, 0), pytest.raises(AtlasError, match="fingerprint: out of memory"):
        printed()


def test_so_do_a_subspace_and_a_gradient(loaded: LoadedModel) -> None:
    def found() -> list[np.ndarray]:
        first = subspace_of(loaded, TABLE, ROWS, 2, seed=0, device="cpu")
        second = leading_gradient(loaded, TABLE, ROWS, 2, Passes(16, "cpu", 1))
        products = [f.b @ f.a for f in second.values()]
        return [*(np.abs(t) for t in first.values()), *products]

    whole = found()
    with Room(loaded, 3) as room:
        for one, other in zip(found(), whole, strict=True):
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=1e-4)
    assert room.refused >= 2
    assert all(p.grad is None for p in loaded.model.parameters())


def test_a_job_that_failed_keeps_no_tensor() -> None:
    kept: list[weakref.ref[torch.Tensor]] = []

    @memory_given_back()
    def job(how: Exception) -> None:
        tensor = torch.zeros(10)
        kept.append(weakref.ref(tensor))
        try:
            full()
        except torch.OutOfMemoryError as error:
            raise how from error

    with pytest.raises(RuntimeError, match="a job of its own") as caught:
        job(RuntimeError("a job of its own"))
    gc.collect()
    assert caught.value.__cause__ is not None  # the error lives, with its traceback
    assert kept[0]() is None


def test_out_of_memory_anywhere_is_one_line() -> None:
    with pytest.raises(AtlasError) as caught, memory_given_back():
        full()
    told = str(caught.value)
    assert "\n" not in told
    for word in ("out of GPU memory", "train.batch-size", "model.max-length", "engine.workers"):
        assert word in told
