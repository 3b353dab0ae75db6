# Copyright 2026 The modeling_hc authors. Licensed under the Apache License, Version 2.0.
"""Compiles the kernels for a GPU on a machine without one, and prints what they take of it, a line of JSON a kernel.

    python -m campaigns.compiled_kernels                 # boundaries of the shapes below, for sm_80 and sm_90, bf16
    python -m campaigns.compiled_kernels 4x2048          # one shape, of many tokens
    python -m campaigns.compiled_kernels 4x2048x1 --dtype float32      # of few tokens, as in decoding

The kernels are launched through their operators, so what is compiled is what runs: the launch alone is replaced.
"""

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from modeling_hc import triton_hc

SHAPES = ["1x64", "2x2048", "4x2048x1", "3x384", "4x2048", "4x4096", "8x8192"]
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
POINTERS = {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}


class Compiler:
    """Stands in for a kernel and compiles what it is launched with."""

    def __init__(self, kernel: triton.JITFunction, capability: int) -> None:
        self.kernel, self.target = kernel, GPUTarget("cuda", capability, 32)
        self.resources: dict[str, int] = {}

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return self.compile

    def compile(self, *arguments: Any, num_warps: int, maxnreg: int | None = None, **constants: Any) -> None:
        signature, aligned = {}, {}
        for position, (name, value) in enumerate(zip(self.kernel.arg_names, arguments, strict=False)):
            if value is None:
                constants[name] = None
            elif isinstance(value, torch.Tensor):
                signature[name], aligned[(position,)] = POINTERS[value.dtype], [["tt.divisibility", 16]]
            else:
                signature[name] = "fp32" if isinstance(value, float) else "i32"
        signature |= dict.fromkeys(constants, "constexpr")
        signature = {name: signature[name] for name in self.kernel.arg_names}
        source = ASTSource(self.kernel, signature, constexprs=constants, attrs=aligned)
        compiled = triton.compile(source, target=self.target, options={"num_warps": num_warps, "maxnreg": maxnreg})
        self.resources = measured(compiled.asm["cubin"]) | {"shared": compiled.metadata.shared}


def measured(binary: bytes) -> dict[str, int]:
    """Returns registers and bytes of stack a thread, the loads of what was spilled, and the barriers."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(binary)
        file.flush()
        usage, code = (_cuobjdump(what, file.name) for what in ("-res-usage", "-sass"))
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", usage).groups()
    counts = {name: len(re.findall(rf"\b{name}", code)) for name in ("LDL", "BAR")}
    return {"registers": int(registers), "stack": int(stack), "spill_loads": counts["LDL"], "barriers": counts["BAR"]}


def _cuobjdump(what: str, path: str) -> str:
    return subprocess.check_output([TOOLS / "cuobjdump", what, path], text=True, stderr=subprocess.DEVNULL)


def boundary(
    n: int, d: int, capability: int, centered: bool, tokens: int = 65, dtype: torch.dtype = torch.bfloat16
) -> dict[str, dict[str, int]]:
    """Compiles the boundary's two kernels for one shape; returns what each takes."""
    forward = Compiler(triton_hc._forward_kernel, capability)
    backward = Compiler(triton_hc._backward_kernel, capability)
    streams, output = torch.zeros(tokens, n, d, dtype=dtype), torch.zeros(tokens, d, dtype=dtype)
    alpha, beta, one = torch.zeros(tokens, n, n + 1), torch.zeros(tokens, n), torch.zeros(1)
    weight, saved = torch.zeros(n + 2, d), torch.zeros(tokens, 3, triton.next_power_of_2(n * (n + 2)))
    kernels = triton_hc._forward_kernel, triton_hc._backward_kernel
    triton_hc._forward_kernel, triton_hc._backward_kernel = forward, backward
    try:
        before = streams, output, alpha, beta, weight, one, one
        triton_hc._forward(*before, alpha[0], beta[0], True, 1e-6, centered)
        triton_hc._backward(*before, alpha, saved, streams, output, alpha, beta, True, centered)
    finally:
        triton_hc._forward_kernel, triton_hc._backward_kernel = kernels
    return {"forward": forward.resources, "backward": backward.resources}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="*", default=SHAPES, metavar="NxD[xTOKENS]")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    args = parser.parse_args()
    for shape in args.shapes:
        n, d, *tokens = map(int, shape.split("x"))
        for capability in (80, 90):
            for centered in (False, True):
                kernels = boundary(n, d, capability, centered, *tokens, dtype=getattr(torch, args.dtype))
                for name, resources in kernels.items():
                    where = {"kernel": name, "n": n, "d": d, "sm": capability, "centered": centered}
                    print(json.dumps(where | resources), flush=True)
