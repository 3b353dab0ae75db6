# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Servers and batched generation give a converted checkpoint the texts of the stock model."""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import Request, urlopen

import pytest
import torch
from contract import VOCABULARY, tiny_tokenizer
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    OlmoeConfig,
)
from transformers.utils.import_utils import is_serve_available

import modeling_hc

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "initializer_range": 0.2,
}
# Small, because by default the cache takes most of the memory, and the length of a batch follows from it.
SMALL_CACHE = {"num_blocks": 16, "max_batch_tokens": 64}
CONTINUOUS = ["--continuous-batching", "--cb-num-blocks", "16", "--cb-max-batch-tokens", "64"]
FAMILIES = {
    "Llama": LlamaConfig,
    "Mistral": lambda **kwargs: MistralConfig(**kwargs, num_key_value_heads=2),
    "Olmo": OlmoConfig,
    "Olmoe": lambda **kwargs: OlmoeConfig(**kwargs, num_experts=4, num_experts_per_tok=2),
}


def checkpoints(family: str, folder: Path) -> tuple[Path, Path]:
    """Saves a stock model of random weights and the same model with four streams, each with its tokenizer."""
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(FAMILIES[family](**SIZES)).save_pretrained(folder / "stock")
    hc_class = getattr(modeling_hc, f"HC{family}ForCausalLM")
    hc_class.from_pretrained(folder / "stock", num_streams=4, stream_reduction="mean").save_pretrained(folder / "ours")
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    for name in ("stock", "ours"):
        tokenizer.save_pretrained(folder / name)
    return folder / "stock", folder / "ours"


@pytest.mark.report(25, "model.generate_batch: continuous batching")
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_batch_gives_the_tokens_of_the_stock_model(family: str, tmp_path: Path, outcome: Any) -> None:
    prompts = [[5, 6, 7], [20, 21, 22, 23, 24, 25], [90]]
    settings = GenerationConfig(max_new_tokens=6, do_sample=False, eos_token_id=-1, pad_token_id=0)
    tokens = []
    for path in checkpoints(family, tmp_path):
        model = AutoModelForCausalLM.from_pretrained(path)
        requests = model.generate_batch(
            inputs=prompts,
            generation_config=settings,
            continuous_batching_config=ContinuousBatchingConfig(**SMALL_CACHE),
            progress_bar=False,
        )
        tokens.append([requests[key].generated_tokens for key in sorted(requests)])
    outcome(f"{sum(map(len, tokens[0]))} tokens", "the same" if tokens[0] == tokens[1] else "others")
    assert sum(map(len, tokens[0])) == 3 * 6
    assert tokens[0] == tokens[1]


@pytest.mark.report(25, "transformers serve, and a chat client")
@pytest.mark.parametrize("options", [[], CONTINUOUS], ids=["plain", "continuous batching"])
def test_a_server_gives_the_texts_of_the_stock_model(options: list[str], tmp_path: Path, outcome: Any) -> None:
    if not is_serve_available():
        pytest.skip("needs transformers[serving]")
    texts = [answers(path, options, tmp_path) for path in checkpoints("Llama", tmp_path)]
    outcome(f"{len(texts[0])} texts", "the same" if texts[0] == texts[1] else "others")
    assert all(texts[0])
    assert texts[0] == texts[1]


def answers(checkpoint: Path, options: list[str], folder: Path) -> list[str]:
    """Serves a checkpoint in a process of its own on the loopback, and asks it over HTTP."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "modeling_hc", "serve", str(checkpoint), "--host", "127.0.0.1", "--device", "cpu"]
    log = folder / "server.log"
    root = Path(modeling_hc.__file__).parents[1]
    with log.open("w") as output:
        server = subprocess.Popen(
            [*command, "--port", str(port), *options],
            stdout=output,
            stderr=output,
            env=os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
        )
        try:
            wait_for(lambda: urlopen(f"{address}/health", timeout=5), server, log)
            return [ask(address, checkpoint, prompt) for prompt in ("w5 w6 w7", "w20 w21 w22 w23")]
        finally:
            server.terminate()
            server.wait()


def wait_for(answer: Callable[[], Any], server: subprocess.Popen, log: Path) -> None:
    while server.poll() is None:
        try:
            answer()
        except (URLError, ConnectionError, TimeoutError):
            time.sleep(0.2)
        else:
            return
    pytest.fail(f"the server ended:\n{log.read_text()}")


def ask(address: str, checkpoint: Path, prompt: str) -> str:
    body = {
        "model": str(checkpoint),
        "messages": [{"role": "user", "content": prompt}],
        "max_tokens": 8,
        "temperature": 0,
        "stream": False,
    }
    request = Request(
        f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urlopen(request, timeout=300) as response:
        return json.load(response)["choices"][0]["message"]["content"]
