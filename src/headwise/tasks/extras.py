"""Import what only an extra installs, or say which one."""

import importlib
from typing import Any

from headwise.errors import InputError

__all__ = ["need"]


def need(module: str, extra: str = "text") -> Any:
    """Import a third-party module that is needed from here on.

    Args:
        extra: the extra of headwise that installs it.

    Raises:
        InputError: where it is not installed, with the command that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != module.partition(".")[0]:
            raise
        package = module.partition(".")[0]
        raise InputError(
            f'`{package}` must be installed for this; got none. Run pip install "headwise[{extra}]".'
        ) from error
