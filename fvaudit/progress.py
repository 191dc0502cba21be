"""How far a verb of the command line is: bars on a terminal, plain lines otherwise."""

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from fvaudit.run import Event


@contextlib.contextmanager
def shown() -> Iterator[Callable[["Event"], None]]:
    """Shows the events that are passed to what it yields."""
    if not sys.stdout.isatty():
        yield _plain_lines()
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn())
    with Progress(*columns, Remaining(), TextColumn("{task.fields[text]}")) as progress:
        tasks: dict[str, Any] = {}

        def show(event: "Event") -> None:
            if event.stage not in tasks:
                tasks[event.stage] = progress.add_task(event.stage, total=event.total, text="")
            progress.update(tasks[event.stage], completed=event.done, text=event.text)

        yield show


def _plain_lines() -> Callable[["Event"], None]:
    """One line per tenth of a stage."""
    printed: dict[str, int] = {}

    def show(event: "Event") -> None:
        tenth = 10 * event.done // max(event.total, 1)
        if printed.get(event.stage) != tenth:
            printed[event.stage] = tenth
            text = f" {event.text}" if event.text else ""
            print(f"{event.stage} {event.done}/{event.total}{text}", flush=True)

    return show


def steps_shown(listener: Callable[["Event"], None], jobs: Sequence[Any]) -> Callable[[Any], None]:
    """Counts the steps of all jobs together, so that one long picture moves the bar too."""
    from fvaudit.run import Event

    listener(Event("visualize", 0, 1, "compiling"))
    done: dict[Any, int] = {}

    def watch(progress: Any) -> None:
        done[str(progress.job.objective), progress.job.repeat] = progress.step
        now = f"{progress.job.objective} at {progress.trace[-1]:.2f}"
        listener(Event("visualize", sum(done.values()), len(jobs) * progress.total, now))

    return watch
