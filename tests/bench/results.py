"""How the scripts that look for faults end: what was found goes to stdout and a file, and what was wrong is the status."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any, NoReturn


def machine() -> str:
    return f"{platform.platform()}, Python {platform.python_version()}, {os.cpu_count()} CPUs"


def finish(result: dict[str, Any], out: Path | None, *, wrong: object) -> NoReturn:
    """Print a result as JSON, write it to `out`, and end with status 1 where something was wrong."""
    text = json.dumps({**result, "machine": machine()}, indent=1)
    print(text)
    if out:
        out.write_text(text + "\n", encoding="utf-8")
    sys.exit(bool(wrong))
