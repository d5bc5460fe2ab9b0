"""The Python functions: the whole of the command line, with named arguments, and an error for every one that has no effect."""

from __future__ import annotations

import inspect
import re
from importlib import import_module

import pytest
from conftest import examples, lines
from signatures import assert_same_arguments

import blendkit as library
from blendkit.commands.options import ENDPOINTS, ENGINE_FLAGS, SHARED
from blendkit.errors import UsageError
from blendkit.fusers import BY_CONFIG, FUSERS, make_fuser
from blendkit.generators.options import EndpointOptions
from blendkit.judges import JUDGES, make_judge
from blendkit.registry import Registry, options_of
from blendkit.scorers import SCORERS, make_scorer

STAGES = ("generate", "score", "pair", "rank", "fuse", "judge")
# A command's stream, its processes and its lists.
OUTSIDE = {*SHARED, *ENGINE_FLAGS, "list_presets", "list_metrics", "list_columns", "form", "intervals"} - {
    "device",
    "dtype",
    "seed",
    "window",
    "batch_tokens",
    "attention",
    "self_check",
}
URL = "http://127.0.0.1:9/v1"
NOWHERE = EndpointOptions(base_url=URL)


@pytest.mark.parametrize("name", [*STAGES, "evaluate"])
def test_the_functions_take_what_the_commands_take(name):
    assert_same_arguments(getattr(import_module(f"blendkit.commands.{name}"), name), getattr(library, name), OUTSIDE)


def test_the_flags_of_endpoints_are_the_fields_of_its_options():
    fields = vars(EndpointOptions())
    assert set(ENDPOINTS) == set(fields) - {"asked", "named", "own", "purse"}
    assert all(fields[name] == default for name, (_, default) in ENDPOINTS.items())


@pytest.mark.parametrize("name", [*STAGES, "evaluate", "train_ranker", "train_fuser"])
def test_every_argument_is_typed_and_told(name):
    function = getattr(library, name)
    parameters = inspect.signature(function).parameters
    assert all(parameter.annotation is not parameter.empty for parameter in parameters.values())
    assert not any(parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL) for parameter in parameters.values())
    told = re.findall(r"^        (\w+): (.*)", function.__doc__.partition("Args:")[2].partition("Raises:")[0], re.MULTILINE)
    assert [argument for argument, _ in told] == list(parameters)[: len(told)]
    # What many functions share is told in one of them.
    assert len(told) == len(parameters) or re.match("this and all that follow are as in `(generate|train_ranker)`", told[-1][1])


def test_an_unknown_argument_gets_the_nearest_name():
    for function, wrong, near in (
        (library.fuse, "num_beam", "num_beams"), (library.generate, "max_tokens", "max_new_tokens"), (library.score, "bertscore_layers", "bertscore_layer"),
        (library.pair, "shedule", "schedule"), (library.rank, "agregate", "aggregate"), (library.judge, "promt", "prompt"),
        (library.train_ranker, "num_steps", "steps"),
    ):  # fmt: skip
        with pytest.raises(TypeError) as error:
            function([], **{wrong: 8})
        assert str(error.value) == f"{function.__name__}() has no argument {wrong!r}; did you mean {near!r}?"
    with pytest.raises(TypeError, match=r"has no argument 'zzz'$"):
        library.fuse([], zzz=1)


def test_the_defaults_that_the_help_shows_are_the_kinds_own():
    for registry, command in ((FUSERS, "fuse"), (JUDGES, "judge")):
        defaults = {}
        for row in registry.own.values():
            defaults |= {name: parameter.default for name, parameter in inspect.signature(row.load().__init__).parameters.items()}
        shown = 0
        for name, parameter in inspect.signature(getattr(import_module(f"blendkit.commands.{command}"), command)).parameters.items():
            (option,) = [data for data in getattr(parameter.annotation, "__metadata__", ()) if hasattr(data, "show_default")]
            if isinstance(option.show_default, str) and name in defaults and name not in ("model", "name", "max_new_tokens"):
                default = defaults[name]
                assert option.show_default == (f"{default:g}" if isinstance(default, float) else str(default)), name
                shown += 1
        assert shown >= 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("fuse --beams 4", "--num-beams: consensus has no such option; GenFuser has"),
        ("fuse --show-ranks", "--show-ranks: consensus has no such option; ChatFuser has"),
        ("fuse --max-new-tokens 9", "--max-new-tokens: consensus has no such option; GenFuser and ChatFuser have"),
        ("fuse --base-url http://127.0.0.1:9/v1", "--base-url: consensus has no such option; ChatFuser has"),
        ("fuse -m openai:x --base-url http://127.0.0.1:9/v1 --beams 2", "--num-beams: ChatFuser has no such option; GenFuser has"),
        ("fuse -m consensus:x", None),
        ("judge --verdict-by text", "--verdict-by: embedded has no such option; LLM has"),
        ("judge --retries 2", "--retries: embedded has no such option; LLM has"),
        ("judge --prompt pairwise", "--prompt: embedded has no such option; LLM has"),
        ("score --metric bleu --metric length --bertscore-layer 3", "--bertscore-layer: bleu and length have no such option; bertscore"),
        ("score --metric mbr:rouge2 --bertscore-idf {stream}", "--bertscore-idf: mbr has no such option; bertscore"),
        ("generate --timeout 3", "--timeout: local has no such option; openai has"),
        (
            "generate -m openai:x --base-url http://127.0.0.1:9/v1 --trust-remote-code",
            "--trust-remote-code: openai has no such option; local, smollm2 and vllm have",
        ),
    ],
)
def test_an_option_of_another_kind_is_refused(called, tmp_path, arguments, said):
    stream = tmp_path / "stream.jsonl"
    stream.write_text(lines([record | {"top": [0, 1]} for record in examples(1)]))
    code, out, err = called(*arguments.format(stream=stream).split(), stdin=stream.read_text())
    if said is None:
        assert code == 66
        return
    assert (code, out) == (2, ""), err
    assert err.startswith(f"blendkit {arguments.split()[0]}: {said}") and err.count("\n") == 1


def test_an_option_that_was_left_at_its_default_is_silent(called):
    stream = lines([record | {"top": [0, 1]} for record in examples(1)])
    for command in ("fuse", "judge"):
        code, out, err = called(command, "-q", stdin=stream)
        assert (code, err) == (0, "") and out


def test_an_option_goes_to_those_that_have_it(called):
    metrics = ["bleu", "bertscore", "mbr:rouge2", "mbr:bertscore"]
    first, second = (list(library.score(examples(1), [m for m in metrics if m != "mbr:rouge2"], bertscore_layer=layer, device="cpu")) for layer in (1, 5))
    for one, other in zip(first[0]["candidates"], second[0]["candidates"], strict=True):
        assert [name for name in one["scores"] if one["scores"][name] != other["scores"][name]] == ["bertscore", "mbr"]
    # One metric that has it is enough, beside one that has it not.
    list(library.score(examples(1), ["bertscore", "mbr:rouge2"], bertscore_layer=1, device="cpu"))
    make_judge(["embedded", "openai:x"], prompt="pairwise", endpoint=NOWHERE)


def test_the_makers_refuse_as_the_commands_do():
    for make in (lambda: make_scorer("bleu", bertscore_layer=1), lambda: make_fuser(show_scores=False), lambda: make_judge(endpoint=NOWHERE)):
        with pytest.raises(UsageError, match="no such option"):
            make()
    for make in (make_scorer, make_fuser, make_judge):
        with pytest.raises(TypeError, match="unexpected keyword"):
            make("embedded", beam=3)


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        ("generate", {"models": ["openai:x"], "base_url": URL, "max_new_tokens": 0}, "max_new_tokens: expected at least 1, got 0"),
        ("generate", {"models": ["openai:x"], "base_url": URL, "temperature": float("nan")}, "temperature: expected at least 0, got nan"),
        ("generate", {"models": ["openai:x"], "base_url": URL, "top_p": 1.5}, "top_p: expected at most 1, got 1.5"),
        ("generate", {"models": ["openai:x"], "base_url": URL, "num_return": 0}, "num_return: expected at least 1, got 0"),
        ("fuse", {"model": "openai:x", "base_url": URL, "layers": 0}, "layers: expected at least 1, got 0"),
        ("judge", {"model": []}, "-m: expected at least one judge"),
        ("fuse", {"model": []}, "expected at least one model"),
        ("rank", {"top": 0}, "--top 0: expected at least 1"),
    ],
)
def test_a_number_out_of_range_is_refused(function, arguments, said):
    with pytest.raises(UsageError, match=re.escape(said)):
        next(getattr(library, function)([{"id": "a", "instruction": "x"}], **arguments), None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("fuse -m consenus", "did you mean consensus?"), ("judge -m embeded", "did you mean embedded?"), ("generate -m vicunna", "did you mean vicuna?")],
)
def test_a_model_that_is_nearly_a_name(called, arguments, said):
    code, _, err = called(*arguments.split(), stdin=lines([record | {"top": [0, 1]} for record in examples(1)]))
    assert code == 66 and err.endswith(f"{said}\n")


def test_every_row_can_be_loaded_and_says_what_it_is():
    from blendkit.generators.factory import GENERATORS

    tables = {"scorers": SCORERS, "fusers": FUSERS, "judges": JUDGES, "generators": GENERATORS}
    for name, table in tables.items():
        assert isinstance(table, Registry) and table.group == f"blendkit.{name}"
        for row in table.own.values():
            kind = row.load()
            assert isinstance(kind, type) and row.target == f"{kind.__module__}:{kind.__qualname__}"
            assert options_of(kind, "bertscore") and kind.__doc__
    assert set(BY_CONFIG) <= set(FUSERS)
    assert all(row.about or row.form for table in (FUSERS, JUDGES, GENERATORS) for row in table.own.values())


def test_the_readmes_python_runs():
    text = (import_module("conftest").ROOT / "README.md").read_text()
    found = re.findall(r"(?m)^    import blendkit$(?:\n    .*)*", text)
    assert found
    for code in found:
        scope = {"records": examples(2)}
        exec("\n".join(line[4:] for line in code.splitlines()), scope)
        assert all(len(record["top"]) == 3 for record in scope["ranked"])
