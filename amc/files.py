"""Files that are whole or absent: atomic writes, and JSON with errors a person understands."""

import json
import os
import tempfile
from pathlib import Path

from amc.errors import UserError


def read_json(path: Path) -> object:
    """Parse a JSON file.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError as error:
        raise UserError(f"There is no file {path}.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not readable as JSON: {error}.") from error


def write_json(path: Path, data: object) -> None:
    """Write JSON so that a reader, or a crash, sees the old file or the new one and nothing between."""
    write_atomically(path, (json.dumps(data, indent=1) + "\n").encode())


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content` in one step: a temporary file beside it, then a rename."""
    path = Path(path)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
