"""Compiles the kernels for an H100 or H200, which needs no such device: run without TRITON_INTERPRET."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from evomerge.kernels.combine import _combine, _norms
from evomerge.kernels.slerp import _products
from evomerge.kernels.threshold import BINS, COPIES, _counts, _members

NUMBERS = {"limits": "*fp32", "lasts": "*i64", "keys": "*i64", "size": "i64"}
TARGET = GPUTarget("cuda", 90, 32)


def compile_one(kernel: triton.JITFunction, signature: dict[str, object], constants: dict[str, object]) -> str:
    full = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    return str(triton.compile(ASTSource(kernel, full, constexprs=constants), target=TARGET).asm["ptx"])


for keep, elect in ((0, False), (1, True), (2, True)):
    tensors = {"base": "*bf16", "sources": ("*bf16", "*bf16", "*fp32"), "merged": "*bf16"}
    tables = {"weights": "*fp32", "voices": "*fp32", "scales": "*fp32", "rows": "i64", "owners": "*i64", "row": "*i64", **NUMBERS}
    options = {"K": 3, "GROUPS": 1 + keep, "ADD": True, "SUBTRACT": True, "KEEP": keep, "ELECT": elect, "WEIGHTED": True}
    options |= {"NORMALIZE": elect, "TIE": 1, "BLOCK": 1024}
    for many in (False, True):
        code = compile_one(_combine, tensors | tables, options | {"MANY": many, "ALIGNED": True})
        assert not many or "ld.global.v" in code, "addresses from a table lost their alignment: elements are loaded one by one"
    norms = {"base": "*bf16", "sources": ("*bf16", "*bf16", "*fp32"), "partial": "*fp32", **NUMBERS}
    compile_one(_norms, norms, {"K": 3, "SUBTRACT": True, "KEEP": keep, "BLOCK": 1024})

for dtype in ("*bf16", "*fp32"):
    two = {"base": dtype, "source": dtype, "size": "i64"}
    options = {"SUBTRACT": True, "BLOCK": 1024}
    compile_one(_counts, two | {"table": "*i32"}, options | {"COPIES": COPIES, "BINS": BINS})
    compile_one(_members, two | {"sizes": "*fp32", "positions": "*i64", "cursor": "*i64", "bin": "i32"}, options)
    compile_one(_products, {"a": dtype, "b": dtype, "partial": "*fp64", "size": "i64"}, {"BLOCK": 1024})
