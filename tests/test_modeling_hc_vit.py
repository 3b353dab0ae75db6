# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""ViT with hyper-connections keeps what every family promises, as far as images go."""

import copy
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from contract import (
    HC_SHAPES,
    assert_same_gradients,
    checkpoint_activations,
    close,
    edit_checkpoint,
    needs_auto_image_processor,
    scramble,
)
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForMaskedImageModeling,
    PreTrainedModel,
    Trainer,
    TrainingArguments,
    ViTConfig,
    ViTForImageClassification,
    pipeline,
)
from transformers.models.auto import image_processing_auto
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from modeling_hc import (
    HCViTConfig,
    HCViTForImageClassification,
    HCViTForMaskedImageModeling,
    HCViTModel,
    hyper_connect,
)
from modeling_hc.commands.info import model_info
from modeling_hc.conversion import to_hyper_connected
from modeling_hc.recipes import find_recipe

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": 12,
    "patch_size": 4,
    "encoder_stride": 4,
}
PIXELS = torch.randn(2, 3, 12, 12, generator=torch.Generator().manual_seed(2))
LABELS = torch.tensor([2, 0])
MASKED = torch.rand(2, 9, generator=torch.Generator().manual_seed(3)) < 0.5
HEADS = [
    (AutoModel, HCViTModel),
    (AutoModelForImageClassification, HCViTForImageClassification),
    (AutoModelForMaskedImageModeling, HCViTForMaskedImageModeling),
]


def residual(auto_class: Any = AutoModelForImageClassification, **kwargs: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    model = auto_class.from_config(ViTConfig(**SIZES | {"num_labels": 3} | kwargs)).eval()
    scramble(model, 0.2)
    return model


def trained(auto_class: Any = AutoModelForImageClassification, **kwargs: Any) -> PreTrainedModel:
    """A model whose coefficients are far from their initial values, so that every stream and patch differs."""
    torch.manual_seed(1)
    model = auto_class.from_config(HCViTConfig(**SIZES | {"num_labels": 3} | kwargs)).eval()
    scramble(model, 0.2)
    return model


def forward_and_backward(model: PreTrainedModel, forward: Any = None) -> tuple[Tensor, dict[str, Tensor]]:
    model.train()
    model.zero_grad()
    outputs = (model if forward is None else forward)(PIXELS, labels=LABELS)
    outputs.loss.backward()
    model.eval()
    return outputs.logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


# ---- the same function as the residual parent -------------------------------------------------------------------


@pytest.mark.parametrize("num_streams", [1, 2, 3, 4])
@pytest.mark.parametrize("connection", ["dynamic", "static"])
def test_a_converted_vit_equals_its_residual_parent(tmp_path: Path, num_streams: int, connection: str) -> None:
    parent = residual()
    parent.save_pretrained(tmp_path)
    model = HCViTForImageClassification.from_pretrained(
        tmp_path, num_streams=num_streams, connection=connection, stream_reduction="mean", attn_implementation="eager"
    )
    parent.set_attn_implementation("eager")
    asked = {"labels": LABELS, "output_hidden_states": True, "output_attentions": True}
    tolerance = 0 if num_streams in (1, 2, 4) else 1e-6

    expected, actual = parent(PIXELS, **asked), model(PIXELS, **asked)

    assert expected.logits.abs().max() > 0.1
    assert (model(PIXELS).logits - expected.logits).abs().max() <= tolerance  # streams are left unfinished
    assert (actual.logits - expected.logits).abs().max() <= tolerance
    assert (actual.loss - expected.loss).abs() <= tolerance
    for kind, count in (("hidden_states", 4), ("attentions", 3)):
        assert len(actual[kind]) == len(expected[kind]) == count
        for mine, theirs in zip(actual[kind], expected[kind], strict=True):
            assert mine.shape == theirs.shape
            assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max()


@pytest.mark.parametrize(("auto_class", "hc_class"), HEADS)
def test_every_head_of_a_converted_vit_equals_the_parents(tmp_path: Path, auto_class: Any, hc_class: Any) -> None:
    parent = residual(auto_class)
    parent.save_pretrained(tmp_path)
    model = hc_class.from_pretrained(tmp_path, num_streams=4, stream_reduction="mean")

    inputs = {"pixel_values": PIXELS} | ({"bool_masked_pos": MASKED} if hc_class is HEADS[2][1] else {})
    expected, actual = parent(**inputs).to_tuple(), model(**inputs).to_tuple()

    assert type(model) is auto_class._model_mapping[HCViTConfig]
    assert len(actual) == len(expected) == (1 if hc_class is HCViTForImageClassification else 2)
    assert all(map(torch.equal, actual, expected))


def test_another_head_takes_the_body_and_starts_anew_with_pooler_and_mask_token(tmp_path: Path) -> None:
    for auto_class, _ in HEADS:
        trained(auto_class).save_pretrained(tmp_path / auto_class.__name__)
    for source, _ in HEADS:
        for target, hc_class in HEADS:
            model = target.from_pretrained(tmp_path / source.__name__)
            assert type(model) is hc_class
            body, mine = trained(source).base_model.state_dict(), model.base_model.state_dict()
            shared = [key for key in body.keys() & mine.keys() if key.startswith(("layer", "embeddings"))]
            assert len(shared) > 60
            assert all(torch.equal(mine[key], body[key]) for key in shared)

    edit_checkpoint(tmp_path / "AutoModel", lambda tensors: tensors.pop("pooler.dense.bias"))
    with pytest.raises(ValueError, match=r"lacks pooler\.dense\.bias"):
        AutoModel.from_pretrained(tmp_path / "AutoModel")


def test_checkpoints_with_the_names_of_before_and_of_now_load_as_the_same_model(tmp_path: Path) -> None:
    parent = residual()
    parent.save_pretrained(tmp_path)
    on_disk = load_file(tmp_path / "model.safetensors")
    assert "vit.encoder.layer.0.attention.attention.query.weight" in on_disk
    expected = parent(PIXELS).logits
    new = {"num_streams": 2, "stream_reduction": "mean"}
    assert torch.equal(HCViTForImageClassification.from_pretrained(tmp_path, **new)(PIXELS).logits, expected)

    save_file(parent.state_dict(), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert torch.equal(HCViTForImageClassification.from_pretrained(tmp_path, **new)(PIXELS).logits, expected)


def test_the_parents_class_reads_the_body_of_a_converted_vit_back(tmp_path: Path) -> None:
    parent = residual()
    parent.save_pretrained(tmp_path / "parent")
    converted = HCViTForImageClassification.from_pretrained(tmp_path / "parent", stream_reduction="mean")
    converted.save_pretrained(tmp_path / "hc")

    tensors = load_file(tmp_path / "hc" / "model.safetensors")
    assert {key for key in tensors if "_hc." not in key} == set(load_file(tmp_path / "parent" / "model.safetensors"))
    edit_checkpoint(tmp_path / "hc", lambda t: [t.pop(key) for key in list(t) if "_hc." in key])
    (tmp_path / "hc" / "config.json").write_text((tmp_path / "parent" / "config.json").read_text())
    again = ViTForImageClassification.from_pretrained(tmp_path / "hc")

    assert torch.equal(again(PIXELS).logits, parent(PIXELS).logits)


def test_a_vit_in_memory_becomes_what_its_checkpoint_becomes_by_name(tmp_path: Path) -> None:
    model = residual()
    expected = model(PIXELS).logits
    model.save_pretrained(tmp_path)

    by_name = hyper_connect(tmp_path, AutoModelForImageClassification, num_streams=2)
    in_memory = hyper_connect(model, num_streams=2)

    assert in_memory is model and type(model) is type(by_name) is HCViTForImageClassification
    assert model.state_dict().keys() == by_name.state_dict().keys()
    assert torch.equal(model(PIXELS).logits, expected) and torch.equal(by_name(PIXELS).logits, expected)


def test_larger_images_interpolate_positions_as_the_parent_does(tmp_path: Path) -> None:
    parent = residual()
    parent.save_pretrained(tmp_path)
    model = HCViTForImageClassification.from_pretrained(tmp_path, stream_reduction="mean")
    larger = {"pixel_values": torch.randn(1, 3, 20, 20), "interpolate_pos_encoding": True}

    assert torch.equal(model(**larger).logits, parent(**larger).logits)


# ---- computation ------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_the_norm_inside_a_hyper_connection_is_vits_layer_norm() -> None:
    connection = trained(use_tanh=False, layer_norm_eps=1e-5).vit.layers[0].attn_hc
    for parameter in connection.parameters():
        parameter.zero_()
    connection.alpha_weight.copy_(torch.eye(5, 32))  # alpha becomes the start of the normalised stream
    connection.alpha_scale.fill_(1)
    connection.norm.normal_()
    streams = 1e-2 * torch.randn(2, 3, 4, 32) + 1  # small, so that eps matters, and not centred

    _, _, alpha, _ = connection(streams)

    expected = torch.nn.functional.layer_norm(streams.double(), (32,), connection.norm.double(), eps=1e-5)
    assert torch.allclose(alpha.double(), expected[..., :5], atol=1e-4)


def test_connections_count_blocks_and_layers_leave_their_last_block_to_the_next() -> None:
    model = HCViTForImageClassification(HCViTConfig(**SIZES, num_streams=4))
    connections = [c for layer in model.vit.layers for c in (layer.attn_hc, layer.mlp_hc)]

    assert [c.alpha_bias[:, 0].argmax().item() for c in connections] == [0, 1, 2, 3, 0, 1]  # Eq. 14: k mod n
    assert model.vit.leaves_unfinished()


@pytest.mark.parametrize(("output_rescaling", "factor"), [("divide", 0.5), ("multiply", 2.0)])
def test_the_output_projections_are_rescaled(output_rescaling: str, factor: float) -> None:
    def projections(rescaling: str) -> Tensor:
        torch.manual_seed(0)
        layer = HCViTModel(HCViTConfig(**SIZES, output_rescaling=rescaling)).layers[1]
        return torch.cat([layer.attention.o_proj.weight, layer.mlp.fc2.weight], dim=1)

    assert torch.equal(projections(output_rescaling), factor * projections("none"))


def test_every_parameter_receives_a_gradient() -> None:
    _, gradients = forward_and_backward(trained())

    assert [name for name, g in gradients.items() if not g.isfinite().all()] == []
    assert [name for name, g in gradients.items() if "_hc." in name and not g.any()] == []


@pytest.mark.parametrize("how", ["reentrant", "not reentrant", "recomputed streams"])
def test_checkpointing_leaves_the_gradients_unchanged(how: str) -> None:
    model = trained()
    _, expected = forward_and_backward(model)
    calls = []
    model.vit.layers[0].mlp.register_forward_hook(lambda *args: calls.append(1))

    if how == "recomputed streams":
        model.recompute_streams()
        assert model.vit.recomputed_sites > 1
    else:
        checkpoint_activations(model, use_reentrant=how == "reentrant")

    assert_same_gradients(forward_and_backward(model)[1], expected, 1e-6)
    assert len(calls) == (1 if how == "recomputed streams" else 2)  # a checkpointed layer runs again


def test_the_compiled_model_has_the_outputs_and_gradients_of_the_eager_one() -> None:
    model = trained(num_hidden_layers=1)
    logits, gradients = forward_and_backward(model)
    torch._dynamo.reset()

    compiled = forward_and_backward(model, torch.compile(model, fullgraph=True, backend="aot_eager"))

    assert close(compiled[0], logits)
    for found in (compiled[1], gradients):  # softmax takes no notice of it, so its gradient is rounding
        assert found.pop("vit.layers.0.attention.k_proj.bias").abs().max() < 1e-5
    assert_same_gradients(compiled[1], gradients, 1e-4)


@torch.no_grad()
def test_the_exported_program_equals_the_model_for_other_batches() -> None:
    model = trained()
    program = torch.export.export(
        model, (), {"pixel_values": PIXELS}, dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch")}}
    )
    five = torch.randn(5, 3, 12, 12)

    assert close(program.module()(pixel_values=five).logits, model(pixel_values=five).logits)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_hyper_connections_stay_fp32_in_a_low_precision_vit(tmp_path: Path, dtype: torch.dtype) -> None:
    model = trained()
    model.save_pretrained(tmp_path)
    low = AutoModelForImageClassification.from_pretrained(tmp_path, dtype=dtype)

    dtypes = {name: p.dtype for name, p in low.named_parameters()}

    assert {v for k, v in dtypes.items() if "_hc." in k} == {torch.float32}
    assert {v for k, v in dtypes.items() if "_hc." not in k} == {dtype}
    expected = model(PIXELS).logits
    assert (low(PIXELS).logits.float() - expected).norm() < 0.1 * expected.norm()


# ---- checkpoints ------------------------------------------------------------------------------------------------


def test_state_dict_keys_and_shapes_are_frozen() -> None:
    parent = residual().state_dict()
    for connection, names in {"dynamic": list(HC_SHAPES), "static": ["alpha_bias", "beta_bias"]}.items():
        expected = {key: tuple(value.shape) for key, value in parent.items()} | {
            f"vit.layers.{i}.{block}.{name}": HC_SHAPES[name](3, 32)
            for i in range(3)
            for block in ("attn_hc", "mlp_hc")
            for name in names
        }
        actual = trained(num_streams=3, connection=connection).state_dict()
        assert {key: tuple(v.shape) for key, v in actual.items() if "_hc.norm" not in key} == expected


def test_a_sharded_checkpoint_loads_as_it_was(tmp_path: Path) -> None:
    model = trained()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1

    loaded, report = AutoModelForImageClassification.from_pretrained(tmp_path, output_loading_info=True)

    assert not any(report.values())
    assert torch.equal(loaded(PIXELS).logits, model(PIXELS).logits)


@pytest.mark.parametrize("lost", ["mlp_hc.alpha_bias", "layernorm_before.weight", "output.dense.bias"])
def test_a_checkpoint_that_lost_a_tensor_is_rejected_by_name(tmp_path: Path, lost: str) -> None:
    trained().save_pretrained(tmp_path)
    edit_checkpoint(tmp_path, lambda tensors: tensors.pop(f"vit.encoder.layer.1.{lost}"))

    name = {"output.dense.bias": "mlp.fc2.bias"}.get(lost, lost)
    with pytest.raises(ValueError, match=rf"lacks vit\.layers\.1\.{re.escape(name)}"):
        AutoModelForImageClassification.from_pretrained(tmp_path)


def test_a_saved_vit_carries_a_card_that_tells_how_images_go_in(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)

    card = (tmp_path / "README.md").read_text()

    for words in ("pipeline_tag: image-classification", "DHCx4", "| 12, 4 |", "AutoImageProcessor", "Image.open"):
        assert words in card
    assert "AutoTokenizer" not in card
    code = card.split("```python")[1].split("```")[0]
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("field", "words"),
    [
        ({"patch_size": 13}, ["patch_size=13", "image_size=12"]),
        ({"image_size": [12, 0]}, [r"image_size=\[12, 0\]"]),
        ({"hidden_size": 30}, ["hidden_size=30", "num_attention_heads=4"]),
        ({"hidden_dropout_prob": 1.5}, ["hidden_dropout_prob=1.5"]),
        ({"pooler_act": "tan"}, ["pooler_act='tan'"]),
        ({"layer_norm_eps": 0.0}, ["layer_norm_eps"]),
        ({"num_channels": 0}, ["num_channels=0"]),
    ],
)
def test_a_field_with_which_no_vit_can_be_built_is_rejected_by_name(field: dict[str, Any], words: list[str]) -> None:
    for word in words:
        with pytest.raises(ValueError, match=word):
            HCViTConfig(**SIZES | field)


def test_an_odd_head_dim_is_no_error_for_there_is_no_rope() -> None:
    assert trained(hidden_size=20)(PIXELS).logits.shape == (2, 3)  # 4 heads of 5


# ---- processors, pipelines, adapters, the Trainer ---------------------------------------------------------------


@needs_auto_image_processor
def test_the_image_processor_of_the_parent_is_that_of_ours_also_where_no_file_names_it(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    saved.pop("image_processor_type")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(saved))

    processor = AutoImageProcessor.from_pretrained(tmp_path, backend="pil")

    assert type(processor) is ViTImageProcessorPil
    assert processor.size["height"] == 12


def test_the_image_classification_pipeline_gives_the_probabilities_of_the_model(tmp_path: Path) -> None:
    model = trained(id2label={0: "cat", 1: "dog", 2: "bird"})
    model.save_pretrained(tmp_path)
    processor = ViTImageProcessorPil(size={"height": 12, "width": 12})
    processor.save_pretrained(tmp_path)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 12, 3), dtype=np.uint8))

    found = pipeline("image-classification", str(tmp_path))(image, top_k=3)

    inputs = processor(image, return_tensors="pt")
    expected = model(**inputs).logits.softmax(-1)[0].tolist()
    assert {entry["label"]: pytest.approx(entry["score"], rel=1e-4) for entry in found} == dict(
        zip(("cat", "dog", "bird"), expected, strict=True)
    )


def test_lora_trains_saves_loads_and_merges(tmp_path: Path) -> None:
    base = trained()
    model = get_peft_model(copy.deepcopy(base), LoraConfig(target_modules=["q_proj", "v_proj"]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(2):  # B of LoRA is zero at first, so one step alone leaves A where it was
        model(PIXELS, labels=LABELS).loss.backward()
        optimizer.step()
    expected = model.eval()(PIXELS).logits
    assert not close(expected, base(PIXELS).logits)

    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(copy.deepcopy(base), tmp_path)

    assert torch.equal(loaded(PIXELS).logits, expected)
    assert close(loaded.merge_and_unload()(PIXELS).logits, expected)


def test_the_stock_trainer_decays_the_dynamic_part_and_not_the_static_part_nor_norms(tmp_path: Path) -> None:
    trainer = Trainer(trained(), TrainingArguments(tmp_path, use_cpu=True, report_to="none"))

    decayed = trainer.get_decay_parameter_names(trainer.model)

    split = {n.rpartition("_hc.")[2] for n in decayed if "_hc." in n}
    assert split == {"alpha_weight", "beta_weight", "alpha_scale", "beta_scale"}
    assert not [name for name in decayed if "layernorm" in name or name.endswith("bias")]
    assert trainer.model.no_weight_decay() == {
        n for n, _ in trainer.model.named_parameters() if re.search(r"_hc\.(alpha_bias|beta_bias|norm)$", n)
    }


# Loads a folder with every Auto class that it names, saves the outputs, and the labels that a pipeline gives.
STRANGER = """
import sys
sys.modules.update(modeling_hc=None, triton=None)  # an import of either raises ModuleNotFoundError
import torch, transformers
from PIL import Image
name, outputs = sys.argv[1], {}
pixels = torch.load("pixels.pt")
for auto_class in transformers.AutoConfig.from_pretrained(name, trust_remote_code=True).auto_map:
    if auto_class != "AutoConfig":
        torch.manual_seed(0)  # a head that the checkpoint lacks starts at random
        model = getattr(transformers, auto_class).from_pretrained(name, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        outputs[auto_class] = model(pixels)[0].detach()
classify = transformers.pipeline("image-classification", name, trust_remote_code=True)
outputs["pipeline"] = [entry["score"] for entry in classify(Image.new("RGB", (20, 20), "red"))]
torch.save(outputs, "outputs.pt")
"""


@needs_auto_image_processor
def test_a_saved_vit_and_its_pipeline_load_where_the_package_is_absent(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path / "saved")
    ViTImageProcessorPil(size={"height": 12, "width": 12}).save_pretrained(tmp_path / "saved")
    torch.save(PIXELS, tmp_path / "pixels.pt")
    expected = {}
    for auto_class, _ in HEADS:
        torch.manual_seed(0)
        expected[auto_class.__name__] = auto_class.from_pretrained(tmp_path / "saved")(PIXELS)[0].detach()
    classify = pipeline("image-classification", str(tmp_path / "saved"))
    expected["pipeline"] = [entry["score"] for entry in classify(Image.new("RGB", (20, 20), "red"))]

    environment = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "PYTHON"))}
    environment |= {"HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", STRANGER, str(tmp_path / "saved")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )

    assert done.returncode == 0, done.stderr
    actual = torch.load(tmp_path / "outputs.pt")
    assert actual.pop("pipeline") == expected.pop("pipeline")
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)


def test_upstream_finds_our_image_processor_without_an_entry_that_it_would_ask_for_its_name() -> None:
    mapping = image_processing_auto.IMAGE_PROCESSOR_MAPPING

    assert HCViTConfig in mapping and mapping[HCViTConfig] == mapping[ViTConfig]
    assert HCViTConfig not in mapping._extra_content  # `ProcessorMixin.get_possibly_dynamic_module`


def test_commands_for_language_models_reject_a_vit_by_its_model_type(tmp_path: Path) -> None:
    residual().save_pretrained(tmp_path / "vit")

    with pytest.raises(ValueError, match="model_type='vit'"):
        to_hyper_connected(tmp_path / "vit", tmp_path / "hc")
    with pytest.raises(ValueError, match="model_type='hc_vit', and only language models"):
        model_info(find_recipe("models", "vit-base-shc2"))
