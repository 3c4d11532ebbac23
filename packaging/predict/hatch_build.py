"""Where the files of `rs-biformer-predict` come from: the checkout around this folder, or the sdist made there."""

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Files(BuildHookInterface[Any]):
    """Adds the package and the licence: no pyproject.toml can name them above its folder and in an sdist alike."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Force them into what is built. An editable install finds the package by its path (`dev-mode-dirs`)."""
        here = Path(self.root)
        from_sdist = (here / "rs_biformer").is_dir()
        source = here if from_sdist else here.parents[1]
        info = f"{self.metadata.core.name.replace('-', '_')}-{self.metadata.version}.dist-info"
        places = {} if version == "editable" else {"rs_biformer": "rs_biformer"}
        if not from_sdist:  # from where the backend adds the licence by itself
            places["LICENSE"] = "LICENSE" if self.target_name == "sdist" else f"{info}/licenses/LICENSE"
        for name, place in places.items():
            if not (source / name).exists():
                raise FileNotFoundError(f"{source / name} is missing: build in a whole checkout, or from an sdist")
            build_data["force_include"][str(source / name)] = place
