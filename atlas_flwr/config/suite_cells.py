"""A suite's runs: every setting with every strategy and seed, each a whole experiment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas_flwr.config.load import load_config
from atlas_flwr.config.overrides import combinations, flatten, override, slug, spelled
from atlas_flwr.config.schema import Config
from atlas_flwr.config.suite import (
    TUNE_FOLDER,
    Pair,
    RunEntry,
    SettingEntry,
    SuiteFile,
    Values,
    check_reserved,
    parse_suite,
    tuned_as,
)
from atlas_flwr.errors import ConfigError, did_you_mean

Choices = Mapping[Pair, Mapping[str, Any]]


@dataclass(frozen=True)
class Cell:
    """One run of a suite.

    Attributes:
        setting: The setting's name; ``label`` the entry's.
        config: The whole experiment, without a run directory.
        folder: The run directory, relative to the suite's.
        values: The tuned keys that this run tries or was given.
        tuning: Whether the run is one that tries them.
        tuned_as: The setting and the label whose tuning chooses the values.
    """

    setting: str
    label: str
    config: Config
    folder: Path
    values: Mapping[str, Any] = field(default_factory=dict)
    tuning: bool = False
    tuned_as: Pair = ("", "")

    @property
    def title(self) -> str:
        """What a line of progress calls the run."""
        name = f"{self.setting}/{self.label} seed {self.config.run.seed}"
        tried = "".join(f" {key}={value}" for key, value in self.values.items())
        return f"tune {name}{tried}" if self.tuning else name


@dataclass(frozen=True)
class Suite:
    """A checked suite file with what the command line asks of it.

    Attributes:
        file: The file's content; ``path`` where it lies, ``text`` as written.
        seeds: The seeds to run.
        only: The labels to run; empty for all.
        items: ``a.b=value`` overrides of every run, tuning included.
        tuned: False leaves ``[tune]`` out.
        within: The settings to run; empty for all.
        known: What another call's ``tuned.json`` says of pairs; those are not tuned again.
    """

    file: SuiteFile
    path: Path
    text: str
    seeds: tuple[int, ...]
    only: tuple[str, ...] = ()
    items: tuple[str, ...] = ()
    tuned: bool = True
    within: tuple[str, ...] = ()
    known: Choices = field(default_factory=dict)

    @property
    def base(self) -> Path:
        """The experiment file that every run starts from."""
        return self.path.resolve().parent / Path(self.file.base).expanduser()

    @property
    def settings(self) -> tuple[SettingEntry, ...]:
        """The settings; without any, one that is called as the experiment file."""
        return self.file.setting or (SettingEntry(name=self.base.stem),)

    def pairs(self) -> list[tuple[SettingEntry, RunEntry]]:
        """Return every setting with each entry that runs in it, in the file's order."""
        return [
            (setting, entry)
            for setting in self.settings
            for entry in self.file.entries(setting.name)
        ]

    def cells(self, choices: Choices | None = None, pair: Pair | None = None) -> list[Cell]:
        """Return the runs asked for, in order, each with the values chosen for its pair.

        Args:
            choices: The values of tuned keys by setting and label.
            pair: The setting and the label whose tuning chose for the runs wanted; by default all.

        Raises:
            ConfigError: A run's config is wrong; names the setting, the label and the key.
        """
        found = []
        for setting, entry in self.asked():
            source = tuned_as(setting, entry)
            if pair not in (None, source):
                continue
            chosen = (choices or {}).get(source) or self.known.get(source, {}).get("chosen", {})
            folder = Path(setting.name, entry.label)
            found += [self._cell(setting, entry, folder, seed, {}, chosen) for seed in self.seeds]
        return found

    def tuning(self) -> list[Cell]:
        """Return the runs that choose the tuned keys, a group for each pair that needs some.

        Raises:
            ConfigError: A run's config is wrong.
        """
        tune = self.file.tune
        if tune is None or not self.tuned:
            return []
        found = []
        sources = {tuned_as(*pair) for pair in self.asked()} - self.known.keys()
        for setting, entry in self.pairs():
            if (setting.name, entry.label) not in sources:
                continue
            short = {"run.rounds": tune.rounds, "data.holdout": setting.holdout or tune.holdout}
            for values in combinations(self.grid(entry)):
                folder = Path(TUNE_FOLDER, setting.name, entry.label, slug(values))
                found.append(self._cell(setting, entry, folder, tune.seed, short, values))
        return found

    def grid(self, entry: RunEntry) -> dict[str, list[Any]]:
        """Return the keys that are tuned for an entry, with the values to try."""
        if self.file.tune is None:
            return {}
        return flatten(self.file.tune.keys if entry.tune is None else entry.tune)

    def asked(self) -> list[tuple[SettingEntry, RunEntry]]:
        """Return the pairs that the command line asks for."""
        return [
            (setting, entry)
            for setting, entry in self.pairs()
            if (not self.only or entry.label in self.only)
            and (not self.within or setting.name in self.within)
        ]

    def _cell(
        self,
        setting: SettingEntry,
        entry: RunEntry,
        folder: Path,
        seed: int,
        short: Values,
        values: Mapping[str, Any],
    ) -> Cell:
        """Return a run: base, then [set], setting, entry, command line, tuning, in this order."""
        overrides = {
            **flatten(self.file.overrides),
            **flatten(setting.overrides),
            **flatten(entry.overrides),
        }
        own = {"run.name": entry.label, "run.seed": seed, "strategy.name": entry.strategy}
        last = {**short, **values, **own}
        items = [*map(override, overrides.items()), *self.items, *map(override, last.items())]
        try:
            config = load_config(self.base, items)
        except ConfigError as error:
            raise ConfigError(f"{setting.name}/{entry.label}: {error}") from error
        place = folder / f"seed-{seed}"
        source = tuned_as(setting, entry)
        return Cell(setting.name, entry.label, config, place, dict(values), bool(short), source)


def load_suite(
    path: Path,
    *,
    seeds: Sequence[int] = (),
    only: Sequence[str] = (),
    within: Sequence[str] = (),
    items: Sequence[str] = (),
    tuned: bool = True,
) -> Suite:
    """Read a suite file and lay the command line over it.

    ``base`` is taken from the file's own folder; relative paths among the overrides from the
    folder of ``base``, as if they stood in it.

    Args:
        path: The TOML file.
        seeds: Instead of the file's.
        only: Labels to run, the others left out.
        within: Settings to run, the others left out.
        items: ``a.b=value`` overrides of every run.
        tuned: False leaves ``[tune]`` out.

    Raises:
        ConfigError: The file can't be read, or a key or value is wrong; names the dotted path.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: can't be read ({error})") from error
    try:
        file = parse_suite(text)
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from error
    suite = Suite(
        *(file, path, text, tuple(seeds) or file.seeds),
        only=tuple(only),
        items=tuple(items),
        tuned=tuned,
        within=tuple(within),
    )
    if not suite.base.is_file():
        raise ConfigError(f"{path.name}: base: {suite.base}: can't be read: there is no such file")
    _check_command_line(suite)
    return suite


def _check_command_line(suite: Suite) -> None:
    labels = list(dict.fromkeys(entry.label for entry in suite.file.run))
    _check_known("--only", "label", suite.only, labels)
    _check_known("--setting", "setting", suite.within, [s.name for s in suite.settings])
    if not suite.asked():
        raise ConfigError(
            f"--only, --setting: none of {', '.join(suite.only)} is run in "
            f"{', '.join(suite.within)}; see [[run]] only"
        )
    keys = [spelled(item.partition("=")[0].strip()) for item in suite.items]
    check_reserved(keys, "--set")
    if suite.tuned:
        tuned = {key for _, entry in suite.pairs() for key in suite.grid(entry)}
        for key in keys:
            if key in tuned:
                raise ConfigError(f"--set: {key} is chosen by [tune]; add --no-tune")


def _check_known(option: str, what: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ConfigError(
                f"{option}: unknown {what} '{name}'{did_you_mean(name, known)}; "
                f"known: {', '.join(known)}"
            )
