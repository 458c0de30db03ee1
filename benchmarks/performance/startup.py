"""How long a command takes before it does anything, against importing torch, which none of them can avoid for long.

    python -m benchmarks.performance startup

Every call is a process of its own with warm files; the contenders take turns.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.performance.table import Ratio, interleaved

__all__ = ["measure"]

TOPIC = "startup"

SMALL = ("--backbone", "transformer", "--mask", "roi", "--dataset", "camcan", "--steps", "2", "--n-subjects", "12")

COMMAND = "import sys; from neurobench.__main__ import main; sys.argv[0] = 'neurobench'; main()"
"""What the installed command does."""


def _call(*words: str) -> Callable[[], object]:
    return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)


def _command(*words: str) -> Callable[[], object]:
    return _call("-c", COMMAND, *words)


def measure(quick: bool) -> list[Ratio]:
    """Return each command's time over the time of ``import torch``; those that read a store need one of a real run."""
    contenders = {
        "import torch": _call("-c", "import torch"),
        "import torch, pandas": _call("-c", "import torch, pandas"),
        "--help": _command("--help"),
        "run --help": _command("run", "--help"),
        "list": _command("list"),
    }
    with tempfile.TemporaryDirectory() as folder:
        out = str(Path(folder) / "out")
        if not quick:
            _command("run", *SMALL, "--quiet", "--out", out)()
            contenders |= {
                "run --dry-run, nothing stored": _command("run", *SMALL, "--dry-run", "--out", f"{folder}/new"),
                "run --dry-run, all stored": _command("run", *SMALL, "--dry-run", "--out", out),
                "run, all stored": _command("run", *SMALL, "--out", out),
                "status": _command("status", out),
                "compare": _command("compare", out),
            }
        seconds = interleaved(contenders, repeats=1 if quick else 5)
    torch = seconds["import torch"]
    bars = {"--help": 0.3, "list": 2.0}
    return [
        Ratio(
            topic=TOPIC,
            name=f"neurobench {name}: its time over that of import torch" if "torch" not in name else name,
            value=value / torch,
            bar=bars.get(name),
            at_least=False,
            measured={"command_s": value, "import_torch_s": torch},
        )
        for name, value in seconds.items()
        if name != "import torch"
    ]
