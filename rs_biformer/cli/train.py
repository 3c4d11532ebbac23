"""`rs-biformer train`: a config file, overrides, one call."""

import argparse
from typing import TYPE_CHECKING

from rs_biformer.cli import console

if TYPE_CHECKING:
    from rs_biformer.train.config import TrainConfig

HELP = "train a segmentation network on tiled scenes"
EXAMPLE = (
    "rs-biformer train --config configs/vaihingen/recommended.yaml --data.index tiles --out runs/first\n"
    "  rs-biformer train --config runs/first/config.yaml --trainer.max_epochs 200 --resume auto   (train longer)\n"
    "  rs-biformer train --config ... --fast                                 (does it all fit together?)\n"
    "  rs-biformer train --config ... --find learning_rate\n\n"
    "sections of the config, each key also an option --section.key VALUE:\n"
    "  model      encoder, decoder, arguments\n"
    "  data       index, batch_size, workers, samples_per_epoch, balance, jitter, cache, augment.*, ...\n"
    "  loss       terms, balance, label_smoothing\n"
    "  optimizer  name, learning_rate, weight_decay, momentum, ema\n"
    "  schedule   name, warmup, power, final\n"
    "  trainer    options of Lightning's Trainer: max_epochs, precision, accelerator, devices, ...\n"
    "  and        out, seed, resume (auto or a checkpoint), images_every"
)
FINDERS = ("learning_rate", "batch_size")

PASS_REST = True
"""What argparse does not know is an option of the config."""

OWN_SIGNALS = True
"""Training ends its own way when it is told to."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer train` that are not the config's."""
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML file; later ones override")
    parser.add_argument("--print_config", action="store_true", help="print the whole config as YAML and stop")
    fast = "dry run: all checks, a few steps and validation batches, an estimate of the time; writes nothing"
    parser.add_argument("--fast", action="store_true", help=fast)
    find = (
        "try what fits this run, print it and stop: a range test of the learning rate, or the batch size that memory "
    )
    parser.add_argument("--find", choices=FINDERS, help=find + "and throughput allow")
    parser.add_argument("--options", action="store_true", help="explain every option of the config and stop")


def run(args: argparse.Namespace) -> None:
    """Read the config and train, or show what could be configured."""
    from rs_biformer.distribution import require
    from rs_biformer.train.config import explain_options, parse

    if args.options:
        console.show(explain_options())
        return
    require("torch")  # before anything is said about the config
    files = [part for path in args.config for part in ("--config", path)]
    config = parse([*files, *args.rest])
    if args.print_config:
        console.document(config.to_yaml())
        return
    if args.find is not None:
        return _find(args.find, config)
    from rs_biformer.train.folder import BEST_NAME, LAST_NAME
    from rs_biformer.train.run import train

    out = train(config, fast=args.fast, say=console.say)
    if args.fast:
        return
    made = [out / name for name in (BEST_NAME, LAST_NAME) if (out / name).is_file()]
    following = f"; next: rs-biformer evaluate --checkpoint {made[0]} --help" if made else ""
    console.say(f"trained: {out}{following}")


def _find(what: str, config: "TrainConfig") -> None:
    from rs_biformer.train.find import find_batch_size, find_learning_rate

    if what == "learning_rate":
        console.show(f"--optimizer.learning_rate {find_learning_rate(config, say=console.say):.2g}")
    else:
        console.show(f"--data.batch_size {find_batch_size(config, say=console.say)}")
