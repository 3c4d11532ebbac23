"""The zip that QGIS's plugin manager installs: python qgis/build.py [--out FILE] [--version 1.2 --email ... ...]."""

from __future__ import annotations

import argparse
import re
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
NAME = "rs_biformer"
FOR_PLUGINS_QGIS_ORG = ("email", "repository", "tracker")
"""Fields that the public repository of plugins requires and that this source cannot know."""
_KINDS = (".py", ".txt", ".png")
_DATE = (1980, 1, 1, 0, 0, 0)  # the same sources give the same bytes


def build(out: Path, fields: dict[str, str]) -> list[str]:
    """Write the zip, with these fields in its metadata, and return the names in it."""
    folder = HERE / NAME
    found = {
        f"{NAME}/{path.relative_to(folder).as_posix()}": path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.suffix in _KINDS and "__pycache__" not in path.parts
    }
    found[f"{NAME}/LICENSE"] = (HERE.parent / "LICENSE").read_bytes()
    about = f"{NAME}/metadata.txt"
    found[about] = with_fields(found[about].decode("utf-8"), fields).encode("utf-8")
    out.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(found):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, found[name], zipfile.ZIP_DEFLATED)
    return sorted(found)


def with_fields(metadata: str, fields: dict[str, str]) -> str:
    """metadata.txt with these fields, in place of those that it has."""
    lines = [line for line in metadata.splitlines() if line.partition("=")[0] not in fields]
    place = lines.index("[general]") + 1
    return "\n".join([*lines[:place], *(f"{name}={value}" for name, value in fields.items()), *lines[place:]]) + "\n"


def package_version() -> str:
    """That of the installed package, without what names a commit; that of metadata.txt where there is none."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(NAME).partition("+")[0]
    except PackageNotFoundError:
        found = re.search(r"^version=(.+)$", (HERE / NAME / "metadata.txt").read_text(encoding="utf-8"), re.MULTILINE)
        assert found is not None
        return found[1]


def main() -> None:
    """Build it and say what is still to be given for the public repository."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("dist/rs_biformer_qgis.zip"))
    parser.add_argument("--version", default="")
    for name in FOR_PLUGINS_QGIS_ORG:
        parser.add_argument(f"--{name}", default="")
    args = parser.parse_args()
    fields = {"version": args.version or package_version()}
    fields.update({name: getattr(args, name) for name in FOR_PLUGINS_QGIS_ORG if getattr(args, name)})
    names = build(args.out, fields)
    print(f"{args.out}: {len(names)} files, version {fields['version']}; Plugins > Install from ZIP in QGIS takes it")
    if missing := [name for name in FOR_PLUGINS_QGIS_ORG if name not in fields]:
        print(f"plugins.qgis.org also asks for {', '.join(missing)}: give them with --{' ... --'.join(missing)} ...")


if __name__ == "__main__":
    main()
