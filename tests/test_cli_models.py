import csv
import io
import json

import pytest

from rs_biformer.cli import main
from rs_biformer.nn.count import count_model
from rs_biformer.nn.model import DECODERS, list_encoders


def printed(capsys, *argv: str) -> str:
    capsys.readouterr()
    assert main(["models", *argv]) == 0
    return capsys.readouterr().out


def test_the_table_has_the_figures_that_are_counted(capsys):
    figures = count_model("resnet18_biformer", "fpn", size=64, bands=4)
    out = printed(capsys, "--only", "resnet18_biformer", "--decoder", "fpn", "--size", "64", "--bands", "4")
    (row,) = (line.split() for line in out.splitlines() if "resnet18_biformer" in line)
    assert row[1] == f"{figures.encoder_parameters / 1e6:.2f}" and row[6] == f"{figures.multiply_adds / 1e9:.2f}"
    assert row[-5:] == ["2", "4", "8", "16", "32"]
    assert all(decoder in out for decoder in DECODERS)


def test_json_and_csv_hold_the_same_figures(capsys):
    names = ["coat_lite_tiny", "resnet18"]
    models = json.loads(printed(capsys, "--only", *names, "--size", "64", "--json"))["models"]
    rows = list(csv.DictReader(io.StringIO(printed(capsys, "--only", *names, "--size", "64", "--csv"))))
    assert [model["encoder"] for model in models] == [row["encoder"] for row in rows] == names
    for model, row in zip(models, rows, strict=True):
        assert {name: str(value) for name, value in model.items() if isinstance(value, int)} == {
            name: row[name] for name, value in model.items() if isinstance(value, int)
        }
        assert row["strides"].split() == [str(stride) for stride in model["strides"]]
        assert model["decoders"] == row["decoders"].split() == list(DECODERS)


@pytest.mark.slow
def test_every_architecture_is_listed(capsys):
    models = json.loads(printed(capsys, "--size", "224", "--json"))["models"]
    assert [model["encoder"] for model in models] == list_encoders()
    assert all(model["parameters"] > model["encoder_parameters"] > 0 for model in models)


def test_names_that_nobody_knows_are_refused_in_one_line(capsys):
    assert main(["models", "--only", "biformer_tini"]) == 2
    assert "did you mean biformer_tiny" in capsys.readouterr().err.splitlines()[-1]


def test_all_lists_what_the_libraries_have_with_their_weights(capsys):
    models = json.loads(printed(capsys, "--all", "--json"))["models"]
    weights = {model["encoder"]: model["weights"] for model in models}
    assert len(models) == len(weights) > 1000
    assert "dinov3_lvd1689m" in weights["convnext_tiny"] and weights["resnet18"][0] == "imagenet"
    assert not set(weights) & set(list_encoders()) and "tu-coat_tiny" in weights
    rows = list(csv.DictReader(io.StringIO(printed(capsys, "--all", "--only", "*dinov3*", "--csv"))))
    assert rows and all("dinov3" in row["encoder"] for row in rows)
    assert "vit_small_patch16_dinov3" in printed(capsys, "--all", "--only", "vit_small_patch16_dinov3")


def test_a_pattern_of_no_encoder_is_refused_in_one_line(capsys):
    assert main(["models", "--all", "--only", "dinov9*"]) == 2
    assert "no encoder called dinov9*" in capsys.readouterr().err
