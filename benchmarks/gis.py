"""What the programs of others show of our files by themselves: QGIS, GDAL's tools, rio-tiler, rioxarray, geopandas.

    python benchmarks/gis.py --scene SCENE --label LABEL --classes SCHEMA --checkpoint MODEL --out DIR \
        --others ENV/bin/python [--qgis /usr/bin/python3]

Maps, vectorizes and tiles the scene into DIR (without --scene, takes what lies there), opens every file with each
program, and prints a table in Markdown: what was opened, what it showed, and what the program said on standard error.
QGIS's pictures (maps, legends) lie in DIR/pictures: look at them. ENV holds rio-tiler, rioxarray, geopandas, pyarrow,
which this package does not need.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import mkdtemp

RASTERS = ("map_classes.tif", "map_confidence.tif", "map_probabilities.tif")
LAYERS = ("map.gpkg", "map.fgb", "map.parquet", "tiles/tiles.gpkg", "tiles/tiles.parquet")


def make_files(args: argparse.Namespace) -> None:
    """All kinds of files that the commands write."""
    out = args.out
    commands = [
        ["predict", args.scene, "--checkpoint", args.checkpoint, "--out", out, "--name", "map"]
        + ["--confidence", "--probabilities"],
        *(
            ["vectorize", out / "map_classes.tif", "--confidence", out / "map_confidence.tif", "--min-area", 5]
            + ["--out", out / f"map.{suffix}"]
            for suffix in ("gpkg", "fgb", "parquet")
        ),
        ["tile", args.scene, "--labels", args.label, "--classes", args.classes, "--split", "blocks:0.7,0.15,0.15"]
        + ["--window", 128, "--block-size", 256, "--out", out / "tiles"],
    ]
    code = "import sys; from rs_biformer.cli import main; sys.exit(main())"
    for command in commands:
        subprocess.run([sys.executable, "-c", code, "--progress", "none", *map(str, command)], check=True)


def with_gdalinfo(path: Path) -> str:
    found = json.loads(_said(["gdalinfo", "-json", str(path)]))
    band = found["bands"][0]
    parts = [
        f"CRS {found.get('stac', {}).get('proj:epsg') or found['coordinateSystem']['wkt'].splitlines()[0]}",
        f"{len(found['bands'])} bands ({', '.join(one.get('description', '?') for one in found['bands'])})",
        f"nodata {band.get('noDataValue')}",
        f"scale {band['scale']}" if "scale" in band else "no scale",
        f"{len(band.get('overviews', []))} overviews",
        f"categories {', '.join(band['categories'])}" if "categories" in band else "no categories",
        f"{band.get('colorTable', {}).get('count', 0)} colours",
        f"layout {found['metadata'].get('IMAGE_STRUCTURE', {}).get('LAYOUT')}",
    ]
    return "; ".join(parts)


def with_ogrinfo(path: Path) -> str:
    text = _said(["ogrinfo", "-ro", "-so", "-al", str(path)])
    wanted = ("Layer name", "Geometry", "Feature Count", "split", "class_name", "confidence")
    lines = [line for line in text.splitlines() if line.startswith(wanted)]
    return "; ".join(line.strip() for line in lines) + ("; CRS" if "CRS[" in text else "; no CRS")


def _said(command: list[str]) -> str:
    ended = subprocess.run(command, check=False, stdout=subprocess.PIPE, text=True)
    if ended.returncode:
        raise OSError(f"{command[0]} ended with code {ended.returncode}")
    return ended.stdout


def with_rio_tiler(path: Path) -> str:
    from rio_tiler.io import Reader

    with Reader(str(path)) as source:
        info = source.info()
        image = source.preview(max_size=256)
        scaled = source.preview(max_size=256, unscale=True) if info.scales else image
        colours = len(info.colormap or {})
    values = scaled.array.compressed()
    return (
        f"CRS {info.crs}; bands {[name for _, name in info.band_descriptions]}; nodata {info.nodata_value}; "
        f"scales {info.scales[:1]}; unscaled {values.min():.3g} to {values.max():.3g}; {colours} colours; "
        f"overviews {info.overviews}"
    )


def with_rioxarray(path: Path) -> str:
    import rioxarray

    with rioxarray.open_rasterio(path, mask_and_scale=True) as found:
        low, high = float(found.min()), float(found.max())
        names = found.attrs.get("long_name")
        return f"CRS {found.rio.crs.to_string()}; masked and scaled {low:.3g} to {high:.3g}; names {names}"


def with_geopandas(path: Path) -> str:
    import geopandas

    reader: Callable = geopandas.read_parquet if path.suffix == ".parquet" else geopandas.read_file
    found = reader(path)
    key = "class_name" if "class_name" in found else "split"
    kinds = ", ".join(f"{name} {count}" for name, count in found[key].value_counts().items())
    return f"CRS {found.crs.to_string()}; {len(found)} rows, all valid: {bool(found.is_valid.all())}; {kinds}"


class Qgis:
    """A QGIS without a window."""

    def __init__(self, pictures: Path) -> None:
        from qgis.core import QgsApplication

        QgsApplication.setPrefixPath("/usr", True)
        self._application = QgsApplication([], True)
        self._application.initQgis()
        self._pictures = pictures
        pictures.mkdir(exist_ok=True)

    def raster(self, path: Path) -> str:
        from qgis.core import QgsRasterLayer

        layer = QgsRasterLayer(str(path), path.stem)
        if not layer.isValid():
            return f"does not open: {layer.error().summary()}"
        provider, renderer = layer.dataProvider(), layer.renderer()
        self._picture(layer, path)
        kind = renderer.type()
        if kind == "paletted":
            legend = ", ".join(f"{one.label} {one.color.name()}" for one in renderer.classes())
        elif kind == "singlebandpseudocolor":
            legend = f"{renderer.classificationMin():g} to {renderer.classificationMax():g}"
        else:
            legend = "of QGIS's own"
        sample = provider.identify(layer.extent().center(), 1).results()
        return (
            f"CRS {layer.crs().authid()}; {layer.bandCount()} bands, {layer.bandName(1)}; style {kind} "
            f"({legend}); nodata {provider.sourceNoDataValue(1):g}; scale {provider.bandScale(1):g}; "
            f"value in the middle {next(iter(sample.values()), None)}"
        )

    def layer(self, path: Path) -> str:
        from qgis.core import QgsVectorLayer

        layer = QgsVectorLayer(str(path), path.stem, "ogr")
        if not layer.isValid():
            return "does not open (its GDAL has no driver for it)"
        renderer = layer.renderer()
        self._picture(layer, path)
        legend = (
            ", ".join(f"{one.label()} {one.symbol().color().name()}" for one in renderer.categories())
            if renderer.type() == "categorizedSymbol"
            else "one symbol"
        )
        return f"CRS {layer.crs().authid()}; {layer.featureCount()} features; style {renderer.type()} ({legend})"

    def _picture(self, layer: object, path: Path) -> None:
        """The layer as the canvas shows it, with the legend that the layer tree shows beside it."""
        from qgis.core import (
            QgsLayerTree,
            QgsLayerTreeModel,
            QgsLegendRenderer,
            QgsLegendSettings,
            QgsMapRendererParallelJob,
            QgsMapSettings,
            QgsRenderContext,
        )
        from qgis.PyQt.QtCore import QSize, Qt
        from qgis.PyQt.QtGui import QColor, QImage, QPainter

        settings = QgsMapSettings()
        settings.setLayers([layer])
        settings.setDestinationCrs(layer.crs())
        settings.setExtent(layer.extent())
        settings.setOutputSize(QSize(700, 700))
        job = QgsMapRendererParallelJob(settings)
        job.start()
        job.waitForFinished()
        tree = QgsLayerTree()
        tree.addLayer(layer)
        model = QgsLayerTreeModel(tree)  # of which the renderer of the legend keeps no reference
        legend = QgsLegendRenderer(model, QgsLegendSettings())
        sheet = QImage(1000, 700, QImage.Format.Format_ARGB32)
        sheet.fill(QColor(Qt.GlobalColor.white))
        painter = QPainter(sheet)
        painter.drawImage(0, 0, job.renderedImage())
        painter.translate(715, 10)
        painter.scale(3.2, 3.2)
        legend.drawLegend(QgsRenderContext.fromQPainter(painter))
        painter.end()
        sheet.save(str(self._pictures / f"{path.name}.png"))


def shown_by(program: str, out: Path, name: str) -> str:
    """What one program shows of one file, or its refusal."""
    path = out / name
    try:
        if program == "QGIS":
            qgis = Qgis(out / "pictures")
            return qgis.raster(path) if name in RASTERS else qgis.layer(path)
        return READERS[program](path)
    except Exception as error:  # of programs of others: whatever they raise is what they show
        return f"does not open: {str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"


READERS: dict[str, Callable[[Path], str]] = {
    "gdalinfo": with_gdalinfo,
    "ogrinfo": with_ogrinfo,
    "rio-tiler": with_rio_tiler,
    "rioxarray": with_rioxarray,
    "geopandas": with_geopandas,
}
_OPENED_BY = {
    "QGIS": (*RASTERS, *LAYERS),
    "gdalinfo": RASTERS,
    "ogrinfo": LAYERS,
    "rio-tiler": RASTERS,
    "rioxarray": RASTERS,
    "geopandas": LAYERS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    for name in ("scene", "label", "classes", "checkpoint"):
        add(f"--{name}")
    add("--out", type=Path, required=True)
    add("--others", default=sys.executable, help="Python with rio-tiler, rioxarray, geopandas, pyarrow")
    add("--qgis", default="/usr/bin/python3", help="Python with qgis.core")
    add("--show", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.show:
        print("SHOWN " + shown_by(args.show[0], args.out, args.show[1]))
        sys.stdout.flush()
        os._exit(0)  # a QGIS without a window may not come to its end by itself
    args.out.mkdir(parents=True, exist_ok=True)
    if args.scene:
        make_files(args)
    print("| program | file | shows | says on standard error |\n|---|---|---|---|")
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment = {**clean, "QT_QPA_PLATFORM": "offscreen", "XDG_RUNTIME_DIR": mkdtemp()}
    for program, names in _OPENED_BY.items():
        for name in names:
            python = args.qgis if program == "QGIS" else args.others
            command = [python, __file__, "--out", str(args.out), "--show", program, name]
            ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
            shown = ended.stdout.rpartition("SHOWN ")[2].strip() or f"ended with code {ended.returncode}"
            said = " / ".join(dict.fromkeys(line.strip() for line in ended.stderr.splitlines() if line.strip()))
            print(f"| {program} | {name} | {shown} | {said[:300] or 'nothing'} |", flush=True)


if __name__ == "__main__":
    main()
