"""The kernel for DeBERTa's scores by Triton's interpreter, which runs it on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import ROOT

# Triton reads TRITON_INTERPRET when it is imported, so that this runs in a process of its own.
SCRIPT = """
import sys
sys.path[:0] = ["tests", "tests/models"]
import torch
from test_fast_models import CPU
from blendkit.models.fast import kernels, rows
from blendkit.models.fast.packing import pack
from blendkit.models.fast.relative import Buckets, Relative

generator = torch.Generator().manual_seed(0)
heads, size = 2, 16
buckets = Buckets(32, 32, 64, CPU)
tables = [torch.randn(heads, 64, size, generator=generator), torch.randn(heads, 64, size, generator=generator) / 4]
whole = kernels.WHOLE
# Of [90, 75] and [1100], inputs are longer than what stays in registers.
quick = (([1], whole), ([90, 75], 64), ([17, 14, 17], whole))
for lengths, most in quick if sys.argv[1] == "quick" else (([128, 103], whole), ([457], whole), ([1100], whole)):
    kernels.WHOLE, kernels.STEP = most, min(1024, 2 * most)
    batch = pack([[7] * length for length in lengths])
    qkv = torch.randn(sum(lengths), 3, heads, size, generator=generator)
    qkv[:, 0] /= 4
    for dtype, relative in ((torch.float32, (1, 1)), (torch.bfloat16, (1, 1)), (torch.float32, (1, 0)), (torch.bfloat16, (0, 1))):
        if len(lengths) == 1 and relative != (1, 1):
            continue
        rounded = [table.to(dtype) for table in tables]
        found, ran = [], []
        # Filled up as on a GPU, and not. What torch gives is in float32, of the same numbers.
        for kernel, filled, kind in ((None, 1, torch.float32), (kernels.softmax, 1, dtype), (kernels.softmax, 16, dtype)):
            given = Relative(*(table.to(kind) if there else None for table, there in zip(rounded, relative)))
            rows.softmax_kernel = lambda device, dtype: kernel and (lambda *given: kernel(*given) or ran.append(1))
            batch.kept.clear()
            made = rows.rows_of(batch, lambda length: 0, 0.5, filled)
            assert len(made) == 1 and made[0].length % filled == 0
            found.append(rows.Batched(buckets, 0.0)(qkv.to(dtype).to(kind), batch, given, None).float())
        assert len(ran) == 2 and found[0].abs().max() > 0.1
        for one in found[1:]:
            bound = 1e-5 if dtype == torch.float32 else 0.03
            torch.testing.assert_close(one, found[0], atol=bound, rtol=0, msg=lambda said: f"{lengths} {dtype} {relative}: {said}")
print("all")
"""


@pytest.mark.parametrize("inputs", ["quick", pytest.param("long", marks=pytest.mark.slow)])
def test_the_kernel_gives_what_torch_gives(inputs):
    pytest.importorskip("triton", reason="Triton is not installed")
    variables = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", SCRIPT, inputs], capture_output=True, text=True, timeout=600, cwd=ROOT, env=variables)
    assert (done.returncode, done.stdout) == (0, "all\n"), done.stderr
