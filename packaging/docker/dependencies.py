"""Prints what a pyproject.toml needs, line by line, for a layer that changes only with it: FILE [EXTRA ...]."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
extras = [line for name in sys.argv[2:] for line in project["optional-dependencies"][name]]
print("\n".join([*project["dependencies"], *extras]))
