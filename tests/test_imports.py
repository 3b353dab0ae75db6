# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Who may import whom, and what a file must keep to if it is to be shared with a model."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_import_files

import modeling_hc

PACKAGE = Path(modeling_hc.__file__).parent
FAMILIES = sorted({path.stem for path in PACKAGE.glob("modeling_hc_*.py")} - {"modeling_hc_common"})
ARROWS = {
    "functional_hc": {"torch"},
    "triton_kernels_hc": {"triton"},
    "triton_hc": {"torch", "triton_kernels_hc"},
    "autograd_hc": {"torch", "functional_hc"},
    "dispatch_hc": {"torch", "functional_hc", "autograd_hc", "recompute_hc", "triton_hc"},
    "recompute_hc": {"torch"},
    "hyper_connections": {"torch", "transformers", "dispatch_hc", "functional_hc"},
    "registration_hc": {"transformers"},
    "configuration_hc": {"transformers", "huggingface_hub", "registration_hc"},
    "model_card_hc": {"transformers", "huggingface_hub", "hyper_connections"},
    "loading_hc": {"transformers", "safetensors"},
    "modeling_hc_common": {
        *("torch", "transformers", "huggingface_hub", "safetensors"),
        *("functional_hc", "dispatch_hc", "hyper_connections", "loading_hc", "model_card_hc", "recompute_hc"),
    },
    **{family: {"torch", "transformers", "configuration_hc", "modeling_hc_common"} for family in FAMILIES},
}
SHIPPED = [name for name in ARROWS if (PACKAGE / f"{name}.py").exists()]


def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]


def imported_names(path: Path) -> set[str]:
    """Returns the first part of every module that a file imports, relative or not, but for the standard library."""
    names = set()
    for node in imports(path):
        modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        names |= {module.partition(".")[0] for module in modules}
    return names - set(sys.stdlib_module_names)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_imports_only_what_the_arrows_allow(name: str) -> None:
    assert imported_names(PACKAGE / f"{name}.py") <= ARROWS[name]


@pytest.mark.parametrize("family", FAMILIES)
def test_exactly_the_known_files_travel_with_a_family(family: str) -> None:
    travelling = {Path(file).stem for file in get_relative_import_files(PACKAGE / f"{family}.py")}

    assert travelling == set(SHIPPED) - set(FAMILIES)


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_imports_its_siblings_only_in_the_form_that_is_copied(name: str) -> None:
    path = PACKAGE / f"{name}.py"

    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: only `from .sibling import name` is copied"
            assert re.fullmatch(r"\w+", node.module or ""), (
                f"line {node.lineno}: only `from .sibling import name` works"
            )
    in_code = {node.lineno for node in imports(path)}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        looks_relative = re.match(r"\s*(from|import)\s+\.", line)
        assert not looks_relative or number in in_code, f"line {number} of a text reads like an import"


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_does_not_postpone_annotations(name: str) -> None:
    assert "__future__" not in {getattr(node, "module", None) for node in imports(PACKAGE / f"{name}.py")}


@pytest.mark.parametrize("name", sorted(set(SHIPPED) & {"dispatch_hc", "triton_kernels_hc"}))
def test_an_optional_library_is_imported_inside_try(name: str) -> None:
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    guarded = {id(n) for t in ast.walk(tree) if isinstance(t, ast.Try) for n in ast.walk(t)}

    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom) and "triton" in ast.unparse(node):
            assert id(node) in guarded, f"line {node.lineno}"


def test_nothing_in_the_package_imports_scripts_evaluation_or_tests() -> None:
    for path in PACKAGE.rglob("*.py"):
        assert not imported_names(path) & {"scripts", "eval", "tests", "campaigns", "contract"}, path


# What an extra brings, and `pip install .` alone does not.
EXTRAS = [
    "accelerate",
    "datasets",
    "diffusers",
    "evaluate",
    "lm_eval",
    "matplotlib",
    "pandas",
    "peft",
    "scipy",
    "sklearn",
    "triton",
]
WITHOUT_EXTRAS = [
    *(
        path.stem
        for path in PACKAGE.glob("*.py")
        if path.stem not in ("__init__", "data", "diffusion", "triton_hc", "triton_kernels_hc")
    ),
    *("conversion", "analysis.connections", "analysis.recording"),
    *("commands.convert", "commands.generate", "commands.info", "commands.push"),
]


def test_what_needs_no_extra_imports_where_no_extra_is_installed() -> None:
    code = f"import importlib, sys\nsys.modules.update(dict.fromkeys({EXTRAS}))\n"
    code += f"for name in {WITHOUT_EXTRAS}: importlib.import_module('modeling_hc.' + name)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
