# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Conversion of checkpoint folders, against the residual parent, the bytes on the disk, and a fresh process."""

import hashlib
import json
import os
import resource
import runpy
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub.constants
import psutil
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import BPE, WordLevel
from tokenizers.trainers import BpeTrainer
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedTokenizerFast

import modeling_hc
from modeling_hc.conversion import ConversionError, to_hyper_connected, to_residual

SCRIPT = Path(__file__).parents[1] / "scripts" / "convert.py"
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 97,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
    "pad_token_id": 1,
}
FAMILIES = {
    "llama": {},
    "mistral": {"sliding_window": 8},
    "olmo": {"tie_word_embeddings": True},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
}
TOKENS = torch.randint(97, (2, 33), generator=torch.Generator().manual_seed(1))


def residual(folder: Path, model_type: str = "llama", dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **FAMILIES[model_type])
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.generation_config.temperature = 0.25
    model.generation_config.do_sample = True
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return residual(tmp_path / "source", shard="20KB")


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder)(TOKENS).logits


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor for path in folder.glob("*.safetensors") for name, tensor in load_file(path).items()}


def fingerprint(folder: Path) -> dict[str, str]:
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(SCRIPT), *map(str, arguments)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_converted_checkpoint_gives_exactly_its_parents_outputs(model_type, dtype, tmp_path):
    source = residual(tmp_path / "source", model_type, dtype, shard="20KB")
    verified = to_hyper_connected(source, tmp_path / "target", num_streams=4)
    converted = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    assert "differ by 0.0" in verified
    assert converted.config.model_type == f"hc_{model_type}"
    assert converted.dtype == dtype
    assert torch.equal(logits(source), logits(tmp_path / "target"))


@pytest.mark.parametrize("shard", ["20KB", "5GB"])
def test_every_tensor_arrives_bit_for_bit_beside_the_papers_initial_values(shard, tmp_path):
    source = residual(tmp_path / "source", "olmoe", torch.bfloat16, shard)
    to_hyper_connected(source, tmp_path / "target", num_streams=3)
    before, after = tensors(source), tensors(tmp_path / "target")
    for name, tensor in before.items():
        assert torch.equal(after[name].view(torch.uint8), tensor.view(torch.uint8)), name
    index = json.loads((tmp_path / "target" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"]) == set(after)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())

    added = {name: tensor for name, tensor in after.items() if name not in before}
    assert {tensor.dtype for tensor in added.values()} == {torch.float32}
    for block, path in enumerate(["layers.0.attn_hc", "layers.0.mlp_hc", "layers.1.attn_hc", "layers.1.mlp_hc"]):
        expected = {
            "alpha_bias": torch.cat([torch.eye(3)[:, [block % 3]], torch.eye(3)], dim=1),  # Eq. 14
            "beta_bias": torch.ones(3),
            "alpha_weight": torch.zeros(4, 32),
            "beta_weight": torch.zeros(32),
            "alpha_scale": torch.tensor([0.01]),  # Algorithm 2
            "beta_scale": torch.tensor([0.01]),
            "norm": torch.ones(32),
        }
        for name, value in expected.items():
            assert torch.equal(added.pop(f"model.{path}.{name}"), value), (path, name)
    assert not added


def test_a_converted_folder_is_complete_for_a_process_without_this_package(source, tmp_path, in_process, monkeypatch):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # not in the process of the tests
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "b": 1}, unk_token="a")))
    tokenizer.save_pretrained(source)
    (source / "optimizer.pt").write_bytes(b"of a training run")
    target = tmp_path / "target"
    done = in_process("scripts/convert.py", source, target, "--num_streams", "2", "--connection", "static")
    assert done.returncode == 0, done.stderr
    assert "bit for bit" in done.stdout
    assert (target / "README.md").is_file()
    assert not (target / "optimizer.pt").exists()
    assert AutoTokenizer.from_pretrained(target)("b")["input_ids"] == [1]

    program = f"""
import sys; sys.modules["modeling_hc"] = None
import torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained({str(target)!r}, trust_remote_code=True)
assert model.config.num_streams == 2 and model.config.connection == "static"
assert model.generation_config.temperature == 0.25
torch.save(model(torch.load({str(tmp_path / "tokens")!r})).logits, {str(tmp_path / "logits")!r})
"""
    torch.save(TOKENS, tmp_path / "tokens")
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    assert torch.equal(torch.load(tmp_path / "logits"), logits(source))


def test_a_classifier_is_converted_with_its_head(tmp_path):
    import transformers

    model = transformers.LlamaForSequenceClassification(LlamaConfig(**SIZES, num_labels=3))
    model.save_pretrained(tmp_path / "source")
    to_hyper_connected(tmp_path / "source", tmp_path / "target")
    converted = modeling_hc.HCLlamaForSequenceClassification.from_pretrained(tmp_path / "target")
    torch.testing.assert_close(converted(TOKENS).logits, model(TOKENS).logits)


def test_a_model_on_the_hub_is_converted_by_name(source, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    cached = tmp_path / "hub" / "models--somebody--something"
    shutil.copytree(source, cached / "snapshots" / ("0" * 40))
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("0" * 40)
    to_hyper_connected("somebody/something", tmp_path / "target")
    assert torch.equal(logits(source), logits(tmp_path / "target"))
    with pytest.raises(ConversionError, match="neither a folder nor a model on the Hub"):
        to_hyper_connected("somebody/nothing", tmp_path / "other")


def test_a_model_that_does_not_fit_in_memory_is_converted_without_comparing_outputs(source, tmp_path, monkeypatch):
    memory = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory._replace(available=10_000))
    assert "outputs were not compared" in to_hyper_connected(source, tmp_path / "target")
    assert torch.equal(logits(source), logits(tmp_path / "target"))


@pytest.mark.parametrize("model_type", FAMILIES)
def test_the_way_back_restores_the_residual_checkpoint(model_type, tmp_path):
    source = residual(tmp_path / "source", model_type, torch.bfloat16, shard="20KB")
    to_hyper_connected(source, tmp_path / "target")
    to_residual(tmp_path / "target", tmp_path / "back")
    for shard in source.glob("*.safetensors"):
        assert shard.read_bytes() == (tmp_path / "back" / shard.name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (source, tmp_path / "back"))
    assert before == after
    assert not list((tmp_path / "back").glob("*.py"))

    # Saved by transformers, the hyper-connections lie among the other weights.
    AutoModelForCausalLM.from_pretrained(tmp_path / "target").save_pretrained(tmp_path / "saved")
    to_residual(tmp_path / "saved", tmp_path / "back again")
    assert torch.equal(logits(source), logits(tmp_path / "back again"))
    assert set(tensors(source)) == set(tensors(tmp_path / "back again"))


def test_one_static_stream_goes_back_also_from_a_sum(source, tmp_path):
    to_hyper_connected(source, tmp_path / "target", num_streams=1, connection="static", stream_reduction="sum")
    to_residual(tmp_path / "target", tmp_path / "back")
    assert torch.equal(logits(source), logits(tmp_path / "back"))


@pytest.mark.parametrize("name", ["layers.1.attn_hc.alpha_bias", "layers.1.attn_hc.beta_weight"])
def test_the_way_back_is_rejected_with_the_first_trained_parameter(name, source, tmp_path):
    to_hyper_connected(source, tmp_path / "target")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "target")
    with torch.no_grad():
        model.get_parameter(f"model.{name}").view(-1)[-1] += 0.5
        model.get_parameter("model.layers.1.mlp_hc.beta_bias")[0] = 2
        model.get_parameter("model.layers.0.mlp_hc.alpha_scale")[0] = 2  # without effect while alpha_weight is zero
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(ConversionError, match=rf"model\.{name} differs from its initial value by up to 0\.5"):
        to_residual(tmp_path / "trained", tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_the_way_back_from_a_sum_of_streams_is_rejected_with_the_way_out(source, tmp_path):
    to_hyper_connected(source, tmp_path / "target", stream_reduction="sum")
    with pytest.raises(ConversionError, match="stream_reduction to 'mean'"):
        to_residual(tmp_path / "target", tmp_path / "back")


def _edit_config(folder: Path, **values) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _truncate(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])


def _drop_a_tensor(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    content = load_file(path)
    content.pop(sorted(content)[0])
    save_file(content, path, {"format": "pt"})


def _pickle(folder: Path) -> None:
    torch.save(tensors(folder), folder / "pytorch_model.bin")
    for path in folder.glob("*.safetensors*"):
        path.unlink()


def _change_tensors(folder: Path, change) -> None:
    path = sorted(folder.glob("*.safetensors"))[-1]
    index = folder / "model.safetensors.index.json"
    content = load_file(path)
    change(content)
    save_file(content, path, {"format": "pt"})
    listed = json.loads(index.read_text())
    listed["weight_map"] |= dict.fromkeys(content, path.name)
    index.write_text(json.dumps(listed))


def _store_as(dtype: torch.dtype):
    return lambda folder: _change_tensors(folder, lambda c: c.update({n: t.to(dtype) for n, t in c.items()}))


def _add_a_layer(folder: Path) -> None:
    _change_tensors(folder, lambda c: c.update({"model.layers.2.mlp.up_proj.weight": torch.ones(48, 32)}))


def _add_nan(folder: Path) -> None:
    _change_tensors(folder, lambda c: c[min(c)].view(-1)[3:4].fill_(float("nan")))


BAD_SOURCES = {
    "unsupported architecture": (lambda f: _edit_config(f, model_type="gpt2"), "model_type='gpt2'.* llama"),
    "unsupported head": (lambda f: _edit_config(f, architectures=["LlamaForX"]), "'LlamaForX'.*LlamaForCausalLM"),
    "hyper-connected already": (
        lambda f: _edit_config(f, model_type="hc_llama"),
        "hyper-connected already.*--reverse",
    ),
    "quantized": (lambda f: _edit_config(f, quantization_config={"quant_method": "gptq"}), "quantized.*'gptq'"),
    "stored as int8": (_store_as(torch.int8), r"looks quantized: \S+ is stored as I8"),
    "stored as float8": (_store_as(torch.float8_e4m3fn), r"looks quantized: \S+ is stored as F8_E4M3"),
    "other sizes": (
        lambda f: _edit_config(f, intermediate_size=64),
        r"down_proj.weight has shape \[32, 48\] in the file and \[32, 64\] by config.json",
    ),
    "more layers in the file": (_add_a_layer, r"has model.layers.2.mlp.up_proj.weight, .*num_hidden_layers=2"),
    "not a number": (_add_nan, r"\.weight in .* NaN or infinite values: the checkpoint is damaged"),
    "no index": (lambda f: (f / "model.safetensors.index.json").unlink(), "lacks model.safetensors.index.json"),
    "more layers": (lambda f: _edit_config(f, num_hidden_layers=3), "lacks model.layers.2"),
    "missing shard": (lambda f: sorted(f.glob("*.safetensors"))[-1].unlink(), "missing or damaged"),
    "truncated shard": (_truncate, "missing or damaged"),
    "missing tensor": (_drop_a_tensor, r"it lacks \S+. Download or save it again"),
    "pickle": (_pickle, "save_pretrained"),
    "adapter": (lambda f: (f / "config.json").rename(f / "adapter_config.json"), "merge the adapter"),
    "damaged config": (lambda f: (f / "config.json").write_text('{"model_type": "lla'), "config.json is damaged"),
}


@pytest.mark.parametrize("damage, message", BAD_SOURCES.values(), ids=BAD_SOURCES)
def test_a_checkpoint_that_cannot_be_converted_is_rejected_untouched(damage, message, source, tmp_path):
    damage(source)
    before = fingerprint(source)
    with pytest.raises(ConversionError, match=message):
        to_hyper_connected(source, tmp_path / "target")
    assert fingerprint(source) == before
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("field", [{"num_streams": 0}, {"connection": "sparse"}, {"stream_reduction": "max"}])
def test_a_bad_field_is_rejected_by_name(field, source, tmp_path):
    with pytest.raises(StrictDataclassError, match=next(iter(field))):
        to_hyper_connected(source, tmp_path / "target", **field)
    assert list(tmp_path.iterdir()) == [source]


def test_an_existing_target_is_never_overwritten(source, tmp_path):
    (tmp_path / "target").mkdir()
    with pytest.raises(ConversionError, match="never overwritten"):
        to_hyper_connected(source, tmp_path / "target")
    assert not list((tmp_path / "target").iterdir())


def test_a_leftover_that_the_model_passes_over_is_not_counted(source, tmp_path):
    _change_tensors(source, lambda c: c.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    told = to_hyper_connected(source, tmp_path / "target")
    assert told.startswith("All 21 tensors of the residual network are there bit for bit (beside 1 ")
    assert torch.equal(logits(source), logits(tmp_path / "target"))


def test_all_files_of_the_target_have_the_same_mode(source, tmp_path):
    to_hyper_connected(source, tmp_path / "target")
    (tmp_path / "new").touch()
    assert {path.stat().st_mode for path in (tmp_path / "target").iterdir()} == {(tmp_path / "new").stat().st_mode}


def test_a_target_in_the_way_or_in_the_source_is_rejected(source, tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    (tmp_path / "file").touch()
    before = fingerprint(tmp_path)
    for target, message in {
        source: "never overwritten",
        source / "target": "lies in the source",
        tmp_path / "link": "never overwritten",
        tmp_path / "file" / "target": "is not a folder",
    }.items():
        with pytest.raises(ConversionError, match=message):
            to_hyper_connected(source, target)
    assert fingerprint(tmp_path) == before


def test_a_path_that_is_no_folder_is_said_plainly(source, tmp_path):
    for path, message in {source / "config.json": "is a file", tmp_path / "none": "There is no folder"}.items():
        with pytest.raises(ConversionError, match=message):
            to_hyper_connected(path, tmp_path / "target")


def test_a_disk_that_is_full_while_writing_leaves_nothing_behind(tmp_path):
    source = residual(tmp_path / "source", dtype=torch.float64)
    before = fingerprint(source)

    def no_file_may_be_longer() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))

    done = subprocess.run(
        command(source, tmp_path / "target"), capture_output=True, text=True, preexec_fn=no_file_may_be_longer
    )
    assert done.returncode == 1
    assert "Writing" in done.stderr and "Traceback" not in done.stderr, done.stderr
    assert fingerprint(source) == before
    assert list(tmp_path.iterdir()) == [source]


def test_a_disk_too_small_is_rejected_before_anything_is_written(source, tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000))
    with pytest.raises(ConversionError, match="left"):
        to_hyper_connected(source, tmp_path / "target")
    assert list(tmp_path.iterdir()) == [source]


# The script, held where all is written and nothing verified, until its standard input ends.
# Whether SIGHUP ends it does not depend on how the tests were started: its first argument is "hangup" or "nohup".
HELD = """
import runpy, signal, sys
from modeling_hc.conversion import checkpoints

def hold(*arguments, verify=checkpoints._verify, **options):
    print("written", flush=True)
    sys.stdin.read()
    return verify(*arguments, **options)

checkpoints._verify = hold
signal.signal(signal.SIGHUP, signal.SIG_IGN if sys.argv.pop(1) == "nohup" else signal.SIG_DFL)
del sys.argv[0]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def interrupted(number: signal.Signals, source: Path, target: Path) -> tuple[int, int]:
    """Converts in a fork of this process, which gets the signal when the weights are written.

    Returns its process id and how it ended.
    """
    (output, written), (held, release) = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1  # of an error, as the interpreter has it
        try:
            os.close(release)
            sys.stdin, sys.stdout = os.fdopen(held), os.fdopen(written, "w")
            sys.argv = ["-c", "hangup", *command(source, target)[1:]]
            exec(HELD, {"__name__": "__main__"})
            status = 0
        finally:
            os._exit(status)
    os.close(written)
    os.close(held)
    assert os.read(output, 100) == b"written\n"
    assert list(target.parent.glob(f"{target.name}.converting-{pid}/*.safetensors"))
    os.kill(pid, number)
    os.close(release)
    _, status = os.waitpid(pid, 0)
    os.close(output)
    return pid, os.waitstatus_to_exitcode(status)


def test_an_interrupted_conversion_leaves_no_target(source, tmp_path):
    before = fingerprint(source)
    for number in (signal.SIGTERM, signal.SIGHUP):
        assert interrupted(number, source, tmp_path / "target")[1] == 1
        assert list(tmp_path.iterdir()) == [source]
    killed, status = interrupted(signal.SIGKILL, source, tmp_path / "target")
    assert status == -signal.SIGKILL
    assert {path.name for path in tmp_path.iterdir()} == {"source", f"target.converting-{killed}"}
    to_hyper_connected(source, tmp_path / "target")
    assert {path.name for path in tmp_path.iterdir()} == {"source", "target"}
    assert fingerprint(source) == before


def test_a_conversion_under_nohup_outlives_its_terminal(source, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HELD, "nohup", *command(source, tmp_path / "target")[1:]],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline()
    assert line == "written\n", process.communicate()[1]
    process.send_signal(signal.SIGHUP)
    process.communicate()
    assert process.returncode == 0
    assert torch.equal(logits(tmp_path / "target"), logits(source))


def test_the_command_line_states_an_error_in_one_paragraph(source, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # not in the process of the tests
    monkeypatch.setattr(sys, "argv", command(source, tmp_path / "target", "--num_streams", "0")[1:])
    with pytest.raises(SystemExit, match=r"was not converted.*num_streams"):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    for streams in (10**6, 10**10):  # more than memory, and more than a tensor can have
        monkeypatch.setattr(sys, "argv", command(source, tmp_path / "target", "--num_streams", str(streams))[1:])
        with pytest.raises(SystemExit, match=rf"^\S+ was not converted.*num_streams.{streams}.*fewer streams.*$"):
            runpy.run_path(str(SCRIPT), run_name="__main__")
    monkeypatch.setattr(sys, "argv", command(source, tmp_path / "target", "--reverse", "--num_streams", "2")[1:])
    with pytest.raises(SystemExit):
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert "--reverse takes no option" in capsys.readouterr().err


@pytest.mark.parametrize("model_type", FAMILIES)
@pytest.mark.report(24, "convert a config.json without architectures")
def test_a_checkpoint_without_architectures_is_a_causal_language_model(model_type, tmp_path, outcome):
    source = residual(tmp_path / "source", model_type)
    config = json.loads((source / "config.json").read_text())
    (architecture,) = config.pop("architectures")
    (source / "config.json").write_text(json.dumps(config))
    to_hyper_connected(source, tmp_path / "target")
    outcome("loads", "converts")
    assert torch.equal(logits(source), logits(tmp_path / "target"))
    assert json.loads((tmp_path / "target/config.json").read_text())["architectures"] == [f"HC{architecture}"]
    _edit_config(tmp_path / "target", architectures=None)
    to_residual(tmp_path / "target", tmp_path / "back")
    assert torch.equal(logits(source), logits(tmp_path / "back"))


@pytest.mark.report(24, "convert a config.json without architectures")
def test_another_head_is_not_dropped_for_want_of_architectures(tmp_path):
    import transformers

    config = LlamaConfig(**SIZES, num_labels=3, tie_word_embeddings=True)
    transformers.LlamaForSequenceClassification(config).save_pretrained(tmp_path / "source")
    _edit_config(tmp_path / "source", architectures=None)
    with pytest.raises(
        ConversionError, match=r'score\.weight, .* "architectures": \["LlamaForSequenceClassification"\]'
    ):
        to_hyper_connected(tmp_path / "source", tmp_path / "target")


TEXTS = [
    "Hello world",
    "  two leading spaces",
    "line one\nline two\n\n\ttabbed",
    "Größe, naïve café, 中文, 🙂",
    "In 2026, 3.14159 and 1,000,000",
    "<s>special</s> <|endoftext|> tokens",
    "UPPER lower MiXed",
    "don't  stop -- now...",
    "",
]
# The form of tokenizer.json, and the class in tokenizer_config.json, None without such a file. "old" has a regular
# expression that transformers mends in models of Mistral's of a certain age.
DECLARED = [("metaspace", None), ("metaspace", "LlamaTokenizer")]
DECLARED += [("bytes", None), ("bytes", "LlamaTokenizerFast"), ("bytes", "GPTNeoXTokenizer"), ("bytes", "old")]
READ = """
import json, os, pathlib, sys
from transformers import AutoTokenizer, GenerationMixin, PreTrainedModel  # once for all
texts, found = json.loads(sys.argv[2]), {}
for package in ("with", "without"):
    if child := os.fork():  # for each a process that has not read them the other way
        os.waitpid(child, 0)
        continue
    if package == "with":
        import modeling_hc
    else:
        sys.modules["modeling_hc"] = None
    for folder in sys.argv[3:]:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=package == "without")
        ends = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token, tokenizer.pad_token]
        found[pathlib.Path(folder).name] = [[tokenizer(text)["input_ids"] for text in texts], *ends]
    pathlib.Path(sys.argv[1], package).write_text(json.dumps(found))
    os._exit(0)  # taking the interpreter down takes a second
"""


def write_tokenizer(folder: Path, form: str, declared: str | None) -> None:
    """A small BPE as published checkpoints have it, which the class for Llama's would read in its own way."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", byte_fallback=form == "metaspace"))
    if form == "metaspace":
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    else:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    special = ["<unk>", "<s>", "</s>", "<|endoftext|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet() if form == "bytes" else []
    trainer = BpeTrainer(vocab_size=400, special_tokens=special, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(TEXTS * 3, trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    if declared:
        values = {"tokenizer_class": declared, "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}
        if declared == "old":
            values |= {"tokenizer_class": "LlamaTokenizer", "fix_mistral_regex": True}
            _edit_config(folder, transformers_version="4.40.0")
        (folder / "tokenizer_config.json").write_text(json.dumps(values))


def read_tokenizers(folders: list[Path], output: Path) -> dict[str, dict[str, list]]:
    """What fresh processes make of the texts "with" the package, and "without" it and with `trust_remote_code`."""
    output.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", READ, str(output), json.dumps(TEXTS), *map(str, folders)],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert {path.name for path in output.iterdir()} == {"with", "without"}, done.stderr[-2000:]
    return {path.name: json.loads(path.read_text()) for path in output.iterdir()}


# Each takes minutes of conversions; these two are the families whose parents do not tokenize as their files say.
@pytest.mark.parametrize(
    "model_type",
    [name if name in ("mistral", "olmo") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES],
)
@pytest.mark.report(7, "convert a checkpoint, load its tokenizer")
def test_a_converted_folder_tokenizes_as_its_parent_with_and_without_this_package(model_type, tmp_path, outcome):
    model = residual(tmp_path / "model", model_type)
    parents = []
    for form, declared in DECLARED:
        parent = shutil.copytree(model, tmp_path / f"{form}-{declared}")
        write_tokenizer(parent, form, declared)
        to_hyper_connected(parent, tmp_path / f"{parent.name}-converted")
        to_residual(tmp_path / f"{parent.name}-converted", tmp_path / f"{parent.name}-back")
        hc_class = type(AutoModelForCausalLM.from_pretrained(tmp_path / f"{parent.name}-converted"))
        hc_class.from_pretrained(parent).save_pretrained(tmp_path / f"{parent.name}-saved")
        AutoTokenizer.from_pretrained(parent).save_pretrained(tmp_path / f"{parent.name}-saved")
        parents.append(parent)
    expected = {}
    for parent in parents:
        stock = AutoTokenizer.from_pretrained(parent)
        tokens = [stock(text)["input_ids"] for text in TEXTS]
        expected[parent.name] = [tokens, stock.bos_token, stock.eos_token, stock.unk_token, stock.pad_token]
    assert len({json.dumps(tokens) for tokens, *_ in expected.values()}) > 1
    kinds = ["converted", "saved", "back"]
    folders = [tmp_path / f"{parent.name}-{kind}" for parent in parents for kind in kinds]
    for package, found in read_tokenizers(folders, tmp_path / "found").items():
        for name, (texts, *_) in expected.items():
            for kind in kinds:
                tokens = found[f"{name}-{kind}"]
                same = sum(map(list.__eq__, tokens[0], texts))
                outcome(f"{name}: 9 of 9 texts", f"{kind}, {package} the package: {same} of 9 texts")
        assert found == {f"{name}-{kind}": tokens for name, tokens in expected.items() for kind in kinds}


@pytest.mark.report(7, "convert a checkpoint, load its tokenizer")
def test_a_tokenizer_that_cannot_be_loaded_and_one_with_code_of_its_own_are_copied_as_they_are(source, tmp_path):
    (source / "tokenizer.json").write_text("{")
    to_hyper_connected(source, tmp_path / "broken")
    assert (tmp_path / "broken/tokenizer.json").read_text() == "{"
    write_tokenizer(source, "bytes", "PreTrainedTokenizerFast")
    config = source / "tokenizer_config.json"
    config.write_text(json.dumps({"auto_map": {"AutoTokenizer": [None, "own.Tokenizer"]}, "tokenizer_class": "X"}))
    to_hyper_connected(source, tmp_path / "own")
    assert (tmp_path / "own/tokenizer_config.json").read_bytes() == config.read_bytes()
