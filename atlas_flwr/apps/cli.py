"""The command line: exit codes and what is printed about errors; the commands are in `commands/`.

Exit codes: 0 completed, 1 failed, 2 bad input (one line, nothing overwritten), 3 stopped.
"""

from __future__ import annotations

import sys
from io import TextIOWrapper

from click.exceptions import ClickException, NoArgsIsHelpError
from rich.console import Console

# `atlas --help` lists commands in this order.
# isort: off
from atlas_flwr.apps.commands import running, results, suites, sharing, deploying, machine  # noqa: F401

# isort: on
from atlas_flwr.apps.commands.shared import app
from atlas_flwr.errors import AtlasError, RunStopped

_INTERRUPTED = 130  # what Typer makes of Ctrl-C


def main() -> None:
    """Run the command line; errors raised on purpose become one line and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a narrow code page shows "?" for what it lacks
            stream.reconfigure(errors="replace")
    try:
        from atlas_flwr.apps import guard  # noqa: F401, PLC0415 - checks; its error is one line

        # Typer's own handling would draw a box of five lines around a wrong word.
        code = app(standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except ClickException as error:
        _say(f"{error.format_message()} See '{_command(error)} --help'.")
        sys.exit(error.exit_code)
    except RunStopped as error:
        _say(str(error), "stopped")
        sys.exit(error.exit_code)
    except AtlasError as error:
        _say(str(error))
        sys.exit(error.exit_code)
    if code == _INTERRUPTED:
        _say("stopped by Ctrl-C before anything was written", "stopped")
        sys.exit(3)
    sys.exit(code or 0)


def _command(error: ClickException) -> str:
    """Return the command whose words were wrong, as it is typed."""
    context = getattr(error, "ctx", None)
    words = context.command_path.split()[1:] if context else []
    return " ".join(["atlas", *words])


def _say(text: str, kind: str = "error") -> None:
    line = " ".join(text.split())
    Console(stderr=True, soft_wrap=True, highlight=False).print(f"{kind}: {line}", markup=False)


if __name__ == "__main__":
    main()
