"""Each program in an environment of its own under `.bench/`: what they depend on excludes each other."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

from bench.rounds import ROOT

HOME = ROOT / ".bench"
PATIENCE = 180.0
LIST = "import json, importlib.metadata as m; print(json.dumps({d.name.lower(): d.version for d in m.distributions()}))"


def environment(name: str, *requirements: str) -> Path:
    """The Python of the environment with `requirements`, made if need be; raises OSError when it cannot be."""
    python = HOME / name / "bin" / "python"
    done = HOME / name / "done"
    if done.exists() and done.read_text().split() == list(requirements):
        return python
    shutil.rmtree(HOME / name, ignore_errors=True)
    _run([sys.executable, "-m", "venv", str(HOME / name)])
    _run([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
    done.write_text("\n".join(requirements))
    return python


@cache
def product() -> Path:
    """The Python of an environment with what users install; the tests' has more, and redis loads some of that."""
    folder = HOME / f"product-{sys.version_info.major}.{sys.version_info.minor}"
    script = '. scripts/venv.sh; make_venv "$0" requirements.lock'
    _run(["env", f"PYTHON={sys.executable}", "bash", "-euc", script, str(folder)])
    return folder / "bin" / "python"


def version(python: Path, package: str) -> str:
    """Of a package in an environment."""
    found = subprocess.run([python, "-c", LIST], capture_output=True, check=True, timeout=PATIENCE)
    return str(json.loads(found.stdout)[package])


def _run(command: list[str]) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, timeout=PATIENCE, cwd=ROOT)
    except subprocess.CalledProcessError as error:
        said = error.stderr.decode("utf-8", "replace").strip().splitlines() or ["it says nothing"]
        raise OSError(f"{' '.join(command[-2:])}: {said[-1]}") from error
    except subprocess.TimeoutExpired as error:
        raise OSError(f"{' '.join(command[-2:])} took longer than {PATIENCE:.0f} s") from error
