"""DeBERTa's attention in one kernel by Triton's interpreter, which runs it on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

# Triton reads TRITON_INTERPRET when it is imported, so that this runs in a process of its own.
SCRIPT = """
import contextlib, sys
sys.path[:0] = ["tests", "tests/models"]
import torch
from test_fast_models import CPU
from blendkit.models.fast import kernels
from blendkit.models.fast.attention import PerInput
from blendkit.models.fast.packing import pack
from blendkit.models.fast.relative import Buckets, Relative

torch.cuda.device_of = lambda tensor: contextlib.nullcontext()
generator = torch.Generator().manual_seed(0)
# Distances in steps of one, in steps that grow, and beyond the last bucket; heads that fill their tile and that do not.
quick = (([1], 16, 16), ([90, 5, 64, 130], 12, 16))
for lengths, size, span in quick if sys.argv[1] == "quick" else (([128, 103], 64, 64), ([457], 64, 256), ([700, 31], 24, 32)):
    buckets = Buckets(span, span, 2 * span, CPU)
    tables = [torch.randn(2, 2 * span, size, generator=generator), torch.randn(2, 2 * span, size, generator=generator) / 4]
    batch = pack([[7] * length for length in lengths]).rounded(64)
    qkv = torch.randn(len(batch.ids), 3, 2, size, generator=generator) / size**0.25
    # Half precision is packed in pairs. The interpreter has other bits for bfloat16: tests/test_gpu.py has that.
    for dtype, there in ((torch.float32, (1, 1)), (torch.float16, (1, 1)), (torch.float32, (1, 0)), (torch.float16, (0, 1))):
        relative = [table.to(dtype) if one else None for table, one in zip(tables, there)]
        states = qkv.to(dtype)
        exact = PerInput(buckets, 0.0)(states.float(), batch, Relative(*(None if one is None else one.float() for one in relative)), None)
        without = PerInput(buckets, 0.0)(states.float(), batch, Relative(None, None), None)
        found = kernels.attention(states, batch, Relative(*relative), buckets).float()
        bound = 1e-5 if dtype == torch.float32 else 0.01
        torch.testing.assert_close(found, exact, atol=bound, rtol=0, msg=lambda said: f"{lengths} {dtype} {there}: {said}")
        assert lengths == [1] or (without - exact).abs().max() > 0.1
print("all")
"""
# Triton's interpreter asks numpy for a number of an array of one, which newer ones refuse.
PATCHED = """
import triton.runtime.interpreter as interpreter
patch = interpreter._patch_lang_tensor
def patched(tensor, scope):
    patch(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))
interpreter._patch_lang_tensor = patched
"""


@pytest.mark.parametrize("inputs", ["quick", pytest.param("long", marks=pytest.mark.slow)])
def test_the_kernel_gives_what_one_input_at_a_time_gives(inputs):
    pytest.importorskip("triton", reason="Triton is not installed")
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", PATCHED + SCRIPT, inputs], capture_output=True, text=True, timeout=600, cwd=ROOT, env=variables)
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr
