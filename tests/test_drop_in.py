# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What people do with a stock model does the same with ours: reported failures, each tried beside the stock model."""

import copy
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from contract import batch, close, scramble
from peft import AdaptionPromptConfig, IA3Config, LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from transformers import (
    AutoModelForCausalLM,
    AutoModelForTokenClassification,
    LlamaConfig,
    MistralConfig,
    OlmoConfig,
    OlmoeConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
)

import modeling_hc
from modeling_hc import HCLlamaConfig, HCLlamaForCausalLM, parameter_groups

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PARENTS = [LlamaConfig, MistralConfig, OlmoConfig, OlmoeConfig]


def stock(config_class: type[PreTrainedConfig] = LlamaConfig, auto_class: Any = AutoModelForCausalLM) -> Any:
    """A residual model whose blocks all matter."""
    torch.manual_seed(0)
    model = auto_class.from_config(config_class(**SIZES))
    scramble(model, 0.1)
    return model.eval()


def convert(parent: PreTrainedModel, folder: Path, **kwargs: Any) -> PreTrainedModel:
    """The hyper-connected model with the parent's function."""
    parent.save_pretrained(folder)
    hc_class = getattr(modeling_hc, f"HC{type(parent).__name__}")
    return hc_class.from_pretrained(folder, stream_reduction="mean", **kwargs)


def trained(**kwargs: Any) -> HCLlamaForCausalLM:
    """A hyper-connected model whose streams and coefficients all differ."""
    torch.manual_seed(1)
    model = HCLlamaForCausalLM(HCLlamaConfig(**SIZES | kwargs))
    scramble(model, 0.2)
    return model.eval()


def python(code: str, *args: Any, package: bool = False) -> str:
    """Runs code in a fresh process, by default without our package. Returns what it printed."""
    absent = "" if package else "import sys; sys.modules.update(modeling_hc=None, triton=None)\n"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    environment |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "HF_MODULES_CACHE": str(args[0]) + ".modules"}
    command = [sys.executable, "-c", absent + code, *map(str, args)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


# ---- by name --------------------------------------------------------------------------------------------------------


def smoothed_losses(model: PreTrainedModel, folder: Path) -> list[float]:
    """Trains on sequences that count up, with label smoothing, everything but the connections. Returns the losses."""
    sequences = [[(start + i) % 90 + 3 for i in range(16)] for start in range(24)]
    rows = [{"input_ids": ids, "labels": ids} for ids in sequences]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("_hc." not in name)
    arguments = TrainingArguments(
        folder,
        label_smoothing_factor=0.1,
        max_steps=12,
        learning_rate=3e-3,
        logging_steps=1,
        use_cpu=True,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = Trainer(model, arguments, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.report(1, "Trainer with label smoothing")
@pytest.mark.parametrize("config_class", PARENTS)
def test_label_smoothing_trains_as_the_parent_does(
    config_class: type[PreTrainedConfig], tmp_path: Path, outcome: Callable
) -> None:
    parent = stock(config_class)
    model = convert(parent, tmp_path / "parent")

    expected, actual = (smoothed_losses(m, tmp_path / "run") for m in (parent, model))

    outcome(f"{config_class.model_type} ends at loss {expected[-1]:.3f}", f"{actual[-1]:.3f}")
    assert actual == pytest.approx(expected, rel=1e-3)
    assert expected[-1] < 0.95 * expected[0]


@pytest.mark.report(1, "the same with a token classifier, whose labels must not be shifted")
def test_label_smoothing_does_not_shift_the_labels_of_a_token_classifier(tmp_path: Path, outcome: Callable) -> None:
    parent = stock(auto_class=AutoModelForTokenClassification)
    parent.config.num_labels = 99
    parent.score = nn.Linear(32, 99)
    parent.num_labels = 99
    model = convert(parent, tmp_path / "parent")

    expected, actual = (smoothed_losses(m, tmp_path / "run") for m in (parent, model))

    outcome(f"{expected[-1]:.3f}", f"{actual[-1]:.3f}")
    assert actual == pytest.approx(expected, rel=1e-3)


@pytest.mark.report(1, "the same with a shared folder, without the package")
def test_label_smoothing_shifts_labels_for_a_shared_folder_without_the_package(
    tmp_path: Path, outcome: Callable
) -> None:
    parent = stock()
    convert(parent, tmp_path / "parent").save_pretrained(tmp_path / "shared")
    code = f"""
import sys, json
from pathlib import Path
from transformers import AutoModelForCausalLM, PreTrainedModel, Trainer, TrainingArguments
{inspect.getsource(smoothed_losses)}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
print(json.dumps(smoothed_losses(model, sys.argv[1] + '.run')))
"""

    actual = json.loads(python(code, tmp_path / "shared").splitlines()[-1])

    expected = smoothed_losses(parent, tmp_path / "run")
    outcome(f"{expected[-1]:.3f}", f"{actual[-1]:.3f}")
    assert actual == pytest.approx(expected, rel=1e-3)


@pytest.mark.report(6, "PEFT without target_modules")
@pytest.mark.parametrize("config_class", PARENTS)
@pytest.mark.parametrize("adapter", [LoraConfig, IA3Config, AdaptionPromptConfig])
def test_peft_picks_the_parents_target_modules(
    config_class: type[PreTrainedConfig], adapter: Any, tmp_path: Path, outcome: Callable
) -> None:
    def adapted(model: PreTrainedModel) -> set[str] | str:
        options = {"adapter_len": 2, "adapter_layers": 2} if adapter is AdaptionPromptConfig else {}
        try:
            model = get_peft_model(model, adapter(task_type="CAUSAL_LM", **options))
        except ValueError as error:  # PEFT knows no default for some families
            return str(error).partition(":")[0]
        return {name for name, p in model.named_parameters() if p.requires_grad}

    parent = stock(config_class)
    model = convert(parent, tmp_path)

    expected, actual = adapted(parent), adapted(model)

    told = [f"{len(r)} tensors" if isinstance(r, set) else r for r in (expected, actual)]
    outcome(f"{config_class.model_type}, {adapter.__name__}: {told[0]}", told[1])
    assert actual == expected


@pytest.mark.report(25, "getattr(transformers, config.architectures[0]), as serve, pipeline and TRL do")
def test_an_architecture_is_found_by_name_in_transformers(tmp_path: Path) -> None:
    code = """
import transformers, modeling_hc
from transformers.processing_utils import transformers_module  # importing this replaces the module transformers
for architecture in ("HCLlamaForCausalLM", "HCOlmoeForCausalLM", "HCMistralForSequenceClassification"):
    assert getattr(transformers, architecture) is getattr(modeling_hc, architecture)
import transformers
print(transformers.HCLlamaForCausalLM.__name__)
"""
    assert python(code, tmp_path, package=True) == "HCLlamaForCausalLM"


# ---- other parameters than the module's own -------------------------------------------------------------------------


def loss_of(model: PreTrainedModel, parameters: dict[str, Tensor], ids: Tensor) -> Tensor:
    return functional_call(model, parameters, (), {"input_ids": ids, "labels": ids, "use_cache": False}).loss


@pytest.mark.report(2, "functional_call with other parameters (MAML, hypernetworks)")
@pytest.mark.parametrize("kind", ["stock", "DHC", "SHC"])
def test_functional_call_gives_the_gradients_of_the_parameters_it_was_given(kind: str, outcome: Callable) -> None:
    model = stock() if kind == "stock" else trained(connection="dynamic" if kind == "DHC" else "static")
    ids = batch()["input_ids"]
    torch.manual_seed(5)
    other = {k: (p + 0.3 * torch.randn_like(p)).detach().requires_grad_() for k, p in model.named_parameters()}

    actual = torch.autograd.grad(loss_of(model, other, ids), list(other.values()))

    same = copy.deepcopy(model)
    with torch.no_grad():
        for name, parameter in same.named_parameters():
            parameter.copy_(other[name])
    same(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    error = max(((a - p.grad).norm() / p.grad.norm()).item() for a, p in zip(actual, same.parameters(), strict=True))
    outcome(*(("", f"{kind}: {error:.1e} off") if kind != "stock" else (f"{error:.1e} off", "")))
    assert error < 1e-5


@pytest.mark.report(2, "torch.func.grad, and vmap(grad) for per-sample gradients")
@pytest.mark.parametrize("kind", ["stock", "DHC", "SHC"])
def test_per_sample_gradients_are_those_of_each_sample(kind: str) -> None:
    model = stock() if kind == "stock" else trained(connection="dynamic" if kind == "DHC" else "static")
    model.set_attn_implementation("eager")
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    ids = batch()["input_ids"]

    def sample_loss(parameters: dict[str, Tensor], row: Tensor) -> Tensor:
        return loss_of(model, parameters, row[None])

    together = vmap(grad(sample_loss), in_dims=(None, 0))(parameters, ids)

    for i, row in enumerate(ids):
        model.zero_grad()
        model(input_ids=row[None], labels=row[None], use_cache=False).loss.backward()
        alone = grad(sample_loss)(parameters, row)
        for name, parameter in model.named_parameters():
            assert close(alone[name], parameter.grad, 1e-4), name
            assert close(together[name][i], parameter.grad, 1e-4), name


@pytest.mark.report(2, "the same while streams are recomputed")
def test_functional_transforms_work_with_recomputed_streams() -> None:
    model, ids = trained(), batch()["input_ids"]
    parameters = {k: p.detach() for k, p in model.named_parameters()}
    expected = grad(lambda p: loss_of(model, p, ids))(parameters)
    other = {k: p.clone().requires_grad_() for k, p in parameters.items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(1)

    model.recompute_streams()

    actual = torch.autograd.grad(loss_of(model, other, ids), list(other.values()))
    assert all(close(a, e, 1e-4) for a, e in zip(actual, expected.values(), strict=True))


# ---- fewer layers, other layers -------------------------------------------------------------------------------------


@pytest.mark.report(8, "from_pretrained(path, num_hidden_layers=2) on a deeper checkpoint")
@pytest.mark.parametrize("config_class", PARENTS)
def test_the_first_layers_of_a_checkpoint_load_alone(
    config_class: type[PreTrainedConfig], tmp_path: Path, outcome: Callable
) -> None:
    parent = stock(config_class)
    convert(parent, tmp_path / "parent").save_pretrained(tmp_path / "model")

    expected = type(parent).from_pretrained(tmp_path / "parent", num_hidden_layers=2)(**batch()).logits
    actual = AutoModelForCausalLM.from_pretrained(tmp_path / "model", num_hidden_layers=2)(**batch()).logits

    outcome(f"{config_class.model_type}: logits {list(expected.shape)}", "equal")
    assert torch.equal(actual, expected)


def prune(model: PreTrainedModel, kept: list[int]) -> PreTrainedModel:
    """Takes layers out, as papers on pruning do."""
    decoder = model.base_model
    decoder.layers = nn.ModuleList(decoder.layers[i] for i in kept)
    for i, layer in enumerate(decoder.layers):
        layer.self_attn.layer_idx = i
    model.config.num_hidden_layers = len(kept)
    return model


@pytest.mark.report(9, "layers taken out of the ModuleList, or repeated")
@pytest.mark.parametrize("kept", [[1, 2, 3], [0, 2, 3], [0, 1], [3], [0, 1, 1, 2, 3]], ids=str)
def test_a_pruned_model_computes_what_its_layers_compute(kept: list[int], tmp_path: Path, outcome: Callable) -> None:
    parent = stock()
    model = convert(parent, tmp_path)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    prompt = batch()["input_ids"][:, :4]

    expected, actual = prune(parent, kept), prune(model, kept)

    outcome(f"layers {kept}: equal tokens", "equal logits and tokens")
    assert torch.equal(actual(**batch()).logits, expected(**batch()).logits)
    assert torch.equal(actual.generate(prompt, **options), expected.generate(prompt, **options))
    hidden = actual(**batch(), output_hidden_states=True).hidden_states
    assert [h.shape for h in hidden] == [(2, 12, 32)] * (len(kept) + 1)


@pytest.mark.report(9, "a pruned model whose streams differ, saved and loaded")
def test_a_pruned_model_loads_as_it_was_saved(tmp_path: Path) -> None:
    model = prune(trained(), [1, 3])
    expected = model(**batch()).logits
    assert expected.shape == (2, 12, 99)

    model.save_pretrained(tmp_path)

    assert torch.equal(AutoModelForCausalLM.from_pretrained(tmp_path)(**batch()).logits, expected)


@pytest.mark.report(35, "PEFT's layer_replication")
def test_replicated_layers_compute_what_the_parents_compute(tmp_path: Path, outcome: Callable) -> None:
    parent = stock()
    model = convert(parent, tmp_path)
    adapter = LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], layer_replication=[[0, 3], [1, 4]])

    expected, actual = (get_peft_model(m, adapter)(**batch()).logits for m in (parent, model))

    outcome("6 layers of 4", "equal logits")
    assert torch.equal(actual, expected)


@pytest.mark.report(34, "logit lens: lm_head(norm(output of a layer))")
def test_a_logit_lens_reads_the_parents_logits_at_every_layer(tmp_path: Path, outcome: Callable) -> None:
    def lens(model: PreTrainedModel) -> list[Tensor]:
        outputs: list[Tensor] = []
        hooks = [layer.register_forward_hook(lambda *args: outputs.append(args[2])) for layer in model.model.layers]
        model(**batch())
        for hook in hooks:
            hook.remove()
        return [model.lm_head(model.model.norm(output)) for output in outputs]

    parent = stock()
    model = convert(parent, tmp_path)

    expected, actual = lens(parent), lens(model)

    outcome("logits of 4 layers", "equal")
    assert all(map(torch.equal, actual, expected))


# ---- weight decay ---------------------------------------------------------------------------------------------------


@pytest.mark.report(15, "optimizer groups in a training loop of one's own")
@pytest.mark.parametrize("build", [stock, trained])
def test_parameter_groups_are_the_trainers(build: Callable, tmp_path: Path) -> None:
    model = build()
    trainer = Trainer(model, TrainingArguments(tmp_path, use_cpu=True, report_to="none"))
    decayed = trainer.get_decay_parameter_names(model)
    model.lm_head.requires_grad_(False)

    with_decay, without = parameter_groups(model, weight_decay=0.1)

    name_of = {parameter: name for name, parameter in model.named_parameters()}
    assert {name_of[p] for p in with_decay["params"]} == set(decayed) - {"lm_head.weight"}
    assert {name_of[p] for p in without["params"]} == set(name_of.values()) - set(decayed)
    assert (with_decay["weight_decay"], without["weight_decay"]) == (0.1, 0.0)


@pytest.mark.report(23, "Muon and rules that go by the number of dimensions: model.no_weight_decay()")
def test_no_weight_decay_names_the_static_coefficients() -> None:
    names = trained().no_weight_decay()

    assert {name.rpartition(".")[2] for name in names} == {"alpha_bias", "beta_bias", "norm"}
    assert len(names) == 2 * 3 * SIZES["num_hidden_layers"]
    assert names <= trained().state_dict().keys()


# ---- shared folders -------------------------------------------------------------------------------------------------

SUBCLASS = """
import torch
from modeling_hc import HCLlamaForCausalLM

class WithValue(HCLlamaForCausalLM):
    def __init__(self, config):
        super().__init__(config)
        self.value = torch.nn.Linear(config.hidden_size, 1)
        self.post_init()
"""
STOCK_SUBCLASS = SUBCLASS.replace("from modeling_hc", "from transformers").replace("HCLlama", "Llama")


CLASSES_OF_USERS = {"stock": STOCK_SUBCLASS, "ours": SUBCLASS}
SAVE = """
import sys, json
import modeling_hc, torch, transformers
folder, sizes = sys.argv[1], json.loads(sys.argv[2])
for kind, config_class in (("stock", transformers.LlamaConfig), ("ours", modeling_hc.HCLlamaConfig)):
    sys.path[0] = f"{folder}/{kind}"
    sys.modules.pop("with_value", None)
    from with_value import WithValue
    WithValue.register_for_auto_class("AutoModelForCausalLM")
    WithValue(config_class(**sizes)).save_pretrained(f"{folder}/{kind}/saved")
"""
LOAD = """
import sys, json, modeling_hc, transformers
found = {}
for kind in ("stock", "ours"):
    saved, lines = f"{sys.argv[1]}/{kind}/saved", []
    found[kind] = lines
    for trust in (True, None):
        model = transformers.AutoModelForCausalLM.from_pretrained(saved, trust_remote_code=trust)
        lines.append(f"{type(model).__name__} {hasattr(model, 'value')}")
    model = transformers.AutoModel.from_pretrained(saved, trust_remote_code=True)
    lines.append(type(model).__name__)
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found_of_users(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What a fresh process finds of the subclasses that another has saved."""
    folder = tmp_path_factory.mktemp("subclasses")
    for kind, code in CLASSES_OF_USERS.items():
        (folder / kind).mkdir()
        (folder / kind / "with_value.py").write_text(code)
    python(SAVE, folder, json.dumps(SIZES), package=True)
    return json.loads(python(LOAD, folder, package=True).splitlines()[-1])


@pytest.mark.report(16, "a subclass with a head more, registered and saved")
@pytest.mark.parametrize("kind", CLASSES_OF_USERS)
def test_a_users_subclass_is_loaded_as_itself(
    kind: str, found_of_users: dict[str, list[str]], outcome: Callable
) -> None:
    found = found_of_users[kind]

    expected = ["WithValue True", "HCLlamaForCausalLM False", "HCLlamaModel"]
    if kind == "stock":
        expected = [line.removeprefix("HC") for line in expected]
        outcome(found[0], "")
    else:
        outcome("", found[0])
    assert found == expected


NAMES = ["模型-7B", "modèle v1.0"]


@pytest.fixture(scope="module")
def named(tmp_path_factory: pytest.TempPathFactory) -> tuple[float, dict[str, list[Any]]]:
    """The sum of a model's logits; and by the name of its folder, what a process finds that loads it from there."""
    folder = tmp_path_factory.mktemp("names")
    model = trained()
    for name in NAMES:
        model.save_pretrained(folder / name)
    code = """
import sys
sys.modules.update(modeling_hc=None)
import json
import torch
from transformers import AutoModelForCausalLM
found = {}
for name in sys.argv[2:]:
    model = AutoModelForCausalLM.from_pretrained(f"{sys.argv[1]}/{name}", trust_remote_code=True)
    found[name] = [type(model).__module__, model(torch.arange(5, 15)[None]).logits.sum().item()]
print(json.dumps(found))
"""
    # With Triton, for the kernels' operators have names made of the folder's.
    found = json.loads(python(code, folder, *NAMES, package=True).splitlines()[-1])
    return model(torch.arange(5, 15)[None]).logits.sum().item(), found


@pytest.mark.report(12, "a shared folder whose name is not ASCII")
@pytest.mark.parametrize("name", NAMES)
def test_a_shared_folder_may_have_any_name(name: str, named: tuple[float, dict[str, list[Any]]]) -> None:
    expected, found = named
    module, logits = found[name]

    assert module.split(".")[0] == "transformers_modules"
    assert len({module for module, _ in found.values()}) == len(NAMES)
    assert logits == pytest.approx(expected, rel=1e-5)


HEADS = [name for name in HCLlamaConfig.auto_classes if name != "AutoConfig"]


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[float, list[Any]]]:
    """By Auto class, the sum of what a model computes; and what a process without the package finds that loads it.

    That process forks for each of them, and folders have names of their own, so that none finds what another loaded.
    """
    folder, expected = tmp_path_factory.mktemp("heads"), {}
    for auto_class in HEADS:
        torch.manual_seed(0)
        model = getattr(transformers, auto_class).from_config(HCLlamaConfig(**SIZES))
        scramble(model, 0.2)
        model.eval().save_pretrained(folder / auto_class)
        expected[auto_class] = model(torch.arange(5, 15)[None])[0].sum().item()
    code = """
import json, os, sys, torch, transformers
from pathlib import Path
from transformers import AutoModel, GenerationMixin, PreTrainedModel  # once for all
folder, *heads = sys.argv[1:]
failed = 0
for head in heads:
    child = os.fork()
    if child == 0:
        auto_class, saved = getattr(transformers, head), f"{folder}/{head}"
        model = auto_class.from_pretrained(saved, trust_remote_code=True)
        model.save_pretrained(saved + ".again")
        again = auto_class.from_pretrained(saved + ".again", trust_remote_code=True)
        sums = [m(torch.arange(5, 15)[None])[0].sum().item() for m in (model, again)]
        Path(saved + ".json").write_text(json.dumps([type(model).__module__, *sums]))
        os._exit(0)  # taking the interpreter down takes longer than all above
    failed |= os.waitpid(child, 0)[1]
sys.exit(failed > 0)
"""
    python(code, folder, *HEADS)
    return {head: (expected[head], json.loads((folder / f"{head}.json").read_text())) for head in HEADS}


@pytest.mark.report(26, "every head from a local folder without the package, each in a process of its own")
@pytest.mark.parametrize("auto_class", HEADS)
def test_every_head_loads_from_a_local_folder_without_the_package(
    auto_class: str, heads: dict[str, tuple[float, list[Any]]]
) -> None:
    expected, found = heads[auto_class]

    module, once, again = found
    assert module.startswith("transformers_modules."), module
    assert (once, again) == pytest.approx((expected, expected), rel=1e-4)


# ---- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.report(32, "a load that fails in upstream, such as a quantised one")
def test_an_error_on_loading_keeps_upstreams_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained().save_pretrained(tmp_path)

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("We encountered some issues during automatic conversion of the weights.\n(4-bit)")

    monkeypatch.setattr(PreTrainedModel, "from_pretrained", fail)
    with pytest.raises(
        RuntimeError, match=r"does not fit HCLlamaForCausalLM: .*conversion of the weights\. \(4-bit\)"
    ):
        HCLlamaForCausalLM.from_pretrained(tmp_path)
