"""The QGIS plugin without QGIS: what it types, what it hears, how it stops a child, what its zip holds."""

import ast
import configparser
import json
import os
import sys
import time
import zipfile
from contextlib import suppress

import pytest

from rs_biformer.cli import _with_joined_numbers, build_parser
from rs_biformer.raster.ground import Metres
from rs_biformer.schema import ClassSchema
from tests.plugin.loading import FOLDER, build_module, plugin_module

command, process, environment = (plugin_module(name) for name in ("command", "process", "environment"))


def parsed(arguments):
    """What the command line itself makes of the arguments."""
    return build_parser().parse_args(_with_joined_numbers(arguments))


def test_the_command_line_reads_what_is_typed_as_it_is_meant():
    args = parsed(
        command.predict(
            "/a b/-x{1}.tif",
            "/m.onnx",
            "/out",
            scores=("confidence", "entropy"),
            area="/area.gpkg",
            quality="fast",
            overlap=0.25,
            views="flips",
            bands="--4,1",
            nodata="-9999",
            pixels="rescale",
            restart=True,
        )
    )
    assert (args.command, args.progress, args.scenes, args.name) == ("predict", "json", ["/a b/-x{1}.tif"], "map")
    assert (args.checkpoint, str(args.out), args.area) == (["/m.onnx"], "/out", "/area.gpkg")
    assert (args.quality, args.overlap) == ("fast", 0.25)
    assert (args.tta, args.bands, args.nodata, args.rescale_gsd, args.restart) == (
        "flips",
        "--4,1",
        "-9999",
        True,
        True,
    )
    assert (args.confidence, args.entropy, args.margin) == (True, True, False)
    bare = parsed(command.predict("r.tif", "m.onnx", "out", restart=False))
    assert (bare.tta, bare.bands, bare.area, bare.allow_gsd_mismatch, bare.restart) == (None,) * 5

    args = parsed(command.vectorize(["a.tif", "b.tif"], "o.gpkg", min_area=2.5, simplify=0, confidence=["c.tif", "d"]))
    assert (args.map, args.out, args.min_area, args.simplify) == (["a.tif", "b.tif"], "o.gpkg", 2.5, 0.0)
    assert (args.confidence, args.layer, args.regularise) == (["c.tif", "d"], None, None)
    args = parsed(command.vectorize(["a.tif"], "o.gpkg", square=[], tolerance="0.5m"))
    assert (args.map, args.regularise, args.tolerance, type(args.tolerance)) == (["a.tif"], [], 0.5, Metres)
    args = parsed(command.vectorize(["a.tif"], "o.gpkg", confidence=["c.tif"], square=["tall roof", "barn"]))
    assert (args.confidence, args.regularise, args.tolerance) == (["c.tif"], ["tall roof", "barn"], None)

    args = parsed(
        command.evaluate(
            "m.tif", "/l.gpkg", "potsdam", "o.json", field="kind", layer="x", report="r.html", boundary=[3]
        )
    )
    assert (args.prediction, args.label, args.classes, args.label_field) == (
        [["m.tif"]],
        ["/l.gpkg"],
        "potsdam",
        "kind",
    )
    assert (args.label_layer, str(args.report), args.boundary) == ("x", "r.html", [3.0])

    args = parsed(command.tile("r.tif", "/l.gpkg", "c.json", "out", window=64, overlap=0, split="blocks:0.7,0.3,0"))
    assert (args.scenes, args.labels, args.window, args.overlap) == (["r.tif"], "/l.gpkg", 64, 0.0)
    assert args.split == ["blocks:0.7,0.3,0"]


def test_braces_in_the_name_of_a_label_are_no_fields(tmp_path):
    from rs_biformer.data.layouts import pattern_scenes
    from rs_biformer.jobs import find_truths

    scene, label = tmp_path / "a.tif", tmp_path / "l{stem}.tif"
    scene.touch()
    label.touch()
    args = parsed(command.tile(str(scene), str(label), "c.json", "out"))
    assert [found.label for found in pattern_scenes(args.scenes, args.labels)] == [label]
    args = parsed(command.evaluate(str(scene), str(label), "potsdam", "o.json"))
    assert find_truths([], args.label, maps=[str(scene)]).labels == [label]


def test_the_classes_of_a_legend_are_a_class_file(tmp_path):
    text = command.class_file("drawn", [('roof "a"', (255, 0, 16), None), ("Weiß", (1, 2, 3), None)])
    schema = ClassSchema.from_dict(json.loads(text))
    assert (schema.classes, schema.colours) == (('roof "a"', "Weiß"), ((255, 0, 16), (1, 2, 3)))
    numbered = ClassSchema.from_dict(json.loads(command.class_file("n", [("a", (1, 1, 1), 7), ("b", (2, 2, 2), 9)])))
    assert numbered.values == (7, 9)


def test_nothing_by_which_qgis_finds_its_own_python_gdal_and_proj_reaches_the_child():
    variables = {
        name: "x"
        for name in ("PYTHONHOME", "PYTHONPATH", "PythonHome", "GDAL_DATA", "PROJ_LIB", "PROJ_DATA", "LD_LIBRARY_PATH")
    }
    kept = {"PATH": "/bin", "HOME": "/h", "GDAL_HTTP_USERPWD": "u", "AWS_PROFILE": "p", "https_proxy": "y", "TEMP": "t"}
    found = command.clean_environment(variables | kept)
    assert {name: value for name, value in found.items() if not name.startswith("PYTHON")} == kept
    assert found["PYTHONNOUSERSITE"] == found["PYTHONUTF8"] == "1"


def test_lines_are_progress_or_text():
    line = '{"progress": "town", "done": 12, "total": 96, "unit": "window"}\n'
    assert command.parse_line(line) == command.Progress("town", 0.125)
    assert command.parse_line('{"progress": "town", "done": 12}') == '{"progress": "town", "done": 12}'
    assert command.parse_line('{"progress": "a", "done": 1, "total": 0}') == command.Progress("a", 0.0)
    assert command.parse_line("note: 3 pixels ") == "note: 3 pixels"


def test_a_failure_is_one_line_and_the_commands_own_where_it_has_one():
    lines = ["note: x", "rs-biformer predict: no scene a.tif: there is no such file", "/lib/warn.py:3: later", ""]
    assert command.error_line("rs-biformer", 2, lines) == lines[1]
    trace = ["Traceback (most recent call last):", "  File x", "MemoryError: 3 GiB"]
    assert command.error_line("pip", 1, trace) == "pip ended with code 1: MemoryError: 3 GiB"
    assert "want of memory" in command.error_line("rs-biformer", -9, ["half"])
    assert command.error_line("venv", 1, []) == "venv ended with code 1: it said nothing"


def test_figures_of_a_result_are_read_and_anything_else_is_refused():
    text = '{"overall_accuracy": 0.5, "mean_iou": null, "mean_f1": 1, "more": []}'
    assert command.figures(text) == {"overall_accuracy": 0.5, "mean_iou": None, "mean_f1": 1.0}
    for other in ("[]", '{"mean_iou": 1}', "nonsense"):
        with pytest.raises(ValueError):
            command.figures(other)


def run(code, stopped=lambda: False, **more):
    lines = []
    found = process.run(
        [sys.executable, "-c", code], environment=dict(os.environ), stopped=stopped, tell=lines.append, **more
    )
    return found, lines


def test_a_child_is_heard_line_by_line_and_its_output_does_not_block_it():
    code = (
        "import sys\nsys.stdout.write('x' * 300000)\nfor n in range(3): print('line', n, file=sys.stderr)\n"
        "sys.stderr.write('10%\\r20%\\rné')\nsys.exit(3)"
    )
    (code, kept, said), lines = run(code)
    assert (code, len(said)) == (3, 300_000)
    assert kept == lines == ["line 0", "line 1", "line 2", "né"]


def is_alive(pid):
    """Not a zombie that waits for somebody to ask."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
@pytest.mark.parametrize("stubborn", [False, True])
def test_a_cancelled_child_is_gone_with_its_children_and_could_tidy_up(tmp_path, monkeypatch, stubborn):
    monkeypatch.setattr(process, "_GRACE", 0.5)
    ignore = "signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    code = (
        "import os, signal, subprocess, sys, time\n"
        + ignore * stubborn
        + "grandchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        + "try: print(os.getpid(), grandchild.pid, file=sys.stderr, flush=True); time.sleep(60)\n"
        + f"except KeyboardInterrupt: open({str(tmp_path / 'tidy')!r}, 'w')\n"
    )
    pids = []
    with pytest.raises(process.Cancelled):
        process.run(
            [sys.executable, "-c", code],
            environment=dict(os.environ),
            stopped=lambda: bool(pids),
            tell=lambda line: pids.extend(map(int, line.split()[:2])) if not pids else None,
        )
    deadline = time.monotonic() + 10
    while any(map(is_alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(is_alive, pids))
    assert (tmp_path / "tidy").exists() is not stubborn


def test_what_a_killed_child_left_half_written_is_removed_and_nothing_else(tmp_path):
    (tmp_path / ".old.gpkg.1.partial").mkdir()
    before = process.partials(str(tmp_path))
    (tmp_path / ".new.gpkg.2.partial").mkdir()
    (tmp_path / ".new.tif.3.partial").touch()
    (tmp_path / "map.partial").touch()
    process.remove_partials(str(tmp_path), process.partials(str(tmp_path)) - before)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".old.gpkg.1.partial", "map.partial"]
    assert process.partials(str(tmp_path / "absent")) == set()


def test_what_pip_is_asked_for(tmp_path):
    assert environment.requirement("rs-biformer-predict==0.1") == ["rs-biformer-predict==0.1"]
    with pytest.raises(environment.SetupError, match="holds neither a wheel of rs_biformer"):
        environment.requirement(str(tmp_path))
    with pytest.raises(environment.SetupError, match="there is no "):
        environment.requirement(str(tmp_path / "absent.whl"))
    (tmp_path / "pyproject.toml").touch()
    assert environment.requirement(str(tmp_path)) == [str(tmp_path)]
    for number, name in enumerate(
        ("rs_biformer_predict-0.2-py3-none-any.whl", "numpy-2-any.whl", "rs_biformer_predict-0.1-a.whl")
    ):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (1e9 - number, 1e9 - number))
    assert environment.requirement(str(tmp_path)) == [
        "--find-links",
        str(tmp_path),
        str(tmp_path / "rs_biformer_predict-0.2-py3-none-any.whl[all]"),
    ]


def test_a_python_of_another_version_is_refused_with_those_that_were_seen(tmp_path, monkeypatch):
    assert environment.choose_python(sys.executable) == sys.executable
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\necho 3 9\n")
    old.chmod(0o755)
    with pytest.raises(environment.SetupError, match=r"needs Python 3\.11 to 3\.13; found .*python3 \(3\.9\): install"):
        environment.choose_python(str(old))
    with pytest.raises(environment.SetupError, match="does not run"):
        environment.choose_python(str(tmp_path / "absent"))


def test_a_folder_of_something_else_is_never_replaced_by_an_environment(tmp_path):
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(environment.SetupError, match="holds something else than an environment"):
        environment.make(str(tmp_path), "name", python=sys.executable, stopped=lambda: False, tell=lambda line: None)
    assert (tmp_path / "thesis.txt").exists()


def small_wheel(folder):
    """A distribution of nothing but a command, as the real one is called."""
    path = folder / "rs_biformer_predict-0.1-py3-none-any.whl"
    about = "rs_biformer_predict-0.1.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr(
            "tiny_command.py", "import os\ndef main():\n    print('rs-biformer 0.1', 'PYTHONHOME' in os.environ)\n"
        )
        wheel.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: rs-biformer-predict\nVersion: 0.1\n")
        wheel.writestr(
            f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{about}/entry_points.txt", "[console_scripts]\nrs-biformer = tiny_command:main\n")
        wheel.writestr(f"{about}/RECORD", "")
    return path


@pytest.mark.slow
def test_an_environment_is_made_with_venv_and_pip_and_a_cancelled_one_is_removed(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PYTHONHOME", str(tmp_path / "of_qgis"))
    wheel, folder, lines = small_wheel(tmp_path), tmp_path / "environment", []
    make = {"python": sys.executable, "stopped": lambda: False, "tell": lines.append}
    found = environment.make(str(folder), str(tmp_path), **make)
    assert found == environment.find_command(str(folder)) and lines[-1] == "rs-biformer 0.1 False"
    asked = iter([False] * 3)
    with suppress(StopIteration), pytest.raises(process.Cancelled):
        environment.make(str(folder), str(wheel), **(make | {"stopped": lambda: next(asked, True)}))
    assert not folder.exists()


def test_the_zip_is_one_folder_with_the_licence_and_without_caches(tmp_path):
    build = build_module()
    (FOLDER / "__pycache__").mkdir(exist_ok=True)
    names = build.build(tmp_path / "p.zip", {"version": "1.2.3", "email": "a@example.org"})
    with zipfile.ZipFile(tmp_path / "p.zip") as archive:
        assert sorted(archive.namelist()) == names
        about = archive.read("rs_biformer/metadata.txt").decode()
        assert archive.read("rs_biformer/LICENSE").startswith(b"\n") or b"Apache License" in archive.read(names[0])
        for name in names:
            if name.endswith(".py"):
                ast.parse(archive.read(name), name, feature_version=(3, 9))
    assert {name.partition("/")[0] for name in names} == {"rs_biformer"}
    assert not any("__pycache__" in name or name.endswith((".pyc", ".qml")) for name in names)
    fields = configparser.ConfigParser()
    fields.read_string(about)
    assert (fields["general"]["version"], fields["general"]["email"]) == ("1.2.3", "a@example.org")
    first = (tmp_path / "p.zip").read_bytes()
    build.build(tmp_path / "q.zip", {"version": "1.2.3", "email": "a@example.org"})
    assert (tmp_path / "q.zip").read_bytes() == first


def test_the_metadata_has_all_that_the_plugin_manager_asks_for_and_nothing_invented():
    fields = configparser.ConfigParser()
    fields.read(FOLDER / "metadata.txt", encoding="utf-8")
    general = fields["general"]
    for name in ("name", "description", "about", "version", "qgisMinimumVersion", "author", "icon"):
        assert general[name], name
    assert (general["qgisMinimumVersion"], general["hasProcessingProvider"]) == ("3.22", "yes")
    assert (FOLDER / general["icon"]).read_bytes().startswith(b"\x89PNG")
    assert not set(general) & set(build_module().FOR_PLUGINS_QGIS_ORG), "given to make plugin, not invented here"
    assert "example" not in json.dumps(dict(general))


def imported(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module


def test_the_plugin_imports_qgis_and_the_standard_library_alone():
    allowed = {"qgis.core", "qgis.PyQt.QtGui", "__future__", *sys.stdlib_module_names}
    for path in FOLDER.rglob("*.py"):
        assert {name for name in imported(path)} <= allowed, path
    for name in ("command", "process", "environment", "__init__"):
        assert not any(found.startswith("qgis") for found in imported(FOLDER / f"{name}.py"))
