# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Bad and hostile input is rejected or does what the residual parent does with it, and nothing it brings is run."""

import ast
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import torch
from contract import tiny_tokenizer
from huggingface_hub import EvalResult, ModelCard
from jinja2 import Environment
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
)

from campaigns.bad_input import INDEX, Intruder, campaign, campaigns, config_class, damage, quiet, sizes
from modeling_hc import HCLlamaConfig, HCLlamaForCausalLM, functional_hc
from modeling_hc.commands import analyze, evaluate, finetune, train
from modeling_hc.commands.loading import load
from modeling_hc.model_card_hc import add_evaluation, add_training
from modeling_hc.training.arguments import ModelArguments

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("modeling_hc", "scripts", "eval") for path in (ROOT / folder).rglob("*.py"))


@pytest.fixture
def silent() -> None:
    quiet()


# ---- what is random, in short; `make fuzz` is the long version --------------------------------------------------


@pytest.mark.parametrize(("what", "examples"), [("configurations", 100), ("inputs", 100), ("checkpoints", 50)])
def test_random_input_is_served_or_rejected(what: str, examples: int, tmp_path: Path, silent: None) -> None:
    counts = campaign(examples, *campaigns(tmp_path)[what])

    assert counts.total() >= examples // 2, "hypothesis found too few different ones"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_key_value_heads", 3),
        ("num_attention_heads", 0),
        ("hidden_size", -16),
        ("num_hidden_layers", 2**40),
        ("vocab_size", 0),
        ("num_experts_per_tok", 5),
        ("num_streams", 2**40),
        ("rms_norm_eps", float("nan")),
        ("pad_token_id", 17),
        ("hidden_act", "silly"),
        ("attention_dropout", 1.5),
        ("rope_parameters", {"rope_theta": 0.0}),
        ("rope_parameters", {"rope_type": "linear"}),
    ],
)
def test_what_upstream_would_build_and_not_run_is_rejected_with_the_name_of_its_field(
    field: str, value: object
) -> None:
    with pytest.raises(Exception, match=field) as caught:
        config_class("Olmoe")(**sizes("Olmoe") | {field: value})

    assert isinstance(caught.value, ValueError) or isinstance(caught.value.__cause__, ValueError)


def test_a_field_that_loading_changes_is_checked_too(tmp_path: Path) -> None:
    HCLlamaForCausalLM(HCLlamaConfig(**sizes("Llama"))).save_pretrained(tmp_path)

    with pytest.raises(ValueError, match="num_key_value_heads=3"):
        HCLlamaForCausalLM.from_pretrained(tmp_path, num_key_value_heads=3)
    with pytest.raises(ValueError, match="head_dim=1 "):
        AutoModelForCausalLM.from_config(HCLlamaConfig(**sizes("Llama") | {"num_attention_heads": 16}))


def test_a_head_by_another_name_is_rejected_and_does_not_start_anew_in_silence(tmp_path: Path) -> None:
    model = HCLlamaForCausalLM(HCLlamaConfig(**sizes("Llama")))
    tensors = {name.replace("lm_head", "embed_out"): tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})

    with pytest.raises(ValueError, match=r"lacks lm_head.weight and has embed_out.weight, for which"):
        AutoModelForCausalLM.from_pretrained(tmp_path)
    # A new task leaves the head of the last one behind, and a shallower model its layers.
    AutoModelForSequenceClassification.from_pretrained(tmp_path, num_hidden_layers=1)


# ---- nothing that is read is run --------------------------------------------------------------------------------


def test_no_source_unpickles_evaluates_or_loads_yaml_unsafely() -> None:
    for path in SOURCES:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        called = {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
        imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        unsafe = {
            "eval",
            "exec",
            "compile",
            "yaml.load",
            "yaml.unsafe_load",
            "yaml.full_load",
            "torch.load",
            "os.system",
        }
        assert not called & unsafe, path
        assert not imported & {"pickle", "dill", "joblib", "shelve", "marshal"}, path


def test_a_recipe_of_training_cannot_run_code(tmp_path: Path) -> None:
    from modeling_hc.training.arguments import parse

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"output_dir: !!python/object/apply:builtins.open ['{tmp_path / 'mark'}', 'w']\n")

    with pytest.raises(ValueError, match=r"Cannot read \S+recipe\.yaml"):
        parse([str(recipe)])
    assert not (tmp_path / "mark").exists()


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    """Folders `llama` and `hc` with a configuration, a tokenizer, and a pickle that leaves a mark where it is run."""
    LlamaForCausalLM(config_class("Llama", False)(**sizes("Llama") | {"vocab_size": 99})).save_pretrained(
        tmp_path / "llama"
    )
    HCLlamaForCausalLM.from_pretrained(tmp_path / "llama").save_pretrained(tmp_path / "hc")
    for name in ("llama", "hc"):
        tiny_tokenizer().save_pretrained(tmp_path / name)
        (tmp_path / name / "model.safetensors").unlink()
        torch.save({"weight": Intruder(tmp_path / "mark")}, tmp_path / name / "pytorch_model.bin")
    return tmp_path


@pytest.mark.parametrize("name", ["llama", "hc"])
def test_no_script_reads_pickled_weights(
    pickled: Path, name: str, monkeypatch: pytest.MonkeyPatch, silent: None
) -> None:
    model = str(pickled / name)
    args = ModelArguments(model_name_or_path=model, hyper_connect=name == "llama")
    (pickled / "rows.csv").write_text("text,label\nw5,a\nw6,b\n")
    rows = str(pickled / "rows.csv")
    classifier = finetune.ClassifierArguments(model, [rows], [rows])
    monkeypatch.setattr(finetune, "read_tokenizer", lambda _: tiny_tokenizer())
    attempts = {
        "generate.py and analyze.py": lambda: load(model),
        "eval/run.py": lambda: evaluate.check_model(model),
        "train.py": lambda: train.make_model(args, train.model_config(args), tiny_tokenizer()),
        "finetune_classifier.py": lambda: finetune.prepare(classifier, TrainingArguments(str(pickled / "out"))),
    }

    for script, attempt in attempts.items():
        with pytest.raises((ValueError, OSError, SystemExit), match="safetensors"):
            attempt()
        assert not (pickled / "mark").exists(), script


def trainer(folder: Path) -> Trainer:
    torch.manual_seed(0)
    rows = [{"input_ids": [1, 2, 3], "labels": [1, 2, 3]}] * 4
    args = TrainingArguments(str(folder), max_steps=2, save_steps=1, use_cpu=True, report_to="none", disable_tqdm=True)
    return Trainer(HCLlamaForCausalLM(HCLlamaConfig(**sizes("Llama"))), args, train_dataset=rows)


def test_a_run_that_is_resumed_does_not_run_what_its_checkpoint_holds(tmp_path: Path) -> None:
    """The Trainer's own state is pickled; it reads it with `weights_only=True`, and never reads training_args.bin."""
    trainer(tmp_path / "run").train()
    whole, mark = tmp_path / "run" / "checkpoint-1", tmp_path / "mark"

    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"):
        checkpoint = Path(shutil.copytree(whole, tmp_path / name / whole.name))
        assert (checkpoint / name).is_file(), "the Trainer's state has another name now"
        torch.save(Intruder(mark), checkpoint / name)

        if name == "training_args.bin":
            trainer(tmp_path / "again").train(resume_from_checkpoint=str(checkpoint))
        else:
            with pytest.raises(pickle.UnpicklingError, match="Weights only"):
                trainer(tmp_path / "again").train(resume_from_checkpoint=str(checkpoint))
        assert not mark.exists(), name
    torch.load(checkpoint / name, weights_only=False).close()
    assert mark.exists(), "the pickle does nothing, so that the test shows nothing"


def test_an_adapter_in_a_pickle_is_not_read(tmp_path: Path, silent: None) -> None:
    HCLlamaForCausalLM(HCLlamaConfig(**sizes("Llama"))).save_pretrained(tmp_path / "model")
    adapter = {
        "peft_type": "LORA",
        "base_model_name_or_path": str(tmp_path / "model"),
        "r": 2,
        "task_type": "CAUSAL_LM",
    }
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(adapter | {"target_modules": ["q_proj"]}))
    torch.save({"weight": Intruder(tmp_path / "mark")}, tmp_path / "adapter" / "adapter_model.bin")

    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "mark").exists()


def test_shards_outside_of_a_folder_are_not_read(tmp_path: Path) -> None:
    HCLlamaForCausalLM(HCLlamaConfig(**sizes("Llama"))).save_pretrained(tmp_path / "model", max_shard_size="6KB")
    whole = shutil.copytree(tmp_path / "model", tmp_path / "elsewhere" / "model")
    damage(tmp_path / "model", "index leads out of the folder", 0.0, None)

    with pytest.raises(ValueError, match=rf"{INDEX} names '\.\./model-00001-of-\d+\.safetensors'"):
        HCLlamaForCausalLM.from_pretrained(tmp_path / "model")
    HCLlamaForCausalLM.from_pretrained(whole)  # and is read where all is in its place


# ---- nothing that is quoted is obeyed ---------------------------------------------------------------------------

HOSTILE = "a|b <img src=x onerror=alert(1)> ![x](http://evil/x.png) </script> \\ $x_ --- {{ 7*7 }}\n---\nlicense: mit"


def test_a_card_shows_what_it_quotes_and_stays_whole(tmp_path: Path) -> None:
    HCLlamaForCausalLM(HCLlamaConfig(**sizes("Llama"))).save_pretrained(tmp_path)
    marks = "<!-- /training --> <!-- evaluation --> x <!-- /evaluation -->"
    task = EvalResult("text-generation", HOSTILE, HOSTILE, "acc", 0.5)

    for _ in range(2):  # what the first left must not lead the second astray
        assert add_training(tmp_path, f"python train.py '{marks}'", {HOSTILE: HOSTILE, "Data": marks}, [HOSTILE])
        assert add_evaluation(tmp_path, [task])

    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.datasets == [HOSTILE] and card.data.eval_results[0].dataset_name == HOSTILE
    assert card.data.license is None
    for mark in ("training", "evaluation"):
        assert [card.text.count(f"<!-- {end}{mark} -->") for end in ("", "/")] == [1, 1]
    tables = [line for line in card.text.splitlines() if line.startswith("| ")]
    quoting = [line for line in tables if "onerror" in line]
    assert len(quoting) == 2
    for line in quoting:
        assert "<" not in line and "![" not in line
    assert len(re.findall(r"(?<!\\)\|", quoting[0])) == 3 and len(re.findall(r"(?<!\\)\|", quoting[1])) == 5


def test_a_table_of_results_keeps_its_columns_whatever_a_model_is_called() -> None:
    report = {
        "models": [{"name": HOSTILE}],
        "tasks": {},
        "results": {"task": {"acc": {HOSTILE: {"value": 0.5, "stderr": None}}}},
    }

    table = evaluate.table(report).strip().splitlines()

    assert [len(re.findall(r"(?<!\\)\|", line)) for line in table] == [4, 4, 4]


@pytest.mark.parametrize("template", ["commands/demo_report.html.jinja", "analysis/page.html.jinja"])
def test_pages_escape_all_that_they_quote(template: str) -> None:
    """`| safe` and its like would undo the escaping, without which no script renders a page."""
    source = (ROOT / "modeling_hc" / template).read_text(encoding="utf-8")
    renderer = "demo_report.py" if "report" in template else "analyze.py"
    script = (ROOT / "modeling_hc" / "commands" / renderer).read_text(encoding="utf-8")
    assert "autoescape=True" in script and not re.search(
        r"\|\s*safe|autoescape false|Markup\(|innerHTML", source + script
    )
    quoted = Environment(autoescape=True).from_string(
        "<p title='{{ x }}'>{{ x }}</p><script>y = {{ x | tojson }}</script>"
    )
    assert quoted.render(x=HOSTILE).count("<") == 4


def test_figures_and_reading_take_any_name(tmp_path: Path) -> None:
    from modeling_hc.analysis import measure

    model = HCLlamaForCausalLM(HCLlamaConfig(**sizes("Llama"), num_streams=1, connection="static")).eval()
    name = r"$\nothing_{x$ <b>" + "\n# x"
    subject = analyze.Subject(name, model, tiny_tokenizer(), measure(model, [torch.arange(8)[None] % 17]))

    for figure in analyze.figures(subject, None, None).values():
        figure.savefig(tmp_path / "figure.png")
    assert "\n#" not in analyze.plain(name) and "<" not in analyze.plain(name)


# ---- extreme numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kernels", ["functional_hc", "autograd_hc", "triton_hc"])
def test_activations_of_ten_thousand_and_rows_of_zeros_are_computed_as_in_fp64(
    dtype: torch.dtype, kernels: str
) -> None:
    """Their squares are beyond fp16; the norm of a stream of zeros is a division of 0 by eps."""
    module = pytest.importorskip(f"modeling_hc.{kernels}", reason="Triton runs on Linux x86-64 only")
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (scale * torch.randn(*shape, generator=generator)).clamp(-2 * scale, 2 * scale)

    streams, output = draw(3, 4, 32, scale=1e4).to(dtype), draw(3, 32, scale=1e4).to(dtype)
    streams[0] = 0  # a token of zeros
    streams[1, 2] = 0  # and a stream
    parameters = [draw(6, 32, scale=0.2), 1 + draw(32, scale=0.1), torch.tensor([0.3]), torch.tensor([0.2])]
    parameters += [torch.eye(4, 5).roll(1, 1) + draw(4, 5, scale=0.05), 1 + draw(4, scale=0.05)]
    direction = torch.randn(
        3, 32, dtype=torch.float64, generator=generator
    )  # all gradients, the true ones, are in fp16's range
    seen = []
    for dtypes, implementation in (((dtype, torch.float32), module), ((torch.float64,) * 2, functional_hc)):
        given = [tensor.to(dtypes[0], copy=True).requires_grad_() for tensor in (streams, output)]
        learned = [tensor.to(dtypes[1], copy=True).requires_grad_() for tensor in parameters]
        block_input, alpha, beta = implementation.dynamic_width_connection(given[0], *learned, True, 1e-6, False)
        new = implementation.depth_connection(given[0], given[1], alpha, beta)
        (1e-3 * (new.double().sum() + (block_input.double() * direction).sum())).backward()
        seen.append([block_input, alpha, beta, new, *(tensor.grad for tensor in given + learned)])

    for actual, expected in zip(*seen, strict=True):
        assert actual.isfinite().all()
        assert (actual - expected).abs().max() <= 8 * torch.finfo(dtype).eps * max(expected.abs().max(), 1e-3)
    assert not (streams * streams)[2].isfinite().all() or dtype == torch.bfloat16, "fp16 could hold their squares"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [1e4, 0.0])
@pytest.mark.parametrize("num_streams", [4, 8])
def test_a_model_is_finite_where_its_residual_parent_is(dtype: torch.dtype, scale: float, num_streams: int) -> None:
    torch.manual_seed(0)
    parent = LlamaForCausalLM(config_class("Llama", False)(**sizes("Llama") | {"pad_token_id": None}))
    with torch.no_grad():
        parent.model.embed_tokens.weight.normal_().clamp_(-2, 2).mul_(scale)
    hc_fields = {"num_streams": num_streams, "stream_reduction": "mean", "pad_token_id": None}
    model = HCLlamaForCausalLM(HCLlamaConfig(**sizes("Llama") | hc_fields))
    model.load_state_dict(parent.state_dict(), strict=False)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("_hc.alpha_weight"):
                parameter.normal_(std=0.1)
    ids = torch.arange(16).view(2, 8)

    results = []
    for one in (parent, model):
        for name, parameter in one.named_parameters():
            parameter.data = parameter.data.to(torch.float32 if "_hc." in name else dtype)
        loss = one(ids, labels=ids).loss
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in one.parameters())])

    assert all(result.isfinite().all() for result in results[0]), "the parent is not finite: the test shows nothing"
    assert all(result.isfinite().all() for result in results[1])


def test_eight_thousand_tokens_in_eight_streams_equal_the_residual_parent() -> None:
    small = {"hidden_size": 8, "num_attention_heads": 1, "num_key_value_heads": 1, "num_hidden_layers": 1}
    values = sizes("Llama") | small | {"max_position_embeddings": 8192}
    torch.manual_seed(0)
    parent = LlamaForCausalLM(config_class("Llama", False)(**values))
    model = HCLlamaForCausalLM(HCLlamaConfig(**values, num_streams=8, stream_reduction="mean"))
    model.load_state_dict(parent.state_dict(), strict=False)
    ids = torch.randint(17, (1, 8192), generator=torch.Generator().manual_seed(0))

    for one in (parent, model):
        one(ids, labels=ids).loss.backward()

    for name, parameter in parent.named_parameters():
        gradient = model.get_parameter(name).grad
        assert (gradient - parameter.grad).abs().max() <= 1e-4 * parameter.grad.abs().max(), name
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())
