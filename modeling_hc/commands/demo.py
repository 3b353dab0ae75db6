# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Trains a small Llama without and with hyper-connections, evaluates both, looks inside, and reports.

    modeling-hc demo        (in a checkout: make demo)

Everything is in runs/demo, the report in runs/demo/report.html. A further call skips what is done and continues what
was interrupted; `rm -r runs/demo` starts anew.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..loading_hc import is_connection
from ..recipes import find_recipe
from ..records import read_yaml
from .demo_report import render

FOLDER = Path("runs/demo")
RECIPE = "demo"
MODELS = {
    "llama": "llama-demo",
    "llama-dhc4": "hc-llama-demo-dhc4",
}
# Each ends where the tokenizer would end a token too: not in white space.
PROMPTS = [
    "import os\nimport sys\n\ndef main(",
    "class Queue:\n    def __init__(self,",
    "    try:\n        with open(filename) as f:",
    "def parse_header(line):",
]
SAMPLING = {"max_new_tokens": 64, "do_sample": True, "temperature": 0.7, "top_k": 40}


def main() -> None:
    """Takes the steps that are not done yet."""
    formatter = argparse.RawDescriptionHelpFormatter
    argparse.ArgumentParser(description=__doc__, formatter_class=formatter).parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here needs a network
    os.environ["OMP_NUM_THREADS"] = "1"  # on a busy machine, threads that share so little work wait for each other
    report = FOLDER / "report.html"
    if report.exists():
        print(f"The demo is done: {report.resolve()}\nTo run it again: rm -r {FOLDER}, and the same command")
        return
    record = Record(FOLDER / "demo.json")
    try:
        for name in MODELS:
            record.step(f"Training {name}", lambda name=name: train(name))
        record.step("Evaluation", evaluate)
        record.step("Samples", write_samples)
        record.step("Analysis", analyze)
        report.write_text(render(FOLDER), encoding="utf-8")
    except subprocess.CalledProcessError as error:
        sys.exit(
            f"\ndemo: {record.current} failed with exit status {error.returncode}; what it printed above says why. "
            f"The same command tries again from there; `rm -r {FOLDER}` first starts anew."
        )
    except (OSError, ValueError) as error:
        sys.exit(f"\ndemo: {record.current} failed: {error} `rm -r {FOLDER}` first starts anew.")
    except KeyboardInterrupt:
        sys.exit(f"\ndemo: interrupted in {record.current}. The same command continues; `rm -r {FOLDER}` starts anew.")
    print(f"\nReport: {report.resolve()}")


class Record:
    """What is done, in a JSON file: `seconds` of each step, `machine`, and what the steps found out.

    Args:
        path: of the file; one that is there is continued.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.current = "the beginning"
        self.content: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"seconds": {}}

    def step(self, name: str, action: Callable[[], dict[str, Any] | None]) -> None:
        """Takes a step unless it is done; what it returns is kept."""
        if name in self.content["seconds"]:
            print(f"{name}: done before")
            return
        self.current = name
        print(f"\n{name}", flush=True)
        start = time.monotonic()
        found = action() or {}
        self.content |= {"machine": machine(), **found}
        self.content["seconds"][name] = round(time.monotonic() - start, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".tmp")
        partial.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")
        partial.replace(self.path)


def train(name: str) -> None:
    """Trains one of the models through `accelerate launch`, from its last whole checkpoint if it has one."""
    folder = FOLDER / name
    launcher, flags, threads = launch()
    flags += [f"--config={MODELS[name]}", f"--output_dir={folder}"]
    first = next(iter(MODELS))
    if name != first:
        flags.append(f"--tokenizer={FOLDER / first}")
    checkpoints = {
        int(path.parent.name.split("-")[1]): path.parent for path in folder.glob("checkpoint-*/*_state.json")
    }
    if checkpoints:
        flags.append(f"--resume_from_checkpoint={checkpoints[max(checkpoints)]}")
    elif folder.exists() and not (folder / "model.safetensors").exists():
        print(f"{folder} was interrupted before its first checkpoint: it starts again.")
        shutil.rmtree(folder)
    run(
        [
            "-m",
            "accelerate.commands.launch",
            *launcher,
            "-m",
            "modeling_hc.commands.train",
            RECIPE,
            *flags,
        ],
        OMP_NUM_THREADS=str(threads),
    )


def launch() -> tuple[list[str], list[str], int]:
    """Returns arguments for `accelerate launch` and for train.py, and threads a process, for what this machine has.

    The number of processes does not change what is trained: together they take the recipe's batch.
    """
    import torch  # takes seconds, which a call that finds all done need not wait

    if torch.accelerator.is_available():
        return ["--num_processes=1", "--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no"], [], 1
    if cores() < 2:
        return [f"--config_file={find_recipe('accelerate', 'cpu')}"], [], 1
    batch = read_yaml(find_recipe("training", RECIPE).read_text())["per_device_train_batch_size"] // 2
    launcher = [f"--config_file={find_recipe('accelerate', 'multi-cpu')}", "--main_process_port=0"]
    return launcher, ["--use_cpu=true", f"--per_device_train_batch_size={batch}"], cores() // 2


def evaluate() -> None:
    """Scores both models with lm-evaluation-harness on code that neither has seen."""
    models = [str(FOLDER / name) for name in MODELS]
    run(
        [
            "-m",
            "modeling_hc",
            "evaluate",
            *models,
            "--tasks",
            "stdlib",
            "--limit",
            "200",
            "--output",
            str(FOLDER / "evaluation.json"),
        ]
    )


def analyze() -> None:
    """Shows what the connections learned, beside the residual model."""
    output = FOLDER / "analysis"
    if not output.exists():
        residual, hc = (str(FOLDER / name) for name in MODELS)
        run(["-m", "modeling_hc", "analyze", hc, "--parent", residual, "--output", str(output)])


def write_samples() -> dict[str, Any]:
    """Lets both models continue the prompts, each loaded from its folder alone, without this package.

    Returns:
        `prompts`, and by model `connection_parameters` and `samples`, its continuations of the prompts in their order.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

    connection_parameters, samples = {}, {}
    for name in MODELS:
        tokenizer = AutoTokenizer.from_pretrained(FOLDER / name)
        model = AutoModelForCausalLM.from_pretrained(FOLDER / name, trust_remote_code=True)
        connection_parameters[name] = sum(p.numel() for key, p in model.named_parameters() if is_connection(key))
        samples[name] = []
        for prompt in PROMPTS:
            inputs = tokenizer(prompt, return_tensors="pt", return_token_type_ids=False)
            set_seed(0)
            (tokens,) = model.generate(**inputs, **SAMPLING, pad_token_id=tokenizer.pad_token_id)
            text = tokenizer.decode(tokens[inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            samples[name].append(text)
            print(f"\n--- {name}\n{prompt}|{text}")
    return {
        "prompts": PROMPTS,
        "sampling": SAMPLING,
        "connection_parameters": connection_parameters,
        "samples": samples,
    }


def run(command: list[str], **environment: str) -> None:
    subprocess.run([sys.executable, *command], check=True, env=os.environ | environment)


def cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def machine() -> str:
    """Describes this machine in a few words."""
    import torch

    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else accelerator or "no accelerator"
    return f"{platform.system()} {platform.machine()}, {cores()} cores, {device}"


if __name__ == "__main__":
    main()
