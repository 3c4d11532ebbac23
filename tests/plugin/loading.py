"""The plugin's modules that need no QGIS, as a package of another name: that of the toolkit is taken."""

import importlib.util
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

QGIS = Path(__file__).parents[2] / "qgis"
FOLDER = QGIS / "rs_biformer"
_NAME = "plugin_under_test"


def plugin_module(name: str) -> ModuleType:
    """One of command, process, environment."""
    if _NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(
            _NAME, FOLDER / "__init__.py", submodule_search_locations=[str(FOLDER)]
        )
        package = importlib.util.module_from_spec(spec)
        sys.modules[_NAME] = package
        spec.loader.exec_module(package)
    return import_module(f"{_NAME}.{name}")


def build_module() -> ModuleType:
    """qgis/build.py."""
    spec = importlib.util.spec_from_file_location("plugin_build", QGIS / "build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
