"""The events of mapping many scenes, as a command shows them while it runs."""

from contextlib import ExitStack
from typing import TYPE_CHECKING

from rs_biformer.cli import console
from rs_biformer.cli.console import say

if TYPE_CHECKING:
    from rs_biformer.jobs import Event

_SEVERAL = "the same command with --skip-existing goes on from the last finished strip"
_ONE = "the same command goes on from the last finished strip"
_NONE = "nothing is mapped yet"


class Watch:
    """Shows events: the plan of each scene, a progress bar, failures; and the maps where they are `listed`.

    A context manager, which leaves no bar behind.
    """

    def __init__(self, *, listed: bool) -> None:
        self._listed, self._label, self._total = listed, "", 0
        self._bar = ExitStack()

    def __enter__(self) -> "Watch":
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def advice(self) -> str:
        """What to do after an interruption."""
        return _SEVERAL if self._total > 1 else _ONE if self._total else _NONE

    def __call__(self, event: "Event") -> None:
        from rs_biformer.jobs import Advanced, Checked, Failed, Mapped, Planned, Remarked, Skipped

        match event:
            case Checked():
                self._total = event.total
            case Planned():
                self._label = event.name if event.total == 1 else f"{event.number}/{event.total} {event.name}"
                self._update = self._bar.enter_context(console.progress(self._label, "window"))
                for path in event.resampled:
                    say(f"{self._label}: {path} is resampled to pixels of {event.pixel}")
                say(f"{self._label}: {event.plan}")
            case Advanced():
                self._update(event.done, event.total)
            case Mapped():
                self._bar.close()
                if self._listed:
                    console.show("\n".join(map(str, event.maps.values())), flush=True)
            case Failed():
                self._bar.close()
                say(f"{event.name} is not mapped: {event.error}")
            case Remarked():
                say(f"note: {event.line}")
            case Skipped():
                pass
