"""Generic top-level names can be shadowed; nothing runs on a mix of two checkouts.

Checked when this module is imported, which the apps do before they import what it guards: a
stranger's ``strategies`` would fail there with an error that names neither folder.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import atlas_flwr
from atlas_flwr.errors import AtlasError

GUARDED = ("clients", "strategies")


def assert_one_checkout() -> None:
    """Make sure that ``clients`` and ``strategies`` lie beside ``atlas_flwr``; import neither.

    Raises:
        AtlasError: One of them would be imported from elsewhere; both paths are named.
    """
    home = Path(str(atlas_flwr.__file__)).resolve().parent.parent
    for name in GUARDED:
        spec = find_spec(name)
        if spec is None or spec.origin is None:
            raise AtlasError(f"'{name}' is missing beside atlas_flwr in {home}; install it again")
        found = Path(spec.origin).resolve()
        if found != home / name / "__init__.py":
            raise AtlasError(
                f"'{name}' would be imported from {found}, but atlas_flwr is in {home}: "
                "that name shadows ours; run from another folder"
            )


assert_one_checkout()
