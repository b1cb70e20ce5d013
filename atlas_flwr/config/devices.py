"""Device profiles by name: the one table of what comes built in.

A profile says what a device can afford; today that is its LoRA rank. A user's ``[[device]]`` of
the same name redefines one.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceProfile:
    """A kind of device that is built in.

    Attributes:
        rank: LoRA rank of a client that is such a device.
        about: What the profile stands for.
    """

    rank: int
    about: str


# The rank doubles as the memory does; nothing is measured on such a device.
DEVICES: dict[str, DeviceProfile] = {
    "phone": DeviceProfile(4, "a phone with 2 GB of memory"),
    "tablet": DeviceProfile(8, "a tablet with 4 GB of memory"),
    "laptop": DeviceProfile(16, "a laptop with 8 GB of memory"),
    "gpu": DeviceProfile(32, "a GPU with 16 GB of memory"),
}
