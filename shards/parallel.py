"""A few threads for work that waits for disks and servers."""

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def run(work: Callable[[Item], Result], items: Sequence[Item], threads: int, done: Callable[[], None]) -> list[Result]:
    """Return what `work` returns for each item, in their order; `done` is called here after each.

    What it raises is raised here at once, and so is Ctrl-C: nothing more is begun, and what is on its way keeps nobody
    waiting, since the threads end with the process.
    """
    todo: queue.SimpleQueue[tuple[int, Item]] = queue.SimpleQueue()
    for numbered in enumerate(items):
        todo.put(numbered)
    finished: queue.SimpleQueue[tuple[int, Result | None, BaseException | None]] = queue.SimpleQueue()
    stopped = threading.Event()

    def drain() -> None:
        while not stopped.is_set():
            try:
                number, item = todo.get_nowait()
            except queue.Empty:
                return
            try:
                finished.put((number, work(item), None))
            except BaseException as error:
                finished.put((number, None, error))

    for _ in range(min(threads, len(items))):
        threading.Thread(target=drain, daemon=True).start()
    results: dict[int, Result] = {}
    try:
        while len(results) < len(items):
            number, result, error = finished.get()
            if error is not None:
                raise error
            results[number] = result  # type: ignore[assignment]  # without an error there is one
            done()
    finally:
        stopped.set()
    return [results[number] for number in range(len(items))]
