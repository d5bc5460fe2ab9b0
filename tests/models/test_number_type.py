"""`--dtype auto` on a CPU goes by what a product of the model's shape takes, which is measured once and kept."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import examples, lines

from blendkit.errors import UsageError
from blendkit.models import number_type
from blendkit.models.fast import int8, layers
from blendkit.models.number_type import FILE, VARIABLE, encoder_dtype

CPU = torch.device("cpu")
SHAPE = SimpleNamespace(hidden_size=384, intermediate_size=1536, model_type="bert")


@pytest.fixture
def timed(monkeypatch, tmp_path):
    """`timed(a, b)` gives products a and b seconds, in an empty cache of a process that has measured nothing; it gives back what was measured."""
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def set_to(float32, bfloat16):
        asked = []
        number_type.known.cache_clear()
        times = {"float32": float32, "bfloat16": bfloat16}
        monkeypatch.setattr(number_type, "measured", lambda *shape: asked.append(shape) or times)
        return asked

    yield set_to
    number_type.known.cache_clear()


@pytest.mark.parametrize(
    ("float32", "bfloat16", "auto", "slower"),
    [(1.0, 0.5, "bfloat16", "float32"), (1.0, 0.9, "float32", None), (1.0, 1.1, "float32", None), (1.0, 4.7, "float32", "bfloat16")],
)
def test_auto_takes_the_quicker_type_and_a_slower_one_is_told(timed, float32, bfloat16, auto, slower):
    asked = timed(float32, bfloat16)
    assert encoder_dtype("auto", CPU, SHAPE) == getattr(torch, auto)
    for name in ("float32", "bfloat16"):
        hints: list[str] = []
        assert encoder_dtype(name, CPU, SHAPE, hints) == getattr(torch, name)
        assert len(hints) == (name == slower) and all(hint.startswith(f"--dtype {name}: products") for hint in hints)
    assert asked == [(384, 1536)]


def test_what_was_measured_is_kept_for_later_processes(timed, tmp_path):
    timed(1.0, 0.25)
    encoder_dtype("auto", CPU, SHAPE)
    file = tmp_path / "blendkit" / FILE
    ((key, kept),) = json.loads(file.read_text()).items()
    assert kept == {"float32": 1.0, "bfloat16": 0.25}
    for part in (number_type.processor(), torch.__version__, "384x1536"):
        assert part in key
    asked = timed(1.0, 9.0)
    assert encoder_dtype("auto", CPU, SHAPE) == torch.bfloat16 and not asked
    # Another shape is measured, and the first one stays.
    assert encoder_dtype("auto", CPU, SimpleNamespace(hidden_size=768, intermediate_size=3072, model_type="bert")) == torch.float32 and asked == [(768, 3072)]
    assert len(json.loads(file.read_text())) == 2 and sorted(one.name for one in file.parent.iterdir()) == [FILE, f"{FILE}.lock"]


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "\xff", '{"KEY": 3}', '{"KEY": {"float32": 1.0}}', '{"KEY": {"float32": 0.0, "bfloat16": NaN}}'])
def test_a_broken_cache_is_measured_anew(timed, tmp_path, content):
    asked = timed(1.0, 0.5)
    encoder_dtype("auto", CPU, SHAPE)
    file = tmp_path / "blendkit" / FILE
    (key,) = json.loads(file.read_text())
    file.write_bytes(content.replace("KEY", key).encode("latin-1"))
    number_type.known.cache_clear()
    assert encoder_dtype("auto", CPU, SHAPE) == torch.bfloat16 and len(asked) == 2
    assert json.loads(file.read_text()) == {key: {"float32": 1.0, "bfloat16": 0.5}}


def test_where_nothing_can_be_kept_all_processes_take_float32(timed, tmp_path):
    asked = timed(1.0, 0.5)
    (tmp_path / "blendkit").write_text("a file in the way")
    assert encoder_dtype("auto", CPU, SHAPE) == torch.float32 and not asked


def test_a_clock_that_stands_still_decides_nothing(timed, tmp_path):
    asked = timed(0.0, 0.0)
    assert encoder_dtype("auto", CPU, SHAPE) == torch.float32 and len(asked) == 1
    assert not (tmp_path / "blendkit" / FILE).exists()


def test_what_does_not_run_packed_is_float32(timed):
    asked = timed(1.0, 0.5)
    assert encoder_dtype("auto", CPU, SHAPE, packed=False) == torch.float32
    assert encoder_dtype("auto", CPU, SimpleNamespace(**vars(SHAPE) | {"model_type": "llama"})) == torch.float32 and not asked


def test_processes_that_start_at_once_have_one_measurement(timed, tmp_path, monkeypatch):
    """Who waits for the lock reads what was measured meanwhile."""
    asked = timed(1.0, 0.5)
    encoder_dtype("auto", CPU, SHAPE)
    file = tmp_path / "blendkit" / FILE
    kept = file.read_bytes()
    file.unlink()
    number_type.known.cache_clear()
    read = number_type._read

    def late(path):
        found = read(path)
        path.write_bytes(kept)
        return found

    monkeypatch.setattr(number_type, "_read", late)
    assert encoder_dtype("auto", CPU, SHAPE) == torch.bfloat16 and len(asked) == 1


def test_models_too_small_to_matter_and_gpus_are_not_measured(timed):
    asked = timed(1.0, 0.5)
    for config in (
        SimpleNamespace(**vars(SHAPE) | {"hidden_size": 32}),
        SimpleNamespace(hidden_size=None, model_type="bert"),
        SimpleNamespace(model_type="bert"),
    ):
        assert encoder_dtype("auto", CPU, config) == torch.float32
    assert encoder_dtype("float16", CPU, SHAPE) == torch.float16 and not asked


def test_where_there_are_tiles_int8_says_what_bfloat16_is_worth(monkeypatch):
    monkeypatch.setattr(int8, "has_int8", lambda: True)
    tiny, other = (SimpleNamespace(**vars(SHAPE) | change) for change in ({"hidden_size": 32}, {"model_type": "electra"}))
    for tiles, config, packed, told in (
        (True, SHAPE, True, 1),
        (False, SHAPE, True, 0),
        (True, SHAPE, False, 0),
        (True, tiny, True, 0),
        (True, other, True, 0),
    ):
        monkeypatch.setattr(layers, "has_amx", lambda tiles=tiles: tiles)
        hints: list[str] = []
        assert encoder_dtype("int8", CPU, config, hints, packed) == torch.int8
        assert len(hints) == told and all("--dtype int8: with AMX, as here, bfloat16 may be as quick" in hint for hint in hints)


def test_the_environment_decides_before_any_measurement(timed, monkeypatch):
    asked = timed(1.0, 0.5)
    monkeypatch.setenv(VARIABLE, "float32")
    assert encoder_dtype("auto", CPU, SHAPE) == torch.float32 and not asked
    monkeypatch.setenv(VARIABLE, "float8")
    with pytest.raises(UsageError, match="BLENDKIT_AUTO_DTYPE: expected float32 or bfloat16, got 'float8'"):
        encoder_dtype("auto", CPU, SHAPE)


def test_the_measurement_measures():
    found = number_type.measured(64, 96)
    assert set(found) == {"float32", "bfloat16"} and all(0 <= took < 1 for took in found.values())


def test_a_run_tells_its_type_and_its_slowness(timed, called, tmp_path):
    timed(1.0, 3.0)
    record = lines([record | {"candidates": record["candidates"][:2]} for record in examples(1)])
    told = "blendkit: --dtype bfloat16: products of this model's shape are 3.0 times as fast in float32 on this processor\n"
    manifest = tmp_path / "manifest.json"
    for dtype, lines_told in (("auto", 0), ("bfloat16", 1)):
        for command in (["pair"], ["score", "--metric", "cosine"]):
            code, _, err = called(*command, "--device", "cpu", "--dtype", dtype, "--manifest", manifest, stdin=record)
            said = json.loads(manifest.read_text())
            chosen = "torch.float32" if dtype == "auto" else "torch.bfloat16"
            assert code == 0 and err.count(told.removeprefix("blendkit: ")) == lines_told, err
            assert (said["dtype"] if command == ["pair"] else said["dtypes"]["cosine"]) == chosen


@pytest.mark.parametrize(
    ("capability", "hip", "expected"), [((9, 0), None, "bfloat16"), ((8, 0), None, "bfloat16"), ((7, 5), None, "float16"), ((7, 0), "6.4", "bfloat16")]
)
def test_auto_on_a_gpu_goes_by_the_card_it_runs_on(monkeypatch, capability, hip, expected):
    """torch says of a T4, too, that it supports bfloat16, as it emulates it."""
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    device = torch.device("cuda", 1)
    assert encoder_dtype("auto", device, SHAPE) == getattr(torch, expected)
    assert asked in ([], [device])
