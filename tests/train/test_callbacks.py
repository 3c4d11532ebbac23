import numpy as np
import pytest
from tiny_index import SCHEMA

from rs_biformer.train.callbacks import draw


@pytest.mark.parametrize("bands", [1, 2, 3, 5])
def test_samples_are_drawn_as_rows_of_image_label_prediction_and_errors(bands):
    labels = np.array([[[0, 1], [2, 255]]], np.uint8).repeat(3, axis=0)
    picture = draw(np.zeros((3, bands, 2, 2), np.float32), labels, labels[:, ::-1], SCHEMA)
    assert picture.shape == (3, 6, 8) and picture.dtype == np.uint8
    assert (picture[:, :, :2] == 127).all()
    assert picture[:, 0, 3].tolist() == list(SCHEMA.colours[1])
    assert picture[:, 1, 5].tolist() == list(SCHEMA.colours[1])
    assert picture[:, 0, 6].tolist() == picture[:, 1, 6].tolist() == [220, 30, 30]  # 0 against 2 and 2 against 0
    assert picture[:, 1, 7].tolist() == [63, 63, 63]  # no label, no error
