"""How commands show accuracies."""

from __future__ import annotations

from typing import Any

from gcvideo import console
from gcvideo.console import percent, printable


def show(results: dict[str, Any]) -> None:
    """Print the accuracies by name, and the videos that failed."""
    names = {"clip": "clip (each view alone)", "video": "video (views ensembled)"}
    if results["failed"]:
        names["video_of_all"] = "video, the unreadable counted as wrong"
    rows = [[names[kind], *(percent(results[kind][k]) for k in ("top1", "top5"))] for kind in names if kind in results]
    counted = f"{results['answered']} of {results['videos']} videos, {results['protocol']}, {results['ensemble']}"
    if rows:
        console.table(rows, columns=["accuracy", "top-1", "top-5"], title=counted)
    else:
        console.say(f"{counted}: no accuracy, for want of labels or of readable videos")
    for failure in results["failures"][:10]:
        console.warn(f"{printable(failure['path'] or failure['id'])}: {printable(failure['reason'])}")
    if results["failed"] > 10:
        console.warn(f"and {results['failed'] - 10} more videos failed; results.json names them all")
