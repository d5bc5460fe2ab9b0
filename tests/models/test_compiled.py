"""torch's compiler keeps its kernels in the user's cache, and says what takes long."""

from __future__ import annotations

import os
import time

import pytest
import torch
from torch._inductor.runtime.cache_dir_utils import cache_dir, default_cache_dir, triton_cache_dir

from blendkit.models.fast import compiled


@pytest.fixture
def environment(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    # As it is once something has imported the compiler.
    monkeypatch.setenv(compiled.KEPT, default_cache_dir())
    return monkeypatch


def test_kernels_are_kept_in_the_users_cache_unless_the_environment_says_otherwise(environment, tmp_path):
    environment.delenv("TRITON_CACHE_DIR", raising=False)
    compiled.keep_kernels()
    assert cache_dir() == str(tmp_path / "blendkit" / "kernels")
    # Triton's, too.
    assert triton_cache_dir(0).startswith(cache_dir())
    environment.setenv(compiled.KEPT, str(tmp_path / "own"))
    compiled.keep_kernels()
    assert cache_dir() == str(tmp_path / "own")
    environment.delenv(compiled.KEPT)
    (tmp_path / "file").write_text("")
    environment.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    compiled.keep_kernels()
    assert compiled.KEPT not in os.environ


@pytest.mark.parametrize("soon", [0.0, 60.0])
def test_a_compilation_that_takes_long_is_told(environment, capfd, soon):
    environment.setattr(compiled, "SOON", soon)
    seen = []

    def backend(graph, inputs):
        time.sleep(0.1)
        seen.append(graph)
        return graph.forward

    environment.setattr(torch, "compile", lambda function, compile=torch.compile, **how: compile(function, backend=backend, **how))
    double = compiled.compiled(lambda x: x * 2)
    for length in (3, 5, 7):
        assert double(torch.ones(length)).sum() == 2 * length
    told = [line for line in capfd.readouterr().err.splitlines() if "compiling" in line]
    assert len(seen) == 1
    if soon:
        assert told == []
    else:
        folder = os.environ[compiled.KEPT]
        assert told == [f"blendkit: compiling kernels for this device, once; later runs find them in {folder}", "blendkit: compiling, once: 0 s"]
