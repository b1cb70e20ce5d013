"""An exported folder on the Hugging Face hub."""

from __future__ import annotations

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

from atlas_flwr.apps.redact import without_secrets
from atlas_flwr.apps.sharing.model import Exported
from atlas_flwr.errors import AtlasError, ConfigError, ResultError

_UNAUTHORISED = (401, 403)


class PushFailed(AtlasError):
    """The hub could not be reached, or refused; what was exported is on disk."""


def check_push(repo: str) -> None:
    """Refuse a push that can't work, before anything is exported.

    Raises:
        ConfigError: The name is none, the hub is switched off, or there is no token.
    """
    if repo.count("/") != 1:
        raise ConfigError(f"--push {repo}: a repository is named OWNER/NAME")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        why = _first(error).rstrip(".")
        raise ConfigError(f"--push {repo}: a repository is named OWNER/NAME: {why}") from error
    if constants.HF_HUB_OFFLINE:
        raise ConfigError("--push: the hub is switched off by HF_HUB_OFFLINE; unset it")
    if not get_token():
        raise ConfigError("--push: no token; run hf auth login, or set HF_TOKEN")


def push_folder(done: Exported, repo: str, private: bool) -> str:
    """Upload an exported folder; return the line to print.

    The token is huggingface_hub's: of the environment, or of a login.

    Raises:
        ResultError: Nobody else could open the folder: its base model is a folder of this machine.
        PushFailed: The hub can't be reached or refuses.
    """
    if not done.moves:
        raise ResultError(
            f"--push: {done.folder} needs the base model in {done.base}, a folder of this machine; "
            "export it with --merge"
        )
    api = HfApi()
    try:
        name = api.create_repo(repo, private=private, exist_ok=True).repo_id
        commit = api.upload_folder(
            repo_id=name,
            folder_path=str(done.folder),
            commit_message=f"{done.folder.name}, exported by atlas-flwr",
        )
    except HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        mend = "; is the token one that may write there?" if status in _UNAUTHORISED else ""
        raise PushFailed(f"--push {repo}: the hub refused: {_first(error)}{mend}") from error
    except OfflineModeIsEnabled as error:
        raise PushFailed(f"--push {repo}: {_first(error)}") from error
    except Exception as error:  # which HTTP library it is depends on the hub client's version
        where = without_secrets(constants.ENDPOINT)
        raise PushFailed(
            f"--push {repo}: {where} can't be reached ({_first(error)}); the export is in "
            f"{done.folder}"
        ) from error
    return f"pushed to {commit.commit_url if commit else repo}"


def _first(error: BaseException) -> str:
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return without_secrets(first, get_token())
