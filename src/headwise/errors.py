"""Name the ways a call can fail.

```
HeadwiseError            everything that headwise raises on purpose
├── InputError           a tensor, argument or file that is not as it must be           (also a ValueError)
├── ConfigError          a setting that no model or run can have                       (also a ValueError)
└── BackendError         a backend asked for by name that cannot do what it is asked   (also a RuntimeError)
```

Every message reads `<expectation>; got <fact>. <remedy>.`
"""

__all__ = ["BackendError", "ConfigError", "HeadwiseError", "InputError"]


class HeadwiseError(Exception):
    """Stand above every error that headwise raises on purpose."""


class InputError(HeadwiseError, ValueError):
    """Say that a tensor, an argument or a file is not as it must be."""


class ConfigError(HeadwiseError, ValueError):
    """Say that a setting cannot be honoured."""


class BackendError(HeadwiseError, RuntimeError):
    """Say that the backend asked for by name cannot do what it is asked."""
