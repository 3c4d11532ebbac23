from __future__ import annotations

from qgis.core import QgsApplication

from .provider import RsBiformerProvider


class RsBiformerPlugin:
    """Adds the provider to Processing, in QGIS and in qgis_process, and takes it away again."""

    def __init__(self) -> None:
        self._provider: RsBiformerProvider | None = None

    def initProcessing(self) -> None:
        self._provider = RsBiformerProvider()
        QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self) -> None:
        self.initProcessing()

    def unload(self) -> None:
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None
