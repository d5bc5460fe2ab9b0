"""`--models-file FILE`: what belongs to a model is said once, in a table of its name."""

from __future__ import annotations

import json

import pytest
from conftest import lines, parsed

import blendkit as library
from blendkit.errors import DataError, EndpointError, UsageError
from blendkit.generators.factory import chosen
from blendkit.generators.limits import CostLimit, Meter, Purse
from blendkit.generators.models_file import load_models
from blendkit.generators.options import EndpointOptions
from blendkit.specs import split_name

KEYS = {"FIRST_KEY": "sk-first-qvxzjkwy-qvxzjkwy", "SECOND_KEY": "sk-second-wjqzxkvy-wjqzxkvy", "OPENAI_API_KEY": "sk-of-the-run-zzxxqqjjvv"}


@pytest.fixture
def written(tmp_path):
    """Writes a models.toml, and gives its path."""

    def write(text: str) -> str:
        path = tmp_path / "models.toml"
        path.write_text(text)
        return str(path)

    return write


def prompts(*texts):
    return lines([{"id": str(number), "instruction": text} for number, text in enumerate(texts)])


def test_three_servers_two_keys_and_two_prices_are_one_run(called, serve, written, tmp_path, monkeypatch):
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    first, second, third = (serve(reply=lambda body, number=number: f"answer {number} of {body['model']}") for number in (1, 2, 3))
    path = written(f"""
        [gpt]
        model = "openai:big"
        base_url = "{first.url}"
        key_env = "FIRST_KEY"
        price_in = 100
        price_out = 1000
        [claude]
        model = "openai:other@{second.url}"
        key_env = "SECOND_KEY"
        price_in = 1
        extra_header = {{"X-Title" = "blend"}}
        extra_body = {{top_k = 7}}
        temperature = 0
        system = "Be brief."
        [llama]
        model = "openai:llama3"
        base_url = "{third.url}"
    """)
    out, manifest = tmp_path / "out.jsonl", tmp_path / "manifest.json"
    code, _, said = called("generate", "--models", path, "-o", out, "--manifest", manifest, "--max-new-tokens", 9, stdin=prompts("a", "b"))
    assert code == 0, said
    records = parsed(out.read_text())
    assert [[one["model"] for one in record["candidates"]] for record in records] == [["gpt", "claude", "llama"]] * 2
    assert [one["text"] for one in records[1]["candidates"]] == ["answer 1 of big", "answer 2 of other", "answer 3 of llama3"]
    assert [one["usage"].get("cost") for one in records[0]["candidates"]] == [(10 * 100 + 5 * 1000) / 1e6, 10 / 1e6, None]
    assert [one["decoding_method"] for one in records[0]["candidates"]] == ["sampling(temperature=0.7)", "greedy", "sampling(temperature=0.7)"]
    assert [body.get("top_k") for server in (first, second, third) for body in server.bodies] == [None, None, 7, 7, None, None]
    assert [body["messages"][0]["role"] for server in (first, second) for body in server.bodies] == ["user", "user", "system", "system"]
    told = json.loads(manifest.read_text())["models"]
    assert {name: model["base_url"] for name, model in told.items()} == {"gpt": first.url, "claude": second.url, "llama": third.url}
    # Each key is at its own server, and nowhere else.
    assert all(f"Bearer {KEYS['FIRST_KEY']}" in head for head in first.headers)
    assert all(f"Bearer {KEYS['SECOND_KEY']}" in head and "X-Title: blend" in head for head in second.headers)
    assert not any("authorization" in head.lower() for head in third.headers)
    places = {"first": first, "second": second, "third": third}
    logs = {name: str(server.headers) + str(server.bodies) for name, server in places.items()}
    logs |= {file.name: file.read_bytes().decode(errors="replace") for file in tmp_path.iterdir()} | {"stderr": said}
    for variable, value in KEYS.items():
        having = [name for name, text in logs.items() if value in text]
        assert having == {"FIRST_KEY": ["first"], "SECOND_KEY": ["second"]}.get(variable, [])
    assert f"openai:big at {first.url}: 2 answers for ${2 * 0.006:.4f}" in said
    # The cache is one file, and has the answers of all.
    asked = sum(len(server.bodies) for server in places.values())
    code, _, said = called(
        "generate", "--models", path, "-o", tmp_path / "again.jsonl", "--cache", f"{out}.cache.sqlite", "--max-new-tokens", 9, stdin=prompts("a")
    )
    assert code == 0, said
    assert sum(len(server.bodies) for server in places.values()) == asked


def test_names_choose_tables_rename_them_and_stand_beside_other_specs(called, serve, written, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    one, two = serve(), serve()
    path = written(f'[a]\nmodel = "openai:x"\nbase_url = "{one.url}"\n[b]\nmodel = "openai:y"\nbase_url = "{one.url}"\n')
    code, out, said = called(
        "generate", "--models", path, "-m", "b", "-m", "c=a", "-m", f"d=openai:z@{two.url}", "-m", f"openai:@v2@{two.url}", stdin=prompts("p")
    )
    assert code == 0, said
    assert [each["model"] for each in parsed(out)[0]["candidates"]] == ["b", "c", "d", f"openai:@v2@{two.url}"]
    assert [body["model"] for body in one.bodies] in (["y", "x"], ["x", "y"]) and {body["model"] for body in two.bodies} == {"z", "@v2"}
    code, _, said = called("generate", "--models", path, "-m", "ab", stdin=prompts("p"))
    assert code == 66 and "no model 'ab'" in said
    path = written(f'[large]\nmodel = "openai:x"\nbase_url = "{one.url}"\n')
    code, _, said = called("generate", "--models", path, "-m", "lagre", stdin=prompts("p"))
    assert code == 66 and "did you mean large?" in said


def test_flags_are_the_defaults_and_a_table_stands_above_them(written):
    path = written('[a]\nmodel = "openai:x"\nconcurrency = 32\nprice_in = 1\nextra_body = {b = 2}\n[b]\nmodel = "openai:y"\n')
    run = EndpointOptions(models_file=path, concurrency=4, price_in=5.0, price_out=6.0, timeout=3.0, extra_body={"a": 1, "b": 1}, retries=0)
    one, two = (chosen(name, run).endpoint for name in "ab")
    assert (one.concurrency, one.price_in, one.price_out, one.timeout, one.extra_body) == (32, 1.0, None, 3.0, {"a": 1, "b": 2})
    assert (two.concurrency, two.price_in, two.price_out, two.extra_body) == (4, 5.0, 6.0, {"a": 1, "b": 1})
    from blendkit.generators.generating import Generating

    stage = Generating([], endpoint=EndpointOptions(base_url="http://127.0.0.1:9/v1", models_file=path))
    assert stage.window == 4 * 32 and list(stage.models) == ["a", "b"]
    shared = EndpointOptions(models_file=path, max_cost=6.0, price_in=1.0).share(4)
    assert (shared.max_cost, shared.concurrency, shared.named["a"].endpoint["concurrency"], shared.named["a"].place) == (1.5, 2, 8, f"{path}: a")


@pytest.mark.parametrize(
    ("asked", "effort", "used"), [({}, "low", "low"), ({"effort": "high"}, "low", "high"), ({}, None, None)], ids=["table", "flag", "none"]
)
def test_the_effort_of_a_table_stands_below_the_flag(written, asked, effort, used):
    from blendkit.generators.options import Sampling

    path = written('[a]\nmodel = "openai:x"\n' + (f'reasoning_effort = "{effort}"\n' if effort else ""))
    assert chosen("a", EndpointOptions(models_file=path)).sampling(Sampling(**asked)).effort == used


def test_fuse_and_judge_take_tables(called, serve, written, monkeypatch):
    monkeypatch.setenv("FIRST_KEY", KEYS["FIRST_KEY"])
    server = serve(reply=lambda body: "A")
    path = written(f'[wise]\nmodel = "openai:x"\nbase_url = "{server.url}"\nkey_env = "FIRST_KEY"\nextra_body = {{top_k = 3}}\n')
    record = {"id": "1", "instruction": "i", "output": "o", "top": [0, 1], "candidates": [{"model": "m", "text": "one"}, {"model": "n", "text": "two"}]}
    code, out, said = called("fuse", "--models", path, "-m", "wise", stdin=lines([record]))
    assert code == 0, said
    assert parsed(out)[0]["candidates"][-1]["model"] == "wise"
    code, out, said = called("judge", "--models", path, "-m", "wise", stdin=lines([record]))
    assert code == 0, said
    assert list(parsed(out)[0]["verdicts"]) == ["wise"]
    assert all(body["top_k"] == 3 and "wise" not in json.dumps(body) for body in server.bodies)
    assert all(KEYS["FIRST_KEY"] in head for head in server.headers)


def test_a_local_model_has_a_table_and_nothing_of_a_server(called, written, tiny_chat):
    path = written(f'[small]\nmodel = "{tiny_chat}"\nmax_new_tokens = 3\ntemperature = 0\n')
    code, out, said = called("generate", "--models", path, stdin=prompts("hello"))
    assert code == 0, said
    (candidate,) = parsed(out)[0]["candidates"]
    assert (candidate["model"], candidate["decoding_method"]) == ("small", "greedy") and candidate["usage"]["completion_tokens"] <= 3
    path = written(f'[small]\nmodel = "{tiny_chat}"\nprice_in = 3\n')
    code, _, said = called("generate", "--models", path, stdin=prompts("hello"))
    assert code == 2 and f"{path}: small: price_in is for a model behind a server" in said
    code, _, said = called("generate", "--models", path, "--concurrency", 3, "-m", str(tiny_chat), stdin=prompts("hello"))
    assert code == 2 and "--concurrency: local has no such option" in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expected a table a model"),
        ("model = 'x'", "model: expected a table"),
        ("[a]\n", "a.model: expected a value, but the field is missing"),
        ("[a]\nmodel = 5", "a.model: expected a string, got an integer"),
        ("[a]\nmodel = 'x'\nprise_in = 5", "a.prise_in: there is no such setting; did you mean price_in?"),
        ("[a]\nmodel = 'x'\napi_key = 'sk-planted-0123456789'", "a.api_key: a key is never written into a file; key_env names"),
        ("[a]\nmodel = 'x'\nprice_in = nan", "a.price_in: expected a finite number"),
        ("[a]\nmodel = 'x'\nprice_in = -1", "a.price_in: expected a number >= 0"),
        ("[a]\nmodel = 'x'\nconcurrency = 0", "a.concurrency: expected an integer >= 1"),
        ("[a]\nmodel = 'x'\nconcurrency = true", "a.concurrency: expected an integer"),
        ("[a]\nmodel = 'x'\napi = 'chats'", "a.api: "),
        ("[a]\nmodel = 'x'\nbase_url = 'localhost:8000/v1'", "a.base_url: localhost:8000/v1: expected http://HOST:PORT/v1 or the like; did you mean http://"),
        ("[a]\nmodel = 'x'\nextra_header = {'X-A' = 'b\\nc'}", "no TOML"),
        ('[a]\nmodel = "x"\nextra_header = {"X-A" = "b\\nc"}', "a.extra_header X-A: the value has line breaks"),
        ('[a]\nmodel = "x"\nextra_body = {messages = ["x"]}', "a.extra_body: messages: the prompt is blendkit's own"),
        ('[a]\nmodel = "x"\nextra_body = {when = 2020-01-01}', "a.extra_body: it cannot be written as JSON"),
        ('[a]\nmodel = "x"\nextra_body = {when = inf}', "a.extra_body: a number in it is not finite"),
        ('["a=b"]\nmodel = "x"', "a model's name is printable"),
        ("[a]\nmodel = ", "not TOML"),
        ("[a]\nmodel = 'x'\nx = " + "[" * 5000, "not TOML"),
    ],
)
def test_what_is_wrong_in_a_file_has_its_place(written, text, said):
    path = written(text)
    if said == "no TOML":
        assert load_models(path)["a"].endpoint["extra_header"][0].value == "b\\nc"
        return
    with pytest.raises(DataError) as raised:
        load_models(path)
    assert str(raised.value).startswith(f"{path}: ") and said in str(raised.value)
    assert "planted" not in str(raised.value)


def test_a_file_that_is_not_there(called, tmp_path):
    code, _, said = called("generate", "--models", tmp_path / "no.toml", stdin=prompts("a"))
    assert code == 66 and "no.toml: No such file or directory" in said


def test_two_addresses_of_one_model(written):
    path = written('[a]\nmodel = "openai:x@http://h/v1"\nbase_url = "http://g/v1"\n')
    with pytest.raises(UsageError, match="a: two addresses"):
        chosen("a", EndpointOptions(models_file=path))


@pytest.mark.parametrize(
    ("model", "parts"),
    [
        ("a=openai:x", ("a", "openai:x")),
        ("openai:x", ("", "openai:x")),
        ("a=openai:x@http://h/v1?b=c", ("a", "openai:x@http://h/v1?b=c")),
        ("openai:x@https://h/v1?api-version=2", ("", "openai:x@https://h/v1?api-version=2")),
        ("a@b=openai:x@y", ("a@b", "openai:x@y")),
    ],
)
def test_a_name_ends_before_the_address(model, parts):
    assert split_name(model, "-m") == parts


def test_the_password_of_an_address_is_no_part_of_a_name(called, serve):
    server = serve()
    code, out, said = called("generate", "-m", "openai:x@" + server.url.replace("//", "//me:pass-of-mine-123@"), stdin=prompts("a"))
    assert code == 0, said
    assert parsed(out)[0]["candidates"][0]["model"] == f"openai:x@{server.url}"
    assert "Authorization: Basic" in server.headers[0]


def test_all_models_spend_from_one_purse(serve, written):
    server = serve()
    path = written('[a]\nmodel = "openai:x"\n[b]\nmodel = "openai:y"\n[free]\nmodel = "openai:z"\nprice_in = 0\n')
    options = {"base_url": server.url, "models_file": path, "concurrency": 1, "price_out": 100_000, "price_in": 0, "max_cost": 2.0}
    # An answer costs $0.5, and one on its way $1: the third would exceed it, whichever model's it is.
    records = [{"id": str(number), "instruction": f"p{number}"} for number in range(4)]
    with pytest.raises(CostLimit, match=r"--max-cost 2: \$1\.[05]000 are spent"):
        list(library.generate(records, [], max_new_tokens=10, **options))
    assert sum(body["model"] != "z" for body in server.bodies) <= 3
    # Another run has a purse of its own.
    assert len(list(library.generate(records[:1], ["a"], max_new_tokens=10, **options))) == 1
    with pytest.raises(UsageError, match="--max-cost needs"):
        list(library.generate(records, ["free", "a"], base_url=server.url, models_file=path, max_cost=1.0))


def test_a_model_may_have_a_purse_of_its_own(serve, written):
    server = serve()
    path = written('[a]\nmodel = "openai:x"\nprice_out = 100000\nmax_cost = 0.5\n')
    options = {"base_url": server.url, "models_file": path}
    with pytest.raises(EndpointError, match=r"a: max_cost 0\.5: \$0\.0000 are spent"):
        list(library.generate([{"instruction": "p"}], [], max_new_tokens=10, **options))


def test_a_batch_file_is_for_one_model(called, tmp_path):
    code, _, said = called("generate", "-m", "openai:x", "-m", "openai:y", "--emit-batch", tmp_path / "batch.jsonl", stdin=prompts("a"))
    assert code == 2 and "a batch is for one model; write one file a model" in said


def test_what_one_purse_refuses_the_other_gets_back():
    small, large = Purse(1.0, "small"), Purse(10.0, "large")
    meter = Meter(0.0, 1e6, large, small)
    assert "small" in str(meter.reserve(0, 2)) and large.promised == 0
    assert meter.reserve(0, 1) is None and (large.promised, small.promised) == (1.0, 1.0)
    meter.settle((0, 1), (0, 1))
    assert (large.spent, small.spent, large.promised, meter.spent) == (1.0, 1.0, 0.0, 1.0)
