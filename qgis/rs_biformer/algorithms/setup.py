from __future__ import annotations

import os
from typing import Any

from qgis.core import (
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingOutputString,
    QgsProcessingParameterFile,
    QgsProcessingParameterString,
)

from .. import environment, process, settings
from ..command import clean_environment, error_line
from .base import Algorithm


class SetUp(Algorithm):
    """Makes an environment for the command, or remembers one that is there."""

    NAME, TITLE = "set_up", "Set up rs_biformer"
    HELP = (
        "The other algorithms run the command rs-biformer in a Python environment of its own, so that nothing it needs "
        "can clash with QGIS or with other plugins. Run this once.\n\n"
        "Existing environment: the folder of one that has rs-biformer, such as a conda environment or a .venv (with "
        "PyTorch, for checkpoints and a GPU). It is used as it is.\n\n"
        "Without one, an environment is made with venv and pip in your QGIS profile, from an index by name, a wheel, a "
        "folder of wheels or a folder of sources. No system package is touched, and nothing of it is loaded into QGIS. "
        "rs-biformer-predict has no PyTorch and takes less than a gigabyte. Running this again makes it anew."
    )

    def initAlgorithm(self, configuration: dict[str, Any] | None = None) -> None:
        directory, file = QgsProcessingParameterFile.Behavior.Folder, QgsProcessingParameterFile.Behavior.File
        self.addParameter(
            QgsProcessingParameterFile("EXISTING", "Existing environment", behavior=directory, optional=True)
        )
        source = "or make one from a name, a wheel or a folder"
        self.addParameter(QgsProcessingParameterString("SOURCE", source, environment.DEFAULT_SOURCE))
        python = f"Python {_dotted(environment.OLDEST)} to {_dotted(environment.NEWEST)} to make it with (searched)"
        self.advanced(QgsProcessingParameterFile("PYTHON", python, behavior=file, optional=True))
        folder = "Folder to make it in (in your profile)"
        self.advanced(QgsProcessingParameterFile("FOLDER", folder, behavior=directory, optional=True))
        self.addOutput(QgsProcessingOutputString("COMMAND", "Command"))

    def processAlgorithm(
        self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback
    ) -> dict[str, Any]:
        """Find or make the command, see that it runs, remember it."""
        existing = self.parameterAsString(parameters, "EXISTING", context)
        try:
            found = self._existing(existing, feedback) if existing else self._made(parameters, context, feedback)
        except process.Cancelled:
            return {}
        except environment.SetupError as error:
            raise QgsProcessingException(str(error)) from error
        settings.remember(found)
        feedback.pushInfo(f"{found} is used from now on")
        return {"COMMAND": found}

    def _existing(self, folder: str, feedback: QgsProcessingFeedback) -> str:
        found = environment.find_command(folder)
        if found is None:
            raise environment.SetupError(f"{folder} has no command rs-biformer; install it there or leave this empty")
        variables = clean_environment(dict(os.environ))
        try:
            code, lines, said = process.run(
                [found, "--version"], environment=variables, stopped=feedback.isCanceled, tell=feedback.pushInfo
            )
        except OSError as error:
            raise environment.SetupError(f"{found} cannot be started: {error}") from error
        if code or not said.startswith("rs-biformer"):
            raise environment.SetupError(error_line(found, code, [*lines, said]))
        feedback.pushInfo(said.strip())
        return found

    def _made(self, parameters: dict[str, Any], context: QgsProcessingContext, feedback: QgsProcessingFeedback) -> str:
        return environment.make(
            self.parameterAsString(parameters, "FOLDER", context) or settings.environment_folder(),
            self.parameterAsString(parameters, "SOURCE", context).strip() or environment.DEFAULT_SOURCE,
            python=self.parameterAsString(parameters, "PYTHON", context) or None,
            stopped=feedback.isCanceled,
            tell=feedback.pushInfo,
        )


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))
