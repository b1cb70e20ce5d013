"""Generic top-level names can be shadowed; both apps refuse to run on a mix of two checkouts."""

from __future__ import annotations

from pathlib import Path

import atlas_flwr
import clients
import strategies
from atlas_flwr.errors import AtlasError


def assert_one_checkout() -> None:
    """Make sure that ``clients`` and ``strategies`` lie beside ``atlas_flwr``.

    Raises:
        AtlasError: One of them was imported from elsewhere; both paths are named.
    """
    home = _folder(atlas_flwr)
    for package in (clients, strategies):
        if _folder(package) != home:
            raise AtlasError(
                f"'{package.__name__}' was imported from {_folder(package)}, but atlas_flwr from "
                f"{home}: a folder of that name shadows ours; run from another folder"
            )


def _folder(package: object) -> Path:
    return Path(str(package.__file__)).resolve().parent.parent  # type: ignore[attr-defined]
