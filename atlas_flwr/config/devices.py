"""Device profiles by name: the one table of what comes built in.

A profile says what a device can afford: memory, what it can train, what it can send up in a round,
and the LoRA rank of methods that give a client one rank. A user's ``[[device]]`` of the same name
redefines one. MB and GB are 10^6 and 10^9 bytes.
"""

from __future__ import annotations

from dataclasses import dataclass

MB = 10**6
GB = 10**9


@dataclass(frozen=True)
class DeviceProfile:
    """What a kind of device can afford; None grants without a limit.

    Attributes:
        rank: LoRA rank of a client that is such a device; None leaves ranks to the method.
        memory_gb: Memory of the whole training process.
        state_mb: Trainable state: adapter and head with gradients and AdamW's moments.
        uplink_mb: What one round may send up; 1 MB takes 8 s at 1 Mbit/s.
        about: What the profile stands for.
    """

    rank: int | None = None
    memory_gb: float | None = None
    state_mb: float | None = None
    uplink_mb: float | None = None
    about: str = "defined in the experiment"

    @property
    def memory(self) -> int | None:
        """Memory in bytes."""
        return None if self.memory_gb is None else round(self.memory_gb * GB)

    @property
    def state(self) -> int | None:
        """Trainable state in bytes."""
        return None if self.state_mb is None else round(self.state_mb * MB)

    @property
    def uplink(self) -> int | None:
        """Uplink of a round in bytes."""
        return None if self.uplink_mb is None else round(self.uplink_mb * MB)


# Memory is what such devices have. All else are assumptions of this project, measured nowhere: the
# uplink doubles as the memory does, from 1 MB a round, the rank too, and the trainable state is
# eight times the uplink: a float32 parameter is sent in 4 bytes and trained in 16, so that the
# uplink binds, as it does outside a laboratory.
DEVICES: dict[str, DeviceProfile] = {
    "phone": DeviceProfile(4, 2.0, 8.0, 1.0, "a phone"),
    "tablet": DeviceProfile(8, 4.0, 16.0, 2.0, "a tablet"),
    "laptop": DeviceProfile(16, 8.0, 32.0, 4.0, "a laptop"),
    "gpu": DeviceProfile(32, 16.0, 64.0, 8.0, "a GPU"),
}
