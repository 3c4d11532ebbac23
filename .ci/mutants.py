"""Changes a module in one place at a time and runs its own tests: what they do not notice is printed.

    make mutants MUTANTS="--sample 30 geometry schema"

A survivor that changes a result wants a test; one that cannot (a wider bound that nothing reaches, another error text)
may stay. Every mutant runs in a forked process whose import of that one module gives the changed code: no file is
touched, and what is slow to import is imported once. Linux and macOS only.
"""

import argparse
import ast
import importlib.abc
import importlib.util
import os
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
OWN_TESTS = {
    "geometry": ["tests/test_geometry.py", "tests/test_doctests.py"],
    "schema": ["tests/test_schema.py"],
    "data/splits": ["tests/data/test_splits.py", "tests/data/test_ground.py"],
    "predict/plan": ["tests/predict/test_plan.py"],
    "predict/quality": ["tests/predict/test_quality.py"],
    "predict/blending": ["tests/predict/test_exact.py"],
    "evaluation/confusion": ["tests/evaluation/test_confusion.py"],
    "evaluation/protocols": ["tests/evaluation/test_protocols.py"],
    "nn/attention/bra": ["tests/nn/test_bra.py"],
    "data/sampler": ["tests/data/test_sampler.py"],
    "data/dataset": ["tests/data/test_dataset.py"],
    "data/augment": ["tests/data/test_augment.py"],
}
SWAPPED = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
OTHER_NAME = {"min": "max", "max": "min", "any": "all", "all": "any"}


def changes(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Makes one change after the other in the tree, and takes it back when the next is asked for: line, what."""
    for node in list(_code(tree)):
        for place, key, new in list(_variants(node)):
            old = place[key] if isinstance(place, list) else getattr(place, key)
            _put(place, key, new)
            yield getattr(node, "lineno", 0), f"{_shown(old)} -> {_shown(new)}: {ast.unparse(node)[:90]}"
            _put(place, key, old)


def _code(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but annotations, error messages and asserts, whose change is no other behaviour."""
    yield node
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not isinstance(child, ast.Raise | ast.Assert | ast.JoinedStr):
                yield from _code(child)


def _variants(node: ast.AST) -> Iterator[tuple[object, object, object]]:
    if isinstance(node, ast.Compare):
        for number, operator in enumerate(node.ops):
            if type(operator) in SWAPPED:
                yield node.ops, number, SWAPPED[type(operator)]()
    elif isinstance(node, ast.BinOp | ast.BoolOp | ast.AugAssign) and type(node.op) in SWAPPED:
        yield node, "op", SWAPPED[type(node.op)]()
    elif isinstance(node, ast.Constant) and type(node.value) is bool:
        yield node, "value", not node.value
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        yield node, "value", node.value + 1
    elif isinstance(node, ast.UnaryOp):
        yield from _of_one(node)
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in OTHER_NAME:
        yield node.func, "id", OTHER_NAME[node.func.id]
    elif isinstance(node, ast.IfExp):
        yield node, "test", ast.UnaryOp(ast.Not(), node.test)


def _of_one(node: ast.UnaryOp) -> Iterator[tuple[object, object, object]]:
    if isinstance(node.op, ast.Not):
        yield node, "operand", ast.UnaryOp(ast.Not(), node.operand)
    elif isinstance(node.op, ast.Invert | ast.USub):
        yield node, "op", ast.UAdd() if isinstance(node.op, ast.USub) else ast.Not()


def _put(place: object, key: object, value: object) -> None:
    if isinstance(place, list):
        place[key] = value  # type: ignore[index]
    else:
        setattr(place, key, value)  # type: ignore[arg-type]


def _shown(value: object) -> str:
    return type(value).__name__ if isinstance(value, ast.AST) else repr(value)


class _Changed(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Gives the changed code of one module, instead of its file's."""

    def __init__(self, name: str, path: Path, code: object) -> None:
        self.name, self.path, self.code = name, path, code

    def find_spec(self, name: str, path: object = None, target: object = None):  # noqa: ANN202 - ModuleSpec or None
        if name == self.name:
            return importlib.util.spec_from_file_location(name, self.path, loader=self)
        return None

    def exec_module(self, module: object) -> None:
        exec(self.code, module.__dict__)


def _passes(name: str, path: Path, code: object, tests: list[str], limit: float) -> bool:
    """Whether the tests pass with this code in place of a module's; what takes longer than `limit` s does not."""
    child = os.fork()
    if child == 0:
        os.setpgid(0, 0)
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            os.dup2(nowhere.fileno(), 2)
        sys.meta_path.insert(0, _Changed(name, path, code))
        import pytest

        try:
            outcome = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", *tests]))
        except BaseException:
            outcome = 1
        os._exit(outcome)
    end = time.monotonic() + limit
    while time.monotonic() < end:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status) == 0
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def survivors(module: str, sample: int | None, seed: int) -> int:
    """Prints the changes of a module that its tests do not notice; how many they are."""
    path = ROOT / "rs_biformer" / f"{module}.py"
    name = f"rs_biformer.{module.replace('/', '.')}"
    tests = [test for test in OWN_TESTS[module] if (ROOT / test).exists()]
    source = path.read_text(encoding="utf-8")
    tree = ast.parse(source)
    begun = time.monotonic()
    if not _passes(name, path, compile(source, path, "exec"), tests, 600):
        sys.exit(f"{module}: its tests fail without any change: {' '.join(tests)}")
    limit = 20 + 5 * (time.monotonic() - begun)
    number = sum(1 for _ in changes(tree))
    chosen = set(random.Random(seed).sample(range(number), min(sample or number, number)))
    found = 0
    for position, (line, what) in enumerate(changes(tree)):
        if position not in chosen:
            continue
        code = compile(ast.fix_missing_locations(tree), path, "exec")
        if _passes(name, path, code, tests, limit):
            found += 1
            print(f"{path.relative_to(ROOT)}:{line}: {what}", flush=True)
    print(f"{module}: {found} of {len(chosen)} changes are not noticed ({number} in all)", flush=True)
    return found


def main() -> None:
    """Options, then one module after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=f"of {', '.join(OWN_TESTS)}; all by default")
    parser.add_argument("--sample", type=int, help="try so many changes of each module, drawn at random")
    parser.add_argument("--seed", type=int, default=0, help="of the drawing")
    args = parser.parse_args()
    if unknown := set(args.modules) - set(OWN_TESTS):
        parser.error(f"no module {', '.join(unknown)}; use {', '.join(OWN_TESTS)}")
    os.chdir(ROOT)
    sys.path[:0] = [str(ROOT)]
    import rasterio  # noqa: F401 - what is slow to import, once
    import torch

    torch.set_num_threads(1)
    for module in args.modules or OWN_TESTS:
        survivors(module, args.sample, args.seed)


if __name__ == "__main__":
    main()
