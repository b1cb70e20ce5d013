"""What the Colab notebook calls beside the guide's functions, in one place.

Everything is read back from the JSON files and run directories; nothing is trained here.
"""

from __future__ import annotations

from experiments.colab.evidence import evidence
from experiments.colab.plots import write_plots
from experiments.colab.results import (
    TITLES,
    atlas_found,
    progress,
    read_done,
    write_summary,
)
from experiments.colab.session import GpuLog, Session, download, plain_errors, zip_results

__all__ = [
    "TITLES",
    "GpuLog",
    "Session",
    "atlas_found",
    "download",
    "evidence",
    "plain_errors",
    "progress",
    "read_done",
    "write_plots",
    "write_summary",
    "zip_results",
]
