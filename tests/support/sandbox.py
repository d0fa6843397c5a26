"""Programs in mount namespaces of their own, where folders are missing, full or read-only.

Where no namespace can be made the test is skipped; `.ci/run` fails if it is skipped there.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import textwrap
from functools import cache

import pytest

from tests.support.users import OTHER

_SCRIPT = """
set -e
mount --make-rprivate /
{mounts}
exec {as_user} {python} -c "$CODE" "$@"
"""


def run_sandboxed(code, mounts, *arguments, as_other=False, **environment):
    """Runs Python code after the shell commands `mounts`; returns a CompletedProcess.

    Args:
        as_other: as a user without a passwd entry.
        environment: of the program, beside PATH and PYTHONPATH; None leaves a name out.
    """
    if problem := _why_not():
        pytest.skip(f"a mount namespace cannot be made here: {problem}")
    as_user = f"setpriv --reuid {OTHER} --regid {OTHER} --clear-groups" if as_other else ""
    script = _SCRIPT.format(mounts=mounts, as_user=as_user, python=shlex.quote(sys.executable))
    variables = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": os.getcwd(),
        "CODE": textwrap.dedent(code),
        **environment,
    }
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", *map(str, arguments)],
        env={name: value for name, value in variables.items() if value is not None},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@cache
def _why_not():
    """Why there are no mount namespaces here; empty if there are."""
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            return f"there is no {tool} (util-linux)"
    tried = subprocess.run(
        ["unshare", "--mount", "sh", "-c", "mount --make-rprivate / && mount -t tmpfs none /mnt"],
        capture_output=True,
        text=True,
        check=False,
    )
    return tried.stderr.strip() or f"exit code {tried.returncode}" if tried.returncode else ""
