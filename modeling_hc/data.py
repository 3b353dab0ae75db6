# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Text to train on: documents from files, the text that every machine has, a tokenizer, and packed blocks."""

import hashlib
import json
import re
import sysconfig
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from glob import escape, glob
from importlib.util import find_spec
from itertools import chain
from os.path import splitext
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

import fsspec
import pandas
import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, Features, IterableDataset, Value, load_dataset
from datasets.exceptions import DatasetsError
from datasets.filesystems import COMPRESSION_FILESYSTEMS
from datasets.packaged_modules import _EXTENSION_TO_MODULE
from datasets.utils.file_utils import MAGIC_NUMBER_TO_COMPRESSION_PROTOCOL
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase, PreTrainedTokenizerFast

Documents: TypeAlias = Dataset | IterableDataset

EOS, PAD = "<|endoftext|>", "<|padding|>"

# What datasets reads as rows with columns, by suffix, and how it decompresses.
_TABLES = {
    suffix: form for suffix, form in _EXTENSION_TO_MODULE.items() if form[0] in ("arrow", "csv", "json", "parquet")
}
_COMPRESSED = {suffix: system.compression for system in COMPRESSION_FILESYSTEMS for suffix in system.extensions}
_PACKAGES = {"zstd": "zstandard", "lz4": "lz4"}
_MAGIC_NUMBERS = {number: name for number, name in MAGIC_NUMBER_TO_COMPRESSION_PROTOCOL.items() if name != "zip"}

# Suffixes of text. Others are rejected: they may be of data, which must not be read as text.
_TEXT = re.compile(
    r"\.(txt|text|raw|tokens|log|md|markdown|rst|adoc|org|tex|bib|html?|xml|srt|vtt|css|py|pyi|pyx|c|h|cc|cpp|cxx|hh|hpp|"
    r"cu|cs|java|kt|scala|swift|m|go|rs|m?js|jsx|tsx?|rb|php|pl|pm|lua|r|jl|hs|ml|exs?|erl|lisp|el|clj|f|f90|asm|s|sh|"
    r"bash|zsh|ps1|sql|v|sv|vhd|cmake|mk|cfg|ini|conf|toml|ya?ml|diff|patch|po)"
)

# Third-party code, tests (missing in some distributions) and near-duplicate encoding tables.
_LEFT_OUT = {"site-packages", "dist-packages", "test", "tests", "encodings", "__pycache__"}


def stdlib_files(split: Literal["train", "validation"]) -> list[Path]:
    """Returns the source files of the running interpreter's standard library that belong to a split.

    One file in twenty is held out, by a hash of its name. No two files, in one split or in both, have equal content.
    """
    return [path for path, held_out in _stdlib_files() if held_out == (split == "validation")]


@cache
def _stdlib_files() -> list[tuple[Path, bool]]:
    root = Path(sysconfig.get_path("stdlib"))
    files: dict[str, tuple[Path, bool]] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        if _LEFT_OUT.isdisjoint(name.parts) and (content := path.read_bytes().strip()):
            held_out = int(hashlib.md5(name.as_posix().encode()).hexdigest(), 16) % 20 == 0
            files.setdefault(hashlib.md5(content).hexdigest(), (path, held_out))
    return list(files.values())


@dataclass
class DataArguments:
    """What to train on; where nothing is given, the source of the running Python's standard library."""

    dataset_name: str | None = field(default=None, metadata={"help": "Dataset on the Hub, or a folder of one."})
    dataset_config: str | None = field(default=None, metadata={"help": "Its configuration."})
    train_split: str = field(default="train", metadata={"help": "Its split, which may be a slice: train[:1%%]."})
    validation_split: str | None = field(default=None, metadata={"help": "Its held-out split."})
    train_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Local files: names, patterns or folders. Rows of .parquet, .arrow, .jsonl, .ndjson, .json, "
            ".csv or .tsv, or text (.txt, .md, .py and other source, or without a suffix), each file a document; as "
            "they are or in .gz, .bz2, .xz, .zst or .lz4."
        },
    )
    validation_files: list[str] | None = field(default=None, metadata={"help": "Held-out files, likewise."})
    validation_documents: int | None = field(
        default=None,
        metadata={
            "help": "How many training documents to hold out where no held-out data is given: by default a tenth, "
            "at most 100. Of a single document the last tenth is held out."
        },
    )
    text_column: str = field(default="text", metadata={"help": "Column that holds the text."})
    streaming: bool = field(default=False, metadata={"help": "Read while training; needs max_steps."})
    tokenizer: str | None = field(
        default=None,
        metadata={"help": "Name, folder or tokenizer.json; else the checkpoint's, or a byte-level BPE of this data."},
    )
    block_size: int = field(default=1024, metadata={"help": "Tokens in a sequence."})
    preprocessing_num_workers: int | None = field(default=None, metadata={"help": "Processes that tokenize."})


def load_documents(args: DataArguments) -> tuple[Documents, Documents | None]:
    """Returns the training documents and the held-out ones (None where `validation_documents` is 0)."""
    if args.dataset_name is not None and (args.train_files or args.validation_files):
        raise ValueError(
            f"Give either dataset_name or files; got dataset_name={args.dataset_name}, train_files={args.train_files} "
            f"and validation_files={args.validation_files}."
        )
    if args.validation_files and not args.train_files:
        raise ValueError(f"validation_files={args.validation_files} needs train_files.")
    if args.dataset_name is not None:
        name = f"dataset_name={args.dataset_name}, dataset_config={args.dataset_config}"
        source = (name, args.dataset_name, args.dataset_config)
        train = _load(*source, split=args.train_split, streaming=args.streaming)
        held_out = _load(*source, split=args.validation_split) if args.validation_split else None
    elif args.train_files:
        train = read_files("train_files", args.train_files, [args.text_column], args.streaming)
        held_out = args.validation_files and read_files("validation_files", args.validation_files, [args.text_column])
    else:
        train = _load_text("the standard library", list(map(str, stdlib_files("train"))), args.streaming)
        held_out = _load_text("the standard library", list(map(str, stdlib_files("validation"))))
    _check_text(train, args.text_column, args.dataset_name or f"train_files={args.train_files}")
    if held_out:
        _check_text(held_out, args.text_column, args.dataset_name or f"validation_files={args.validation_files}")
    if held_out or args.validation_documents == 0:
        return train, held_out or None
    count = args.validation_documents
    if count is None:
        known = len(train) if isinstance(train, Dataset) else sum(1 for _ in train.take(1000))
        if known == 1 and (parts := _hold_out_end(next(iter(train)), args.text_column)):
            return parts[0].to_iterable_dataset() if args.streaming else parts[0], parts[1]
        count = max(1, min(100, known // 10))
    if isinstance(train, Dataset):
        if len(train) <= count:
            raise ValueError(
                f"validation_documents={count} would hold out all of the {len(train)} training documents. Lower "
                "--validation_documents (0 holds out none), or give --validation_files or --validation_split."
            )
        train = train.shuffle(seed=0)
    held_out = Dataset.from_list(list(train.take(count)))
    return train.skip(count), held_out


def _hold_out_end(document: dict[str, Any], column: str) -> tuple[Dataset, Dataset] | None:
    """Splits a document before its last tenth, at the end of a paragraph, line or word; None if it is too short."""
    text = document[column] or ""
    if len(text) < 100:
        return None
    earliest, latest = len(text) * 8 // 10, len(text) * 9 // 10
    ends = (text.rfind(space, earliest, latest) + len(space) for space in ("\n\n", "\n", " "))
    cut = next((end for end in ends if end > earliest), latest)
    return tuple(Dataset.from_list([document | {column: part}]) for part in (text[:cut], text[cut:]))


def _check_text(documents: Documents, column: str, source: str) -> None:
    row: dict[str, Any] = next(iter(documents), {})
    value = row.get(column, 0)
    feature = (documents.features or {}).get(column)
    null = isinstance(feature, Value) and feature.dtype == "null"
    if isinstance(value, str | None) and feature is not None and not isinstance(feature, Value):  # JSON of any type
        value = next((row[column] for row in documents if not isinstance(row[column], str | None)), None)
    if not isinstance(value, str | None) or null:
        columns = ", ".join(f"{name} ({type(value).__name__})" for name, value in row.items())
        found = (
            f"a value of type {type(value).__name__} ({str(value)[:40]}), not text," if column in row else "no text"
        )
        raise ValueError(
            f"The data of {source} has {found} in text_column={column!r}. Its columns are: {columns or 'none'}. Name "
            "the one of text in text_column, or write its values as strings."
        )


class _Format(NamedTuple):
    """How datasets reads a file: its builder and the builder's options, and the compression."""

    builder: str
    options: dict[str, str]
    compression: str | None


def read_files(name: str, patterns: list[str], columns: list[str], streaming: bool = False) -> Documents:
    """Reads local files by format and compression, as their names say, in upper or lower case.

    Rows come from Parquet, Arrow, JSON (lines, or a list), CSV and TSV files. Of CSV and TSV, `columns` alone are
    read, as they are written: neither is `NA` a missing value nor `007` a number. A text file is one row, of a column
    `text`.

    Args:
        name: of the field that the files were given in, for errors.
        patterns: names of files, patterns of them, and folders, of which every file is read that is not hidden.
        columns: the columns that are needed.
        streaming: see `datasets.load_dataset`.

    Raises:
        ValueError: a file is missing, empty, damaged, of another format than the rest or than its name says, or of
            one that is not read; or its decompression needs a package.
    """
    files = [file for pattern in patterns for file in _matching(name, pattern)]
    for file in files:
        if not Path(file).is_file() or Path(file).stat().st_size == 0:
            raise ValueError(f"{name}: {file} is {'empty' if Path(file).is_file() else 'no file'}. Leave it out.")
    formats = {file: _format(name, file) for file in files}
    examples = {(form.builder, *form.options.values()): file for file, form in reversed(formats.items())}
    if len(examples) > 1:
        raise ValueError(
            f"{name} mixes files of {len(examples)} formats, such as {' and '.join(sorted(examples.values()))}; give "
            "files of one format, as a pattern such as 'FOLDER/*.jsonl'."
        )
    form = formats[files[0]]
    label = f"{name} ({', '.join(patterns[:3])}{', ...' * (len(patterns) > 3)})"
    if form.builder == "text":
        return _load_text(label, files, streaming)
    options: dict[str, Any] = dict(form.options)
    if form.builder == "csv":
        header = _header(label, files[0], form)
        if set(columns) <= set(header):  # or the caller says what is missing
            as_written = Features({column: Value("string") for column in columns})
            options |= {"usecols": columns, "features": as_written, "keep_default_na": False, "na_filter": False}
    return _load_files(label, form.builder, files, streaming, **options)


def _matching(name: str, pattern: str) -> list[str]:
    """Returns the files of a name or pattern, and those in folders that it matches."""
    matches = [pattern] if Path(pattern).exists() else sorted(glob(pattern, recursive=True))
    files: list[str] = []
    for match in matches:
        if not Path(match).is_dir():
            files.append(match)
            continue
        below = (path for path in sorted(Path(match).rglob("*")) if path.is_file() and path.stat().st_size)
        files += [str(path) for path in below if not any(part[0] == "." for part in path.relative_to(match).parts)]
    if not files:
        found = f"the folder {pattern} is empty" if matches else f"no file matches {pattern}"
        raise ValueError(f"{name}: {found}. Give files that exist.")
    return list(dict.fromkeys(files))


def _format(name: str, file: str) -> _Format:
    stem, suffix = splitext(Path(file).name.lower())
    compression = _COMPRESSED.get(suffix)
    if compression:
        suffix = splitext(stem)[1]
    package = _PACKAGES.get(compression) if compression else None
    if package and not find_spec(package):
        raise ValueError(f"{name}: {file} is compressed with {compression}, which needs: pip install {package}.")
    with open(file, "rb") as content:
        start = content.read(max(map(len, _MAGIC_NUMBERS)))
    found = next((found for number, found in _MAGIC_NUMBERS.items() if start.startswith(number)), None)
    if found != compression:
        wrong = f"is compressed with {found}" if found else f"is not compressed with {compression}"
        raise ValueError(f"{name}: {file} {wrong}, and its name says otherwise. Give it the suffix of what it is.")
    if compression and _TABLES.get(suffix, ("",))[0] in ("arrow", "parquet"):
        raise ValueError(f"{name}: {file} is not read as it is, for {suffix} has its own compression. Decompress it.")
    if suffix in _TABLES:
        return _Format(*_TABLES[suffix], compression)  # type: ignore[call-arg]
    if not re.fullmatch(r"\.[a-z][a-z0-9_]*", suffix):  # as of part-00000, or "v1.0 of Mr. Smith"
        with fsspec.open(file, "rt", encoding="utf-8", errors="replace", compression=compression) as text:
            if _is_json(text.readline(2**24)):
                raise ValueError(f"{name}: {file} holds lines of JSON. Give it a name that ends in .jsonl.")
    elif not _TEXT.fullmatch(suffix):
        raise ValueError(
            f"{name}: {file} has the suffix {suffix}, and such files are not read. Rows are read from "
            f"{', '.join(_TABLES)}, text from .txt, .md, .py and other source, and files without a suffix, each as it "
            f"is or in {', '.join(_COMPRESSED)}. Give a text file the suffix .txt; convert or unpack another."
        )
    return _Format("text", {}, compression)


def _is_json(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _header(name: str, file: str, form: _Format) -> list[str]:
    try:
        with fsspec.open(file, "rb", compression=form.compression) as content:
            return list(pandas.read_csv(content, nrows=0, **form.options).columns)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"Cannot read {name} as csv: {' '.join(str(error).split())}") from error


def _load_text(name: str, files: list[str], streaming: bool = False) -> Documents:
    return _load_files(name, "text", files, streaming, sample_by="document")


def _load_files(name: str, builder: str, files: list[str], streaming: bool, **options: Any) -> Documents:
    files = list(map(escape, files))  # for datasets, names are patterns
    return _load(f"{name} as {builder}", builder, data_files=files, split="train", streaming=streaming, **options)


def _load(name: str, *source: str | None, **options: Any) -> Documents:
    try:
        return load_dataset(*source, **options)
    except (DatasetsError, ValueError, OSError) as error:
        hint = (
            "Give whole files, of what their names say, and text in UTF-8."
            if "data_files" in options
            else "Give a dataset's name on the Hub or its folder, a configuration and splits that it has."
        )
        reason = " ".join(str(error.__cause__ or error).split()).rstrip(".")
        raise ValueError(f"Cannot read {name}: {reason}. {hint}") from error


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer that ends documents.

    Args:
        name: see `read_tokenizer`.

    Raises:
        ValueError: it cannot be read, or has no end-of-text token.
    """
    tokenizer = read_tokenizer(name)
    if tokenizer.eos_token is None:
        raise ValueError(
            f"tokenizer={name!r} has no end-of-text token, which separates documents. Load it, set its eos_token, "
            "save it with save_pretrained, and give that folder."
        )
    if tokenizer.pad_token == tokenizer.eos_token:
        tokenizer.pad_token = None  # nn.Embedding never updates its padding row
    return tokenizer


def read_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Loads a tokenizer.

    Args:
        name: a Hub name, a folder, or a tokenizer.json file. Such a file does not say which token is which: its end of
            text must be `<|endoftext|>`, and its padding is `<|padding|>` where it has one.

    Raises:
        ValueError: it cannot be read.
    """
    try:
        if Path(name).is_file():
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=name)
            vocabulary = tokenizer.get_vocab()
            tokenizer.eos_token = EOS if EOS in vocabulary else None
            tokenizer.pad_token = PAD if PAD in vocabulary else None
        else:
            tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # tokenizers raises bare exceptions
        raise ValueError(
            f"Cannot load tokenizer={name!r}: {error} Give a name on the Hub, a folder that save_pretrained left, or "
            "a tokenizer.json file; or leave it out to train one on the data."
        ) from error
    return tokenizer


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE, which can encode and restore any text.

    Args:
        texts: what to train on.
        vocab_size: how many tokens to make at most, end of text (id 0) and padding (id 1) included.

    Raises:
        ValueError: `vocab_size` does not even hold all bytes and the two special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    if vocab_size < len(alphabet) + 2:
        raise ValueError(
            f"vocab_size={vocab_size} is too small for a byte-level BPE, which needs {len(alphabet) + 2} at least: "
            "raise it in the model recipe, or give a tokenizer."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=[EOS, PAD], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=EOS, pad_token=PAD, clean_up_tokenization_spaces=False
    )


def make_tokenizer(
    name: str | None, args: DataArguments, config: PreTrainedConfig, documents: Documents
) -> PreTrainedTokenizerBase:
    """Loads a tokenizer, or trains one on the documents, and checks that it fits the model.

    Args:
        name: for `load_tokenizer`; None to train a byte-level BPE with the model's `vocab_size`, which one process
            does and passes to the others.
        args: for `block_size` and `text_column`.
        config: the model's.
        documents: what to train on; the first 10,000 documents are enough.

    Raises:
        ValueError: the tokenizer or the blocks are too large for the model.
    """
    if args.block_size > config.max_position_embeddings:
        raise ValueError(
            f"block_size={args.block_size} is longer than the model's max_position_embeddings="
            f"{config.max_position_embeddings}. Lower the one or raise the other (config_overrides)."
        )
    if name is not None:
        tokenizer = load_tokenizer(name)
    else:
        texts = (row[args.text_column] or "" for row in documents.take(10_000))
        trained = train_tokenizer(texts, config.vocab_size) if PartialState().is_main_process else None
        (tokenizer,) = broadcast_object_list([trained])
    if len(tokenizer) > config.vocab_size:
        raise ValueError(
            f"tokenizer={name} has {len(tokenizer)} tokens, more than the model's vocab_size={config.vocab_size}. "
            f"Give another tokenizer, or from scratch a larger model vocabulary: "
            f"config_overrides=vocab_size={-(-len(tokenizer) // 64) * 64}."
        )
    tokenizer.model_max_length = config.max_position_embeddings
    return tokenizer


def tokenize(documents: dict[str, list], tokenizer: PreTrainedTokenizerBase, column: str) -> dict[str, list]:
    """Tokenizes a batch of documents and ends each with the end-of-text token, for `datasets.Dataset.map`.

    Returns:
        `input_ids`, and the sizes `num_tokens` (the end included) and `num_bytes` (UTF-8) of each document.
    """
    texts = [text or "" for text in documents[column]]
    encoded = tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)["input_ids"]
    input_ids = [[*ids, tokenizer.eos_token_id] for ids in encoded]
    return {
        "input_ids": input_ids,
        "num_tokens": [len(ids) for ids in input_ids],
        "num_bytes": [len(text.encode()) for text in texts],
    }


def pack(documents: dict[str, list], block_size: int) -> dict[str, list]:
    """Joins a batch of tokenized documents and cuts it into blocks, for `datasets.Dataset.map`.

    What is left at the end of a batch, less than a block, is dropped. Attention crosses the ends of documents.
    """
    joined = list(chain.from_iterable(documents["input_ids"]))
    starts = range(0, len(joined) - block_size + 1, block_size)
    return {"input_ids": [joined[start : start + block_size] for start in starts]}


def make_blocks(
    documents: Documents, name: str, tokenizer: PreTrainedTokenizerBase, args: DataArguments
) -> tuple[Documents, dict[str, int]]:
    """Tokenizes and packs documents. Returns the blocks, and for data on disk its size in documents, tokens, bytes."""

    def mapped(data: Documents, source: str, function: Callable, step: str, **kwargs: Any) -> Documents:
        on_disk = {"num_proc": args.preprocessing_num_workers, "desc": f"{step} {name} text"}
        options = on_disk if isinstance(data, Dataset) else {}
        data = data.select_columns(source)
        return data.map(function, batched=True, remove_columns=[source], fn_kwargs=kwargs, **options)

    tokenized = mapped(
        documents, args.text_column, tokenize, "Tokenizing", tokenizer=tokenizer, column=args.text_column
    )
    blocks = mapped(tokenized, "input_ids", pack, "Packing", block_size=args.block_size)
    if next(iter(blocks), None) is None:
        raise ValueError(
            f"The {name} data is shorter than one block of block_size={args.block_size} tokens. Lower block_size, or "
            "give more text."
        )
    if not isinstance(blocks, Dataset):
        return blocks, {}
    sizes = {column: sum(tokenized[f"num_{column}"]) for column in ("tokens", "bytes")}
    return blocks, {"documents": len(documents), **sizes, "blocks": len(blocks)}


def collate(blocks: list[dict[str, Any]]) -> dict[str, Any]:
    """Makes a batch of blocks: `input_ids` and `labels`, the same `[B, S]`; the model shifts the labels itself."""
    input_ids = torch.tensor([block["input_ids"] for block in blocks])
    return {"input_ids": input_ids, "labels": input_ids.clone()}
