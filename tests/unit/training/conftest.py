from __future__ import annotations

from collections.abc import Callable

import pytest

from fakes import tiny_model


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Give the folder of a tiny model by architecture, built once; ``minilm`` is itself."""
    made: dict[str, str] = {"minilm": "minilm"}

    def folder(architecture: str) -> str:
        if architecture not in made:
            made[architecture] = tiny_model(tmp_path_factory.mktemp(architecture), architecture)
        return made[architecture]

    return folder
