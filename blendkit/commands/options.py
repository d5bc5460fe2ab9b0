"""The flags that every command shares, declared once and given to each as one `RunOptions`."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import wraps
from typing import Annotated, Any

import orjson
import typer
from typer.models import OptionInfo

from blendkit.credentials import Secrets, hold, in_urls
from blendkit.generators.extra_body import extra_body_of
from blendkit.generators.models_file import Entry
from blendkit.generators.options import EndpointOptions
from blendkit.pipeline.engines.options import AUTO, ENGINES, EngineOptions
from blendkit.pipeline.run import RunOptions
from blendkit.registry import Registry, flag_of
from blendkit.streams.files import file_hash, one_role_each, roles_of
from blendkit.streams.lines import MAX_LINE_BYTES

# Own flags of commands that decide no record's content, and those of endpoints that do; a model's address stands beside the model.
NO_MATTER = ("list_presets", "list_metrics", "max_unparsed", "on_truncate")
ENDPOINTS_MATTER = ("api", "extra_body")

STREAM, COMPUTE, ENGINE, REPORT = "Stream", "Computing", "Engine", "Reporting"
# The stages' own `window`, told in one line for all; a test holds it to them.
WINDOWS = "pair 8, score and judge 16, generate and fuse 32 (more for servers and large batches and on GPUs), others 64"

SHARED: dict[str, tuple[Any, Any]] = {
    "input": (Annotated[str | None, typer.Option("-i", "--input", help="Read this file (.gz, .zst) instead of stdin.", rich_help_panel=STREAM)], None),
    "shard": (
        Annotated[
            str | None,
            typer.Option(help="Only part I of N, as I/N from 0, by a hash of the id; slurm, slurm/N or k8s/N inside such a job.", rich_help_panel=STREAM),
        ],
        None,
    ),
    "max_line_bytes": (
        Annotated[int, typer.Option(help="A longer line is a bad one.", min=1, rich_help_panel=STREAM, show_default="32 MB")],
        MAX_LINE_BYTES,
    ),
    "output": (Annotated[str | None, typer.Option("-o", "--output", help="Write this file (.gz, .zst) instead of stdout.", rich_help_panel=STREAM)], None),
    "resume": (
        Annotated[
            str | None,
            typer.Option(
                "--resume",
                help="Add the records that -o FILE does not have yet, by their ids, and do edited ones again. Other flags or models than before are "
                "refused; --resume=force goes on all the same.",
                rich_help_panel=STREAM,
                metavar="[=force]",
            ),
        ],
        None,
    ),
    "on_error": (Annotated[str, typer.Option(help="A bad record: `fail` at the first, or `skip` them.", rich_help_panel=STREAM)], "fail"),
    "rejects": (Annotated[str | None, typer.Option(help="With --on-error skip: bad lines go here, with the reason.", rich_help_panel=STREAM)], None),
    "window": (
        Annotated[int | None, typer.Option(help="Records in flight; output comes a window at a time.", rich_help_panel=STREAM, show_default=WINDOWS)],
        None,
    ),
    "batch_tokens": (
        Annotated[
            int | None, typer.Option(help="Tokens a batch; halved by itself when memory runs out.", rich_help_panel=COMPUTE, show_default="the command's own")
        ],
        None,
    ),
    "device": (Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N or mps.", rich_help_panel=COMPUTE)], "auto"),
    "dtype": (
        Annotated[
            str, typer.Option(help="auto, float32, bfloat16, float16, or int8 (pair, and scorers that read an encoder, on a CPU).", rich_help_panel=COMPUTE)
        ],
        "auto",
    ),
    "attention": (
        Annotated[
            str,
            typer.Option(
                help="How packed encoders attend: flex, varlen, batched, per-input, or auto: by the device and the encoder (docs/performance.md).",
                rich_help_panel=COMPUTE,
            ),
        ],
        "auto",
    ),
    "self_check": (
        Annotated[
            bool,
            typer.Option(
                "--self-check/--no-self-check",
                help="On a GPU, hold two inputs of the first batch to the plain form in float32.",
                rich_help_panel=COMPUTE,
            ),
        ],
        True,
    ),
    "seed": (Annotated[int, typer.Option(help="Fixes every random choice.", rich_help_panel=COMPUTE)], 0),
    "manifest": (Annotated[str | None, typer.Option(help="Write what ran, with which models and counts, to this JSON file.", rich_help_panel=REPORT)], None),
    "progress": (Annotated[str, typer.Option(help="auto (a bar on a terminal), bar, json or none.", rich_help_panel=REPORT)], "auto"),
    "quiet": (Annotated[bool, typer.Option("-q", "--quiet", help="No progress.", rich_help_panel=REPORT)], False),
    "debug": (Annotated[bool, typer.Option("--debug", help="Show the traceback of a fault.", rich_help_panel=REPORT)], False),
}


# For commands that run models or ask endpoints.
ENGINE_FLAGS: dict[str, tuple[Any, Any]] = {
    "threads": (
        Annotated[
            str,
            typer.Option(
                help="Threads that compute on the CPU: a number, or auto, which is all cores, a batch at a time in turns with your other stages "
                "that run on them.",
                rich_help_panel=COMPUTE,
            ),
        ],
        AUTO,
    ),
    "engine": (Annotated[str, typer.Option(help=f"{ENGINES.explained()}.", rich_help_panel=ENGINE)], "local"),
    "workers": (
        Annotated[int, typer.Option(help="Model replicas, each in a process of its own where there are several.", min=1, rich_help_panel=ENGINE)],
        1,
    ),
    "cpus_per_worker": (
        Annotated[float | None, typer.Option(help="CPU cores of a worker.", show_default="an equal share; 1 for Ray", min=0, rich_help_panel=ENGINE)],
        None,
    ),
    "gpus_per_worker": (
        Annotated[float | None, typer.Option(help="GPUs of a Ray worker.", show_default="1, or an equal share", min=0, rich_help_panel=ENGINE)],
        None,
    ),
    "ray_address": (
        Annotated[str | None, typer.Option(help="A running cluster (auto, HOST:PORT or ray://…).", show_default="one is started here", rich_help_panel=ENGINE)],
        None,
    ),
}

ENDPOINT = "Endpoints (openai:MODEL)"


def _endpoint(kind: Any, text: str, *names: str, **more: Any) -> Any:
    return Annotated[kind, typer.Option(*names, help=text, rich_help_panel=ENDPOINT, **more)]


ENDPOINTS: dict[str, tuple[Any, Any]] = {
    "base_url": (_endpoint(str | None, "The server; OPENAI_BASE_URL otherwise. A model's own stands behind it: openai:MODEL@URL."), None),
    "key_env": (
        _endpoint(
            list[str] | None,
            "The environment's variable with the key, as NAME, or MODEL=NAME for one model. May be given several times.",
            show_default="OPENAI_API_KEY",
        ),
        None,
    ),
    "extra_header": (
        _endpoint(
            list[str] | None,
            "NAME:VALUE, a header of every request; VALUE env:VARIABLE is read from the environment. May be given several times.",
        ),
        None,
    ),
    "extra_body": (_endpoint(str | None, "A JSON object whose fields are added to every request, above blendkit's own; null leaves one out."), None),
    "api": (_endpoint(str, "chat, or completions (a plain text, by the preset's format where there is one)."), "chat"),
    "concurrency": (_endpoint(int, "Requests at a time.", min=1), 8),
    "requests_per_minute": (_endpoint(int | None, "At most so many requests a minute.", min=1), None),
    "tokens_per_minute": (_endpoint(int | None, "At most so many tokens a minute, prompt and the most that may be written.", min=1), None),
    "retries": (_endpoint(int, "Retries, with backoff and as Retry-After says, before the server counts as gone.", min=0), 5),
    "timeout": (_endpoint(float, "Seconds to wait for one answer, to its last byte."), 120.0),
    "max_wait": (_endpoint(float, "Seconds that a server may ask to be left alone (Retry-After); longer ends the run.", min=0.0), 600.0),
    "max_body_bytes": (_endpoint(int, "A longer answer, decompressed, is a bad one.", min=1, show_default="64 MB"), EndpointOptions.max_body_bytes),
    "cache": (
        _endpoint(str | None, "Keep answers in this SQLite file, and ask no question twice; `none` keeps none.", show_default="OUTPUT.cache.sqlite with -o"),
        None,
    ),
    "price_in": (_endpoint(float | None, "$ a million tokens of prompt: adds `cost` to usage.", min=0.0), None),
    "price_out": (_endpoint(float | None, "$ a million tokens of answer.", min=0.0), None),
    "max_cost": (_endpoint(float | None, "Stop before this many $, of all models together, are exceeded.", min=0.0), None),
    "emit_batch": (_endpoint(str | None, "Ask nothing: write the requests to this file, in the OpenAI batch format."), None),
    "read_batch": (
        _endpoint(
            list[str] | None,
            "Take the answers from this file, the output of such a batch; it may be given several times. With --emit-batch, what has no "
            "usable answer there is written as the next batch.",
        ),
        None,
    ),
    # The last: a model that it names has a use for it, whatever the model is.
    "models_file": (
        _endpoint(
            str | None,
            "A TOML file with a table [NAME] a model: where it is, its key, price and limits; -m NAME then means it.",
            "--models-file",
            "--models",
        ),
        None,
    ),
}


def reasoning_effort(panel: str, shown: str | bool = False) -> Any:
    """The option `--reasoning-effort`; `shown` is its default in words."""
    text = "How much a model that reasons shall do so: none, low, medium, high. Its tokens (0, 1024, 4096, 16384) are beside --max-new-tokens."
    return typer.Option(help=text, show_default=shown, rich_help_panel=panel)


def on_truncate(panel: str | None) -> Any:
    """The option `--on-truncate` of a prompt that quotes texts."""
    text = "A prompt longer than a local model reads: `warn` (as without it: cut its longest texts, say so at the end) or `fail`."
    return typer.Option(help=text, show_default=False, rich_help_panel=panel)


def max_unparsed(what: str, panel: str | None = None) -> Any:
    """The option `--max-unparsed` of a judge's verdicts or grades."""
    text = f"End with 70 when more than this share (0 to 1) of a judge's {what} could not be read; all records are written all the same."
    return typer.Option(help=text, rich_help_panel=panel)


def with_run_options(
    *without: str, endpoint: bool = False, reads: dict[str, str] | None = None, writes: dict[str, str] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the shared flags; its own parameter `run` receives them as a `RunOptions`.

    With `endpoint`, it has the flags of endpoints, too, and gets them as `endpoint`, an `EndpointOptions`. `reads` and
    `writes` are those of its own parameters that are files, each with the name of its flag: no file may have two roles.
    """

    def decorate(function: Callable[..., None]) -> Callable[..., None]:
        # Where nothing is computed, nothing attends either.
        left_out = {*without, *(("attention", "self_check") if "device" in without else ())}
        shared = {name: spec for name, spec in SHARED.items() if name not in left_out}
        own = {name: _flag(parameter) for name, parameter in inspect.signature(function, eval_str=True).parameters.items()}
        groups: Groups = {"endpoint": (ENDPOINTS, _endpoint_options)} if endpoint else {}
        engines = {} if "device" in without else ENGINE_FLAGS

        def run_options(**flags: Any) -> RunOptions:
            engine = EngineOptions(**{name: flags.pop(name) for name in engines})
            return RunOptions(command=function.__name__, engine=engine, **flags)

        groups["run"] = ({**shared, **engines}, run_options)

        @wraps(function)
        def called(**arguments: Any) -> None:
            run = arguments["run"]
            run.files = [*roles_of(reads or {}, arguments), *roles_of(writes or {}, arguments, writes=True)]
            if endpoint:
                given = arguments["endpoint"]
                arguments["endpoint"] = made = replace(given.share(run.engine.workers), cache=_cache(given.cache, run))
                run.files += roles_of({"read_batch": "--read-batch", "models_file": "--models-file"}, vars(made))
                run.files += roles_of({"cache": "--cache", "emit_batch": "--emit-batch"}, vars(made), writes=True)
            one_role_each(run.roles())
            if "resume" not in without and run.output and run.output != "-":
                run.flags = _deciding(own, arguments, reads or {}, [name for name in ("dtype", "seed") if name in shared])
            function(**arguments)

        return with_groups(called, groups)

    return decorate


def _flag(parameter: inspect.Parameter) -> str:
    """Its name on the command line, the first of several long ones."""
    options = [one for one in getattr(parameter.annotation, "__metadata__", ()) if isinstance(one, OptionInfo)]
    return next((name for option in options for name in option.param_decls or () if name.startswith("--")), flag_of(parameter.name))


def _deciding(own: dict[str, str], arguments: dict[str, Any], reads: dict[str, str], shared: list[str]) -> dict[str, Any]:
    """The flags that decide the records' content, with their values: of files that are read by their content, and without any secret."""
    run, endpoint = arguments["run"], arguments.get("endpoint")
    found = {flag: arguments[name] for name, flag in own.items() if name not in (*NO_MATTER, "run", "endpoint")}
    found |= {flag_of(name): getattr(run, name) for name in shared}
    for name, flag in reads.items():
        # Of one that cannot be read, who reads it says what is wrong.
        with suppress(OSError):
            if isinstance(path := arguments[name], str) and os.path.isfile(path):
                found[flag] = f"{path} ({file_hash(path)[:12]})"
    if endpoint is not None:
        found |= {flag_of(name): getattr(endpoint, name) for name in ENDPOINTS_MATTER}
        for name, entry in _meant(endpoint, arguments).items():
            said = {"system": entry.system, **entry.sampling, **{name: entry.endpoint[name] for name in ENDPOINTS_MATTER if name in entry.endpoint}}
            found[f"--models-file {name}"] = said
    secrets = Secrets.of_process()
    return {flag: _safe(value, secrets) for flag, value in found.items()}


def _meant(endpoint: EndpointOptions, arguments: dict[str, Any]) -> dict[str, Entry]:
    """The tables of a models file that the command's models, or metrics by a judge, name; all where it names no model."""
    if not endpoint.named:
        return {}
    asked = [spec for flag in ("models", "model", "metrics", "metric") for spec in _several(arguments.get(flag))]
    specs = {spec.rpartition("=")[2] for spec in asked}
    ends = {spec.rpartition(":")[2] for spec in specs}
    return {name: entry for name, entry in endpoint.named.items() if not asked or name in specs or name in ends}


def _several(given: Any) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def _safe(value: Any, secrets: Secrets) -> Any:
    """A flag's value as JSON has it, without any secret."""
    if isinstance(value, Mapping):
        return secrets.masked_whole(in_urls(orjson.dumps(value, option=orjson.OPT_SORT_KEYS).decode()))
    if isinstance(value, list | tuple):
        return [_safe(one, secrets) for one in value] or None
    return secrets.masked_whole(in_urls(value)) if isinstance(value, str) else value


Groups = dict[str, tuple[dict[str, tuple[Any, Any]], Callable[..., Any]]]


def with_groups(function: Callable[..., None], groups: Groups) -> Callable[..., None]:
    """The command with the flags of each group, which the parameter of that name receives as what the group's class makes of them."""
    own = inspect.signature(function, eval_str=True)

    @wraps(function)
    def command(**arguments: Any) -> None:
        made = {parameter: make(**{name: arguments.pop(name) for name in flags}) for parameter, (flags, make) in groups.items()}
        function(**arguments, **made)

    parameters = [parameter for name, parameter in own.parameters.items() if name not in groups]
    for flags, _ in groups.values():
        for name, (annotation, default) in flags.items():
            parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__
    return command


def named_forms(registry: Registry) -> str:
    """For a flag's help: how it names each row, and what that is."""
    return "; ".join(f"{row.form or f'`{name}`'}{f' ({row.about})' if row.about else ''}" for name, row in registry.own.items())


def _endpoint_options(**flags: Any) -> EndpointOptions:
    made = EndpointOptions.of_flags(**{**flags, "extra_body": extra_body_of(flags["extra_body"])})
    # Where workers ask, this process has the last word all the same.
    hold(made.secrets())
    return made


def _cache(given: str | None, run: RunOptions) -> str | None:
    """The file that keeps answers: beside the output unless another is named, so that a killed run pays nothing twice."""
    if given == "none":
        return None
    return given or (f"{run.output}.cache.sqlite" if run.output and run.output != "-" else None)
