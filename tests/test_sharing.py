# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""A saved folder is all that another machine needs: no package, no Triton, from a folder or from the Hub's cache."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import test_families
import test_modeling_hc_gpt_neox
import test_modeling_hc_llama
import test_modeling_hc_mistral
import test_modeling_hc_olmo
import test_modeling_hc_olmo2
import test_modeling_hc_olmoe
import torch
import transformers
from contract import FamilyContract
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

FAMILIES = {
    "llama": test_modeling_hc_llama.TestHCLlama,
    "mistral": test_modeling_hc_mistral.TestHCMistral,
    "olmo": test_modeling_hc_olmo.TestHCOlmo,
    "olmoe": test_modeling_hc_olmoe.TestHCOlmoe,
    "olmo2": test_modeling_hc_olmo2.TestHCOlmo2,
    "olmo3": test_families.TestHCOlmo3,
    "qwen2": test_families.TestHCQwen2,
    "qwen3": test_families.TestHCQwen3,
    "qwen3_moe": test_families.TestHCQwen3Moe,
    "mixtral": test_families.TestHCMixtral,
    "gemma3_text": test_families.TestHCGemma3Text,
    "granite": test_families.TestHCGranite,
    "smollm3": test_families.TestHCSmolLM3,
    "gpt_neox": test_modeling_hc_gpt_neox.TestHCGPTNeoX,
}
TOKENS = torch.arange(5, 15)[None]
COMMIT = "0123456789abcdef0123456789abcdef01234567"

# Loads models with every Auto class that their folders name, notes the outputs, and saves each again. It forks for
# each group of folders, so that none finds what another has loaded.
STRANGER = """
import json, os, sys
sys.modules.update(modeling_hc=None, triton=None)  # an import of either raises ModuleNotFoundError
import torch, transformers
from transformers import AutoModel, GenerationMixin, PreTrainedModel  # once for all
for group, names in json.loads(sys.argv[1]).items():
    if child := os.fork():
        os.waitpid(child, 0)
        continue
    outputs = {}
    for name in names:
        for auto_class in transformers.AutoConfig.from_pretrained(name, trust_remote_code=True).auto_map:
            if auto_class == "AutoConfig":
                continue
            torch.manual_seed(0)  # a head that the checkpoint lacks starts at random
            model = getattr(transformers, auto_class).from_pretrained(name, trust_remote_code=True)
            assert type(model).__module__.startswith("transformers_modules."), type(model)
            outputs[model.config.model_type, auto_class] = model(torch.arange(5, 15)[None])[0].detach()
            model.save_pretrained(f"{group}/{model.config.model_type}/{auto_class} of {group}")
    torch.save(outputs, f"{group}.pt")
    os._exit(0)  # taking the interpreter down takes a second
"""
Outputs = dict[tuple[str, str], Tensor]  # by model type and Auto class


def as_a_stranger(groups: dict[str, list[str]], out: Path, home: Path) -> dict[str, Outputs]:
    """Runs `STRANGER` in a fresh process in the folder `out`, with the given Hub cache."""
    out.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", STRANGER, json.dumps(groups)]
    done = subprocess.run(command, cwd=out, env=environment, capture_output=True, text=True)
    assert {path.stem for path in out.glob("*.pt")} == groups.keys(), done.stderr
    return {group: torch.load(out / f"{group}.pt") for group in groups}


def put_into_hub_cache(folder: Path, home: Path, name: str) -> None:
    """Lays a folder out as `huggingface_hub` does after downloading it from the repository `name`."""
    repository = home / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / COMMIT
    for part in (repository / "refs", repository / "blobs", snapshot):
        part.mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    for file in folder.iterdir():
        blob = repository / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blob)


def save_with_expected_outputs(family: type[FamilyContract], folder: Path, **fields: str) -> Outputs:
    family().trained(**fields).save_pretrained(folder)
    expected = {}
    for auto_class in family().heads:
        torch.manual_seed(0)
        model = getattr(transformers, auto_class).from_pretrained(folder)
        expected[family.config_class.model_type, auto_class] = model(TOKENS)[0].detach()
    return expected


def assert_equal(actual: Outputs, expected: Outputs) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(actual[name], expected[name])] == []


VARIANTS = {"llama": "mhc", "mistral": "mhc_lite", "olmo": "identity", "olmoe": "kromhc"}


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Outputs], Path]:
    """What saved models compute where they were saved, and a folder in which each group of them lies."""
    folder = tmp_path_factory.mktemp("shared")
    expected: dict[str, Outputs] = {"local": {}, "hub": {}, "variants": {}}
    for family, contract in FAMILIES.items():
        expected["local"] |= save_with_expected_outputs(contract, folder / "local" / family)
        put_into_hub_cache(folder / "local" / family, folder / "home", f"somebody/{family}.v1")
    expected["hub"] = expected["local"]
    for family, connection in VARIANTS.items():
        fields = {"connection": connection, "stream_reduction": "gated"}
        expected["variants"] |= save_with_expected_outputs(FAMILIES[family], folder / "variants" / family, **fields)
    return expected, folder


@pytest.fixture(scope="module")
def first_stranger(shared: tuple[dict[str, Outputs], Path]) -> dict[str, Outputs]:
    _, folder = shared
    groups = {
        "local": [str(folder / "local" / family) for family in FAMILIES],
        "hub": [f"somebody/{family}.v1" for family in FAMILIES],
        "variants": [str(folder / "variants" / family) for family in VARIANTS],
    }
    return as_a_stranger(groups, folder / "first", folder / "home")


@pytest.fixture(scope="module")
def second_stranger(shared: tuple[dict[str, Outputs], Path], first_stranger: dict[str, Outputs]) -> dict[str, Outputs]:
    """What a stranger saves, the next stranger loads."""
    _, folder = shared
    groups = {
        group: [str(saved) for saved in (folder / "first" / group).glob("*/AutoModelForCausalLM*")]
        for group in ("local", "hub")
    }
    return as_a_stranger(groups, folder / "second", folder / "another home")


def test_every_variant_and_the_gated_reduction_load_where_the_package_is_absent(
    shared: tuple[dict[str, Outputs], Path], first_stranger: dict[str, Outputs]
) -> None:
    assert_equal(first_stranger["variants"], shared[0]["variants"])


@pytest.mark.parametrize(
    "source", [pytest.param("local", id="a local folder"), pytest.param("hub", id="the Hub's cache")]
)
def test_saved_models_load_where_the_package_and_triton_are_absent(
    source: str,
    shared: tuple[dict[str, Outputs], Path],
    first_stranger: dict[str, Outputs],
    second_stranger: dict[str, Outputs],
) -> None:
    assert_equal(first_stranger[source], shared[0][source])
    assert_equal(second_stranger[source], shared[0][source])


def test_the_package_and_trust_remote_code_go_together(tmp_path: Path) -> None:
    model = FAMILIES["llama"]().trained()
    model.save_pretrained(tmp_path / "saved")

    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved", trust_remote_code=True)
    loaded.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again")

    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)
    assert torch.equal(again(TOKENS).logits, model(TOKENS).logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_saved_folder_names_a_class_for_every_auto_class_and_holds_its_file(tmp_path: Path, family: str) -> None:
    FAMILIES[family]().trained().save_pretrained(tmp_path)

    auto_map = json.loads((tmp_path / "config.json").read_text())["auto_map"]

    assert auto_map == FAMILIES[family].config_class.auto_classes
    assert {"AutoConfig", "AutoModel", "AutoModelForCausalLM"} <= auto_map.keys()
    for path in auto_map.values():
        assert (tmp_path / f"{path.partition('.')[0]}.py").is_file()
    assert type(AutoConfig.from_pretrained(tmp_path)) is FAMILIES[family].config_class
