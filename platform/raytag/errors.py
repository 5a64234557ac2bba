"""The errors Raytag raises on purpose. Imports nothing.

    RaytagError                 one readable line for the user, exit status 2
    ├── SettingsError           a flag, a key or a combination that cannot work
    ├── DataError               a row or file that is not what it should be
    ├── StorageError            a path or bucket that cannot be read or written
    ├── ModelError              a base model or adapter that cannot be loaded as asked
    └── ResourceError           the cluster or the machine is too small for the job

Anything else that escapes is a bug and shows its traceback. Errors of other libraries are
translated where they are met, with ``raise … from exc``.
"""


class RaytagError(Exception):
    """A mistake the user can mend. The message says what is wrong and what to do."""


class SettingsError(RaytagError):
    """A flag, a key or a combination of them that cannot work."""


class DataError(RaytagError):
    """A row or file that is not what it should be."""


class StorageError(RaytagError):
    """A path or bucket that cannot be read or written."""


class ModelError(RaytagError):
    """A base model or adapter that cannot be loaded as asked."""


class ResourceError(RaytagError):
    """The cluster or the machine is too small for the job."""
