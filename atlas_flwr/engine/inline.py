"""The inline engine: the same ClientApp behind Flower's ``Grid``, in this process, without Ray.

Jobs run one after another when their replies are asked for, so that a debugger, a notebook or one
big GPU sees one client at a time.
"""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from itertools import count
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.common.constant import SUPERLINK_NODE_ID, ErrorCode
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

_FIRST_NODE = SUPERLINK_NODE_ID + 1


def adopt_identity() -> None:
    """Give this process the identity that Flower's messages are stamped with.

    Under Flower's own engines the process that runs an app is told who it is; inline nobody does.
    """
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 0, 0, SUPERLINK_NODE_ID


class InlineGrid(Grid):
    """A grid whose clients live in this process; a client's exception becomes an error reply."""

    def __init__(self, app: ClientApp, clients: int) -> None:
        adopt_identity()
        self._app = app
        self._contexts = {
            _FIRST_NODE + partition: Context(
                run_id=0,
                node_id=_FIRST_NODE + partition,
                node_config={"partition-id": partition, "num-partitions": clients},
                state=RecordDict(),
                run_config={},
            )
            for partition in range(clients)
        }
        self._pending: dict[str, Message] = {}
        self._ids = count(1)

    def set_run(self, run: Any) -> None:
        """Do nothing: an inline grid serves one run."""

    @property
    def run(self) -> Any:
        """There is no Flower run behind an inline grid."""
        raise NotImplementedError("an inline grid has no Flower run")

    def create_message(self, *_: Any, **__: Any) -> Message:
        """Deprecated by Flower; use ``Message``."""
        raise NotImplementedError("build a flwr.app.Message instead")

    def get_node_ids(self) -> Iterable[int]:
        """Return the clients' node ids."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Queue messages; they run when their replies are pulled."""
        ids = []
        for message in messages:
            message_id = str(next(self._ids))
            message.metadata.__dict__["_message_id"] = message_id
            self._pending[message_id] = message
            ids.append(message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Run the first of the given messages that still waits, and return its reply."""
        for message_id in message_ids:
            message = self._pending.pop(message_id, None)
            if message is not None:
                return [self._run(message)]
        return []

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Run all messages and return their replies."""
        return [self._run(self._pending.pop(i)) for i in self.push_messages(messages)]

    def _run(self, message: Message) -> Message:
        context = self._contexts[message.metadata.dst_node_id]
        try:
            return self._app(message, context)
        except Exception as error:
            reason = "".join(traceback.format_exception(error))
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason), reply_to=message)
