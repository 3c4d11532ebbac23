"""What the algorithms have in common: one command, its progress and its end."""

from __future__ import annotations

import os
from typing import Mapping, Sequence

from qgis.core import (
    Qgis,
    QgsProcessingAlgorithm,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingParameterDefinition,
)
from qgis.PyQt.QtGui import QIcon

from .. import process, settings
from ..command import Progress, clean_environment, error_line, parse_line

Parameters = "dict[str, Any]"

try:  # its home since QGIS 3.36
    ADVANCED = Qgis.ProcessingParameterFlag.Advanced
except AttributeError:
    ADVANCED = QgsProcessingParameterDefinition.FlagAdvanced


class Algorithm(QgsProcessingAlgorithm):
    """An algorithm whose NAME, TITLE and HELP are those of its class."""

    NAME = TITLE = HELP = ""

    def createInstance(self) -> Algorithm:
        return type(self)()

    def name(self) -> str:
        return self.NAME

    def displayName(self) -> str:
        return self.TITLE

    def shortHelpString(self) -> str:
        return self.HELP

    def icon(self) -> QIcon:
        return QIcon(os.path.join(os.path.dirname(os.path.dirname(__file__)), "icon.png"))

    def advanced(self, parameter: QgsProcessingParameterDefinition) -> None:
        """Add a parameter that most people leave as it is."""
        parameter.setFlags(parameter.flags() | ADVANCED)
        self.addParameter(parameter)

    def call(
        self,
        arguments: Sequence[str],
        feedback: QgsProcessingFeedback,
        *,
        into: Sequence[str],
        quiet: bool = False,
        called: Mapping[str, str] | None = None,
    ) -> bool:
        """Run rs-biformer; False where it was cancelled.

        into: folders that it writes to, where nothing half written stays. quiet: do not show its output. called:
        what files that get another name afterwards are called in messages. Raises
        QgsProcessingException with the one line that the command ends with.
        """
        program = settings.command()
        before = {folder: process.partials(folder) for folder in into}
        tell = _Teller(feedback, called or {})
        feedback.pushCommandInfo(" ".join([program, *arguments]))
        complete = False
        try:
            code, lines, said = process.run(
                [program, *arguments],
                environment=clean_environment(dict(os.environ)),
                stopped=feedback.isCanceled,
                tell=tell,
            )
            complete = code == 0
        except process.Cancelled:
            return False
        except OSError as error:
            raise QgsProcessingException(f"{program} cannot be started: {error}; run 'Set up rs_biformer'") from error
        finally:
            if not complete:
                for folder in into:
                    process.remove_partials(folder, process.partials(folder) - before[folder])
        if code:
            raise QgsProcessingException(tell.renamed(error_line("rs-biformer", code, lines)))
        for line in [] if quiet else said.splitlines():
            feedback.pushConsoleInfo(line)
        return True


class _Teller:
    """Shows what a command says on standard error."""

    def __init__(self, feedback: QgsProcessingFeedback, called: Mapping[str, str]) -> None:
        self._feedback, self._called, self._label = feedback, called, ""

    def renamed(self, text: str) -> str:
        """A message with the names that files will have."""
        for name, other in self._called.items():
            text = text.replace(name, other)
        return text

    def __call__(self, line: str) -> None:
        told = parse_line(line)
        if isinstance(told, Progress):
            if told.label != self._label:
                self._label = told.label
                self._feedback.setProgressText(told.label)
            self._feedback.setProgress(100 * told.share)
        elif told and not told.startswith("rs-biformer "):  # that is the error, which is raised
            self._feedback.pushInfo(self.renamed(told))


def parent_of(path: str) -> str:
    """The folder of an output, made where it is missing. Raises QgsProcessingException where that fails."""
    folder = os.path.dirname(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise QgsProcessingException(f"{folder} cannot be made: {error.strerror}; choose another output") from error
    return folder
