"""rs_biformer in QGIS: maps, polygons, figures and tiles by the command rs-biformer, from the Processing toolbox."""


def classFactory(iface):  # noqa: ANN001, ANN201 - what QGIS calls
    """The plugin, as QGIS asks for it."""
    from .plugin import RsBiformerPlugin

    return RsBiformerPlugin()
