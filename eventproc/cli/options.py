"""Flags for settings, generated from their declaration."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from functools import wraps
from typing import Annotated, Any

import typer

from eventproc import __version__
from eventproc.settings import Settings
from eventproc.settings_load import default_text, flag_name, is_secret, load_settings, type_name

#: What tells where the Kafka topic is and who reads it; the rest comes from file and environment.
KAFKA = ("kafka_bootstrap_servers", "kafka_topic", "kafka_dlq_topic", "kafka_group_id")
#: Where the keys of a deployment are in Redis (redis_url is a secret: file or environment).
STORE = ("kafka_topic", "key_prefix", "redis_password_file", "redis_timeout_ms")
#: What names a supervisor on this host.
DEPLOYMENT = ("kafka_bootstrap_servers", "kafka_topic", "kafka_group_id", "key_prefix", "runtime_dir")


def make_app(help: str) -> typer.Typer:
    """A typer app whose output is plain and fits every terminal and pipe."""
    return typer.Typer(
        help=help,
        add_completion=False,
        no_args_is_help=True,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    )


def add_version(app: typer.Typer, program: str) -> None:
    """Give the app `--version`."""

    def show(asked: bool) -> None:
        if asked:
            print(f"{program} {__version__}")
            raise typer.Exit

    def root(version: bool = False) -> None:
        pass

    # not by its name: typer looks for names of annotations in the module only
    root.__annotations__["version"] = Annotated[
        bool, typer.Option("--version", help="show the version", callback=show, is_eager=True)
    ]
    app.callback(help=app.info.help)(root)


def with_settings(
    only: Collection[str] | None = None, *, accept_all: bool = False
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a typer command whose first parameter is `settings: Settings`.

    The command gets `--config` and a flag for each setting (or those in `only`) beside its own, and is
    called with the settings loaded. `accept_all`: the other settings' flags are taken too, but not shown,
    so that the words of one command do for another. Secrets get no flag: they would show in the process
    list. Put it under `@app.command()`.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        names = [
            name
            for name, field in Settings.model_fields.items()
            if not is_secret(field) and (accept_all or only is None or name in only)
        ]

        @wraps(command)
        def wrapper(**arguments: Any) -> Any:
            config = arguments.pop("config")
            said = {name: arguments.pop(f"setting_{name}") for name in names}
            flags = {name: value for name, value in said.items() if value is not None}
            return command(load_settings(flags, config), **arguments)

        parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        parameters.append(_parameter("config", _CONFIG))
        shown = names if only is None else only
        parameters += [_parameter(f"setting_{name}", _flag(name, name not in shown)) for name in names]
        wrapper.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters}
        del wrapper.__wrapped__
        return wrapper

    return decorate


_CONFIG = Annotated[
    str | None,
    typer.Option("--config", metavar="FILE", help="TOML file of settings (also: EVENTPROC_CONFIG)"),
]


def _parameter(name: str, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _flag(name: str, hidden: bool) -> Any:
    field = Settings.model_fields[name]
    default = default_text(field)
    help = (field.description or "") + (f" [default: {default}]" if default else "")
    flag = flag_name(name)
    if field.annotation is bool:
        return Annotated[bool | None, typer.Option(f"{flag}/--no-{flag[2:]}", help=help, hidden=hidden)]
    metavar = type_name(field) if "|" in type_name(field) else type_name(field).upper()
    return Annotated[str | None, typer.Option(flag, help=help, metavar=metavar, hidden=hidden)]
