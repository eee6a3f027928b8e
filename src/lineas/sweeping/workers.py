"""Running the jobs of a sweep in this process, in several processes, or on a Ray cluster."""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import RLock
from typing import Any, Literal

from tqdm.auto import tqdm

from lineas.errors import LineasError, first_line, needing
from lineas.models import load
from lineas.models.quiet import no_bars
from lineas.printable import in_a_line
from lineas.processes import processes
from lineas.signals import restoring_handlers
from lineas.sweeping.jobs import Job, points, run_job

Where = Literal["processes", "ray"]
LOOK_EVERY = 0.5
"""Seconds between checks of the progress of other processes."""
TRIES = 3
"""Number of times that Ray runs a job again, from where it ended, after its worker was killed."""


def run_jobs(
    jobs: Sequence[Job],
    at_once: int = 1,
    where: Where = "processes",
    progress: Callable[[int], None] | None = None,
    lock: int | None = None,
) -> None:
    """Run the unfinished part of all jobs.

    Args:
        at_once: number of processes, each of which loads the model once; 1 (default) for this process. Ray decides by
            itself.
        where: "processes" on this machine (default), or "ray" for the cluster of `ray.init()`: that of `RAY_ADDRESS`,
            or one started on this machine. Its workers must see the folder.
        progress: function that is called with the number of points done since the last call.
        lock: open file that locks the sweep's folder (see `lineas.files.writing.locked`). The processes hold the lock
            too, until the last one has ended. Ray's workers do not, but Ray ends them with the first process.
    """
    if where == "processes" and at_once == 1:
        model = None
        for job in jobs:
            missing = sum(map(len, job.missing().values()))
            if missing and model is None:
                model = load(job.model, dtype=job.dtype)
            if progress:
                progress(job.count - missing)
            run_job(job, model, progress)
        return
    reported = 0
    with _on_ray(jobs) if where == "ray" else _in_processes(jobs, at_once, lock) as finished:
        all_finished = False
        while not all_finished:
            all_finished = finished()
            done = sum(len(points(job.place)) for job in jobs)
            if progress and done > reported:
                progress(done - reported)
            reported = max(reported, done)
            if not all_finished:
                time.sleep(LOOK_EVERY)
    unseen = next((job for job in jobs if len(points(job.place)) < job.count), None)
    if unseen is not None:
        raise LineasError(f"the workers' points of {unseen.place} are not seen here; all must share that folder.")


@contextmanager
def _in_processes(jobs: Sequence[Job], at_once: int, lock: int | None) -> Iterator[Callable[[], bool]]:
    threads = max(1, (os.cpu_count() or 1) // at_once)
    with processes(at_once, lock) as call:
        running = [call(_in_a_worker, replace(job, threads=job.threads or threads)) for job in jobs]
        yield lambda: all([_is_done(one) for one in running])


def _in_a_worker(job: Job) -> int:
    """Run a job without progress bars, which several processes would draw over each other."""
    no_bars()
    warnings.showwarning = _show_warning
    tqdm.set_lock(RLock())  # tqdm's own lock is shared between processes, so Python warns when one is ended
    return run_job(job)


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Print a warning in one line, as the command line does in its own process."""
    if issubclass(category, UserWarning):
        sys.stderr.write(f"warning: {in_a_line(str(message))}\n")


def _is_done(running: Any) -> bool:
    """Return whether a job is done; raise the error of a failed one."""
    if running.done():
        try:
            running.result()
        except BrokenExecutor:
            raise LineasError(
                "a worker was killed, perhaps for want of memory; the same command goes on, with fewer --jobs."
            ) from None
    return running.done()


@contextmanager
def _on_ray(jobs: Sequence[Job]) -> Iterator[Callable[[], bool]]:
    with needing("--where ray needs Ray", "ray"):
        import ray
        from ray.exceptions import RayError, RayTaskError
    started = not ray.is_initialized()
    left: list[Any] = []

    def finished() -> bool:
        nonlocal left
        ready, left = ray.wait(left, num_returns=len(left), timeout=0)
        try:
            ray.get(ready)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise LineasError(f"a worker was lost: {first_line(error)}; the same command goes on.") from None
        return not left

    try:
        if started:
            with restoring_handlers():  # Ray's own handler of TERM would exit with 1
                ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
        remote = ray.remote(max_retries=TRIES)(run_job)
        left = [remote.remote(job) for job in jobs]
        yield finished
    except BaseException:
        for one in left:
            with suppress(Exception):  # a job that cannot be cancelled has ended
                ray.cancel(one, force=True)
        raise
    finally:
        if started:
            ray.shutdown()
