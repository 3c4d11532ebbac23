import copy
import os
from pathlib import Path

import pytest
import torch
from tiny_index import write_tiny_index

from rs_biformer.errors import CheckpointError
from rs_biformer.train.config import DataConfig, ModelConfig, OptimizerConfig, TrainConfig
from rs_biformer.train.run import train


def config_of(index: Path, out: Path, epochs: int = 1, **options) -> TrainConfig:
    trainer = {"max_epochs": epochs, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1}
    return TrainConfig(
        model=ModelConfig(encoder="mobilenet_v2"),
        data=DataConfig(index=str(index), batch_size=2, workers=0),
        optimizer=OptimizerConfig(learning_rate=0.01, ema=0.9),
        trainer=trainer,
        out=str(out),
        images_every=0,
        **options,
    )


@pytest.fixture(scope="module")
def begun(tmp_path_factory) -> tuple[Path, dict]:
    """An index, and the content of the last.ckpt of a run of one epoch on it."""
    folder = tmp_path_factory.mktemp("begun")
    index = write_tiny_index(folder / "scenes", {"a": "train", "b": "val"})
    out = train(config_of(index, folder / "run"))
    return index, torch.load(out / "last.ckpt", weights_only=True)


def put(content: dict, place: tuple, value: object) -> None:
    *above, last = place
    for key in above:
        content = content[key]
    if value is None:
        del content[last]
    else:
        content[last] = value


PROGRESS = ("loops", "fit_loop", "epoch_progress", "current")


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("epoch",), "one"),
        (("epoch",), -1),
        (("global_step",), None),
        (("global_step",), 2**60),
        (("global_step",), True),
        (("loops",), None),
        (("loops",), []),
        (("loops", "fit_loop"), None),
        (("loops", "fit_loop"), 3),
        (PROGRESS, {}),
        ((*PROGRESS, "processed"), -3),
        ((*PROGRESS, "ready"), "x"),
        (("callbacks",), None),
        (("callbacks",), 7),
        (("optimizer_states",), {}),
        (("optimizer_states",), []),
        (("optimizer_states", 0), None),
        (("optimizer_states", 0), "adam"),
        (("optimizer_states", 0, "state"), 5),
        (("optimizer_states", 0, "state", 0, "exp_avg"), torch.zeros(3, 3)),
        (("optimizer_states", 0, "state", 0, "exp_avg"), "x"),
        (("optimizer_states", 0, "param_groups"), []),
        (("optimizer_states", 0, "param_groups", 0, "lr"), "high"),
        (("lr_schedulers",), None),
        (("lr_schedulers",), [3]),
        (("pytorch-lightning_version",), None),
        (("pytorch-lightning_version",), 2),
        (("current_model_state",), 3),
        (("averaging_state",), {}),
    ],
    ids=str,
)
def test_a_state_that_cannot_be_gone_on_from_is_one_line(begun, tmp_path, place, value):
    index, content = begun
    content = copy.deepcopy(content)
    put(content, place, value)
    out = tmp_path / "run"
    out.mkdir()
    torch.save(content, out / "last.ckpt")
    before = (out / "last.ckpt").read_bytes()
    with pytest.raises(CheckpointError, match=r"cannot be resumed|last\.ckpt: ") as told:
        train(config_of(index, out, epochs=2, resume="auto"))
    assert "\n" not in str(told.value) and (out / "last.ckpt").read_bytes() == before


@pytest.mark.parametrize("kind", ["file", "folder", "link", "in_the_run"])
def test_resuming_removes_nothing_that_a_checkpoint_names(begun, tmp_path, kind):
    index, content = begun
    content, out, target = copy.deepcopy(content), tmp_path / "run", tmp_path / "thesis"
    out.mkdir()
    if kind == "in_the_run":
        target = out / "notes"
    if kind == "file":
        target.write_text("chapter")
    else:
        target.mkdir()
        (target / "chapter.tex").write_text("chapter")
    named = target
    if kind == "link":
        named = out / "notes"
        named.symlink_to(target)
    for name, state in content["callbacks"].items():
        if name.startswith("ModelCheckpoint"):
            state |= {
                "dirpath": str(os.path.abspath(out)), "best_model_path": str(named), "kth_best_model_path": str(named),
                "last_model_path": str(named), "best_k_models": {str(named): torch.tensor(-1.0)},
                "best_model_score": torch.tensor(-1.0), "kth_value": torch.tensor(-1.0),
            }  # fmt: skip
    torch.save(content, out / "last.ckpt")
    train(config_of(index, out, epochs=2, resume="auto"))
    assert (target if kind == "file" else target / "chapter.tex").read_text() == "chapter"
    assert (out / "best.ckpt").is_file() and named.exists()
