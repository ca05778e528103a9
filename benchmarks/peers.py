"""The peers, each in a virtual environment of its own below ``.peers``: some of them need another pandas than we do.

    python benchmarks/peers.py PEER ...

installs some ahead of their use, with nothing but the standard library.
"""

import ast
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).parent.parent
OURS = Path(sys.executable)
PACKAGES = {
    "tif1": ["tif1==0.9.0"],
    "polars": ["dagster==1.13.27", "dagster-polars==0.27.12", "polars<2", "pandas==3.1.1", "pyarrow"],
    "deltalake": ["dagster==1.13.27", "dagster-deltalake-pandas==0.29.27", "pyarrow"],
    "duckdb": ["dagster==1.13.27", "dagster-duckdb-pandas==0.29.27", "pyarrow"],
}
"""What is installed for each; versions are those that were tested."""


def python_of(peer: str) -> Path:
    """Return a peer's interpreter, installing it the first time.

    Raises:
        SystemExit: It could not be installed.
    """
    if peer not in PACKAGES:  # ours, and Dagster's own manager, which comes with Dagster
        return OURS
    home = ROOT / ".peers" / peer
    python = home / "bin" / "python"
    if not (home / ".installed").exists():
        print(f"installing {PACKAGES[peer][-2 if peer != 'tif1' else 0]} and what it needs ...", file=sys.stderr)
        venv.create(home, with_pip=True, clear=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *PACKAGES[peer]]
        done = subprocess.run(pip, check=False, timeout=900, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"{peer} could not be installed to compare with:\n{done.stderr}")
        (home / ".installed").touch()
    return python


def versions_of(peer: str, *packages: str) -> str:
    """Return the versions of packages in a peer's environment."""
    code = "import sys; from importlib.metadata import version; print([f'{p} {version(p)}' for p in sys.argv[1:]])"
    done = subprocess.run([python_of(peer), "-c", code, *packages], capture_output=True, text=True, check=True)
    return ", ".join(ast.literal_eval(done.stdout))


if __name__ == "__main__":
    for name in sys.argv[1:]:
        python_of(name)
