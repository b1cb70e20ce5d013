"""What must hold between sections of the experiment file; a refusal names the keys and values."""

from __future__ import annotations

from atlas_flwr.config.devices import DeviceProfile
from atlas_flwr.config.names import twice
from atlas_flwr.config.schema import Config
from atlas_flwr.errors import ConfigError, did_you_mean


def check_sections(config: Config) -> None:
    """Check every pair of keys that can't work together.

    Raises:
        ConfigError: Names the dotted path, the value and what must hold.
    """
    for check in _CHECKS:
        check(config)


def _check_clients_cover_tasks(config: Config) -> None:
    if config.run.clients < len(config.data.tasks):
        raise ConfigError(
            f"run.clients: {config.run.clients} clients can't hold {len(config.data.tasks)} tasks; "
            "each task needs at least one client"
        )


def _check_names_distinct(config: Config) -> None:
    for what, path, names in (
        ("task", "data.tasks", config.data.tasks),
        ("task", "task.name", tuple(task.name for task in config.task)),
        ("device", "device.name", tuple(device.name for device in config.device)),
    ):
        name = twice(names)
        if name:
            raise ConfigError(f"{path}: '{name}' is named twice; each {what} once")


def _check_min_results(config: Config) -> None:
    if config.run.min_results > config.run.clients:
        raise ConfigError(
            f"run.min-results: {config.run.min_results} is more than run.clients "
            f"({config.run.clients})"
        )


def _check_devices_say_something(config: Config) -> None:
    for place, device in enumerate(config.device):
        if device.profile == DeviceProfile():
            raise ConfigError(
                f"device.{place}.rank: is required for '{device.name}', or a limit: memory-gb, "
                "state-mb or uplink-mb"
            )


def _check_profiles(config: Config) -> None:
    if config.devices is None:
        if config.device:
            raise ConfigError(
                f"device.name: '{config.device[0].name}' is defined, but no client is one; "
                f"set devices.profiles = ['{config.device[0].name}']"
            )
        return
    known = config.device_profiles
    for name in config.devices.profiles:
        if name not in known:
            hint = did_you_mean(name, known) or f"; known: {', '.join(known)}"
            raise ConfigError(
                f"devices.profiles: '{name}' is no device{hint}; or define it as [[device]]"
            )
    if "rank" in config.lora.model_fields_set:
        raise ConfigError(
            f"lora.rank: {list(config.lora.rank)} with devices.profiles, whose devices have ranks "
            "or budgets of their own; leave one of the two out"
        )


def _check_full_has_no_ranks(config: Config) -> None:
    if config.model.adaptation == "lora":
        return
    for path, value in (
        ("devices.profiles", list(config.devices.profiles) if config.devices else None),
        ("lora.rank-pattern", config.lora.rank_pattern),
    ):
        if value:
            raise ConfigError(
                f"{path}: {value} with model.adaptation = 'full', which has no ranks; "
                "leave one of the two out"
            )


def _check_gpu_share(config: Config) -> None:
    engine = config.engine
    if engine.device == "cpu" and engine.gpus_per_client not in ("auto", 0):
        raise ConfigError(
            f"engine.gpus-per-client: {engine.gpus_per_client} with engine.device = 'cpu'; "
            "leave one of the two out"
        )
    share = engine.gpus_per_client
    if share != "auto" and share > 1 and share != int(share):
        raise ConfigError(
            f"engine.gpus-per-client: {share} is neither a share of one GPU nor whole GPUs"
        )
    if engine.device == "cuda" and engine.gpus_per_client == 0:
        raise ConfigError(
            "engine.gpus-per-client: 0 with engine.device = 'cuda' would hide the GPU from every "
            "client; set a share such as 0.5, or leave it out"
        )


_CHECKS = (
    _check_clients_cover_tasks,
    _check_names_distinct,
    _check_min_results,
    _check_devices_say_something,
    _check_profiles,
    _check_full_has_no_ranks,
    _check_gpu_share,
)
