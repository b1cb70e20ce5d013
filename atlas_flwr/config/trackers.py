"""Names of the trackers that a run can be shown in."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BeforeValidator

from atlas_flwr.errors import did_you_mean

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def checked_trackers(names: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names, each known and named once.

    Raises:
        ValueError: Names the first that is not.
    """
    for index, name in enumerate(names):
        if name not in TRACKERS:
            raise ValueError(
                f"'{name}' is no tracker{did_you_mean(name, TRACKERS)}; known: "
                f"{', '.join(TRACKERS)}"
            )
        if name in names[:index]:
            raise ValueError(f"'{name}' is named twice")
    return names


TrackerNames = Annotated[
    tuple[str, ...],
    BeforeValidator(lambda value: (value,) if isinstance(value, str) else value),
    AfterValidator(checked_trackers),
]
