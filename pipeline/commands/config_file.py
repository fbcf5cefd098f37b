"""`--config FILE.yaml`: any option of a command by its name; what the command line gives comes first.

    head: dits
    epochs: 5
    set: {T_prime: 5}

The settings that were in effect are kept beside the result in the same form, so that the file repeats the command.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

ONCE = ("yes", "drop-captions", "retry-failed")  # said of one run: a file that is kept does not repeat them
NOT_SETTINGS = ("config", "workspace", "json", "help", "benchmark", "shard", "finish")


def option_names(command: Any) -> dict[str, str]:
    """{option's name: parameter's name} of a command, as a file may give them."""
    names = {
        name.removeprefix("--"): parameter.name
        for parameter in command.params
        for name in parameter.opts
        if name.startswith("--")
    }
    return {name: parameter for name, parameter in names.items() if name not in NOT_SETTINGS}


def read(ctx: typer.Context, param: typer.CallbackParam, path: str | None) -> str | None:
    """Take the file's values for the command's defaults. Raises typer.BadParameter."""
    if path is None:
        return None
    from typer_config.callbacks import conf_callback_factory
    from typer_config.loaders import yaml_loader

    return conf_callback_factory(lambda file: parameters(yaml_loader(file), option_names(ctx.command)))(
        ctx, param, path
    )


def parameters(values: Any, names: Mapping[str, str]) -> dict[str, Any]:
    """The values of a file by parameter; a mapping becomes name=value pairs. Raises ValueError."""
    if not isinstance(values, dict):
        raise ValueError("expected lines `option: value`")
    given = {str(name).replace("_", "-"): value for name, value in values.items()}
    if unknown := sorted(given.keys() - names.keys()):
        raise ValueError(f"unknown option {', '.join(unknown)}; expected {', '.join(sorted(names))}")
    return {
        names[name]: [f"{key}={item}" for key, item in value.items()] if isinstance(value, dict) else value
        for name, value in given.items()
    }


def keep(ctx: typer.Context, path: Path, **resolved: Any) -> None:
    """Write the options in effect, those left out aside; `resolved`: what a preset or the data set decided."""
    import yaml

    from pipeline.stores.atomic import atomic_write

    values = {**ctx.params, **resolved}
    kept = {name: values[parameter] for name, parameter in option_names(ctx.command).items() if name not in ONCE}
    plain = {
        name: str(value) if isinstance(value, Path) else value
        for name, value in kept.items()
        if value is not None and value != []
    }
    with atomic_write(path) as temporary:
        temporary.write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


ConfigOption = Annotated[
    str | None,
    typer.Option("--config", callback=read, is_eager=True, help="Options from a YAML file, by their names"),
]
