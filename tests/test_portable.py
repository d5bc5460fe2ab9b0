"""What runs everywhere: the pipeline and the streams import where Unix-only modules are missing."""

from __future__ import annotations

import subprocess
import sys

from conftest import ROOT

HIDDEN = ("resource", "fcntl", "pwd", "grp", "termios", "tty", "pty")


def test_the_pipeline_imports_without_unix_only_modules():
    files = [path for room in ("pipeline", "streams") for path in sorted((ROOT / "blendkit" / room).rglob("*.py"))]
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in files]
    assert "blendkit.pipeline.run" in names and "blendkit.streams.manifest" in names
    code = f"""
import importlib, sys
for name in {HIDDEN!r}:
    sys.modules[name] = None
import blendkit, blendkit.cli
for name in {names!r}:
    importlib.import_module(name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
