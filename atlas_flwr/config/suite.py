"""A suite file as frozen values: one experiment under many strategies, settings and seeds."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

import tomli_w
from pydantic import BaseModel, Field, ValidationError

from atlas_flwr.config.names import Name, twice
from atlas_flwr.config.schema import PositiveInt, Section
from atlas_flwr.errors import ConfigError, did_you_mean

# What tells the runs of a suite apart, so no override may set it.
RESERVED = {
    "run.name": "a run is named by its label",
    "run.out": "use --out",
    "run.seed": "use seeds",
    "strategy.name": "use the entry's strategy",
}
TUNE_FOLDER = "tune"
TUNE_OWN = ("run.rounds", "data.holdout")

Seed = Annotated[int, Field(ge=0, lt=2**32, strict=True)]
Values = dict[str, Any]


class SettingEntry(Section):
    """A variant that every strategy runs in, such as a task."""

    name: Name
    overrides: Values = Field(default_factory=dict, alias="set")
    holdout: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    """Replaces ``tune.holdout`` here: tasks differ in size."""


class RunEntry(Section):
    """A strategy under a label."""

    name: Name | None = None
    strategy: str
    overrides: Values = Field(default_factory=dict, alias="set")
    only: tuple[str, ...] | None = None
    tune: Values | None = None
    """Replaces ``tune.keys`` for this entry; an empty table leaves it untuned."""

    @property
    def label(self) -> str:
        """The entry's name, by default the strategy's."""
        return self.name or self.strategy


class TuneSection(Section):
    """Which keys are chosen, on rows that are held out of the training rows."""

    keys: Values
    seed: Seed = 42
    rounds: PositiveInt = 4
    holdout: Annotated[float, Field(gt=0, lt=1, strict=True)] = 0.2


class SuiteFile(Section):
    """A suite file, as written."""

    name: Name
    base: str
    out: str | None = None
    seeds: Annotated[tuple[Seed, ...], Field(min_length=1)]
    overrides: Values = Field(default_factory=dict, alias="set")
    setting: tuple[SettingEntry, ...] = ()
    run: Annotated[tuple[RunEntry, ...], Field(min_length=1)]
    tune: TuneSection | None = None


def parse_suite(text: str) -> SuiteFile:
    """Check a suite file's text.

    Raises:
        ConfigError: It is not TOML, or a key or value is wrong; names the dotted path.
    """
    try:
        file = SuiteFile.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error
    _check_settings(file)
    _check_entries(file)
    _check_grids(file)
    check_reserved(flatten(file.overrides), "set")
    for index, setting in enumerate(file.setting):
        check_reserved(flatten(setting.overrides), f"setting.{index}.set")
    for index, entry in enumerate(file.run):
        check_reserved(flatten(entry.overrides), f"run.{index}.set")
    return file


def check_reserved(keys: Iterable[str], path: str) -> None:
    """Refuse to override what tells the runs of a suite apart.

    Args:
        keys: Dotted keys that are overridden.
        path: Where they stand, for the message.

    Raises:
        ConfigError: One of the keys is the suite's own.
    """
    for key in keys:
        if key in RESERVED:
            raise ConfigError(f"{path}: {key} is the suite's own: {RESERVED[key]}")


# ------------------------------------------------------------------ overrides


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return dotted keys: ``"a.b" = 1`` and ``a = { b = 1 }`` mean the same.

    >>> flatten({"run.rounds": 3, "train": {"batch-size": 8}})
    {'run.rounds': 3, 'train.batch-size': 8}
    """
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[spelled(f"{prefix}{key}")] = value
    return flat


def spelled(key: str) -> str:
    """Return a dotted key with section and key as TOML has them; what follows is somebody's own.

    >>> spelled("train.learning_rate"), spelled("lora.rank_pattern.q_lin")
    ('train.learning-rate', 'lora.rank-pattern.q_lin')
    """
    section, first, rest = (*key.split(".", 2), "", "")[:3]
    steps = [section, first.replace("_", "-"), rest]
    return ".".join(step for step in steps if step)


def override(item: tuple[str, Any]) -> str:
    """Return a key and its value as the ``a.b=value`` that ``--set`` takes.

    >>> override(("lora.rank", [2, 4])), override(("data.root", "a b"))
    ('lora.rank=[2, 4]', 'data.root="a b"')
    """
    return f"{item[0]}={_inline(item[1])}"


def _inline(value: Any) -> str:
    """Return a value as TOML on one line."""
    if isinstance(value, Mapping):
        pairs = (f"{_inline(str(key))} = {_inline(inner)}" for key, inner in value.items())
        return "{" + ", ".join(pairs) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_inline, value)) + "]"
    return tomli_w.dumps({"value": value}).partition(" = ")[2].strip()


def combinations(grid: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Return every combination of a grid's values; none of an empty grid.

    >>> combinations({"a": [1, 2], "b": [3]})
    [{'a': 1, 'b': 3}, {'a': 2, 'b': 3}]
    """
    if not grid:
        return []
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def slug(values: Mapping[str, Any]) -> str:
    """Return tuned values as the name of a folder.

    >>> slug({"train.learning-rate": 0.001, "lora.rank": [2, 4]})
    'learning-rate=0.001,rank=2,4'
    """
    text = ",".join(f"{key.rpartition('.')[2]}={_inline(v)}" for key, v in values.items())
    return re.sub(r"[^A-Za-z0-9.,=_-]", "", text)


# ------------------------------------------------------------------ checks


def _check_settings(file: SuiteFile) -> None:
    names = [setting.name for setting in file.setting]
    for index, name in enumerate(names):
        if name == TUNE_FOLDER:
            raise ConfigError(f"setting.{index}.name: '{name}' is where tuning is kept; rename it")
        if twice(names[: index + 1]):
            raise ConfigError(f"setting.{index}.name: '{name}' is named twice; each once")
    for index, seed in enumerate(file.seeds):
        if seed in file.seeds[:index]:
            raise ConfigError(f"seeds: {seed} is named twice; each once")


def _check_entries(file: SuiteFile) -> None:
    settings = [setting.name for setting in file.setting]
    taken: set[tuple[str, str]] = set()
    for index, entry in enumerate(file.run):
        for name in entry.only or ():
            if name not in settings:
                known = ", ".join(settings) or "none"
                near = did_you_mean(name, settings)
                raise ConfigError(
                    f"run.{index}.only: unknown setting '{name}'{near}; known: {known}"
                )
        pairs = {(name, entry.label.lower()) for name in entry.only or settings or ("",)}
        if pairs & taken:
            raise ConfigError(
                f"run.{index}.name: '{entry.label}' is named twice; give each entry its own name"
            )
        taken |= pairs


def _check_grids(file: SuiteFile) -> None:
    grids = {"tune.keys": file.tune.keys} if file.tune else {}
    for index, entry in enumerate(file.run):
        if entry.tune is not None:
            if file.tune is None:
                raise ConfigError(f"run.{index}.tune: there is no [tune] table; add one")
            grids[f"run.{index}.tune"] = entry.tune
    for path, grid in grids.items():
        keys = flatten(grid)
        check_reserved(keys, path)
        for key, values in keys.items():
            if key in TUNE_OWN:
                raise ConfigError(f"{path}: {key} can't be tuned: [tune] sets it")
            if not isinstance(values, list) or not values:
                raise ConfigError(f"{path}: {key} takes a list of values, got {values!r}")
        names = [slug(values) for values in combinations(keys)]
        if len(set(names)) < len(names):
            raise ConfigError(f"{path}: a value is named twice; each once")


def _one_line(error: ValidationError) -> str:
    """Return the first refusal as ``dotted.path: what must hold, got value``."""
    first = error.errors(include_url=False)[0]
    path = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = _SECTIONS.get(str(first["loc"][0]), SuiteFile)
        model = model if len(first["loc"]) > 1 else SuiteFile
        known = [field.alias or name for name, field in model.model_fields.items()]
        near = did_you_mean(str(first["loc"][-1]), known)
        return f"{path}: unknown key{near or '; known: ' + ', '.join(known)}"
    if first["type"] == "missing":
        return f"{path}: is required"
    message = first["msg"].removeprefix("Value error, ")
    return f"{path}: {message[0].lower()}{message[1:]}, got {first['input']!r}"


_SECTIONS: dict[str, type[BaseModel]] = {
    "setting": SettingEntry,
    "run": RunEntry,
    "tune": TuneSection,
}
