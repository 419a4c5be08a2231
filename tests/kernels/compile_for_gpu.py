"""Compiles the kernels for an H100 or H200, which needs no such device: run without TRITON_INTERPRET."""

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from evomerge.kernels.combine import ALL, BAND, DROP, RANK, TRIM, _combine, _sums
from evomerge.kernels.threshold import BINS, COPIES, _counts, _members
from evomerge.kernels.vectors import _grams, _mix

NUMBERS = {"limits": "*fp32", "lasts": "*i64", "keys": "*i64", "size": "i64", "voices": "*fp32"}
TARGET = GPUTarget("cuda", 90, 32)
K = 3


def compile_one(kernel: triton.JITFunction, signature: dict[str, object], constants: dict[str, object]) -> str:
    full = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    return str(triton.compile(ASTSource(kernel, full, constexprs=constants), target=TARGET).asm["ptx"])


def models(dtype: str, count: int, last: str = "") -> dict[str, object]:
    """A base and sources, the last of which may have another dtype; ranks and chances beside them."""
    sources = (dtype,) * (count - 1) + (last or dtype,)
    return {"base": dtype, "sources": sources, "ranks": ("*i16",) * count, "chances": ("*fp32",) * count, "merged": dtype}


def combine(keep: int, elect: bool, count: int, dtype: str, last: str = "", groups: int = 1) -> None:
    tables = {"weights": "*fp32", "scales": "*fp32", "rows": "i64", "owners": "*i64", "row": "*i64", **NUMBERS}
    options = {"K": count, "GROUPS": groups, "ADD": True, "SUBTRACT": True, "KEEP": keep, "ELECT": elect, "WEIGHTED": True}
    options |= {"NORMALIZE": elect, "TIE": 1, "BLOCK": 1024, "ALIGNED": True}
    for many in (False, True):
        code = compile_one(_combine, models(dtype, count, last) | tables, options | {"MANY": many})
        assert not many or "ld.global.v" in code, "addresses from a table lost their alignment: elements are loaded one by one"


for keep in (ALL, TRIM, DROP, BAND, RANK):
    combine(keep, keep != ALL, K, "*bf16", "*fp32", groups=1 + keep % 2)
    for signs in (False, True):
        options = {"K": K, "SUBTRACT": True, "KEEP": keep, "SIGNS": signs, "BLOCK": 1024}
        compile_one(_sums, models("*bf16", K, "*fp32") | NUMBERS | {"partial": "*fp32"}, options)
combine(ALL, False, K, "*fp32")
combine(TRIM, True, 16, "*fp16")

for dtype in ("*bf16", "*fp16", "*fp32"):
    two = {"base": dtype, "source": dtype, "size": "i64"}
    options = {"SUBTRACT": True, "BLOCK": 1024}
    compile_one(_counts, two | {"table": "*i32"}, options | {"COPIES": COPIES, "BINS": BINS})
    compile_one(_members, two | {"sizes": "*fp32", "positions": "*i64", "cursor": "*i64", "bin": "i32"}, options)
    several = models(dtype, K) | {"size": "i64", "width": "i64"}
    compile_one(_grams, several | {"products": "*fp64"}, options | {"K": K})
    compile_one(_mix, several | {"coefficients": "*fp32"}, options | {"K": K, "ADD": True})
