# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""modeling_hc.data: local files as people have them, beside what datasets itself reads."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
from datasets import Dataset, load_dataset
from pandas import DataFrame

from modeling_hc.data import DataArguments, load_documents

TEXTS = [f'Text {i}: "naïve", NA\n\tits second line' for i in range(10)] + ["NA", "007"]
COMPRESSIONS = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def json_lines(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": text, "n": i}) + "\n" for i, text in enumerate(texts)).encode()


def rows(suffix: str, folder: Path) -> bytes:
    """The texts in a format, with a column more, which is a number in some rows only."""
    table = DataFrame({"n": [*range(11), None], "text": TEXTS})
    if suffix == ".arrow":
        Dataset.from_pandas(table).save_to_disk(folder / "saved")
        return next((folder / "saved").glob("*.arrow")).read_bytes()
    if suffix == ".parquet":
        return table.to_parquet()
    if suffix in (".csv", ".tsv"):
        return table.to_csv(index=False, sep="," if suffix == ".csv" else "\t").encode()
    return json.dumps([{"text": text} for text in TEXTS]).encode() if suffix == ".json" else json_lines(TEXTS)


def read(*files: Path | str, streaming: bool = False) -> list[str]:
    """What a run would train on, if nothing were held out."""
    args = DataArguments(train_files=list(map(str, files)), streaming=streaming, validation_documents=0)
    return [row["text"] for row in load_documents(args)[0]]


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv"])
@pytest.mark.report(4, "training files in every format and compression")
def test_rows_are_read_by_format_and_compression(
    suffix: str, compression: str, streaming: bool, tmp_path: Path, outcome: Callable
) -> None:
    path = tmp_path / f"rows{suffix}{compression}"
    path.write_bytes(COMPRESSIONS[compression](rows(suffix, tmp_path)))
    stock = load_dataset(str(tmp_path), data_files=path.name, split="train")["text"]
    ours = read(path, streaming=streaming)
    outcome(
        f"{sum(text in TEXTS for text in stock)} texts of 12", f"{sum(text in TEXTS for text in ours)} texts of 12"
    )
    assert ours == TEXTS


@pytest.mark.parametrize("name", ["rows.parquet", "rows.arrow", "ROWS.JSONL", "Rows.Csv", "rows.TSV.GZ", "a[1].jsonl"])
@pytest.mark.report(4, "training files in every format and compression")
def test_names_in_capitals_and_binary_tables_are_read(name: str, tmp_path: Path) -> None:
    suffix, _, compression = name.lower().partition(".")[2].partition(".")
    compress = COMPRESSIONS[f".{compression}" if compression else ""]
    (tmp_path / name).write_bytes(compress(rows(f".{suffix}", tmp_path)))
    assert read(tmp_path / name) == TEXTS


@pytest.mark.parametrize(("suffix", "package"), [(".zst", "zstandard"), (".lz4", "lz4.frame")])
@pytest.mark.report(4, "training files in every format and compression")
def test_formats_that_need_a_package_are_read_with_it(suffix: str, package: str, tmp_path: Path) -> None:
    module = pytest.importorskip(package)
    compress = module.ZstdCompressor().compress if package == "zstandard" else module.compress
    for name in (f"rows.jsonl{suffix}", f"rows.csv{suffix}"):
        (tmp_path / name).write_bytes(compress(rows(Path(name).suffixes[0], tmp_path)))
        assert read(tmp_path / name) == TEXTS


@pytest.mark.report(4, "training files in every format and compression")
def test_a_format_without_its_package_is_rejected_by_the_packages_name(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("modeling_hc.data.find_spec", lambda name: None)
    (tmp_path / "rows.jsonl.zst").write_bytes(bytes.fromhex("28B52FFD"))
    with pytest.raises(ValueError, match=r"rows\.jsonl\.zst is compressed with zstd, .* pip install zstandard"):
        read(tmp_path / "rows.jsonl.zst")


@pytest.mark.report(4, "twelve shards, c4-train.*.json.gz")
def test_compressed_shards_give_exactly_their_texts(tmp_path: Path, outcome: Callable) -> None:
    for i, text in enumerate(TEXTS):
        (tmp_path / f"c4-train.{i:05d}-of-00012.json.gz").write_bytes(gzip.compress(json_lines([text]), mtime=0))
    ours = read(tmp_path / "c4-train.*.json.gz")
    stock = load_dataset(str(tmp_path), split="train")["text"]
    outcome(*(f"{sum(len(text.encode()) for text in texts)} bytes of text" for texts in (stock, ours)))
    assert ours == TEXTS
    assert read(tmp_path) == TEXTS


@pytest.mark.parametrize(
    "name", ["book.txt", "enwik8", "wiki.train.tokens", "notes.md", "module.py", "v1.0 of Mr. Smith", "part-00000"]
)
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.report(4, "text files, compressed or not")
def test_a_text_file_is_one_document(name: str, compression: str, tmp_path: Path) -> None:
    text = "One paragraph.\n\nAnd another, größer.\n"
    (tmp_path / f"{name}{compression}").write_bytes(COMPRESSIONS[compression](text.encode()))
    assert read(tmp_path / f"{name}{compression}") == [text]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", gzip.compress(b"{}", mtime=0), ["rows.jsonl is compressed with gzip"]),
        ("rows.jsonl.gz", b'{"text": "a"}', ["rows.jsonl.gz is not compressed with gzip"]),
        ("rows.parquet.gz", gzip.compress(b"PAR1", mtime=0), ["rows.parquet.gz", "Decompress it"]),
        ("part-00000", json_lines(TEXTS), ["part-00000 holds lines of JSON", ".jsonl"]),
        ("part-00000.gz", gzip.compress(json_lines(TEXTS), mtime=0), ["part-00000.gz holds lines of JSON"]),
        *((f"rows{suffix}", b"text", [suffix, ".txt"]) for suffix in (".zip", ".tar", ".xlsx", ".pkl", ".sqlite")),
        ("rows.tar.gz", gzip.compress(b"text", mtime=0), ["rows.tar.gz has the suffix .tar"]),
    ],
)
@pytest.mark.report(4, "files of formats that are not read")
def test_what_is_no_known_format_is_rejected_by_name(
    name: str, content: bytes, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^train_files: ") as error:
        read(tmp_path / name)
    assert all(word in str(error.value) for word in words), error.value
    (tmp_path / "good.jsonl").write_bytes(json_lines(TEXTS))
    args = DataArguments(train_files=[str(tmp_path / "good.jsonl")], validation_files=[str(tmp_path / name)])
    with pytest.raises(ValueError, match=r"^validation_files: "):
        load_documents(args)


@pytest.mark.report(4, "files of several formats at once")
def test_files_of_several_formats_are_rejected_with_an_example_of_each(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl", "c.csv", "d.tsv"):
        (tmp_path / name).write_bytes(rows(Path(name).suffix, tmp_path))
    assert read(tmp_path / "*.jsonl") == TEXTS * 2
    with pytest.raises(ValueError, match=r"3 formats, such as \S*a\.jsonl and \S*c\.csv and \S*d\.tsv; "):
        read(tmp_path)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize("form", ["book.txt", "book.jsonl", "a line"])
@pytest.mark.report(5, "one text file as training data")
def test_the_end_of_a_single_document_is_held_out(
    form: str, streaming: bool, tmp_path: Path, outcome: Callable
) -> None:
    paragraphs = [f"The {i}th paragraph.\nIt has two lines." for i in range(100)]
    text = "x" * 1000 if form == "a line" else "\n\n".join(paragraphs)
    path = tmp_path / (form if form != "a line" else "book.txt")
    path.write_bytes(json_lines([text]) if form == "book.jsonl" else text.encode())
    train, held_out = load_documents(DataArguments(train_files=[str(path)], streaming=streaming))
    (first,), (last,) = ([row["text"] for row in part] for part in (train, held_out))
    outcome("held out by run_clm: 5 %", f"held out: {100 * len(last) / len(text):.1f} %")
    assert first + last == text
    assert 0.1 <= len(last) / len(text) < 0.12
    assert form == "a line" or first.endswith("\n\n")


@pytest.mark.report(5, "one text file as training data")
def test_all_of_a_single_document_is_trained_on_where_that_is_asked_for(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("A word. " * 100)
    assert read(tmp_path / "book.txt") == ["A word. " * 100]


@pytest.mark.report(5, "a folder as training data")
def test_a_folder_stands_for_the_files_in_it(tmp_path: Path) -> None:
    (tmp_path / "data/below").mkdir(parents=True)
    (tmp_path / "data/.git").mkdir()
    for name in ("b.txt", "below/a.txt", ".git/HEAD", ".hidden.zip"):
        (tmp_path / "data" / name).write_text(name)
    (tmp_path / "data/_SUCCESS").touch()
    assert read(tmp_path / "data") == read(tmp_path / "data/b*") == ["b.txt", "below/a.txt"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"train_files: the folder \S*nothing is empty"):
        read(tmp_path / "nothing")
