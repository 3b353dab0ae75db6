# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Shows what the hyper-connections of a checkpoint learned, as numbers, figures and an interactive page.

    modeling-hc analyze CHECKPOINT [--text FILE] [--parent RESIDUAL] [--output FOLDER]
    modeling-hc analyze CHECKPOINT --images FOLDER_OR_FILE ... [--parent RESIDUAL] [--output FOLDER]

Writes index.html, which needs nothing outside itself; figures/ as PDF and PNG; layers.csv, matrix.csv and
ablation.csv; and reading.md, the findings in words, which it also prints. A residual checkpoint has no streams: only
its matrix, similarities and contributions are shown. Of a ViT all but the ablation, which needs labels, is shown; its
tokens are the class token and the patches.
"""

import argparse
import base64
import html
import io
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor
from transformers import BaseImageProcessor, PreTrainedModel, PreTrainedTokenizerBase

from .. import __version__
from ..analysis import (
    Measurement,
    ablate_and_rescue,
    block_kinds,
    describe,
    is_hyper_connected,
    measure,
    movement,
    plots,
    record,
    shares,
)
from ..analysis.recording import connections, patch_grid
from ..data import stdlib_files
from ..records import command_line, program
from .loading import load

SHOWN_TOKENS = 32  # of the text's beginning, one by one, on the page
ABLATION_WINDOWS, ABLATION_BLOCKS = 4, 16  # at most; a window is read twice for every stream and block


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="a folder, or the name of a model on the Hub")
    parser.add_argument("--text", type=Path, help="a text file (held-out files of Python's standard library)")
    parser.add_argument("--images", type=Path, nargs="+", help="of a ViT: image files, or folders of them")
    parser.add_argument("--parent", help="the residual model to show beside it")
    parser.add_argument("--output", type=Path, help="the folder to create (the checkpoint's name with -analysis)")
    parser.add_argument("--tokens", type=int, default=8192, help="of the text or images, at most (8192)")
    parser.add_argument("--window", type=int, help="tokens of the text that the model reads at once (256)")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        folder, reading = analyze(**vars(arguments))
    except (ValueError, StrictDataclassError, OSError, SafetensorError, RuntimeError) as error:
        sys.exit(f"{program()}: {' '.join(str(error).split())}")
    print(f"{reading}\n{folder / 'index.html'}")


@dataclass
class Subject:
    """A model, and what was measured on it."""

    name: str
    model: PreTrainedModel
    processor: PreTrainedTokenizerBase | BaseImageProcessor
    measurement: Measurement | None = None

    @property
    def dynamic(self) -> bool:
        return is_hyper_connected(self.model) and self.model.config.connection != "static"

    @property
    def has_streams(self) -> bool:
        return is_hyper_connected(self.model) and self.model.config.num_streams > 1


def analyze(
    checkpoint: str,
    text: Path | None,
    images: list[Path] | None,
    parent: str | None,
    output: Path | None,
    tokens: int,
    window: int | None,
) -> tuple[Path, str]:
    """Measures, and only then writes. Returns the folder and the reading in Markdown."""
    for name, value in {"text": text, "window": window}.items():
        if images and value is not None:
            raise ValueError(f"--{name} {value} is for language models: leave it out with --images.")
    if tokens < 2:
        raise ValueError(f"--tokens {tokens} is too few: at least 2 are needed.")
    content = find_images(images) if images else read_text(text, tokens)
    subject = subject_of(checkpoint, bool(images))
    residual = subject_of(parent, bool(images)) if parent else None
    windows = pixels(subject, content, tokens) if images else split(subject, content, tokens, window or 256)
    if residual:
        check_parent(subject, residual, content)
        residual.name += " (parent)" * (residual.name == subject.name)
    place = Path(checkpoint).resolve() if Path(checkpoint).is_dir() else Path(checkpoint).name
    output = output or Path(f"{place}-analysis")
    if output.exists():
        raise ValueError(f"--output {output} is there already: delete it, or name another folder.")
    for one in filter(None, (subject, residual)):
        print(f"Measuring {one.name}", flush=True)
        one.measurement = measure(one.model, windows)
    table = None
    if subject.has_streams and not images:
        print(f"Ablating the streams of {subject.name}\n", flush=True)
        num_blocks = len(connections(subject.model))
        blocks = range(1, num_blocks + 1, -(-num_blocks // ABLATION_BLOCKS))
        table = ablate_and_rescue(subject.model, windows[:ABLATION_WINDOWS], blocks)
    paragraphs = describe(subject.measurement, residual and residual.measurement, table)

    read = f"{subject.measurement.tokens:,} tokens"
    if images:
        source = {"Images": f"{len(windows)} of {len(content)} in {', '.join(path.name for path in images)}, {read}"}
    else:
        name = text.name if text else "held-out files of Python's standard library"
        source = {"Text": f"{name}, {read} in windows of {window or 256}"}
    facts = source | {
        "Check": "every token's matrix times what layers wrote gives what blocks read, up to "
        f"{subject.measurement.error:.1e} of the largest value",
        "Command": command_line(),
        "Versions": f"modeling_hc {__version__}, torch {torch.__version__}, transformers {transformers.__version__}",
    }
    reading = f"# {plain(subject.name)}: what its connections learned\n\n"
    reading += "".join(f"**{heading}.** {paragraph.strip()}\n\n" for heading, paragraph in paragraphs.items())
    reading += "".join(f"- {name}: {plain(fact)}\n" for name, fact in facts.items())
    page = render(subject, residual, table, paragraphs, facts, windows[0] if images else windows[0][:, :SHOWN_TOKENS])
    write(output, subject, table, figures(subject, residual, table), reading, page)
    return output, reading


def subject_of(name: str, images: bool) -> Subject:
    """Loads a model that can be analyzed, and its tokenizer or image processor.

    Raises:
        ValueError: it cannot be.
    """
    model, processor = load(name, images)
    is_hyper_connected(model)
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    return Subject(Path(name).resolve().name, model.to(device), processor)


def plain(text: str) -> str:
    """Returns a text as Markdown shows it: in one line, and no HTML."""
    return html.escape(" ".join(text.split()), quote=False)


def check_parent(subject: Subject, residual: Subject, content: str | list[Path]) -> None:
    """Rejects an unsuitable parent model: other tokens or pixels, another depth, or itself hyper-connected."""
    if is_hyper_connected(residual.model):
        raise ValueError(
            f"--parent {residual.name} is hyper-connected: give a residual model, or analyze it by itself."
        )
    depths = [one.model.config.num_hidden_layers for one in (subject, residual)]
    if depths[0] != depths[1]:
        raise ValueError(f"--parent {residual.name} has {depths[1]} layers and {subject.name} has {depths[0]}.")
    if isinstance(content, list):
        (one,), (other,) = (pixels(model, content[:1], 2) for model in (subject, residual))
        if one.shape != other.shape or not torch.equal(one, other):
            raise ValueError(
                f"--parent {residual.name} has another image processor than {subject.name}: an image must give equal "
                "pixels."
            )
    elif subject.processor(content)["input_ids"] != residual.processor(content)["input_ids"]:
        raise ValueError(
            f"--parent {residual.name} has another tokenizer than {subject.name}: equal text must give equal tokens."
        )


def read_text(path: Path | None, tokens: int) -> str:
    """Returns as much of a text as can be needed, or of the standard library's held-out files."""
    enough = 32 * tokens  # characters
    if path is None:
        files = stdlib_files("validation")
        return "\n".join(file.read_text(encoding="utf-8", errors="replace") for file in files)[:enough]
    try:
        with path.open(encoding="utf-8") as file:
            return file.read(enough)
    except UnicodeDecodeError as error:
        raise ValueError(f"--text {path} is no UTF-8 text: {error}.") from error


def split(subject: Subject, content: str, tokens: int, window: int) -> list[Tensor]:
    """Returns the first tokens of a text in windows `[1, window]`; the last may be shorter."""
    longest = subject.model.config.max_position_embeddings
    if not 2 <= window <= longest:
        raise ValueError(f"--window {window} must be from 2 to the model's max_position_embeddings={longest}.")
    ids = subject.processor(content, return_tensors="pt", verbose=False)["input_ids"][:, :tokens].long()
    if ids.shape[1] < 2:
        raise ValueError(f"The text has {ids.shape[1]} tokens, and at least 2 are needed: give a longer --text.")
    return [part for part in ids.split(window, dim=1) if part.shape[1] > 1]


def find_images(paths: list[Path]) -> list[Path]:
    """Returns image files, and those in folders at any depth, in the order of their names.

    Raises:
        ValueError: a path is not there, or there are no images.
    """
    for path in paths:
        if not path.exists():
            raise ValueError(f"--images {path} is not there.")
    found = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    images = [file for file in found if file.suffix.lower() in Image.registered_extensions()]
    if not images:
        raise ValueError(f"--images {' '.join(map(str, paths))}: there is no image, such as a PNG or JPEG file.")
    return images


def pixels(subject: Subject, files: list[Path], tokens: int) -> list[Tensor]:
    """Returns the pixels of images, each `[1, C, H, W]`, evenly spread over the files: about as many tokens in all.

    Raises:
        ValueError: a file is no image, or the model reads others than RGB.
    """
    if (channels := subject.model.config.num_channels) != 3:
        raise ValueError(f"{subject.name} has num_channels={channels} and not 3: images are read as RGB.")
    found = []
    rows, columns = patch_grid(subject.model.config)
    count = min(len(files), max(1, tokens // (1 + rows * columns)))
    for i in range(count):
        file = files[i * len(files) // count]
        try:
            with Image.open(file) as image:
                found.append(subject.processor(image.convert("RGB"), return_tensors="pt")["pixel_values"])
        except (OSError, ValueError) as error:
            raise ValueError(f"--images {file} is no image that can be read: {error}") from error
    return found


def as_png(pixels: Tensor) -> str:
    """Returns pixels `[C, H, W]`, stretched to the whole range of colours, as the address of a PNG."""
    pixels = (pixels - pixels.min()) / (pixels.max() - pixels.min()).clamp_min(1e-9)
    file = io.BytesIO()
    Image.fromarray((255 * pixels).byte().movedim(0, -1).numpy()).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def figures(subject: Subject, residual: Subject | None, table: pandas.DataFrame | None) -> dict[str, Figure]:
    """Returns the figures that have meaning for the model, by file name."""
    both = {one.name.replace("$", r"\$"): one.measurement for one in (subject, residual) if one}  # no formula
    kinds = block_kinds(subject.model)
    drawn = {
        "connections": plots.connection_matrices({name: found.matrix for name, found in both.items()}, kinds=kinds),
        "shares": plots.connection_matrices(
            {name: found.shares for name, found in both.items()}, "share of what is read", limit=0.4, kinds=kinds
        ),
        "similarity": plots.similarity(both),
        "contributions": plots.contributions(both),
    }
    if subject.has_streams:
        held = enumerate(subject.measurement.stream_matrices, 1)
        drawn["stream-connections"] = plots.connection_matrices(
            {f"stream {i}": matrix for i, matrix in held}, kinds=kinds
        )
        drawn["streams"] = plots.streams(subject.measurement)
        if table is not None:
            drawn["ablation"] = plots.ablation(table)
    if subject.dynamic:
        drawn["movement"] = plots.movement(subject.measurement)
    return drawn


def render(
    subject: Subject,
    residual: Subject | None,
    table: pandas.DataFrame | None,
    paragraphs: dict[str, str],
    facts: dict[str, str],
    beginning: Tensor,
) -> str:
    """Renders the page; all text from the inputs is escaped."""
    data: dict[str, Any] = {
        "layers": subject.measurement.layers.name.tolist(),
        "models": [model_data(one) for one in (subject, residual) if one],
        "beginning": beginning_data(subject, beginning) if subject.dynamic else None,
        "ablation": None,
    }
    if table is not None:
        rises = {name: (table[name] - table.untouched).unstack("block") for name in ("ablated", "rescued")}
        data["ablation"] = {name: [rounded(row) for row in rise.to_numpy().tolist()] for name, rise in rises.items()}
        data["ablation"]["blocks"] = rises["ablated"].columns.tolist()
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parents[1] / "analysis"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("page.html.jinja").render(
        name=subject.name,
        residual=residual and residual.name,
        images=subject.model.main_input_name != "input_ids",
        paragraphs=paragraphs,
        facts=facts,
        data=data,
    )


def model_data(one: Subject) -> dict[str, Any]:
    found = one.measurement
    columns = {name: rounded(values.tolist()) for name, values in found.layers.drop(columns="name").items()}
    return {
        "name": one.name,
        "columns": columns,
        "matrices": matrices(found.matrix, found.stream_matrices, found.shares),
    }


def beginning_data(subject: Subject, beginning: Tensor) -> dict[str, Any]:
    """Returns the tokens of a text's beginning or an image, each's matrices and the movement of its coefficients."""
    recording = record(subject.model, beginning)
    (matrix,), (stream_matrices,) = recording.unfold()
    parts = shares(matrix, recording.outputs[:, 0].double().square().mean(-1).sqrt().T)
    if subject.model.main_input_name == "input_ids":
        shown = {"tokens": [subject.processor.decode(token) for token in beginning[0]]}
    else:
        rows, columns = patch_grid(subject.model.config)
        names = [f"patch {row + 1}, {column + 1}" for row in range(rows) for column in range(columns)]
        shown = {"tokens": ["class token", *names], "columns": columns, "image": as_png(beginning[0])}
    return shown | {
        "matrices": [matrices(*one) for one in zip(matrix, stream_matrices, parts, strict=True)],
        "moved": [rounded(row) for row in movement(subject.model, recording)[:, 0].T.tolist()],
    }


def matrices(matrix: Tensor, stream_matrices: Tensor, parts: Tensor) -> list[list[list[float]]]:
    """Returns matrices for the page, of each row what is left of the diagonal: shares, weights, and each stream's."""
    streams = stream_matrices if len(stream_matrices) > 1 else []
    return [[rounded(row[:k].tolist()) for k, row in enumerate(one)][1:] for one in (parts, matrix, *streams)]


def rounded(values: list[float]) -> list[float | None]:
    """Returns values to three digits; None, JSON's null, for those that are not known."""
    return [None if value != value else float(f"{value:.3g}") for value in values]


def write(
    output: Path, subject: Subject, table: pandas.DataFrame | None, drawn: dict[str, Figure], reading: str, page: str
) -> None:
    """Writes the folder under another name, and renames it when it is whole."""
    partial = output.with_name(f"{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        (partial / "figures").mkdir(parents=True)
        for name, figure in drawn.items():
            figure.savefig(partial / "figures" / f"{name}.pdf")
            figure.savefig(partial / "figures" / f"{name}.png", dpi=150)
        subject.measurement.layers.to_csv(partial / "layers.csv")
        names = subject.measurement.layers.name.tolist()
        pandas.DataFrame(subject.measurement.matrix, names, names).to_csv(partial / "matrix.csv")
        if table is not None:
            table.to_csv(partial / "ablation.csv")
        (partial / "reading.md").write_text(reading, encoding="utf-8")
        (partial / "index.html").write_text(page, encoding="utf-8")
        partial.rename(output)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


if __name__ == "__main__":
    main()
