"""Who runs the jobs of a sweep: this process, several of them, or the workers of a Ray cluster."""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from typing import Any, Literal

from lineas.errors import LineasError, first_line
from lineas.models import load
from lineas.models.bars import no_bars
from lineas.printable import in_a_line
from lineas.sweeping.jobs import Job, points, run_job

Where = Literal["processes", "ray"]
LOOK_EVERY = 0.5
"""Seconds between looks at what other processes have done."""
TRIES = 3
"""That a Ray worker's job is begun again when the worker is killed; it goes on where that one ended."""


def run_jobs(
    jobs: Sequence[Job], at_once: int = 1, where: Where = "processes", progress: Callable[[int], None] | None = None
) -> None:
    """Run all jobs; those that are done take no time.

    Args:
        jobs: of one sweep.
        at_once: processes, each of which loads the model once; 1 works in this one. Ray decides by itself.
        where: here, or on Ray: the cluster of `ray.init()`, by `RAY_ADDRESS`, else one started on this machine. Its
            workers must see the folder.
        progress: called with the number of points done since the last call.

    Raises:
        LineasError: when Ray is not installed, a job fails or leaves points out, or a worker is killed.
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
    _watched(jobs, _on_ray if where == "ray" else lambda these: _in_processes(these, at_once), progress)
    unseen = next((job for job in jobs if len(points(job.place)) < job.count), None)
    if unseen is not None:
        raise LineasError(f"the workers' points of {unseen.place} are not seen here; all must share that folder.")


def _watched(
    jobs: Sequence[Job],
    begin: Callable[[Sequence[Job]], Any],
    progress: Callable[[int], None] | None,
) -> None:
    """Let others work, and tell how far they are."""
    told = 0
    with begin(jobs) as finished:
        while True:
            over = finished()
            done = sum(len(points(job.place)) for job in jobs)
            if progress and done > told:
                progress(done - told)
            told = max(told, done)
            if over:
                return
            time.sleep(LOOK_EVERY)


@contextmanager
def _in_processes(jobs: Sequence[Job], at_once: int) -> Iterator[Callable[[], bool]]:
    """New processes, not copies of this one: a network that has run has threads, which no copy inherits."""
    threads = max(1, (os.cpu_count() or 1) // at_once)
    with ProcessPoolExecutor(at_once, get_context("spawn"), _as_worker) as pool:
        running = [pool.submit(run_job, replace(job, threads=job.threads or threads)) for job in jobs]
        try:
            yield lambda: all([_checked(one) for one in running])
        except BaseException:
            processes = list((pool._processes or {}).values())  # shutdown forgets them
            pool.shutdown(wait=False, cancel_futures=True)
            for process in processes:
                process.terminate()
            raise


def _as_worker() -> None:
    """Draw no bars, and leave an interruption by the keyboard, which reaches every process, to the first one."""
    no_bars()
    warnings.showwarning = _warn  # type: ignore[assignment]
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _warn(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    """Tell what the library warns of in a line, as the command line does in its own process."""
    if issubclass(category, UserWarning):
        sys.stderr.write(f"warning: {in_a_line(str(message))}\n")


def _checked(running: Any) -> bool:
    """Whether it is over; what it failed with is raised."""
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
    try:
        import ray
        from ray.exceptions import RayError, RayTaskError
    except ImportError:
        raise LineasError("--on ray needs Ray: pip install 'lineas[ray]'.") from None
    started = not ray.is_initialized()
    if started:
        ray.init(log_to_driver=False, configure_logging=False, include_dashboard=False)
    remote = ray.remote(max_retries=TRIES)(run_job)
    left = [remote.remote(job) for job in jobs]

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
        yield finished
    finally:
        if started:
            ray.shutdown()
