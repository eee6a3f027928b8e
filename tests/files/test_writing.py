"""Files and folders are replaced whole, and only where lineas wrote them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import traceback
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
import torch
from interruptions import every_interruption, in_a_copy

import lineas
from lineas import LineasError
from lineas.files import writing
from lineas.files.ownership import MARK, FolderKind, check_file, json_of, written_by
from lineas.intervention import artifact

KIND = FolderKind("a thing", "thing", "last.json")


def intervention(value: float, neurons: int = 6) -> lineas.Intervention:
    return lineas.Intervention({"norm": lineas.AffineMap(torch.full((neurons,), value), torch.full((neurons,), value))})


OLD, NEW = intervention(2.0), intervention(3.0, 7)


def as_without_exchange(one: Path, other: Path) -> None:
    """Fail as on a file system where folders cannot change places."""
    raise OSError(errno.EINVAL, "Invalid argument", str(one))


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"{writing.TEMPORARY}*")]


@pytest.mark.parametrize(("there", "exchanges"), [("nothing", True), ("others beside", True), ("others beside", False)])
def test_a_folder_is_old_or_new_whenever_saving_is_interrupted(
    there: str, exchanges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not exchanges:  # then the old one is not promised, but the next run mends
        monkeypatch.setattr(writing, "_exchange", as_without_exchange)
    place, start = tmp_path / "calm", tmp_path.with_name(tmp_path.name + "-start")
    start.mkdir()
    if there != "nothing":
        OLD.save(start / "calm")
    if there == "others beside":
        (start / "calm" / "notes.md").write_text("mine")
        (start / "calm" / "sub" / "deep").mkdir(parents=True)
        (start / "calm" / "sub" / "deep" / "data").write_text("mine too")
    digests = {NEW.digest(), *([] if there == "nothing" else [OLD.digest()])}

    def prepare() -> None:
        shutil.rmtree(tmp_path)
        shutil.copytree(start, tmp_path)

    for what in every_interruption(lambda: NEW.save(place, overwrite=True), prepare):
        if place.exists() or there != "nothing":
            whole = nullcontext() if exchanges else suppress(LineasError)  # never a mixture that passes for whole
            with whole:
                assert lineas.Intervention.load(place).digest() in digests, what
        if there == "others beside":
            assert (place / "notes.md").read_text() == "mine", what
            assert (place / "sub" / "deep" / "data").read_text() == "mine too", what
        assert in_a_copy(lambda: NEW.save(place, overwrite=True))[0] == 0, what
        assert lineas.Intervention.load(place).digest() == NEW.digest(), what
        assert leftovers(tmp_path) == [], what
    shutil.rmtree(start)


def test_whoever_reads_while_others_write_sees_one_of_them_whole(tmp_path: Path) -> None:
    place = tmp_path / "calm"
    OLD.save(place)
    (place / "notes.md").write_text("mine")
    writers, codes, reads = [], [], 0
    for made in (OLD, NEW, OLD, NEW):
        if (child := os.fork()) == 0:
            try:
                for _ in range(40):
                    made.save(place, overwrite=True)
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        writers.append(child)
    while writers:
        assert lineas.Intervention.load(place).digest() in {OLD.digest(), NEW.digest()}
        reads += 1
        for writer in [*writers]:
            done, status = os.waitpid(writer, os.WNOHANG)
            if done:
                writers.remove(writer)
                codes.append(os.waitstatus_to_exitcode(status))
    assert codes == [0, 0, 0, 0]
    assert reads > 50
    assert (place / "notes.md").read_text() == "mine"
    assert leftovers(tmp_path) == []


def test_two_files_of_different_times_are_no_intervention(tmp_path: Path) -> None:
    OLD.save(tmp_path / "old")
    intervention(5.0).save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / artifact.TENSORS, tmp_path / "old" / artifact.TENSORS)
    with pytest.raises(LineasError, match=r"written together with another"):
        lineas.Intervention.load(tmp_path / "old")


def test_what_lineas_did_not_write_is_not_replaced(tmp_path: Path) -> None:
    place = tmp_path / "calm"
    OLD.save(place)
    (place / artifact.CARD).write_text("my own words about it")
    with pytest.raises(LineasError, match=r"README.md was changed after lineas wrote it"):
        NEW.save(place, overwrite=True)
    assert (place / artifact.CARD).read_text() == "my own words about it"
    assert lineas.Intervention.load(place).digest() == OLD.digest()

    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / artifact.DESCRIPTION).write_text("{}")
    with pytest.raises(LineasError, match=r"not an intervention that lineas wrote"):
        NEW.save(mine, overwrite=True)
    assert (mine / artifact.DESCRIPTION).read_text() == "{}"


def test_a_file_of_others_under_a_new_name_is_not_replaced(tmp_path: Path) -> None:
    with writing.new_folder(tmp_path / "thing", KIND) as beside:
        (beside / "a").write_text("1")
    (tmp_path / "thing" / "b").write_text("mine")
    with (
        pytest.raises(LineasError, match=r"b was not written by lineas"),
        writing.new_folder(tmp_path / "thing", KIND, overwrite=True) as beside,
    ):
        (beside / "b").write_text("2")
    assert (tmp_path / "thing" / "b").read_text() == "mine"
    assert leftovers(tmp_path) == []


def test_what_lineas_no_longer_writes_goes_and_what_is_anothers_stays(tmp_path: Path) -> None:
    with writing.new_folder(tmp_path / "thing", KIND) as beside:
        (beside / "a").write_text("1")
    (tmp_path / "thing" / "mine").symlink_to("/nowhere")
    inode = (tmp_path / "thing" / "mine").lstat().st_ino
    with writing.new_folder(tmp_path / "thing", KIND, overwrite=True) as beside:
        (beside / "b").write_text("2")
    assert sorted(p.name for p in (tmp_path / "thing").iterdir()) == [MARK, "b", "mine"]
    assert (tmp_path / "thing" / "mine").lstat().st_ino == inode


def test_a_folder_that_was_moved_away_and_linked_back_is_not_written_through(tmp_path: Path) -> None:
    with writing.new_folder(tmp_path / "thing", KIND) as beside:
        (beside / "sub").mkdir()
        (beside / "sub" / "a").write_text("1")
    (tmp_path / "thing" / "sub").rename(tmp_path / "elsewhere")
    (tmp_path / "thing" / "sub").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(LineasError, match=r"sub/a was changed"), writing.new_folder(tmp_path / "thing", KIND, True):
        pass
    assert (tmp_path / "elsewhere" / "a").read_text() == "1"
    (tmp_path / "thing" / ".lineas.json").unlink()
    with writing.new_folder(tmp_path / "other", KIND) as beside:
        (beside / "b").write_text("1")
    (tmp_path / "other" / "sub").symlink_to(tmp_path / "elsewhere")

    def write() -> None:
        with writing.new_folder(tmp_path / "other", KIND, overwrite=True) as beside:
            (beside / "sub").mkdir()
            (beside / "sub" / "a").write_text("2")

    with pytest.raises(LineasError, match=r"sub was not written by lineas"):
        write()
    assert (tmp_path / "elsewhere" / "a").read_text() == "1"
    assert leftovers(tmp_path) == []


def test_an_intervention_of_lineas_0_1_is_known_by_its_content(tmp_path: Path) -> None:
    OLD.save(tmp_path / "calm")
    (tmp_path / "calm" / MARK).unlink()
    (tmp_path / "calm" / "notes.md").write_text("mine")
    NEW.save(tmp_path / "calm", overwrite=True)
    assert lineas.Intervention.load(tmp_path / "calm").digest() == NEW.digest()
    assert (tmp_path / "calm" / "notes.md").read_text() == "mine"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("", "an empty name"),
        ("file/under", "is no folder"),
        ("x" * 300, "file name too long"),
        ("/proc/nothing-here", "nothing can be written to"),
        ("a\0b", "null byte"),
        ("loop/under", "nothing can be written|no folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_found_by_trying(
    name: str, sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("loop").symlink_to("loop")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(LineasError, match=sentence):
        writing.check_place(Path(name))
    assert sorted(tmp_path.rglob("*")) == before


def test_every_name_that_the_system_takes_is_a_place(tmp_path: Path) -> None:
    for name in ("x" * 255, "ä" * 120, "new/deep/er", " "):
        writing.check_place(tmp_path / name)
        assert list(tmp_path.iterdir()) == []
    OLD.save(tmp_path / ("x" * 255))
    assert lineas.Intervention.load(tmp_path / ("x" * 255)).digest() == OLD.digest()


def test_a_pipe_is_written_to_and_stays_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    writing.write_text(tmp_path / "pipe", "hello")
    assert os.read(reader, 10) == b"hello"
    os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_files_have_the_modes_that_the_umask_asks_for(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        OLD.save(tmp_path / "calm")
        writing.write_text(tmp_path / "told.json", "{}")
    finally:
        os.umask(before)
    modes = {stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "calm").iterdir()}
    assert modes == {0o640}
    assert stat.S_IMODE((tmp_path / "calm").stat().st_mode) == 0o750
    assert stat.S_IMODE((tmp_path / "told.json").stat().st_mode) == 0o640


def test_json_is_known_by_the_verb_that_wrote_it(tmp_path: Path) -> None:
    file = tmp_path / "told.json"
    file.write_text(json.dumps({"written_by": written_by("show"), "sites": []}, indent=1))
    check_file(file, True, json_of("show"))
    for overwrite, kind, sentence in (
        (False, json_of("show"), "exists already"),
        (True, json_of("learn"), "not JSON that lineas learn wrote"),
    ):
        with pytest.raises(LineasError, match=sentence):
            check_file(file, overwrite, kind)
