"""A connection to Ray for a while: to a cluster, or to one of our own on this machine that ends with it."""

import importlib.util
import logging
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from amc.errors import UserError
from amc.plugins import one_line

ANSWER_S = 5.0
"""Seconds that the address of a cluster has to accept a connection."""
PACKAGE_ROOT = Path(__file__).resolve().parents[1]
LONGEST_TEMPORARY = 30
"""Characters; below the folder Ray adds about 65, and the path of a socket has 107 at most."""


def check_ray(needed_by: str, module: str = "ray") -> None:
    """Refuse, without importing it, what needs Ray where that is not installed.

    Args:
        needed_by: subject of the sentence.
        module: the part of Ray that is needed; `ray.tune` needs packages that Ray alone does not bring.

    Raises:
        UserError: names the install command.
    """
    parts = {"ray": ("ray",), "ray.tune": ("ray", "pandas", "pyarrow", "tensorboardX", "pydantic")}
    if any(importlib.util.find_spec(part) is None for part in parts[module]):
        raise UserError(f'{needed_by} needs a package: pip install "amc-compress[cluster]".')


@contextmanager
def ray_session(address: str | None = None, cores: int | None = None) -> Iterator[ModuleType]:
    """The module `ray`, connected.

    A connection that this process has already is used, and left as it is.

    Args:
        address: of a running cluster, `host:6379` or "auto"; None starts one here, without a dashboard, and
            stops it at the end.
        cores: that the one started here may give away; by default those that this process may use.

    Raises:
        UserError: no cluster answers there, or it cannot be used from here.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    import ray

    if ray.is_initialized():
        yield ray
        return
    folder = None if address else Path(tempfile.mkdtemp(prefix="amc-ray-", dir=_short_folder()))
    try:
        _connect(ray, address, cores, folder)
        yield ray
    finally:
        ray.shutdown()
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _check_answers(address: str) -> None:
    """Refuse at once what Ray itself tries for minutes to reach.

    Raises:
        UserError: nothing listens at `host:port`; other forms of an address are Ray's to judge.
    """
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"The Ray cluster at {address} cannot be used: {one_line(error)}.") from error


def _connect(ray: ModuleType, address: str | None, cores: int | None, folder: Path | None) -> None:
    if address:
        _check_answers(address)
    own: dict[str, Any] = {"address": "local", "num_cpus": cores, "include_dashboard": False}
    options = {"address": address} if address else {**own, "_temp_dir": str(folder)}
    # Workers need not find the packages where they run: a checkout that is not installed is no package there.
    paths = [str(PACKAGE_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {"env_vars": {"PYTHONPATH": os.pathsep.join(paths)}}
    try:
        ray.init(
            **options,
            runtime_env=environment,
            log_to_driver=False,
            logging_level=logging.ERROR,
            namespace="amc",
        )
    except Exception as error:  # a node that starts too slowly is no more than that to Ray
        where = f"The Ray cluster at {address}" if address else "Ray on this machine"
        raise UserError(f"{where} cannot be used: {one_line(error)}.") from error


def _short_folder() -> str:
    """Where temporary files go, unless the paths of sockets in there would become too long."""
    usual = tempfile.gettempdir()
    short = len(usual) <= LONGEST_TEMPORARY or sys.platform == "win32"
    return usual if short else "/tmp"
