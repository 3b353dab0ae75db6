# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What every family must satisfy. A family's test file names its configurations and tiny sizes:

    class TestHCLlama(FamilyContract):
        config_class, parent_config_class = HCLlamaConfig, LlamaConfig
        sizes = {"hidden_size": 32, ...}

The measure is the residual parent, which upstream tests: a converted model must do bit for bit what the parent does.
Where the parent says nothing (coefficients away from their initial values), two routes to one result must agree.
"""

import copy
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import transformers
from accelerate.utils import compare_versions
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor, nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    pipeline,
)
from transformers.utils import is_torchvision_available

from modeling_hc import HyperConnection
from modeling_hc.modeling_hc_common import HCDecoderLayerMixin

VOCABULARY = 99
needs_auto_image_processor = pytest.mark.skipif(
    compare_versions("transformers", "<", "5.23") and not is_torchvision_available(),
    reason="AutoImageProcessor of transformers before 5.23 needs torchvision, for the stock ViT as well",
)
HC_SHAPES = {  # the names are frozen: shared checkpoints hold them
    "alpha_bias": lambda n, d: (n, 1 + n),
    "beta_bias": lambda n, d: (n,),
    "alpha_weight": lambda n, d: (1 + n, d),
    "beta_weight": lambda n, d: (d,),
    "alpha_scale": lambda n, d: (1,),
    "beta_scale": lambda n, d: (1,),
}

GENERATION = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20},
    "beam search": {"num_beams": 3, "num_return_sequences": 2},
    "beam sampling": {"num_beams": 3, "do_sample": True},
    "no cache": {"use_cache": False},
    "dynamic cache": {"cache_implementation": "dynamic"},
    "static cache": {"cache_implementation": "static", "disable_compile": True},
}
OFFLOADED = {
    "offloaded cache": {"cache_implementation": "offloaded"},
    "offloaded static cache": {"cache_implementation": "offloaded_static", "disable_compile": True},
}


class FamilyContract:
    """The promises; pytest collects the subclasses."""

    config_class: ClassVar[type[PreTrainedConfig]]
    parent_config_class: ClassVar[type[PreTrainedConfig]]
    sizes: ClassVar[dict[str, Any]]
    """Keyword arguments that both configurations take, for a tiny model of two layers or more."""
    noise: ClassVar[dict[str, float]] = {"attention_dropout": 0.1}
    """Keyword arguments of both configurations that make a model in training random."""
    compile_backend: ClassVar[str] = "aot_eager"
    """What `torch.compile` ends in; "inductor" also generates code, which takes ten times as long."""
    compiled_gradient_tolerance: ClassVar[float] = 1e-4
    lora_targets: ClassVar[str | list[str]] = "all-linear"

    # ---- the models under test ----------------------------------------------------------------------------------

    @classmethod
    def parent_config(cls, **kwargs: Any) -> PreTrainedConfig:
        return cls.parent_config_class(**cls._fields(**kwargs))

    @classmethod
    def config(cls, **kwargs: Any) -> PreTrainedConfig:
        return cls.config_class(**cls._fields(**kwargs))

    @classmethod
    def _fields(cls, **kwargs: Any) -> dict[str, Any]:
        values = {"vocab_size": VOCABULARY, "pad_token_id": 0} | cls.sizes | kwargs
        depth = values["num_hidden_layers"]
        return values | {k: v[:depth] for k, v in values.items() if k in ("layer_types", "no_rope_layers")}

    connections: ClassVar[tuple[str, ...]] = ("attn_hc", "mlp_hc")
    """Those of a layer."""

    @property
    def heads(self) -> list[str]:
        return [name for name in self.config_class.auto_classes if name != "AutoConfig"]

    @pytest.fixture(scope="class")
    @classmethod
    def residual(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """A residual checkpoint whose weights are large enough for every block to matter."""
        folder = tmp_path_factory.mktemp("residual")
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(cls.parent_config())
        scramble(model, 0.2)
        model.generation_config.eos_token_id = None
        model.save_pretrained(folder)
        return folder

    @pytest.fixture
    def parent(self, residual: Path) -> PreTrainedModel:
        return AutoModelForCausalLM.from_pretrained(residual)

    def converted(self, residual: Path, auto_class: Any = AutoModelForCausalLM, **kwargs: Any) -> PreTrainedModel:
        hc_class = auto_class._model_mapping[self.config_class]
        return hc_class.from_pretrained(residual, **{"num_streams": 4, "stream_reduction": "mean"} | kwargs)

    @contextmanager
    def skips_where_the_parent_fails(self, run: Callable[[PreTrainedModel], Any]) -> Iterator[None]:
        """Skips a test that raised where the stock model raises, too: upstream's versions differ."""
        try:
            yield
        except AssertionError:
            raise
        except Exception as ours:
            try:
                run(AutoModelForCausalLM.from_config(self.parent_config()))
            except Exception as theirs:
                pytest.skip(f"{ours!r:.100}; the stock model raises {theirs!r:.100}")
            raise

    def trained(self, auto_class: Any = AutoModelForCausalLM, **kwargs: Any) -> PreTrainedModel:
        """A model whose coefficients are far from their initial values, so that every stream and token differs."""
        torch.manual_seed(1)
        model = auto_class.from_config(self.config(**kwargs))
        scramble(model, 0.2)
        return model.eval()

    # ---- the same function as the residual parent ---------------------------------------------------------------

    @pytest.mark.parametrize("num_streams", [1, 2, 3, 4, 8])
    @pytest.mark.parametrize(
        "variant", [{}, {"use_tanh": False}, {"connection": "static"}], ids=["DHC", "DHC without tanh", "SHC"]
    )
    def test_a_converted_checkpoint_equals_its_residual_parent(
        self, residual: Path, parent: PreTrainedModel, num_streams: int, variant: dict[str, Any]
    ) -> None:
        model = self.converted(residual, num_streams=num_streams, **variant)
        inputs = batch() | {"labels": batch()["input_ids"], "output_hidden_states": True}
        tolerance = 0 if num_streams in (1, 2, 4) else 1e-6

        expected, actual = parent(**inputs), model(**inputs)

        scale = expected.logits.abs().max()
        assert scale > 0.1
        assert (actual.logits - expected.logits).abs().max() <= tolerance * max(scale, 1)
        assert (actual.loss - expected.loss).abs() <= tolerance * expected.loss
        assert len(actual.hidden_states) == len(expected.hidden_states)
        for mine, theirs in zip(actual.hidden_states, expected.hidden_states, strict=True):
            assert mine.shape == theirs.shape
            assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()
        tokens = batch()["input_ids"][:, :4]
        assert torch.equal(generate(model, tokens), generate(parent, tokens))

    @pytest.mark.parametrize("num_streams", [1, 2, 4])
    def test_a_fresh_model_equals_its_residual_parent(self, num_streams: int) -> None:
        model = AutoModelForCausalLM.from_config(self.config(num_streams=num_streams, stream_reduction="mean")).eval()
        parent = AutoModelForCausalLM.from_config(self.parent_config()).eval()
        parent.load_state_dict({k: v for k, v in model.state_dict().items() if "_hc." not in k}, strict=True)

        assert torch.equal(model(**batch()).logits, parent(**batch()).logits)

    def test_the_sum_of_the_streams_differs_from_the_parent_only_by_the_eps_of_the_final_norm(
        self, residual: Path, parent: PreTrainedModel
    ) -> None:
        model = self.converted(residual, stream_reduction="sum")

        assert close(model(**batch()).logits, parent(**batch()).logits, 1e-2)

    def test_the_loss_takes_labels_and_num_items_in_batch_like_the_parent(
        self, residual: Path, parent: PreTrainedModel
    ) -> None:
        inputs = batch() | {"labels": batch()["input_ids"].clone().index_fill_(1, torch.tensor([0, 3]), -100)}

        for extra in ({}, {"num_items_in_batch": torch.tensor(7)}):
            assert torch.equal(self.converted(residual)(**inputs, **extra).loss, parent(**inputs, **extra).loss)

    def test_in_training_a_converted_checkpoint_draws_and_computes_what_its_parent_does(self, residual: Path) -> None:
        losses = []
        for load in (AutoModelForCausalLM.from_pretrained, self.converted):
            model = load(residual, **self.noise).train()
            torch.manual_seed(4)
            losses.append(model(**batch(), labels=batch()["input_ids"]).loss)

        assert losses[0] == losses[1]

    def test_packed_sequences_equal_the_parent_and_do_not_see_each_other(
        self, residual: Path, parent: PreTrainedModel
    ) -> None:
        ids = batch()["input_ids"][:1]
        packed = {"input_ids": ids, "position_ids": torch.tensor([[*range(5), *range(ids.shape[1] - 5)]])}

        logits = self.converted(residual)(**packed, use_cache=False).logits
        assert torch.equal(logits, parent(**packed, use_cache=False).logits)
        model = self.trained()
        apart = torch.cat([model(input_ids=part).logits for part in ids.split([5, ids.shape[1] - 5], dim=1)], dim=1)
        assert close(model(**packed, use_cache=False).logits, apart)

    # ---- generation ---------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("mode", GENERATION)
    def test_generate_writes_the_tokens_of_the_parent(
        self, residual: Path, parent: PreTrainedModel, mode: str
    ) -> None:
        prompts = batch(left_padding=3)

        expected = generate(parent, **prompts, **GENERATION[mode])

        assert torch.equal(generate(self.converted(residual), **prompts, **GENERATION[mode]), expected)

    @pytest.mark.gpu
    @pytest.mark.parametrize("mode", OFFLOADED)
    def test_generate_with_an_offloaded_cache_writes_the_tokens_of_a_cache_on_the_device(self, mode: str) -> None:
        model, prompts = self.trained().cuda(), {k: v.cuda() for k, v in batch(left_padding=3).items()}

        assert torch.equal(generate(model, **prompts, **OFFLOADED[mode]), generate(model, **prompts))

    @pytest.mark.parametrize("mode", ["dynamic cache", "static cache"])
    def test_a_trained_model_writes_the_same_with_a_cache_as_without(self, mode: str) -> None:
        model, prompts = self.trained(), batch(left_padding=3)

        expected = generate(model, **prompts, use_cache=False)

        assert torch.equal(generate(model, **prompts, **GENERATION[mode]), expected)

    @pytest.mark.parametrize("assistant", ["smaller", "equal", "prompt", "early exit"])
    def test_assisted_generation_writes_what_greedy_generation_writes(self, assistant: str) -> None:
        model, prompt = self.trained(), batch()["input_ids"][:1]
        options: dict[str, dict[str, Any]] = {
            "smaller": {"assistant_model": self.trained(num_hidden_layers=1)},
            "equal": {"assistant_model": copy.deepcopy(model)},
            "prompt": {"prompt_lookup_num_tokens": 3},
            "early exit": {"assistant_early_exit": 1},
        }

        with self.skips_where_the_parent_fails(lambda parent: generate(parent, prompt, **options[assistant])):
            assert torch.equal(generate(model, prompt, **options[assistant]), generate(model, prompt))

    def test_left_padding_changes_nothing(self) -> None:
        model, padded = self.trained(), batch(left_padding=3)

        logits = model(**padded).logits

        alone = model(input_ids=padded["input_ids"][:1, 3:]).logits
        assert close(logits[:1, 3:], alone)

    # ---- attention, outputs, gradients --------------------------------------------------------------------------

    @pytest.mark.parametrize("implementation", ["sdpa", "flex_attention"])
    @torch.no_grad()  # flex attention has no backward on the CPU
    def test_attention_implementations_agree(self, implementation: str) -> None:
        model, inputs = self.trained(), batch(left_padding=3)
        if implementation == "flex_attention" and not model._supports_flex_attn:
            pytest.skip("the parent has no flex attention either")
        seen = inputs["attention_mask"].bool()
        model.set_attn_implementation("eager")
        expected = model(**inputs).logits

        model.set_attn_implementation(implementation)
        with torch.compiler.set_stance("force_eager"):  # upstream compiles flex attention itself, which takes minutes
            actual = model(**inputs).logits

        assert close(actual[seen], expected[seen])

    def test_attentions_are_those_of_the_parent(self, residual: Path, parent: PreTrainedModel) -> None:
        model = self.converted(residual)
        for m in (model, parent):
            m.set_attn_implementation("eager")

        expected = parent(**batch(), output_attentions=True).attentions
        actual = model(**batch(), output_attentions=True).attentions

        assert len(actual) == len(expected) == model.config.num_hidden_layers
        assert all(map(torch.equal, actual, expected))

    def test_hidden_states_of_a_trained_model_have_the_hidden_size_and_end_in_the_head_s_input(self) -> None:
        model = self.trained()
        read: list[Tensor] = []
        model.get_output_embeddings().register_forward_pre_hook(lambda _, args: read.append(args[0]))

        outputs = model(**batch(), output_hidden_states=True)

        b, s = batch()["input_ids"].shape
        assert {h.shape for h in outputs.hidden_states} == {(b, s, model.config.hidden_size)}
        assert len(outputs.hidden_states) == model.config.num_hidden_layers + 1
        assert torch.equal(outputs.hidden_states[-1], read[0])

    def test_return_dict_false_gives_the_same_as_a_tuple(self) -> None:
        model = self.trained()
        inputs = batch() | {"labels": batch()["input_ids"]}

        as_tuple, as_dict = model(**inputs, return_dict=False), model(**inputs)

        assert isinstance(as_tuple, tuple)
        assert torch.equal(as_tuple[0], as_dict.loss)
        assert torch.equal(as_tuple[1], as_dict.logits)

    def test_every_parameter_receives_a_gradient(self) -> None:
        _, gradients = forward_and_backward(self.trained())

        assert [name for name, g in gradients.items() if not g.isfinite().all()] == []
        assert [name for name, g in gradients.items() if "_hc." in name and not g.any()] == []

    @pytest.mark.parametrize("use_reentrant", [True, False])
    def test_gradient_checkpointing_leaves_the_gradients_unchanged(self, use_reentrant: bool) -> None:
        model = self.trained()
        _, expected = forward_and_backward(model)

        checkpoint_activations(model, use_reentrant=use_reentrant)

        assert_same_gradients(forward_and_backward(model)[1], expected, 1e-6)

    # ---- compilers ----------------------------------------------------------------------------------------------

    def test_the_compiled_model_has_the_outputs_and_gradients_of_the_eager_one(self) -> None:
        if self.compile_backend == "inductor" and not (shutil.which("g++") or shutil.which("clang++")):
            pytest.skip("inductor needs a C++ compiler")
        model = self.trained(num_hidden_layers=1)

        def compiled(model: PreTrainedModel) -> tuple[Tensor, dict[str, Tensor]]:
            torch._dynamo.reset()
            return forward_and_backward(model, torch.compile(model, fullgraph=True, backend=self.compile_backend))

        with residual_streams_of_realistic_size(model), self.skips_where_the_parent_fails(compiled):
            logits, gradients = forward_and_backward(model)
            compiled_logits, compiled_gradients = compiled(model)

            assert close(compiled_logits, logits)
            assert_same_gradients(compiled_gradients, gradients, self.compiled_gradient_tolerance)

    def test_a_layer_leaves_its_last_block_to_the_next_unless_somebody_looks_and_nothing_changes(self) -> None:
        model = self.trained()
        layer = next(module for module in model.modules() if isinstance(module, HCDecoderLayerMixin))
        returned, run = [], type(layer).forward

        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            output = run(self, *args, **kwargs)
            returned.append(type(output))
            return output

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(layer), "forward", forward)
            fused, gradients = forward_and_backward(model)
            assert set(returned) == {tuple}
            returned.clear()
            hook = layer.register_forward_hook(lambda module, args, output: None)
            apart, expected = forward_and_backward(model)
            hook.remove()
            with torch.no_grad():
                model(**batch(), output_hidden_states=True)
            assert set(returned) == {Tensor}
        assert torch.equal(fused, apart)
        assert_same_gradients(gradients, expected, 1e-6)

    def test_the_exported_program_equals_the_model_at_other_lengths(self) -> None:
        model, inputs = self.trained(), batch()
        length = torch.export.Dim("length", min=2, max=32)
        with torch.no_grad():
            program = torch.export.export(
                model,
                (),
                {"input_ids": inputs["input_ids"], "use_cache": False},
                dynamic_shapes={"input_ids": {1: length}, "use_cache": None},
            )
            shorter = inputs["input_ids"][:, :7]
            exported = program.module()(input_ids=shorter, use_cache=False).logits
            assert close(exported, model(input_ids=shorter).logits)

    # ---- embeddings, devices, precision -------------------------------------------------------------------------

    def test_tied_embeddings_stay_tied_through_saving(self, tmp_path: Path) -> None:
        model = self.trained(tie_word_embeddings=True)
        assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
        model.save_pretrained(tmp_path)

        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)

        assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
        assert not {"lm_head.weight", "embed_out.weight"} & load_file(tmp_path / "model.safetensors").keys()
        assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)

    def test_resized_embeddings_keep_the_known_tokens(self, tmp_path: Path) -> None:
        model = self.trained()
        expected = model(**batch()).logits

        model.resize_token_embeddings(VOCABULARY + 5)
        model.save_pretrained(tmp_path)
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path)

        assert loaded(**batch()).logits.shape[-1] == loaded.config.vocab_size == VOCABULARY + 5
        assert close(loaded(**batch()).logits[..., :VOCABULARY], expected)

    @pytest.mark.parametrize("device_map", ["cpu", "auto"])
    def test_a_device_map_changes_nothing(self, tmp_path: Path, device_map: str) -> None:
        model = self.trained()
        model.save_pretrained(tmp_path)

        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=device_map)

        assert close(loaded(**batch()).logits.cpu(), model(**batch()).logits)

    def test_layers_offloaded_to_the_disk_compute_the_same(self, tmp_path: Path) -> None:
        model = self.trained()
        model.save_pretrained(tmp_path)
        decoder, prefix = model.base_model, model.base_model_prefix
        places = dict.fromkeys(["lm_head", *(f"{prefix}.{name}" for name, _ in decoder.named_children())], "cpu")
        del places[f"{prefix}.layers"]
        places |= {f"{prefix}.layers.{i}": "disk" if i == 1 else "cpu" for i in range(len(decoder.layers))}

        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, device_map=places, offload_folder=tmp_path / "offload")

        assert {p.device.type for p in loaded.base_model.layers[1].parameters()} == {"meta"}
        assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_hyper_connections_stay_fp32_in_a_low_precision_model(self, tmp_path: Path, dtype: torch.dtype) -> None:
        model = self.trained()
        model.save_pretrained(tmp_path)
        hc_class = AutoModelForCausalLM._model_mapping[self.config_class]
        low = {
            "from_pretrained": hc_class.from_pretrained(tmp_path, dtype=dtype),
            "AutoModelForCausalLM": AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype),
            "AutoModel": AutoModel.from_pretrained(tmp_path, dtype=dtype),
            "from_config": AutoModelForCausalLM.from_config(self.config(), dtype=dtype),
            "config.dtype": AutoModelForCausalLM.from_config(self.config(dtype=dtype)),
        }

        for how, loaded in low.items():
            dtypes = {name: p.dtype for name, p in loaded.named_parameters()}
            assert {v for k, v in dtypes.items() if "_hc." in k} == {torch.float32}, how
            assert {v for k, v in dtypes.items() if "_hc." not in k} == {dtype}, how
        expected = model(**batch()).logits
        error = low["from_pretrained"](**batch()).logits.float() - expected
        assert error.norm() < 0.1 * expected.norm()

    @pytest.mark.parametrize("connection", ["static", "dynamic"])
    def test_coefficients_are_fp32_under_autocast_and_in_a_low_precision_model(self, connection: str) -> None:
        model = self.trained(connection=connection)

        with torch.autocast("cpu", torch.bfloat16):
            assert {c.dtype for c in coefficients_of(model)} == {torch.float32}
        assert {c.dtype for c in coefficients_of(model)} == {torch.float32}
        low = AutoModelForCausalLM.from_config(self.config(connection=connection), dtype=torch.bfloat16)
        assert {c.dtype for c in coefficients_of(low)} == {torch.float32}

    # ---- heads, pipelines, adapters, the Trainer ----------------------------------------------------------------

    def test_every_auto_class_builds_its_class_and_runs(self) -> None:
        for name in self.heads:
            model = self.trained(getattr(transformers, name), num_labels=3)

            assert type(model).__name__ == self.config_class.auto_classes[name].rpartition(".")[2]
            assert all(v.isfinite().all() for v in model(**batch()).to_tuple() if isinstance(v, Tensor))

    def test_every_head_of_a_converted_checkpoint_equals_the_parent_s(self, residual: Path) -> None:
        for name in self.heads:
            parent = getattr(transformers, name).from_pretrained(residual)
            model = self.converted(residual, getattr(transformers, name))
            model.load_state_dict(parent.state_dict(), strict=False)  # a fresh head is random

            assert torch.equal(model(**batch())[0], parent(**batch())[0]), name

    def test_pipelines_run(self) -> None:
        tokenizer = tiny_tokenizer()
        text = pipeline("text-generation", self.trained(), tokenizer=tokenizer)("w5 w6 w7", max_new_tokens=4)
        assert text[0]["generated_text"].startswith("w5 w6 w7")
        assert len(text[0]["generated_text"]) > len("w5 w6 w7")
        if "AutoModelForSequenceClassification" in self.heads:
            classifier = self.trained(AutoModelForSequenceClassification, num_labels=3)
            labels = pipeline("text-classification", classifier, tokenizer=tokenizer)(["w5 w6", "w7"], top_k=None)
            assert [len(scores) for scores in labels] == [3, 3]

    def test_lora_trains_saves_loads_and_merges(self, tmp_path: Path) -> None:
        base = self.trained()
        model = get_peft_model(
            copy.deepcopy(base), LoraConfig(task_type="CAUSAL_LM", target_modules=self.lora_targets)
        )
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        for _ in range(2):  # B of LoRA is zero at first, so one step alone leaves A where it was
            model(**batch(), labels=batch()["input_ids"]).loss.backward()
            optimizer.step()
        expected = model.eval()(**batch()).logits
        assert not close(expected, base(**batch()).logits)

        model.save_pretrained(tmp_path)
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)

        assert torch.equal(loaded(**batch()).logits, expected)
        assert close(loaded.merge_and_unload()(**batch()).logits, expected)

    def test_the_stock_trainer_decays_the_dynamic_part_and_not_the_static_part(self, tmp_path: Path) -> None:
        trainer = Trainer(self.trained(), TrainingArguments(tmp_path, use_cpu=True, report_to="none"))

        decayed = trainer.get_decay_parameter_names(trainer.model)

        connections = {n.rpartition("_hc.")[2] for n, _ in trainer.model.named_parameters() if "_hc." in n}
        split = {n.rpartition("_hc.")[2] for n in decayed if "_hc." in n}
        assert split == {"alpha_weight", "beta_weight", "alpha_scale", "beta_scale"}
        assert connections - split == {"alpha_bias", "beta_bias"} | (connections & {"norm"})

    # ---- checkpoints --------------------------------------------------------------------------------------------

    def test_state_dict_keys_and_shapes_are_frozen(self) -> None:
        n, d = 3, self.config().hidden_size
        parent = AutoModelForCausalLM.from_config(self.parent_config()).state_dict()
        for connection, names in {"dynamic": list(HC_SHAPES), "static": ["alpha_bias", "beta_bias"]}.items():
            model = AutoModelForCausalLM.from_config(self.config(num_streams=n, connection=connection))
            expected = {key: tuple(value.shape) for key, value in parent.items()} | {
                f"{model.base_model_prefix}.layers.{i}.{connection}.{name}": HC_SHAPES[name](n, d)
                for i in range(model.config.num_hidden_layers)
                for connection in self.connections
                for name in names
            }
            actual = {key: tuple(v.shape) for key, v in model.state_dict().items() if "_hc.norm" not in key}
            assert actual == expected

    def test_a_sharded_checkpoint_loads_as_it_was(self, tmp_path: Path) -> None:
        model = self.trained()
        model.save_pretrained(tmp_path, max_shard_size="20KB")
        assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

        loaded, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)

        assert not any(report.values())
        assert torch.equal(loaded(**batch()).logits, model(**batch()).logits)

    @pytest.mark.parametrize("lost", [r"_hc\.alpha_bias", r"layernorm\.weight", r"att\w*\.\w+\.weight"])
    def test_a_checkpoint_that_lost_a_tensor_of_one_layer_is_rejected_by_name(self, tmp_path: Path, lost: str) -> None:
        self.trained().save_pretrained(tmp_path)
        names = load_file(tmp_path / "model.safetensors")
        key = next((name for name in names if re.search(rf"\.layers\.1\..*{lost}$", name)), None)
        if key is None:
            pytest.skip("this family's norms have no weight")
        edit_checkpoint(tmp_path, lambda tensors: tensors.pop(key))

        with pytest.raises(ValueError, match=f"lacks {key}"):
            AutoModelForCausalLM.from_pretrained(tmp_path)

    def test_a_dynamic_checkpoint_does_not_load_as_a_static_one(self, tmp_path: Path) -> None:
        self.trained().save_pretrained(tmp_path)

        with pytest.raises(ValueError, match="connection='static'"):
            AutoModelForCausalLM.from_pretrained(tmp_path, connection="static")

    def test_a_static_checkpoint_becomes_a_dynamic_one_that_starts_as_it_was(self, tmp_path: Path) -> None:
        static = self.trained(connection="static")
        static.save_pretrained(tmp_path)

        dynamic = AutoModelForCausalLM.from_pretrained(tmp_path, connection="dynamic")

        assert close(dynamic(**batch()).logits, static(**batch()).logits)

    def test_a_checkpoint_with_another_number_of_streams_is_rejected(self, tmp_path: Path) -> None:
        self.trained().save_pretrained(tmp_path)

        with pytest.raises(RuntimeError, match=r"alpha_bias has shape \[4, 5\], and .* asks for \[2, 3\]"):
            AutoModelForCausalLM.from_pretrained(tmp_path, num_streams=2)

    def test_a_saved_folder_carries_a_model_card_and_keeps_the_user_s(self, tmp_path: Path) -> None:
        model = self.trained()
        model.save_pretrained(tmp_path)
        card = (tmp_path / "README.md").read_text()
        assert f"{model.num_parameters():,}" in card
        assert "DHCx4" in card

        (tmp_path / "README.md").write_text("mine")
        model.save_pretrained(tmp_path)

        assert (tmp_path / "README.md").read_text() == "mine"


_CAN_DIFFER = {
    "test_a_converted_checkpoint_equals_its_residual_parent",
    "test_a_fresh_model_equals_its_residual_parent",
    "test_in_training_a_converted_checkpoint_draws_and_computes_what_its_parent_does",
    "test_generate_writes_the_tokens_of_the_parent",
    "test_a_trained_model_writes_the_same_with_a_cache_as_without",
    "test_attentions_are_those_of_the_parent",
    "test_every_parameter_receives_a_gradient",
    "test_every_auto_class_builds_its_class_and_runs",
    "test_every_head_of_a_converted_checkpoint_equals_the_parent_s",
    "test_hyper_connections_stay_fp32_in_a_low_precision_model",
    "test_state_dict_keys_and_shapes_are_frozen",
    "test_a_sharded_checkpoint_loads_as_it_was",
}


def _slow(test: Callable) -> Callable:
    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        test(*args, **kwargs)

    return pytest.mark.slow(run)


class FamilyPart(FamilyContract):
    """The contract of a family whose layer is made as that of another, which keeps the whole contract.

    What can differ, where upstream's files do, is tested always. The rest follows from code that families share, and
    is marked `slow`.
    """


for _name in dir(FamilyContract):
    if _name.startswith("test_") and _name not in _CAN_DIFFER:
        setattr(FamilyPart, _name, _slow(getattr(FamilyContract, _name)))


# ---- helpers ----------------------------------------------------------------------------------------------------


def batch(left_padding: int = 0) -> dict[str, Tensor]:
    """Two sequences of 12 tokens; the first `left_padding` tokens of the first one are padding."""
    ids = torch.randint(5, VOCABULARY, (2, 12), generator=torch.Generator().manual_seed(2))
    mask = torch.ones_like(ids)
    ids[0, :left_padding], mask[0, :left_padding] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def scramble(model: PreTrainedModel, std: float) -> None:
    """Moves every parameter, hyper-connections included, away from its initial value."""
    for parameter in model.parameters():
        parameter.add_(std * torch.randn_like(parameter))
    for module in model.modules():
        if hasattr(module, "alpha_scale"):
            module.alpha_scale.fill_(0.3)
            module.beta_scale.fill_(0.4)


@contextmanager
def residual_streams_of_realistic_size(model: PreTrainedModel) -> Iterator[None]:
    """Within it the embeddings are a hundred times as large: late streams of trained models have such outliers."""
    embedding = model.get_input_embeddings().weight
    with torch.no_grad():
        embedding.mul_(100)
    yield
    with torch.no_grad():
        embedding.div_(100)


def generate(model: PreTrainedModel, input_ids: Tensor, **kwargs: Any) -> Tensor:
    torch.manual_seed(3)
    options = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None} | kwargs
    return model.generate(input_ids, **options)


def checkpoint_activations(model: PreTrainedModel, enable: bool = True, **kwargs: Any) -> None:
    """Turns activation checkpointing on or off, by the name that this transformers does not deprecate."""
    name = "activation" if hasattr(model, "activation_checkpointing_enable") else "gradient"
    if enable:
        getattr(model, f"{name}_checkpointing_enable")(kwargs)
    else:
        getattr(model, f"{name}_checkpointing_disable")()


def forward_and_backward(model: PreTrainedModel, forward: Callable | None = None) -> tuple[Tensor, dict[str, Tensor]]:
    """Returns the logits and the gradient of every parameter; `forward` may stand in for the model."""
    model.train()
    model.zero_grad()
    outputs = (model if forward is None else forward)(**batch(), labels=batch()["input_ids"], use_cache=False)
    outputs.loss.backward()
    model.eval()
    return outputs.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


def assert_same_gradients(actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    assert [name for name in expected if not close(actual[name], expected[name], tolerance)] == []


def close(actual: Tensor, expected: Tensor, tolerance: float = 1e-5) -> bool:
    """Whether the largest difference is within `tolerance` of the largest value."""
    return bool((actual - expected).abs().max() <= tolerance * expected.abs().max())


@torch.no_grad()
def coefficients_of(model: PreTrainedModel) -> list[Tensor]:
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda _, __, outputs: found.extend(outputs[2:]))
        for module in model.modules()
        if isinstance(module, HyperConnection)
    ]
    model(**batch())
    for hook in hooks:
        hook.remove()
    assert len(found) == 2 * len(hooks)
    return found


def edit_checkpoint(folder: Path, edit: Any) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3} | {f"w{i}": i for i in range(4, VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>")
