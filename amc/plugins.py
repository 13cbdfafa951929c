"""Load a user's own model, data set or task from an import path, `package.module:factory`."""

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from amc.errors import UserError


def is_import_path(text: str) -> bool:
    """Whether the text reads as `package.module:factory` rather than as a name or a folder."""
    module, _, attribute = text.partition(":")
    return all(part.isidentifier() for part in module.split(".")) and attribute.isidentifier()


def load_factory(path: str) -> Callable[..., Any]:
    """Return the callable that `package.module:factory` names; the current directory is importable.

    Raises:
        UserError: The path is malformed, the module is missing or fails to import, or it holds no such
            callable.
    """
    if not is_import_path(path):
        raise UserError(f"'{path}' is not an import path: write it as package.module:factory.")
    module_name, _, attribute = path.partition(":")
    module = _import(module_name)
    if not hasattr(module, attribute):
        raise UserError(f"The module '{module_name}' ({module.__file__}) has no '{attribute}'.")
    factory = getattr(module, attribute)
    if not callable(factory):
        raise UserError(f"'{path}' is a {type(factory).__name__}, but a function or class is needed.")
    return factory


def _import(name: str) -> ModuleType:
    here = str(Path.cwd())
    # An installed command does not look in the current directory, where a user's own module lies.
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(error.name + ".")):
            raise UserError(
                f"There is no module '{error.name}' in {here} or among the installed packages."
            ) from error
        raise UserError(f"The module '{name}' needs '{error.name}', which is not installed.") from error
    except Exception as error:
        raise UserError(f"Importing '{name}' failed: {one_line(error)}.") from error


def call_factory(path: str, factory: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call a user's factory with those of the options that its signature names.

    A factory without parameters is thus as good as one that wants to know everything.

    Raises:
        UserError: The factory raised.
    """
    try:
        return factory(**{key: options[key] for key in accepted(factory) if key in options})
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"The factory '{path}' failed: {one_line(error)}.") from error


def accepted(factory: Callable[..., Any]) -> set[str]:
    """Names of the parameters that can be passed to a callable by keyword."""
    try:
        parameters = inspect.signature(factory).parameters.values()
    except (TypeError, ValueError):  # some builtins have no signature
        return set()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def one_line(error: BaseException) -> str:
    """An exception as `Type: first line of its message`, to be put into a sentence."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0]}".rstrip(".") if text else type(error).__name__
