"""Sweeps: learn with several penalties gamma in parallel, judge each result, and choose one."""

from lineas.sweeping.jobs import Job, points, run_job
from lineas.sweeping.summary import Line, choose, summary
from lineas.sweeping.sweep import Sweep, sweep
from lineas.sweeping.workers import run_jobs

__all__ = ["Job", "Line", "Sweep", "choose", "points", "run_job", "run_jobs", "summary", "sweep"]
