"""Which command is run: one that was chosen or made by *Set up rs_biformer*, kept in QGIS's settings."""

from __future__ import annotations

import os

from qgis.core import QgsApplication, QgsProcessingException, QgsSettings

from .environment import find_command

OVERRULES = "RS_BIFORMER_COMMAND"
_KEY = "rs_biformer/command"


def environment_folder() -> str:
    """Where an environment is made unless another place is given: in the profile of the user."""
    return os.path.join(QgsApplication.qgisSettingsDirPath(), "rs_biformer", "environment")


def remember(command: str) -> None:
    """Run this command from now on."""
    QgsSettings().setValue(_KEY, command)


def command() -> str:
    """The command rs-biformer. Raises QgsProcessingException, saying what to do, where none is set up."""
    chosen = os.environ.get(OVERRULES) or QgsSettings().value(_KEY, "") or environment_folder()
    found = find_command(str(chosen))
    if found is None:
        raise QgsProcessingException(
            f"there is no rs-biformer in {chosen}: run 'Set up rs_biformer' of this toolbox once, which makes an "
            "environment or takes one that you have"
        )
    return found
