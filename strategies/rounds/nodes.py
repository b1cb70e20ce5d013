"""Which node is which partition, also after a node has gone and come back under another id.

A SuperNode without a registered key gets a new id each time it starts, and the one it had stays
listed for about a minute. So nodes are asked again whenever somebody new is there.
"""

from __future__ import annotations

from collections.abc import Mapping

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from atlas_flwr.errors import WireError
from atlas_flwr.greeting import HELLO, read_hello
from atlas_flwr.holding import Holding
from strategies.rounds.exchange import exchange, greet


def refreshed(grid: Grid, nodes: Mapping[int, int], patience: float) -> dict[int, int]:
    """Return the node of each partition, those included that came back as another node.

    Costs nothing but a list of ids while nobody new is there. A newcomer takes a partition's place
    only if the node that had it is gone, or doesn't answer: an impostor can't push out a client
    that is there. Where it can come first, keys must tell who is who.

    Args:
        grid: Flower's way to the clients.
        nodes: The node of each partition so far.
        patience: Seconds to wait for an answer.
    """
    present = set(grid.get_node_ids())
    fresh = sorted(present - set(nodes.values()))
    if not fresh:
        return dict(nodes)
    claims: dict[int, list[int]] = {}
    for node, partition in _claimed(grid, fresh, patience).items():
        claims.setdefault(partition, []).append(node)
    rivals = [nodes[p] for p in claims if p in nodes and nodes[p] in present]
    alive = _claimed(grid, rivals, patience)
    new = dict(nodes)
    for partition, claimants in claims.items():
        # Two newcomers for one place: nobody can tell which is right, so neither gets it.
        if partition in nodes and nodes[partition] not in alive and len(claimants) == 1:
            new[partition] = claimants[0]
    return new


def _claimed(grid: Grid, nodes: list[int], patience: float) -> dict[int, int]:
    """Ask nodes who they are; return the partition of each that answers."""
    greetings = [Message(RecordDict(), node, HELLO) for node in nodes]
    found: dict[int, int] = {}
    for node, reply in zip(nodes, exchange(grid, greetings, patience), strict=True):
        try:
            if reply.has_content():
                found[node] = read_hello(reply.content)
        except WireError:
            continue  # says nothing that names a partition: it is nobody's node
    return found


def holdings(grid: Grid, clients: int, patience: float) -> dict[int, Holding]:
    """Wait for the clients and return what each holds at home.

    Args:
        grid: Flower's way to the clients.
        clients: Partitions that must be there.
        patience: Seconds without a new arrival, and seconds to answer.

    Raises:
        AtlasError: Partitions are missing, or two nodes claim one.
    """
    found = greet(grid, clients, patience)
    return {partition: greeted.held for partition, greeted in found.items()}
