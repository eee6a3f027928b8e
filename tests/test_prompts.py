"""Prompt files of every kind, and every way in which one can be wrong."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from lineas import LineasError
from lineas.prompts import draw, read_prompts

ROWS = [{"text": "one, two", "n": 1, "prompt": {"text": "deep"}}, {"text": "drei", "n": 2, "prompt": {"text": "tief"}}]


ODD = {
    "cut.csv": "text\nHello, you fool\nGo away, now\n",
    "cut.tsv": "text\tn\na\t1\na\tb\tc\n",
    "wide.csv": "a,b\nx,y,z\n",
    "short.csv": "text,n\na,1\nb\n",
    "semi.csv": 'id;text\n0;"Water boils, at a hundred degrees."\n',
    "tabs.csv": "id\ttext\n0\tx\n",
    "bars.csv": "id|text\n0|x\n",
    "commas.tsv": "id,text\n0,x\n",
    "twice.csv": "text,text\na,b\n",
    "open.csv": 'text\n"abc\n',
    "quote.tsv": 'text\tn\n"a" b\t1\n',
    "deep.jsonl": "[" * 100_000 + "]" * 100_000,
    "digits.jsonl": f'{{"text": "a", "n": {"1" * 5000}}}\n',
    "nan.jsonl": '{"text": "a", "n": NaN}\n',
    "key.jsonl": '{"text": "a"}\n{"text": "a", "text": "b"}\n',
    "mixed.jsonl": '{"text": "a"}\n5\n',
    "null.jsonl": "null\n",
    "object.json": '{"text": ["a"]}',
    "table.xlsx": "x",
    "list.yaml": "- a\n",
    "a.txt.gz": "x",
    "header.csv": "hello you\nfool you\nthird one\n",
    "mark.csv": "Hello!\nfool you\n",
    "long.csv": f"text\n{'x' * 200_000}\n",
    "inside.csv": 'text,n\r\n"a\r\nb",1\r\n',
    "mac.txt": "a\rb\r",
}


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("one, two\n\n  drei  \n", encoding="utf-8")
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS) + "\n", encoding="utf-8")
    (tmp_path / "a.csv").write_text('text,n\n"one, two",1\ndrei,2\n', encoding="utf-8")
    (tmp_path / "a.tsv").write_text("text\tn\none, two\t1\ndrei\t2\n", encoding="utf-8")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "several.csv").write_text("a,b\nx,y\n", encoding="utf-8")
    (tmp_path / "single.csv").write_text("remark\nx\n", encoding="utf-8")
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("schön".encode("latin-1"))
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\n{"text"\n', encoding="utf-8")
    (tmp_path / "gap.jsonl").write_text('{"text": "a"}\n{"other": "b"}\n', encoding="utf-8")
    (tmp_path / "broken.parquet").write_bytes(b"no parquet")
    (tmp_path / "with:colon.txt").write_text("fine\n", encoding="utf-8")
    (tmp_path / "a.ndjson").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "lines.json").write_bytes((tmp_path / "a.jsonl").read_bytes())
    (tmp_path / "a.json").write_text(json.dumps(ROWS, indent=1), encoding="utf-8")
    (tmp_path / "texts.json").write_text('["one, two", "drei"]', encoding="utf-8")
    (tmp_path / "bom.csv").write_text('\ufefftext,n\r\n"one, two",1\r\n\r\ndrei,2\r\n', encoding="utf-8", newline="")
    for name, text in ODD.items():
        (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    os.mkfifo(tmp_path / "pipe.txt")
    table = pyarrow.table([["a"], ["b"]], names=["text", "text"])
    pyarrow.parquet.write_table(table, tmp_path / "twice.parquet")
    return tmp_path


@pytest.mark.parametrize(
    "name",
    [
        "a.txt",
        "a.jsonl",
        "a.csv",
        "a.tsv",
        "a.parquet",
        "a.jsonl:text",
        "a.csv:text",
        "a.ndjson",
        "lines.json",
        "a.json",
        "texts.json",
        "bom.csv",
    ],
)
def test_every_format_gives_the_same_prompts(files: Path, name: str) -> None:
    assert read_prompts(f"{files}/{name}") == ["one, two", "drei"]


def test_only_a_line_feed_ends_a_line(files: Path) -> None:
    texts = ["one\u2028two", "three\x0cfour\x85five"]
    (files / "lines.txt").write_text("\r\n".join(texts), encoding="utf-8")
    (files / "lines.jsonl").write_text(
        "\n".join(json.dumps({"text": text}, ensure_ascii=False) for text in texts), encoding="utf-8"
    )
    assert read_prompts(files / "lines.txt") == read_prompts(files / "lines.jsonl") == texts


def test_columns_may_be_nested_or_the_only_one_and_names_may_hold_colons(files: Path) -> None:
    assert read_prompts(f"{files}/a.jsonl:prompt.text") == ["deep", "tief"]
    assert read_prompts(f"{files}/a.parquet:prompt.text") == ["deep", "tief"]
    assert read_prompts(f"{files}/single.csv") == ["x"]
    assert read_prompts(f"{files}/with:colon.txt") == ["fine"]


@pytest.mark.parametrize("name", ["header.csv", "mark.csv"])
def test_a_header_that_reads_like_a_sentence_is_warned_of(files: Path, name: str) -> None:
    with pytest.warns(UserWarning, match="the first line of .*, '[Hh]ello.*', is taken for the column's name"):
        assert read_prompts(files / name)[0] == "fool you"


def test_tables_are_read_as_written(files: Path) -> None:
    limit = csv.field_size_limit()
    assert read_prompts(files / "long.csv") == ["x" * 200_000]
    assert csv.field_size_limit() == limit
    assert read_prompts(files / "inside.csv") == ["a\r\nb"]
    assert read_prompts(files / "mac.txt") == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing.txt", "there is no file"),
        ("missing.txt:text", "there is no file"),
        ("empty.txt", "holds no prompts"),
        ("latin.txt", r"not UTF-8 text \(byte 3\)"),
        ("a.jsonl:nope", "has no column 'nope' .*it has text, n, prompt"),
        ("a.jsonl:prompt.nope", "has no column 'prompt.nope'"),
        ("a.jsonl:n", "column 'n' is int, expected text"),
        ("gap.jsonl", r"no column 'text' \(row 2\)"),
        ("a.txt:text", "has no columns"),
        ("several.csv", r"several columns \(a, b\)"),
        ("broken.jsonl", "line 2 is not JSON"),
        ("broken.parquet", "not a readable parquet"),
        ("", "is a folder"),
        ("cut.csv", r"line 2 has more fields \(2\) than the first line names \(1\)"),
        ("cut.tsv", r"line 3 has more fields \(3\) than the first line names \(2\)"),
        ("wide.csv", r"line 2 has more fields \(3\)"),
        ("short.csv", r"line 3 has fewer fields \(1\) than the first line names \(2\)"),
        ("semi.csv", "separated by semicolons; save it with commas"),
        ("tabs.csv", "separated by tabs"),
        ("bars.csv", "separated by bars"),
        ("commas.tsv", "separated by commas; save it with tabs"),
        ("twice.csv", "two columns of the name 'text'"),
        ("twice.parquet", "text"),
        ("open.csv", "line 2 is no csv: unexpected end of data"),
        ("quote.tsv", "line 2 is no tsv: .* expected after"),
        ("deep.jsonl", "line 1 cannot be read: it is nested too deeply"),
        ("digits.jsonl", "line 1 cannot be read: a number in it has 5000 digits"),
        ("nan.jsonl", "line 1 cannot be read: NaN is no number of JSON"),
        ("key.jsonl", "line 2 cannot be read: the key 'text' comes twice"),
        ("mixed.jsonl", "row 2 is int, unlike the first row"),
        ("null.jsonl", "expected objects"),
        ("object.json", "column 'text' is list, expected text"),
        ("table.xlsx", "is a spreadsheet; save it as .csv"),
        ("list.yaml", "is no list of texts"),
        ("a.txt.gz", "is compressed; unpack it first"),
        ("pipe.txt", "is no regular file"),
        ("x" * 300, "there is no file"),
        ("nul\0.txt", "there is no file"),
    ],
)
def test_wrong_files_are_named_in_one_sentence(files: Path, name: str, sentence: str) -> None:
    with pytest.raises(LineasError, match=sentence):
        read_prompts(f"{files}/{name}")


def test_shipped_sets_are_48_a_side_and_unknown_ones_are_listed() -> None:
    rude, polite = read_prompts("lineas:polite/source"), read_prompts("lineas:polite/target")
    assert len(set(rude)) == len(set(polite)) == 48
    with pytest.raises(LineasError, match="lineas:polite/source"):
        read_prompts("lineas:nothing")


def test_the_hub_is_asked_for_a_file_of_a_data_set(files: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def download(repo: str, name: str, repo_type: str) -> str:
        asked.append((repo, name, repo_type))
        return str(files / "a.jsonl")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert read_prompts("hf://datasets/someone/set/dir/train.jsonl:prompt.text") == ["deep", "tief"]
    assert asked == [("someone/set", "dir/train.jsonl", "dataset")]
    with pytest.raises(LineasError, match="incomplete"):
        read_prompts("hf://datasets/someone")


def test_draws_are_the_seeds_alone_and_never_repeat_a_prompt() -> None:
    prompts = [str(i) for i in range(50)]
    assert draw(prompts, 20, seed=1) == draw(prompts, 20, seed=1)
    assert draw(prompts, 20, seed=1) != draw(prompts, 20, seed=2)
    assert len(set(draw(prompts, 20, seed=1))) == 20
    assert draw(prompts, None, seed=1) == prompts
    with pytest.raises(LineasError, match="60 samples were asked for and 50"):
        draw(prompts, 60, seed=0)
