# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""What exports the stock model exports ours, with the eager model's logits at other lengths than the exported.

Exporters other than PyTorch's are optional: `pip install onnx onnxruntime onnxscript openvino executorch`.
"""

import io
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import close
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, OlmoeConfig, PreTrainedConfig

from modeling_hc import HCLlamaConfig, HCOlmoeConfig

pytestmark = pytest.mark.filterwarnings("ignore")  # tracers and exporters warn of the stock model, too

SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
LLAMAS = {
    "stock": lambda: LlamaConfig(**SIZES),
    "dynamic": lambda: HCLlamaConfig(**SIZES),
    "static": lambda: HCLlamaConfig(**SIZES, connection="static"),
}
OLMOES = {
    "stock": lambda: OlmoeConfig(**SIZES, **EXPERTS),
    "dynamic": lambda: HCOlmoeConfig(**SIZES, **EXPERTS),
    "static": lambda: HCOlmoeConfig(**SIZES, **EXPERTS, connection="static"),
}
FAMILIES = pytest.mark.parametrize("family", [LLAMAS, OLMOES], ids=["llama", "olmoe"])
LENGTH, LENGTHS = 9, (5, 9, 12)
Run = Callable[[Tensor, Tensor], Any]


class Logits(nn.Module):
    """A model whose inputs and output are tensors, which is all that some exporters know."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def build(config: PreTrainedConfig) -> Logits:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "_hc." in name:  # away from its initial value, at which all streams are equal
                parameter += 0.1 * torch.randn_like(parameter)
    return Logits(model).eval()


def inputs(length: int = LENGTH) -> tuple[Tensor, Tensor]:
    torch.manual_seed(length)
    return torch.randint(1, SIZES["vocab_size"], (2, length)), torch.ones(2, length, dtype=torch.long)


def assert_exports(
    family: dict[str, Callable[[], PreTrainedConfig]],
    export: Callable[[Logits], Run],
    outcome: Callable[[Any, Any], None],
    lengths: tuple[int, ...] = LENGTHS,
) -> None:
    """Exports the stock model and both of ours, and compares logits with the eager ones at several lengths."""
    errors = {}
    for name, config in family.items():
        model = build(config())
        with redirect_stdout(io.StringIO()):  # exporters narrate
            run = export(model)
        pairs = []
        for length in lengths:
            with torch.no_grad():
                pairs.append((torch.as_tensor(run(*inputs(length))).detach(), model(*inputs(length))))
        errors[name] = max((exported - eager).abs().max().item() for exported, eager in pairs)
        assert all(close(exported, eager, 1e-5) for exported, eager in pairs), (name, errors)
    outcome(f"{errors['stock']:.0e}", f"{max(errors['dynamic'], errors['static']):.0e}")


def dynamic_shapes() -> dict[str, dict[int, Any]]:
    axes = {0: torch.export.Dim("batch", min=1, max=8), 1: torch.export.Dim("length", min=2, max=64)}
    return {"input_ids": axes, "attention_mask": axes}


@pytest.mark.report(11, "torch.jit.trace of a model whose parameters need gradients")
@FAMILIES
def test_a_traced_model_equals_the_eager_one_at_other_lengths(family: dict, outcome: Any, tmp_path: Path) -> None:
    def export(model: Logits) -> Run:
        torch.jit.trace(model, inputs()).save(tmp_path / "traced.pt")
        return torch.jit.load(tmp_path / "traced.pt")

    assert_exports(family, export, outcome)


@pytest.mark.report(11, "torch.jit.trace, then training what was traced")
def test_a_traced_model_has_the_gradients_of_the_eager_one(outcome: Any) -> None:
    errors = []
    for config in LLAMAS.values():
        model = build(config())
        eager, traced = (gradient(model, run) for run in (model, torch.jit.trace(model, inputs())))
        errors.append(((traced - eager).norm() / eager.norm()).item())
    outcome(f"{errors[0]:.0e}", f"{max(errors[1:]):.0e}")
    assert max(errors) < 1e-5


def gradient(model: Logits, run: Run) -> Tensor:
    model.zero_grad()
    run(*inputs(12)).square().mean().backward()
    return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@FAMILIES
def test_an_exported_program_equals_the_eager_model_at_other_lengths(family: dict, outcome: Any) -> None:
    def export(model: Logits) -> Run:
        return torch.export.export(model, inputs(), dynamic_shapes=dynamic_shapes()).module()

    assert_exports(family, export, outcome)


def onnx(model: Logits, path: Path, **kwargs: Any) -> Path:
    pytest.importorskip("onnxscript")
    torch.onnx.export(model, inputs(), path, input_names=["input_ids", "attention_mask"], verbose=False, **kwargs)
    return path


def onnx_session(path: Path) -> Run:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    return lambda *tensors: session.run(None, {"input_ids": tensors[0].numpy(), "attention_mask": tensors[1].numpy()})[
        0
    ]


def openvino_session(model: Any, shape: tuple[int, int] | None = None) -> Run:
    """Compiles for the CPU in fp32, which is not its default on CPUs that have bf16."""
    openvino = pytest.importorskip("openvino")
    if shape is not None:
        model.reshape({port: list(shape) for port in model.inputs})
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda *tensors: compiled([tensor.numpy() for tensor in tensors])[0]


@pytest.mark.report(19, "torch.onnx.export(dynamo=True), then onnxruntime")
def test_onnx_runtime_gives_the_eager_logits_at_other_lengths(outcome: Any, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")

    def export(model: Logits) -> Run:
        return onnx_session(onnx(model, tmp_path / "model.onnx", dynamo=True, dynamic_shapes=dynamic_shapes()))

    assert_exports(LLAMAS, export, outcome)  # it does not know an operation of the stock OLMoE; the next one does


@pytest.mark.report(19, "transformers' OnnxExporter")
def test_the_onnx_exporter_of_transformers_exports_olmoe(outcome: Any) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    exporters = pytest.importorskip("transformers.exporters.exporter_onnx", reason="needs a newer transformers")

    def export(model: Logits) -> Run:
        sample = dict(zip(("input_ids", "attention_mask"), inputs(), strict=True))
        config = exporters.OnnxConfig(dynamic=True)
        exported = exporters.OnnxExporter().export(model.model, sample, config=config)
        return lambda *tensors: exported(input_ids=tensors[0], attention_mask=tensors[1]).logits

    assert_exports(OLMOES, export, outcome)


@pytest.mark.report(19, "torch.onnx.export(dynamo=False), then onnxruntime or OpenVINO, at other lengths")
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_older_onnx_exporter_gives_the_eager_logits_at_other_lengths(
    engine: str, outcome: Any, tmp_path: Path
) -> None:
    """It writes `repeat_interleave` down as something else, and says nothing."""
    reader = pytest.importorskip(engine)
    axes = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}

    def export(model: Logits) -> Run:
        path = onnx(model, tmp_path / "model.onnx", dynamo=False, dynamic_axes=axes)
        return onnx_session(path) if engine == "onnxruntime" else openvino_session(reader.Core().read_model(path))

    assert_exports(LLAMAS, export, outcome)  # it does not know an operation of the stock OLMoE


@pytest.mark.report(19, "ONNX, then OpenVINO, at other lengths")
def test_openvino_reads_the_onnx_file_and_gives_the_eager_logits_at_other_lengths(
    outcome: Any, tmp_path: Path
) -> None:
    openvino = pytest.importorskip("openvino")

    def export(model: Logits) -> Run:
        path = onnx(model, tmp_path / "model.onnx", dynamo=True, dynamic_shapes=dynamic_shapes())
        return openvino_session(openvino.Core().read_model(path))

    assert_exports(LLAMAS, export, outcome)


@pytest.mark.report(30, "openvino.convert_model of a model, which traces it")
@pytest.mark.parametrize("static", [False, True], ids=["other lengths", "static shapes"])
def test_openvino_converts_the_model_itself(static: bool, outcome: Any) -> None:
    openvino = pytest.importorskip("openvino")

    def export(model: Logits) -> Run:
        converted = openvino.convert_model(model, example_input=inputs())
        return openvino_session(converted, (2, LENGTH) if static else None)

    assert_exports(LLAMAS, export, outcome, (LENGTH,) if static else LENGTHS)


@pytest.mark.report(30, "openvino.convert_model of an exported program")
@pytest.mark.parametrize("static", [False, True], ids=["other lengths", "static shapes"])
def test_openvino_converts_an_exported_program(static: bool, outcome: Any) -> None:
    openvino = pytest.importorskip("openvino")

    def export(model: Logits) -> Run:
        shapes = None if static else dynamic_shapes()
        return openvino_session(openvino.convert_model(torch.export.export(model, inputs(), dynamic_shapes=shapes)))

    assert_exports(LLAMAS, export, outcome, (LENGTH,) if static else LENGTHS)


@pytest.mark.report(19, "lowering to ExecuTorch's XNNPACK backend")
@pytest.mark.parametrize("static", [False, True], ids=["other lengths", "static shapes"])
def test_executorch_gives_the_eager_logits(static: bool, outcome: Any) -> None:
    exir = pytest.importorskip("executorch.exir")
    runtime = pytest.importorskip("executorch.runtime").Runtime.get()
    xnnpack = pytest.importorskip("executorch.backends.xnnpack.partition.xnnpack_partitioner").XnnpackPartitioner

    def export(model: Logits) -> Run:
        axes = {1: torch.export.Dim("length", min=2, max=64)}
        shapes = None if static else {"input_ids": axes, "attention_mask": axes}
        program = torch.export.export(model.requires_grad_(False), inputs(), dynamic_shapes=shapes)
        lowered = exir.to_edge_transform_and_lower(program, partitioner=[xnnpack()]).to_executorch()
        buffer = lowered.buffer
        loaded = runtime.load_program(buffer)

        def run(*tensors: Tensor, kept: bytes = buffer) -> Tensor:  # the program reads the buffer and does not keep it
            return loaded.load_method("forward").execute(list(tensors))[0].clone()

        return run

    assert_exports(LLAMAS, export, outcome, (LENGTH,) if static else LENGTHS)
