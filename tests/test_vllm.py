# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""vLLM gives the tokens that `generate` of transformers gives, alone, in tensor parallel and in a pipeline.

It asks for other versions of packages than `make env` installs, so these tests have an environment of their own:
docs/serving.md has the commands.
"""

import json
import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import VOCABULARY, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoeConfig, PreTrainedModel

import modeling_hc

pytest.importorskip("vllm", exc_type=ImportError)
pytestmark = pytest.mark.slow

PROMPTS = [[5, 6, 7], [20, 21, 22, 23, 24], [90]]
NEW_TOKENS = 8
CONFIGS = {"Llama": LlamaConfig, "Olmoe": lambda **sizes: OlmoeConfig(**sizes, num_experts=4, num_experts_per_tok=2)}
DYNAMO = {"compilation_config": {"mode": 3, "backend": "eager"}}  # vLLM's CPU runner has no pipelines without it
SCRIPT = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

if __name__ == "__main__":
    folder, prompts, new_tokens, options, adapter = json.loads(sys.argv[1])
    llm = LLM(folder, trust_remote_code=True, dtype="float32", max_model_len=64, max_num_seqs=4, **options)
    outputs = llm.generate(
        [{"prompt_token_ids": prompt} for prompt in prompts],
        SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True),
        lora_request=LoRARequest("adapter", 1, adapter) if adapter else None,
    )
    print("TOKENS", json.dumps([list(output.outputs[0].token_ids) for output in outputs]))
"""


@pytest.fixture(scope="module", params=CONFIGS)
def checkpoints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A stock model of random weights, the same with four streams, and the latter away from its initial values."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    config = CONFIGS[request.param](
        vocab_size=VOCABULARY,
        hidden_size=128,  # heads of 32, the smallest that vLLM's attention on CPUs takes
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        max_position_embeddings=256,
        pad_token_id=0,
        initializer_range=0.2,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder / "stock")
    hc_class = getattr(modeling_hc, f"HC{request.param}ForCausalLM")
    model = hc_class.from_pretrained(folder / "stock", num_streams=4, stream_reduction="mean")
    model.save_pretrained(folder / "converted")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_hc." in name:
                parameter += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder / "trained")
    for name in ("stock", "converted", "trained"):
        tiny_tokenizer().save_pretrained(folder / name)
    return {name: folder / name for name in ("stock", "converted", "trained")}


def vllm_tokens(folder: Path, options: dict[str, Any], tmp_path: Path, adapter: Path | None = None) -> list[list[int]]:
    script = tmp_path / "tokens.py"  # a file, because vLLM's processes import it
    script.write_text(SCRIPT)
    arguments = [str(folder), PROMPTS, NEW_TOKENS, options, adapter and str(adapter)]
    environment = os.environ | {
        "PYTHONPATH": str(Path(modeling_hc.__file__).parents[1]),
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    if options.keys() & {"pipeline_parallel_size", "tensor_parallel_size"}:
        if (os.cpu_count() or 1) < 2:
            pytest.skip("two processes of vLLM need two cores")
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "0|1"
    command = [sys.executable, str(script), json.dumps(arguments)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-3000:]
    return json.loads(next(line for line in result.stdout.splitlines() if line.startswith("TOKENS"))[7:])


def tokens(model: PreTrainedModel) -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        inputs = torch.tensor([prompt])
        output = model.generate(inputs, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None, pad_token_id=0)
        found.append(output[0, len(prompt) :].tolist())
    return found


def saved_tokens(folder: Path) -> list[list[int]]:
    return tokens(AutoModelForCausalLM.from_pretrained(folder))


@pytest.mark.report(18, "vLLM, and its Transformers backend, of a converted checkpoint")
@pytest.mark.parametrize("options", [{"enforce_eager": True}, {}], ids=["eager", "compiled"])
def test_a_converted_checkpoint_gives_the_stock_tokens(
    checkpoints: dict[str, Path], options: dict[str, Any], tmp_path: Path, outcome: Any
) -> None:
    stock = saved_tokens(checkpoints["stock"])
    ours = vllm_tokens(checkpoints["converted"], {"model_impl": "transformers"} | options, tmp_path)
    outcome("tokens of generate", "the same" if ours == stock else "others")
    assert ours == stock


@pytest.mark.report(18, "vLLM with several processes")
@pytest.mark.parametrize(
    "options",
    [{"tensor_parallel_size": 2, "enforce_eager": True}, {"pipeline_parallel_size": 2} | DYNAMO],
    ids=["tensor parallel", "pipeline parallel"],
)
def test_several_processes_give_the_tokens_of_generate(
    checkpoints: dict[str, Path], options: dict[str, Any], tmp_path: Path, outcome: Any
) -> None:
    if not entry_points(group="vllm.general_plugins", name="modeling_hc"):
        pytest.skip("vLLM finds the plugin where the package is installed")
    expected = saved_tokens(checkpoints["trained"])
    ours = vllm_tokens(checkpoints["trained"], options, tmp_path)
    outcome("tokens of generate", "the same" if ours == expected else "others")
    assert ours == expected


@pytest.mark.report(33, "vLLM with an adapter: plain LoRA, and one with whole connections after merging")
def test_adapters_give_the_tokens_of_peft(checkpoints: dict[str, Path], tmp_path: Path, outcome: Any) -> None:
    if "Olmoe" in checkpoints["stock"].parent.name:
        pytest.skip("experts have no linear layers to adapt")
    told = []
    for whole in (None, ["attn_hc", "mlp_hc"]):
        torch.manual_seed(1)
        base = AutoModelForCausalLM.from_pretrained(checkpoints["trained"])
        targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        config = LoraConfig(task_type="CAUSAL_LM", r=8, target_modules=targets, modules_to_save=whole)
        model = get_peft_model(base, config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.05 * torch.randn_like(parameter)
        expected = tokens(model)
        options: dict[str, Any] = {"enforce_eager": True}
        if whole:
            model.merge_and_unload().save_pretrained(tmp_path / "merged")
            tiny_tokenizer().save_pretrained(tmp_path / "merged")
            ours = vllm_tokens(tmp_path / "merged", options, tmp_path)
        else:
            model.save_pretrained(tmp_path / "adapter")
            options |= {"enable_lora": True, "max_lora_rank": 8}
            ours = vllm_tokens(checkpoints["trained"], options, tmp_path, tmp_path / "adapter")
        told.append("the same" if ours == expected else "others")
        assert ours == expected
    outcome("tokens of PEFT", f"{told[0]}; merged: {told[1]}")
