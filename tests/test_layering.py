"""The floors of docs/architecture.md: a module imports only from lower floors, and rooms of one floor never meet."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import rs_biformer
from rs_biformer import jobs
from rs_biformer.cli import COMMANDS

PACKAGE = Path(rs_biformer.__file__).parent
FLOORS = {
    "errors": 0,
    "background": 1,
    "components": 1,
    "distribution": 1,
    "lazy": 1,
    "documents": 1,
    "files": 1,
    "geometry": 1,
    "machine": 1,
    "notebook": 1,
    "schema": 2,
    "shares": 2,
    "raster": 3,
    "nn": 3,
    "data": 4,
    "predict": 4,
    "evaluation": 4,
    "checkpoint": 4,
    "synthetic": 4,
    "viewer": 4,
    "jobs": 5,
    "train": 5,
    "demo": 6,
    "export": 6,
    "explain": 6,
    "cli": 7,
}
# Those of floor 1 do not meet; the root only names what lives elsewhere.
OUTSIDE = {"__init__", "__main__"}
MODULES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def _room(path: Path) -> str:
    return path.parts[0].removesuffix(".py")


def _imports(path: Path) -> set[str]:
    """Dotted names below rs_biformer that a file imports, anywhere in it, those for type checking too."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and (node.module or "").startswith("rs_biformer"):
            base = node.module.removeprefix("rs_biformer").strip(".")
            found |= {base} if base else {alias.name for alias in node.names if not alias.name.startswith("__")}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} uses a relative import; write the full name"
        elif isinstance(node, ast.Import):
            found |= {a.name.removeprefix("rs_biformer.") for a in node.names if a.name.startswith("rs_biformer.")}
    return found


def test_the_map_of_the_house_names_every_module_in_its_room_and_no_other():
    text = (Path(__file__).parents[1] / "docs" / "architecture.md").read_text(encoding="utf-8")
    named, room = [], ""
    for line in text.split("```")[1].splitlines()[2:]:
        first = re.split(r"\s{2,}", line.strip())[0]
        if line.startswith("    "):
            named += [f"{room}{name}.py" for name in first.split()]
        elif first:
            room = first if first.endswith("/") else ""
            named += [] if room else [first]
    assert sorted(named) == sorted(path.as_posix() for path in MODULES if path.stem not in OUTSIDE)


def test_every_file_stands_in_a_room_with_a_floor():
    assert {_room(path) for path in MODULES} - OUTSIDE == set(FLOORS)


@pytest.mark.parametrize("path", [p for p in MODULES if _room(p) not in OUTSIDE], ids=str)
def test_a_module_imports_only_from_lower_floors_or_its_own_room(path):
    room = _room(path)
    for name in _imports(path):
        other = name.split(".")[0]
        assert other == room or FLOORS[other] < FLOORS[room], f"{path} (floor {FLOORS[room]}) imports {name}"


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[:2] == ("nn", "decoders")], ids=str)
def test_decoders_never_see_encoders(path):
    assert not any(name.startswith("nn.encoders") for name in _imports(path))


@pytest.mark.parametrize("path", [p for p in MODULES if p.parts[:2] == ("nn", "attention")], ids=str)
def test_one_attention_never_sees_another(path):
    shared = ("nn.attention.regions", "nn.attention.softmax", "nn.attention.routed", "nn.depthwise", "errors")
    assert path.name == "__init__.py" or all(name.startswith(shared) for name in _imports(path))


def test_there_is_no_import_cycle():
    names = {".".join(p.with_suffix("").parts).removesuffix(".__init__"): _imports(p) for p in MODULES}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, f"import cycle: {' -> '.join((*trail, name))}"
        if name not in done and name in names:
            for other in names[name]:
                visit(other, (*trail, name))
            done.add(name)

    for name in names:
        if name not in ("__init__", "cli"):  # both import lazily, by name
            visit(name, ())


def test_only_the_raster_room_opens_rasters():
    for path in MODULES:
        if _room(path) != "raster":
            text = (PACKAGE / path).read_text(encoding="utf-8")
            assert "rasterio.open" not in text, f"{path} opens rasters; that is the raster room's job"


@pytest.mark.parametrize("path", [p for p in MODULES if _room(p) != "machine"], ids=str)
def test_only_machine_counts_cores_and_memory(path):
    text = (PACKAGE / path).read_text(encoding="utf-8")
    for name in ("cpu_count", "CPU_COUNT", "ALL_CPUS", "sched_getaffinity", "SC_PHYS_PAGES", "virtual_memory"):
        assert name not in text, f"{path} asks for {name}; machine.py knows what of it we may use"


def test_importing_the_package_loads_neither_torch_nor_rasterio():
    code = (
        "import sys, rs_biformer, rs_biformer.cli; rs_biformer.cli.build_parser();"
        "heavy = ('torch', 'rasterio', 'pytorch_lightning', 'albumentations', 'matplotlib');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_can_be_had():
    for name in rs_biformer.__all__:
        assert getattr(rs_biformer, name) is not None


def test_evaluate_stays_a_function_when_its_room_was_imported_first():
    code = "import rs_biformer.evaluation.stream, rs_biformer; print(callable(rs_biformer.evaluate))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "True\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_its_options_and_little_more(name):
    """60 lines of functions besides `add_arguments`: what is longer is a job that Python could not call."""
    body = ast.parse((PACKAGE / "cli" / f"{name}.py").read_text(encoding="utf-8")).body
    parts = [node for node in body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name != "add_arguments"]
    assert 0 < sum(node.end_lineno - node.lineno + 1 for node in parts) <= 60


def test_what_a_raster_is_and_help_are_told_without_torch(write_raster):
    raster = write_raster("a.tif", np.ones((3, 8, 8), np.uint8))
    code = (
        "import sys; from rs_biformer.cli import main\n"
        "for argv in (['info', sys.argv[1]], ['info', '--json', sys.argv[1], sys.argv[1]], ['evaluate', '--help']):\n"
        "    try: assert main(argv) == 0\n"
        "    except SystemExit as end: assert end.code == 0\n"
        "print([name for name in ('torch', 'pytorch_lightning', 'timm') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(raster)], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_a_room_that_is_imported_on_first_use_has_every_name_that_it_promises():
    for name in jobs.__all__:
        assert getattr(jobs, name) is not None
    assert set(jobs.__all__) == set(jobs._HOMES) and dir(jobs) == sorted(jobs.__all__)
