# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""scripts/analyze.py: what it writes, what it rejects, and its page in a browser."""

import csv
import html
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import browser
import pytest
import test_modeling_hc_gpt_neox
import test_modeling_hc_llama
import torch
from contract import scramble, tiny_tokenizer
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from modeling_hc.commands import analyze

SCRIPT = Path(__file__).parents[1] / "scripts" / "analyze.py"


LLAMA = test_modeling_hc_llama.TestHCLlama()
NAME = "<b>twin</b>"  # what a page must show and not obey
NUM_BLOCKS = 6
OF_STREAMS = {"stream-connections", "streams", "ablation"}


def save(model: PreTrainedModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Holds a dynamic, a static and a residual checkpoint, and a text; and some that are rejected."""
    folder = tmp_path_factory.mktemp("analysis")
    torch.manual_seed(0)
    save(LLAMA.trained(), folder / NAME)
    save(LLAMA.trained(connection="static"), folder / "static")
    residual = AutoModelForCausalLM.from_config(LLAMA.parent_config())
    scramble(residual, 0.2)
    save(residual, folder / "residual")
    save(AutoModelForCausalLM.from_config(LLAMA.parent_config(num_hidden_layers=1)), folder / "shallow")
    foreign = GPT2Config(vocab_size=99, n_layer=1, n_embd=32, n_head=2)
    save(AutoModelForCausalLM.from_config(foreign), folder / "foreign")
    (folder / "text.txt").write_text(" ".join(f"w{4 + i * i % 90}" for i in range(60)))
    (folder / "short.txt").write_text("w1")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    return folder


@pytest.fixture(scope="module")
def analysis(folder: Path) -> Path:
    arguments = (NAME, "--text", "text.txt", "--parent", "residual", "--window", "24")
    done = subprocess.run([sys.executable, SCRIPT, *arguments], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (folder / f"{NAME}-analysis/reading.md").read_text() in done.stdout
    return folder / f"{NAME}-analysis"


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs the command line in this process and in the folder."""
    monkeypatch.chdir(folder)

    def command(*arguments: str) -> None:
        monkeypatch.setattr(sys, "argv", ["analyze.py", *arguments, "--window", "24"])
        analyze.main()

    return command


# ---- the files ------------------------------------------------------------------------------------------------------


def test_figures_numbers_and_reading_are_written(analysis: Path) -> None:
    names = {path.name for path in (analysis / "figures").iterdir()}
    drawn = {"connections", "shares", "similarity", "contributions", *OF_STREAMS, "movement"}
    assert names == {f"{name}.{kind}" for name in drawn for kind in ("pdf", "png")}
    rows = list(csv.DictReader((analysis / "layers.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == [
        *("embedding", "1 attention", "2 MLP", "3 attention", "4 MLP", "5 attention", "6 MLP", "output")
    ]
    assert sum(float(row["contribution"] or 0) for row in rows) == pytest.approx(1)
    reading = (analysis / "reading.md").read_text()
    assert "text.txt, 60 tokens" in reading and "residual parent" in reading and "Ablate and rescue" in reading


def test_a_static_and_a_residual_checkpoint_get_what_has_meaning_for_them(folder: Path, run: Callable) -> None:
    for name, absent in (("static", {"movement"}), ("residual", {"movement", *OF_STREAMS})):
        run(name, "--text", "text.txt", "--output", f"of-{name}")

        names = {path.stem for path in (folder / f"of-{name}/figures").iterdir()}
        assert names.isdisjoint(absent) and {"connections", "similarity", "contributions"} <= names
        assert 'id="slider"' not in (folder / f"of-{name}/index.html").read_text()


def test_one_block_of_attention_and_mlp_is_called_parallel(folder: Path, run: Callable) -> None:
    save(test_modeling_hc_gpt_neox.TestHCGPTNeoX().trained(), folder / "pythia")

    run("pythia", "--text", "text.txt")

    analysis = folder / "pythia-analysis"
    rows = list(csv.DictReader((analysis / "layers.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["embedding", "1 parallel", "2 parallel", "3 parallel", "output"]
    page, reading = ((analysis / name).read_text() for name in ("index.html", "reading.md"))
    assert "3 parallel" in page and "Layers write" in reading
    assert not re.search(r"\d (attention|MLP)", page + reading)


def test_without_a_text_it_reads_held_out_files_of_the_standard_library(folder: Path, run: Callable) -> None:
    run("residual", "--tokens", "30", "--output", "default")

    assert "held-out files of Python's standard library, 30 tokens" in (folder / "default/reading.md").read_text()


def ends_in_one_paragraph(folder: Path, run: Callable, arguments: list[str], reason: str) -> None:
    """Runs the command on bad input: it says why in one line, and writes nothing."""
    before = set(folder.iterdir())

    with pytest.raises(SystemExit) as ended:
        run(*arguments)

    assert reason in ended.value.code and "\n" not in ended.value.code
    assert set(folder.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["foreign", "--text", "text.txt"], "model_type='gpt2'"),
        (["nowhere/at/all", "--text", "text.txt"], "nowhere/at/all is no folder"),
        (["static", "--text", "short.txt"], "has 1 tokens"),
        (["static", "--text", "binary.txt"], "no UTF-8 text"),
        (["static", "--text", "absent.txt"], "absent.txt"),
        (["static", "--text", "text.txt", "--parent", NAME], "is hyper-connected"),
        (["static", "--text", "text.txt", "--parent", "shallow"], "has 1 layers"),
        (["static", "--text", "text.txt", "--output", "residual"], "is there already"),
        (["static", "--text", "text.txt", "--tokens", "1"], "--tokens 1 is too few"),
    ],
)
def test_bad_input_ends_in_one_paragraph_and_leaves_nothing(
    folder: Path, run: Callable, arguments: list[str], reason: str
) -> None:
    ends_in_one_paragraph(folder, run, arguments, reason)


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_needs_nothing_outside_itself_and_obeys_no_name(analysis: Path) -> None:
    page = (analysis / "index.html").read_text()

    assert not re.search(r"""<(?:script|img|link|iframe)[^>]*\b(?:src|href)\s*=\s*["'](?!data:)""", page)
    assert "://" not in page.replace("http://www.w3.org/2000/svg", "") and "url(" not in page
    assert NAME not in page and html.escape(NAME) in page


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Browser]:
    if browser.EXECUTABLE is None:
        pytest.skip("no Chromium is installed")
    one = browser.Browser(tmp_path_factory.mktemp("profile"))
    yield one
    one.close()


CELLS = "document.querySelectorAll('svg.matrix')[{}].querySelectorAll('.cell')"
COLORS = f"[...{CELLS}].map(cell => cell.style.fill).join()"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1400])
def test_the_page_opens_from_a_file_without_errors_and_fits(
    analysis: Path, chromium: browser.Browser, width: int, scheme: str
) -> None:
    page = analysis / "index.html"
    chromium.errors.clear()
    chromium.requests.clear()
    chromium.open(page, width, 900, scheme)

    assert chromium.evaluate("document.documentElement.scrollWidth <= innerWidth")
    for model in (0, 1):
        assert chromium.evaluate(CELLS.format(model) + ".length") == (NUM_BLOCKS + 1) * (NUM_BLOCKS + 2) / 2
    dark = chromium.evaluate("getComputedStyle(document.body).backgroundColor") != "rgb(255, 255, 255)"
    assert dark == (scheme == "dark")
    assert not chromium.errors
    assert chromium.requests == [page.resolve().as_uri()]
    # At rest nothing is drawn again: a figure's size must not depend on what was drawn.
    chromium.evaluate("window.changes = 0; window.watch = new MutationObserver(() => changes++)")
    chromium.evaluate("watch.observe(document.body, {childList: true, subtree: true})")
    chromium.evaluate("requestAnimationFrame(() => requestAnimationFrame(() => { window.settled = true; }))")
    chromium.wait("window.settled")
    assert chromium.evaluate("changes") == 0


def test_hovering_a_cell_shows_its_value(analysis: Path, chromium: browser.Browser) -> None:
    rows = list(csv.reader((analysis / "matrix.csv").open()))
    chromium.open(analysis / "index.html")
    chromium.evaluate("(view => { view.value = 1; view.onchange({target: view}); })(document.getElementById('view'))")

    for k, j in ((4, 1), (7, 0)):
        chromium.hover(CELLS.format(0) + f"[{k * (k - 1) // 2 + j}]")
        chromium.wait("!document.getElementById('tip').hidden")
        tip = chromium.evaluate("document.getElementById('tip').textContent").replace("−", "-")  # noqa: RUF001
        assert ("The output is" if k == 7 else "Block 4 MLP reads") in tip
        assert ("block 1 attention" if j else "the embedding") in tip
        shown = float(re.search(r"weight: (\S+)", tip)[1])
        assert shown == pytest.approx(float(rows[k + 1][j + 1]), rel=1e-2)


def test_the_slider_shows_the_connections_of_one_token_and_leaves_the_parent(
    analysis: Path, chromium: browser.Browser
) -> None:
    chromium.open(analysis / "index.html")
    mean, parent = chromium.evaluate(COLORS.format(0)), chromium.evaluate(COLORS.format(1))

    chromium.evaluate("document.getElementById('slider').focus()")
    seen = {mean}
    for token in (1, 2):
        for kind in ("rawKeyDown", "keyUp"):
            chromium.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", windowsVirtualKeyCode=39)
        chromium.wait(f"document.getElementById('at').textContent.startsWith('{token}: ')")
        seen.add(chromium.evaluate(COLORS.format(0)))
    assert len(seen) == 3
    assert chromium.evaluate(COLORS.format(1)) == parent
    chromium.evaluate("document.querySelectorAll('#tokens button')[1].click()")  # pressed once more
    assert chromium.evaluate(COLORS.format(0)) == mean


def test_the_parent_has_no_streams_to_show(analysis: Path, chromium: browser.Browser) -> None:
    chromium.open(analysis / "index.html")
    before = chromium.evaluate(COLORS.format(0))

    chromium.evaluate("(view => { view.value = 3; view.onchange({target: view}); })(document.getElementById('view'))")

    assert chromium.evaluate(COLORS.format(0)) != before
    shown = "getComputedStyle(document.querySelectorAll('svg.matrix')[{}]).display"
    assert [chromium.evaluate(shown.format(model)) for model in (0, 1)] == ["block", "none"]


def test_a_browser_shows_a_residual_checkpoint_by_itself(
    folder: Path, run: Callable, chromium: browser.Browser
) -> None:
    run("residual", "--text", "text.txt", "--output", "alone")
    chromium.errors.clear()

    chromium.open(folder / "alone/index.html")

    assert not chromium.errors
    assert chromium.evaluate("document.querySelectorAll('svg.matrix').length") == 1
