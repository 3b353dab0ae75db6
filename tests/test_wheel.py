# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What a pip user has: a wheel, in an environment of its own, away from the checkout."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK_START = """
import modeling_hc, os, torch
assert modeling_hc.__file__.startswith(os.getcwd()), modeling_hc.__file__
from modeling_hc import HCLlamaForCausalLM
from modeling_hc.recipes import load_recipe
from transformers import AutoModelForCausalLM
residual = AutoModelForCausalLM.from_pretrained("run")
model = HCLlamaForCausalLM.from_pretrained("run", num_streams=4, stream_reduction="mean")
ids = torch.arange(9)[None]
assert torch.equal(model(ids).logits, residual(ids).logits)
assert load_recipe("olmo-1b-dhc4").num_streams == 4
model.save_pretrained("hc")
"""


def build(source: Path, folder: Path) -> Path:
    """Builds the wheel of a checkout or an sdist."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode and "No matching distribution found for setuptools" in done.stderr:
        pytest.skip("pip fetches setuptools to build a wheel, and reaches no index")
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def wheel_of_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As `python -m build` and those who build from PyPI's source do it: an sdist first, and the wheel from that."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("sdist")
    command = [sys.executable, "-c", f"from setuptools import build_meta; build_meta.build_sdist({str(folder)!r})"]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    (sdist,) = folder.glob("*.tar.gz")
    return build(sdist, folder)


def test_an_sdist_has_all_that_its_wheel_needs(wheel: Path, wheel_of_sdist: Path) -> None:
    assert sorted(zipfile.ZipFile(wheel_of_sdist).namelist()) == sorted(zipfile.ZipFile(wheel).namelist())


def test_the_wheel_has_recipes_tasks_and_templates(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())

    ours = {path.relative_to(ROOT) for path in ROOT.glob("configuration/*/*") if path.is_file()}
    ours |= {path.relative_to(ROOT) for path in ROOT.glob("modeling_hc/**/*") if path.suffix in (".jinja", ".yaml")}
    expected = {str(path).replace("configuration/", "modeling_hc/configuration/", 1) for path in ours}
    assert len(expected) > 50
    assert expected <= names
    assert not {name for name in names if name.startswith(("tests", "campaigns", "scripts"))}


@pytest.mark.slow
def test_the_wheel_trains_converts_evaluates_and_analyzes_away_from_the_checkout(
    wheel_of_sdist: Path, tmp_path: Path
) -> None:
    venv.create(tmp_path / "env", with_pip=False)
    scheme = {"base": str(tmp_path / "env"), "platbase": str(tmp_path / "env")}
    packages, scripts = (sysconfig.get_path(name, "posix_prefix", scheme) for name in ("purelib", "scripts"))
    # The dependencies are those of this environment, without its link to the checkout.
    (Path(packages) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        f"{scripts}/python",
        "install",
        "--quiet",
        "--no-deps",
        wheel_of_sdist,
    ]
    subprocess.run(install, check=True, capture_output=True, env=environment)

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    tiny = "hidden_size=32,intermediate_size=64,num_hidden_layers=2,num_attention_heads=2,num_key_value_heads=2"
    short = ["--block_size=32", "--max_steps=2", "--eval_strategy=no", "--save_strategy=no", "--report_to=none"]
    (tmp_path / "text.txt").write_text("A stream carries what the blocks wrote. " * 200)
    data = ["--train_files=text.txt", f"--config_overrides={tiny},vocab_size=320", "--use_cpu=true"]
    command = f"{scripts}/modeling-hc"
    run(command, "train", "demo", "--config=llama-demo", *data, *short, "--output_dir=run")
    run(f"{scripts}/python", "-c", QUICK_START)
    run(command, "convert", "run", "converted")
    assert "| stdlib |" in run(command, "evaluate", "run", "converted", "--tasks", "stdlib", "--limit", "2")
    run(command, "analyze", "converted", "--text", "text.txt", "--output", "analysis")
    assert (tmp_path / "analysis" / "index.html").is_file()
