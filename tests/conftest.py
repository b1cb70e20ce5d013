"""Every test: no hub, one thread, and a token cache of its own session's."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

# Read by the Hugging Face libraries and by OpenMP when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["OMP_NUM_THREADS"] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out what needs a CUDA device where there is none, and say so."""
    if item.get_closest_marker("gpu"):
        import torch  # noqa: PLC0415 - not before the variables above are set

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session", autouse=True)
def token_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keep tokenised rows in the session's folder; programs that tests start inherit it."""
    folder = tmp_path_factory.mktemp("atlas-cache")
    os.environ["ATLAS_CACHE"] = str(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Give the folder of a tiny model by architecture, built once; ``minilm`` is itself."""
    # Imported here: torch must not load before the variables above are set.
    from fakes import tiny_model  # noqa: PLC0415

    made: dict[str, str] = {"minilm": "minilm"}

    def folder(architecture: str) -> str:
        if architecture not in made:
            made[architecture] = tiny_model(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return folder
