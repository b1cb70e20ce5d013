"""The ClientApp: Message-API handlers that hand typed jobs to NumPyClient subclasses.

A deployment starts a process for each message, so a greeting must not load what a job needs: torch
and the clients are imported when the first job comes.
"""

from __future__ import annotations

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from atlas_flwr.apps import guard  # noqa: F401 - checks, before the next lines import
from atlas_flwr.apps.home import read_home
from atlas_flwr.engine import ray_heal  # noqa: F401 - mends Flower's pool of workers
from atlas_flwr.greeting import OWN_ROWS, ROWS, pack_hello
from atlas_flwr.holding import add_holding

app = ClientApp()

# Named actions beside ``train`` and ``evaluate``; who does them is said in ``visit.ACTIONS``.
TRAINS = (
    *("choose", "core", "ditto", "experts", "fingerprint", "gradient", "prune", "score", "sparse"),
)
EVALUATES = ("experts",)


@app.query("hello")
def hello(message: Message, context: Context) -> Message:
    """Say which partition this node is, and what it holds at home."""
    home = read_home(context.node_config)
    held = home.holding()
    declared = {ROWS: held.train_rows, OWN_ROWS: held.score_rows} if held.own_rows else {}
    content = pack_hello(home.partition, declared)
    return Message(add_holding(content, held), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """Train what is sent on the client's own rows and send it back."""
    from atlas_flwr.apps import visit  # noqa: PLC0415 - torch loads for seconds

    return visit.train(message, read_home(context.node_config))


def evaluate(message: Message, context: Context) -> Message:
    """Score what is sent on the client's own slice, or on the task's whole evaluation set."""
    from atlas_flwr.apps import visit  # noqa: PLC0415

    return visit.evaluate(message, read_home(context.node_config))


app.train()(train)
app.evaluate()(evaluate)
for _action in TRAINS:
    app.train(_action)(train)
for _action in EVALUATES:
    app.evaluate(_action)(evaluate)
