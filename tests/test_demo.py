# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""The report of `make demo`, from small hand-made runs; and the demo's behaviour where there is something already."""

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from modeling_hc.commands import demo
from modeling_hc.commands.demo_report import NAMES, curve, render

ROOT = Path(__file__).parents[1]


HOSTILE = "</pre></script><script>alert('x')</script>&<img src=x onerror=alert(1)>"


def write_runs(folder: Path) -> Path:
    """Writes what the demo's steps leave; every number differs from every other, and text is hostile."""
    for index, name in enumerate(NAMES):
        history = [
            {"step": 10, "loss": 7.5 - index, "train_runtime": 20.0, "num_input_tokens_seen": 5000},
            {"step": 20, "loss": 6.5 - index, "train_runtime": 40.0 + index, "num_input_tokens_seen": 10000},
            {"step": 20, "eval_loss": 6.1234 + index / 8, "eval_runtime": 3.0, "num_input_tokens_seen": 10000},
        ]
        results = {
            "eval_loss": 6.1234 + index / 8,
            "eval_perplexity": 456.78 + index,
            "eval_bits_per_byte": 2.3456 + index / 8,
            "eval_token_accuracy": 0.1234 + index / 100,
        }
        size = {"documents": 12 + index, "tokens": 34567, "bytes": 123456, "blocks": 135}
        run = {
            "command": f"python train.py {HOSTILE}",
            "versions": {"torch": HOSTILE},
            "processes": 2,
            "configuration": {"max_steps": 20, "block_size": 256, "learning_rate": 2e-3, "seed": 42},
            "data": {"train": size, "validation": size},
            "parameters": 1234567 + 1000 * index,
            "steps": 20,
            "tokens_seen": 10000,
            "results": results,
        }
        (folder / name).mkdir()
        (folder / name / "log_history.json").write_text(json.dumps(history))
        (folder / name / "run.json").write_text(json.dumps(run))
    accuracy = {name: {"value": 0.3021 + index / 50, "stderr": 0.0229} for index, name in enumerate(NAMES)}
    bits = {name: {"value": 1.9876 - index / 8, "stderr": None} for index, name in enumerate(NAMES)}
    evaluation = {
        "results": {"stdlib": {"acc": accuracy, "bits_per_byte": bits}},
        "tasks": {"stdlib": {"num_items": 400}},
        "environment": {"lm_eval": "0.4.13"},
        "command": HOSTILE,
    }
    (folder / "evaluation.json").write_text(json.dumps(evaluation))
    record = {
        "seconds": {"Training llama": 61.0, HOSTILE: 2.0},
        "machine": HOSTILE,
        "prompts": [HOSTILE, "def f("],
        "sampling": demo.SAMPLING,
        "connection_parameters": dict(zip(NAMES, (0, 9168), strict=True)),
        "samples": {name: [f"{HOSTILE}{name}", "x):\n    return x"] for name in NAMES},
    }
    (folder / "demo.json").write_text(json.dumps(record))
    return folder


class Page(HTMLParser):
    """Collects the tags and the text of a page, as a browser would see them."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def html(tmp_path_factory) -> str:
    return render(write_runs(tmp_path_factory.mktemp("demo")))


def test_the_report_needs_nothing_outside_itself(html):
    tags = Page(html).tags
    assert not any({"src", "srcset", "data", "action"} & attributes.keys() for _, attributes in tags)
    links = [(tag, attributes["href"]) for tag, attributes in tags if "href" in attributes]
    assert all(tag == "a" or href == "data:," for tag, href in links)
    assert ("a", "analysis/index.html") in links  # which the step before the report writes
    without_links = re.sub(r'<a href="[^"]*">', "", html)
    allowed = "http://www.w3.org/2000/svg"  # the name of a namespace, which nothing fetches
    assert "://" not in without_links.replace(allowed, "") and "@import" not in html and "url(" not in html


def test_what_models_and_machines_write_is_shown_and_never_run(html):
    page = Page(html)
    assert html.count("<script") == 1 and "<img" not in html
    # commands (2 + 1), version, machine, step, and for each model prompt and sample
    assert page.text.count(HOSTILE) == 3 + 1 + 1 + 1 + 2 * 2


def test_the_table_shows_the_numbers_of_the_runs_and_their_differences(html):
    cells = re.findall(r"<th scope=\"row\">(.*?)</th><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td>", html)
    table = {label: values for label, *values in cells}
    assert table["Parameters"] == ["1,234,567", "1,235,567", "+0.1%"]
    assert table["of which in hyper-connections"] == ["0", "9,168", ""]
    assert table["Held-out loss, nats per token"] == ["6.1234", "6.2484", "+0.1250"]
    assert table["Held-out perplexity"] == ["456.78", "457.78", "+1.00"]
    assert table["Held-out bits per byte"] == ["2.3456", "2.4706", "+0.1250"]
    assert table["Held-out token accuracy"] == ["12.34%", "13.34%", "+1.00 points"]
    assert table["lm-eval stdlib accuracy (chance 25%) ± standard error"] == [
        "30.21% ± 2.29%",
        "32.21% ± 2.29%",
        "+2.00 points",
    ]
    assert table["lm-eval stdlib bits per byte of the true continuation"] == ["1.9876", "1.8626", "−0.1250"]  # noqa: RUF001
    assert table["Training speed, tokens per second"] == ["250", "244", "−2.4%"]  # noqa: RUF001


def test_the_words_beside_the_table_agree_with_it(html):
    text = " ".join(Page(html).text.split())
    assert "is 0.1250 nats higher than that of Llama, and its training steps took 1.02 times as long" in text
    # 2 points; two standard errors of a difference are 2 * sqrt(2) * 2.29
    assert "differ by 2.0 points, which is less than two standard errors of such a difference (6.5 points)" in text
    assert "Neither is above chance" not in text  # 30.21 - 2 * 2.29 is above 25


def test_a_curves_time_leaves_out_evaluations_and_goes_on_where_a_run_was_resumed():
    def loss(runtime: float, tokens: int) -> dict[str, float]:
        return {"loss": 1.0, "train_runtime": runtime, "num_input_tokens_seen": tokens}

    evaluated = {"eval_loss": 2.0, "eval_runtime": 7.0, "num_input_tokens_seen": 20}
    history = [loss(5, 10), loss(9, 20), evaluated, loss(20, 30), loss(6, 40), {"train_loss": 1.0}]
    lines = curve(history)
    assert lines["training"] == [(10, 5, 1.0), (20, 9, 1.0), (30, 13, 1.0), (40, 19, 1.0)]
    assert lines["validation"] == [(20, 9, 2.0)]


def test_a_step_that_is_done_is_not_taken_again(tmp_path):
    taken = []
    for _ in range(2):
        record = demo.Record(tmp_path / "demo.json")
        record.step("Samples", lambda: taken.append(1) or {"prompts": ["x"]})
    assert taken == [1] and record.content["prompts"] == ["x"]


def run_demo(folder: Path) -> subprocess.CompletedProcess:
    """Runs the demo in another folder."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-m", "modeling_hc", "demo"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment)


def test_a_finished_demo_is_left_alone_and_says_how_to_start_anew(tmp_path, monkeypatch, capsys):
    report = tmp_path / "runs/demo/report.html"
    report.parent.mkdir(parents=True)
    report.write_text("mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["modeling-hc demo"])
    for name in ("HF_HUB_OFFLINE", "OMP_NUM_THREADS"):  # which the demo sets
        monkeypatch.setenv(name, "1")
    demo.main()
    printed = capsys.readouterr().out
    assert "rm -r runs/demo" in printed and str(report) in printed
    assert report.read_text() == "mine"


def test_a_failed_step_ends_with_a_paragraph_and_leaves_no_report(tmp_path):
    mine = tmp_path / "runs/demo/llama/model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    done = run_demo(tmp_path)
    assert done.returncode == 1 and "output_dir=runs/demo/llama is not empty" in done.stderr
    assert "demo: Training llama failed" in done.stderr and "tries again" in done.stderr
    assert mine.read_text() == "mine" and not (tmp_path / "runs/demo/report.html").exists()
