"""Runs the plugin's algorithms in a real QGIS without a window and writes what it saw as JSON.

For the Python that QGIS has, /usr/bin/python3 say.

Arguments: the folder of the plugin, a folder to work in, the command rs-biformer. In the folder lie scene.tif,
label.tif, model.ckpt and huge.tif, see test_in_qgis.py.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

PLUGIN, WORK, COMMAND = sys.argv[1:]
sys.path[:0] = ["/usr/share/qgis/python", "/usr/share/qgis/python/plugins", PLUGIN]

from qgis.core import (  # noqa: E402
    QgsApplication,
    QgsMapRendererParallelJob,
    QgsMapSettings,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProject,
    QgsRasterLayer,
    QgsVectorLayer,
)
from qgis.PyQt.QtCore import QSize  # noqa: E402
from qgis.PyQt.QtGui import QColor  # noqa: E402

QgsApplication.setPrefixPath("/usr", True)
application = QgsApplication([], False, tempfile.mkdtemp())
application.initQgis()

import processing  # noqa: E402
from processing.core.Processing import Processing  # noqa: E402

Processing.initialize()
work = Path(WORK)


class Feedback(QgsProcessingFeedback):
    """Keeps what it is told; cancels at the first progress where that is wanted."""

    def __init__(self, cancel=False):
        super().__init__()
        self.lines, self.shares, self._cancel = [], [], cancel

    def pushInfo(self, text):
        self.lines.append(text)

    def pushWarning(self, text):
        self.lines.append(text)

    def setProgress(self, share):
        self.shares.append(share)
        if self._cancel:
            self.cancel()


def run(name, cancel=False, **parameters):
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    feedback = Feedback(cancel)
    try:
        made = processing.run(f"rs_biformer:{name}", parameters, feedback=feedback, context=context)
        error = None
    except QgsProcessingException as failure:
        made, error = {}, str(failure)
    made = {
        key: value if isinstance(value, (str, float, int, type(None))) else str(value) for key, value in made.items()
    }
    loaded = [details.name for details in context.layersToLoadOnCompletion().values()]
    return {"made": made, "error": error, "lines": feedback.lines, "shares": feedback.shares, "loaded": loaded}


def path(name):
    return str(work / name)


def picture(layers, name):
    """What a map canvas would show of the layers, as PNG."""
    settings = QgsMapSettings()
    settings.setLayers(layers)
    settings.setDestinationCrs(layers[0].crs())
    settings.setExtent(layers[0].extent())
    settings.setOutputSize(QSize(192, 192))
    settings.setBackgroundColor(QColor(255, 0, 255))
    job = QgsMapRendererParallelJob(settings)
    job.start()
    job.waitForFinished()
    job.renderedImage().save(path(name))


seen = {}
import rs_biformer  # noqa: E402

plugin = rs_biformer.classFactory(None)
plugin.initProcessing()
provider = QgsApplication.processingRegistry().providerById("rs_biformer")
seen["algorithms"] = {one.name(): one.shortHelpString() for one in provider.algorithms()}
seen["not set up"] = run("polygons_from_map", MAPS=[path("label.tif")], OUTPUT=path("no.gpkg"))["error"]
seen["set up"] = run("set_up", EXISTING=COMMAND)
seen["set up wrongly"] = run("set_up", EXISTING="/usr/lib")["error"]

scene = QgsRasterLayer(path("scene.tif"), "scene")
common = {"RASTER": scene, "MODEL": path("model.ckpt")}
seen["map"] = run("map_raster", **common, OUTPUT=path("town.tif"), CONFIDENCE=path("sure.tif"))
map_layer = QgsRasterLayer(path("town.tif"), "town")
seen["legend"] = [[one.label, one.color.name()] for one in map_layer.renderer().classes()]
picture([map_layer], "town.png")
sure = QgsRasterLayer(path("sure.tif"), "sure")
seen["score style"] = [sure.renderer().type(), sure.renderer().classificationMax()]

Path(path("other.onnx")).write_text("nonsense")
seen["bad model"] = run("map_raster", RASTER=scene, MODEL=path("other.onnx"), OUTPUT=path("bad.tif"))["error"]
wms = QgsRasterLayer("type=xyz&url=http://127.0.0.1:9/{z}/{x}/{y}.png", "tiles of a server", "wms")
seen["wms"] = run("map_raster", RASTER=wms, MODEL=path("model.ckpt"), OUTPUT=path("bad.tif"))["error"]
cancelled = run(
    "map_raster", cancel=True, RASTER=path("huge.tif"), MODEL=path("model.ckpt"), OUTPUT=path("huge_map.tif")
)
seen["cancelled"] = [
    cancelled["made"],
    cancelled["error"],
    sorted(name for name in os.listdir(WORK) if "huge_map" in name),
]

kept = run(
    "map_raster", cancel=True, KEEP=True, RASTER=path("huge.tif"), MODEL=path("model.ckpt"), OUTPUT=path("kept.tif")
)
seen["kept"] = [kept["made"], sorted(name for name in os.listdir(WORK) if "kept" in name)]
style = Path(path("town.qml"))
style.write_text(style.read_text().replace('alpha="255"', 'alpha="99"'))
quality = provider.algorithm("map_raster").parameterDefinition("QUALITY")
seen["qualities"] = [quality.options()[quality.defaultValue()], quality.options()]
seen["again"] = run("map_raster", **common, QUALITY=quality.options().index("Fast"), OUTPUT=path("town.tif"))
seen["style again"] = 'alpha="99"' in style.read_text()

seen["polygons"] = run(
    "polygons_from_map", MAPS=[path("town.tif")], CONFIDENCE=path("sure.tif"), OUTPUT=path("town.gpkg")
)
polygons = QgsVectorLayer(seen["polygons"]["made"]["OUTPUT"], "town", "ogr")
seen["polygon legend"] = [[one.label(), one.symbol().color().name()] for one in polygons.renderer().categories()]
picture([polygons], "polygons.png")
names = polygons.uniqueValues(polygons.fields().indexOf("class_name"))
square = {"SQUARE": True, "SQUARE_CLASSES": " , ".join(sorted(names)), "TOLERANCE": "2 m"}
seen["square"] = run("polygons_from_map", MAPS=[path("town.tif")], MIN_AREA=5, OUTPUT=path("square.gpkg"), **square)
seen["barns"] = run(
    "polygons_from_map", MAPS=[path("town.tif")], SQUARE=True, SQUARE_CLASSES="barn", OUTPUT=path("no.gpkg")
)["error"]

seen["measured"] = run(
    "measure_map", MAP=map_layer, LABEL_RASTER=path("label.tif"), CLASSES=1, OUTPUT=path("page.html")
)
seen["measured by legend"] = run(
    "measure_map", MAP=map_layer, LABEL_POLYGONS=polygons, FIELD="class_name", OUTPUT=path("same.html")
)
seen["two labels"] = run(
    "measure_map", MAP=map_layer, LABEL_RASTER=path("label.tif"), LABEL_POLYGONS=polygons, OUTPUT=path("no.html")
)["error"]

polygons.setSubsetString("area > 20")
tiles = {"RASTER": scene, "WINDOW": 32, "OVERLAP": 0, "SPLIT": "train"}
seen["tiles"] = run("tile_raster", **tiles, LABEL_POLYGONS=polygons, OUTPUT=path("tiles"))
seen["subset"] = [polygons.featureCount(), QgsVectorLayer(path("tiles/tiled_labels.gpkg"), "l", "ogr").featureCount()]
memory = QgsVectorLayer("Polygon?crs=EPSG:25832&field=class_name:string", "drawn", "memory")
memory.dataProvider().addFeatures([])
seen["no polygons"] = run("tile_raster", **tiles, LABEL_POLYGONS=memory, FIELD="class_name", OUTPUT=path("none"))[
    "error"
]
seen["left of it"] = os.path.exists(path("none"))

plugin.unload()
seen["unloaded"] = QgsApplication.processingRegistry().providerById("rs_biformer") is None
(work / "seen.json").write_text(json.dumps(seen))
