"""What the kernels need: torch and Triton alone, and of a GPU no more shared memory than every one has."""

import subprocess
import sys

import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kvserve.cache import moving_triton
from kvserve.evidence import mass_triton

SHARED = 99 << 10  # bytes that a program may have on GPUs of compute capability 8.6 and 8.9, the least of those served
NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64", torch.uint8: "u8"}

ALONE = """
import sys

ALLOWED = {"torch", "triton", "numpy", "kvserve", "bench", "measuring"}
OF_TORCH = {"typing_extensions", "sympy", "mpmath", "networkx", "jinja2", "markupsafe", "fsspec", "filelock",
            "functorch", "torchgen", "setuptools", "cuda", "nvidia"}

class Refused:
    def find_spec(self, name, path=None, target=None):
        first = name.partition(".")[0]
        if first not in sys.stdlib_module_names | ALLOWED | OF_TORCH and not first.startswith("_sysconfigdata"):
            raise ModuleNotFoundError(f"no {first} here", name=first)

sys.meta_path.insert(0, Refused())
import bench.kernel_checks, bench.kernel_times, bench.kernels
import kvserve.cache.moving, kvserve.evidence.mass
assert not {"vllm", "pydantic", "msgspec"} & set(sys.modules)
print("alone")
"""


def test_the_bench_of_kernels_needs_torch_and_triton_alone():
    done = subprocess.run([sys.executable, "-c", ALONE], capture_output=True, text=True, timeout=100)
    assert done.stdout == "alone\n", done.stderr


def compiled(kernel, pointers, numbers, constants, capability, **options):
    """For a GPU that need not be here. pointers, numbers: types by argument; the former are multiples of 16."""
    names = kernel.arg_names
    signature = {name: "constexpr" if name in constants else {**pointers, **numbers}[name] for name in names}
    values = {(names.index(name),): value for name, value in constants.items()}
    aligned = {(names.index(name),): [["tt.divisibility", 16]] for name in pointers}
    target = GPUTarget("cuda", capability, 32)
    return triton.compile(ASTSource(kernel, signature, values, aligned), target=target, options=options)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize(
    ("dtype", "width"),
    [(torch.bfloat16, 128), (torch.float16, 80), (torch.bfloat16, 256), (torch.float32, 256)],
)
def test_mass_compiles(dtype, width, capability):
    """For tensor cores, and within the shared memory of small GPUs."""
    tiles = mass_triton.tiles(width, dtype.itemsize)
    kind = NAMES[dtype]
    numbers = dict.fromkeys(("count", "slots", "group", "first", "stride"), "i32") | {
        "scale": "fp32",
        "cap": "fp32",
    }
    pointers = {"q": f"*{kind}", "k": f"*{kind}", "sinks": "*fp32", "lse": "*fp32", "out": "*fp32"}
    warps = tiles.pop("num_warps")
    for kernel, more in ((mass_triton._normalisers, {"SUNK": True}), (mass_triton._sums, {})):
        constants = {**tiles, "CAPPED": True, "PRECISION": "tf32x3", **more}
        used = {name: kind for name, kind in pointers.items() if name in kernel.arg_names}
        made = compiled(kernel, used, numbers, constants, capability, num_warps=warps)
        assert made.metadata.shared <= SHARED
        assert "wgmma" in made.asm["ptx"] or "mma.sync" in made.asm["ptx"]
        assert "wgmma" in made.asm["ptx"] or capability == 80 or dtype is torch.float32


@pytest.mark.parametrize(("pick", "put"), [(True, False), (False, True), (True, True)])
def test_the_mover_compiles_to_wide_copies(pick, put):
    pointers = {"cache": "*i64", "kept": "*i64", "src": "*i64", "dst": "*i64", "slots": "*i64"}
    aligned = dict.fromkeys(("apart", "block", "head", "outer", "inner"), "i32")
    numbers = dict.fromkeys(("count", "room", "low"), "i32")
    sizes = {"S": 16, "S2": 1, "D": 32, "D2": 1, "WIDTH": 32, "T": 64, "high": 1, "PICK": pick, "PUT": put}
    made = compiled(moving_triton._copy, {**pointers, **aligned}, numbers, sizes, 90)
    assert "ld.global.v2.b64" in made.asm["ptx"] and "st.global.v2.b64" in made.asm["ptx"]
