"""A suite file as frozen values: one experiment under many strategies, settings and seeds."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from atlas_flwr.config.load import in_words
from atlas_flwr.config.names import Name, twice
from atlas_flwr.config.overrides import combinations, flatten, slug
from atlas_flwr.config.sections import PositiveInt, Section
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
Pair = tuple[str, str]  # a setting and a label


class SettingEntry(Section):
    """A variant that every strategy runs in, such as a task."""

    name: Name
    overrides: Values = Field(default_factory=dict, alias="set")
    holdout: Annotated[float, Field(gt=0, lt=1, strict=True)] | None = None
    """Replaces ``tune.holdout`` here: tasks differ in size."""
    tuned_as: str | None = None
    """Another setting: what is chosen for a label there holds here too."""


class RunEntry(Section):
    """A strategy under a label."""

    name: Name | None = None
    strategy: str
    overrides: Values = Field(default_factory=dict, alias="set")
    only: tuple[str, ...] | None = None
    tune: Values | None = None
    """Replaces ``tune.keys`` for this entry; an empty table leaves it untuned."""
    tuned_as: str | None = None
    """Another label, whose chosen values hold for this one: an ablation differs in one thing."""

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

    def entries(self, setting: str) -> list[RunEntry]:
        """Return the entries that run in a setting, in the file's order."""
        return [entry for entry in self.run if entry.only is None or setting in entry.only]


def tuned_as(setting: SettingEntry, entry: RunEntry) -> Pair:
    """Return the setting and the label whose tuning chooses an entry's values in a setting."""
    return setting.tuned_as or setting.name, entry.tuned_as or entry.label


def parse_suite(text: str) -> SuiteFile:
    """Check a suite file's text.

    Raises:
        ConfigError: It is not TOML, or a key or value is wrong; names the dotted path.
    """
    try:
        tree = tomllib.loads(text)
        if "data" in tree and "base" not in tree:
            raise ConfigError("is an experiment, not a suite: atlas run it, or name it as a base")
        file = SuiteFile.model_validate(tree)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error}") from error
    except ValidationError as error:
        raise ConfigError(_one_line(error)) from error
    _check_settings(file)
    _check_entries(file)
    _check_grids(file)
    _check_tuned_as(file)
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


def _check_tuned_as(file: SuiteFile) -> None:
    """Refuse a borrowed choice that nobody makes, or that is itself borrowed."""
    labels = {entry.label: entry.tuned_as for entry in file.run}
    for index, entry in enumerate(file.run):
        _check_borrowed(file, f"run.{index}.tuned-as", entry.tuned_as, labels, entry.tune)
    settings = {setting.name: setting.tuned_as for setting in file.setting}
    for index, setting in enumerate(file.setting):
        path = f"setting.{index}.tuned-as"
        _check_borrowed(file, path, setting.tuned_as, settings, setting.holdout)
        _check_lenders(file, setting)


def _check_lenders(file: SuiteFile, setting: SettingEntry) -> None:
    for entry in file.entries(setting.name):
        where, label = tuned_as(setting, entry)
        if label not in (other.label for other in file.entries(where)):
            raise ConfigError(
                f"tuned-as: '{entry.label}' in '{setting.name}' takes what is chosen for '{label}' "
                f"in '{where}', where it does not run; name a label and a setting that have it"
            )


def _check_borrowed(
    file: SuiteFile, path: str, lender: str | None, lenders: Mapping[str, str | None], own: Any
) -> None:
    if lender is None:
        return
    if file.tune is None:
        raise ConfigError(f"{path}: there is no [tune] table; add one")
    if lender not in lenders:
        near = did_you_mean(lender, lenders)
        raise ConfigError(f"{path}: unknown name '{lender}'{near}; known: {', '.join(lenders)}")
    if lenders[lender] is not None:
        raise ConfigError(
            f"{path}: '{lender}' is itself tuned as '{lenders[lender]}'; name one that is tuned"
        )
    if own is not None:
        key = "tune" if path.startswith("run.") else "holdout"
        raise ConfigError(f"{path}: what is tuned as '{lender}' has no {key} of its own; drop one")


def _one_line(error: ValidationError) -> str:
    """Return the first refusal as ``dotted.path: what must hold, got value``."""
    # An unknown key first: a mistyped one is why another seems to be missing.
    found = error.errors(include_url=False)
    first = min(found, key=lambda refusal: refusal["type"] != "extra_forbidden")
    path = ".".join(str(step) for step in first["loc"])
    if first["type"] == "extra_forbidden":
        model: type[BaseModel] = _SECTIONS.get(str(first["loc"][0]), SuiteFile)
        model = model if len(first["loc"]) > 1 else SuiteFile
        known = [field.alias or name for name, field in model.model_fields.items()]
        near = did_you_mean(str(first["loc"][-1]), known)
        return f"{path}: unknown key{near or '; known: ' + ', '.join(known)}"
    if first["type"] == "missing":
        return f"{path}: is required"
    return in_words(path, first)


_SECTIONS: dict[str, type[BaseModel]] = {
    "setting": SettingEntry,
    "run": RunEntry,
    "tune": TuneSection,
}
