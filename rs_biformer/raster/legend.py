"""How GIS programs draw polygons of classes: a QGIS style with the names and colours of a map."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from rs_biformer.raster.gdal import colour_table, gdal_env, open_raster, raster_errors
from rs_biformer.raster.paths import PathLike, locate

Colour = tuple[int, int, int]

DOCTYPE = "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n"
_OUTLINE = "35,35,35,255"
_GREYS = np.linspace(60, 220, 16).round().astype(int).tolist()


@dataclass(frozen=True)
class Legend:
    """Names and colours of classes by their index."""

    names: Mapping[int, str]
    colours: Mapping[int, Colour]

    @classmethod
    def of(cls, path: PathLike, names: Sequence[str] | None) -> "Legend":
        """The names given, and the colours of the map's colour table; greys where it has none.

        Raises RasterError when the map cannot be opened.
        """
        with gdal_env(), raster_errors(path, "opened"), open_raster(locate(path)) as file:
            table = colour_table(file)
        colours = {index: (red, green, blue) for index, (red, green, blue, *_) in table.items()}
        return cls(dict(enumerate(names or ())), colours)

    def colour(self, index: int) -> Colour:
        """That of a class; a grey for one that has none."""
        grey = _GREYS[index % len(_GREYS)]
        return self.colours.get(index, (grey, grey, grey))

    @property
    def qml(self) -> str:
        """The style of polygons with an attribute `class_name`, as QGIS 3 saves one."""
        return categories_qml("class_name", {name: self.colour(index) for index, name in self.names.items()})


def categories_qml(attribute: str, colours: Mapping[str, Colour], *, opacity: float = 1.0) -> str:
    """The style of polygons that an attribute of text tells apart, as QGIS 3 saves one, in the order of the values.

    opacity: of the areas, 0 to 1; where they are not opaque, their outlines have their colour.
    """
    document = Element("qgis", version="3.22.0", styleCategories="Symbology")
    renderer = SubElement(
        document, "renderer-v2", type="categorizedSymbol", attr=attribute, forceraster="0", symbollevels="0"
    )
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for place, (value, (red, green, blue)) in enumerate(colours.items()):
        SubElement(categories, "category", value=value, label=value, symbol=str(place), render="true")
        outline = _OUTLINE if opacity == 1 else f"{red},{green},{blue},255"
        settings = {"color": f"{red},{green},{blue},{round(255 * opacity)}", "outline_color": outline}
        _fill(symbols, str(place), settings)
    return as_text(document)


def outlines_qml(
    attribute: str, colour: Colour = (227, 26, 28), choices: Mapping[str, Sequence[str]] | None = None
) -> str:
    """The style of places to look at: outlines without a fill, labelled with an attribute, the lowest drawn on top.

    choices: attributes of text that are to be filled in the form, each by one of these words.
    """
    categories = "Symbology|Labeling" + ("|Fields|Forms" if choices else "")
    document = Element("qgis", version="3.22.0", styleCategories=categories, labelsEnabled="1")
    renderer = SubElement(document, "renderer-v2", type="singleSymbol", enableorderby="1", symbollevels="0")
    red, green, blue = colour
    line = {"style": "no", "outline_color": f"{red},{green},{blue},255", "outline_width": "0.5"}
    _fill(SubElement(renderer, "symbols"), "0", line)
    order = SubElement(renderer, "orderby")
    SubElement(order, "orderByClause", asc="0", nullsFirst="0").text = f'"{attribute}"'
    labels = SubElement(document, "labeling", type="simple")
    settings = SubElement(labels, "settings")
    SubElement(settings, "text-style", fieldName=attribute, fontSize="9", textColor=f"{red},{green},{blue},255")
    SubElement(settings, "placement", placement="1")
    if choices:
        _fields(document, choices)
    return as_text(document)


def _fields(document: Element, choices: Mapping[str, Sequence[str]]) -> None:
    """Lists to choose from in the form of a layer."""
    configuration = SubElement(document, "fieldConfiguration")
    for name, words in choices.items():
        widget = SubElement(SubElement(configuration, "field", name=name, configurationFlags="None"), "editWidget")
        widget.set("type", "ValueMap")
        listed = SubElement(
            SubElement(SubElement(widget, "config"), "Option", type="Map"), "Option", type="List", name="map"
        )
        for word in words:
            SubElement(SubElement(listed, "Option", type="Map"), "Option", type="QString", name=word, value=word)


def as_text(document: Element) -> str:
    """A style as a file holds it."""
    ElementTree.indent(document)
    return DOCTYPE + ElementTree.tostring(document, encoding="unicode") + "\n"


def _fill(symbols: Element, name: str, changed: Mapping[str, str]) -> None:
    symbol = SubElement(symbols, "symbol", type="fill", name=name, alpha="1", clip_to_extent="1", force_rhr="0")
    layer = SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"})
    settings = {"style": "solid", "outline_style": "solid", "outline_width": "0.1", "outline_width_unit": "MM"}
    settings.update(changed)
    options = SubElement(layer, "Option", type="Map")  # what QGIS reads from 3.20 on; older ones read the `prop`s
    for key, value in settings.items():
        SubElement(options, "Option", name=key, type="QString", value=value)
        SubElement(layer, "prop", k=key, v=value)
