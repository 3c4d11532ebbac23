"""`rs-biformer train`: a config file, overrides, one call."""

import argparse
import sys

HELP = "train a segmentation network on tiled scenes"
EXAMPLE = (
    "rs-biformer train --config configs/vaihingen/recommended.yaml --data.index tiles --out runs/first\n"
    "  rs-biformer train --config runs/first/config.yaml --resume auto       (continue an interrupted run)\n\n"
    "sections of the config, each key also an option --section.key VALUE:\n"
    "  model      encoder, decoder, arguments\n"
    "  data       index, batch_size, workers, samples_per_epoch, balance, jitter, cache, augment.*, ...\n"
    "  loss       terms, balance, label_smoothing\n"
    "  optimizer  name, learning_rate, weight_decay, momentum, ema\n"
    "  schedule   name, warmup, power, final\n"
    "  trainer    every option of Lightning's Trainer: max_epochs, precision, accelerator, devices, ...\n"
    "  and        out, seed, resume (auto or a checkpoint), images_every"
)
PASS_REST = True
"""What argparse does not know is an option of the config."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer train` that are not the config's."""
    parser.add_argument("--config", action="append", default=[], metavar="FILE", help="YAML file; later ones override")
    parser.add_argument("--print_config", action="store_true", help="print the whole config as YAML and stop")
    parser.add_argument("--options", action="store_true", help="explain every option of the config and stop")


def run(args: argparse.Namespace) -> None:
    """Read the config and train, or show what could be configured."""
    from rs_biformer.train.config import create_parser, parse

    if args.options:
        create_parser().print_help()
        return
    files = [part for path in args.config for part in ("--config", path)]
    config = parse([*files, *args.rest])
    if args.print_config:
        print(config.to_yaml(), end="")
        return
    from rs_biformer.train.run import train

    out = train(config, say=lambda line: print(line, file=sys.stderr))
    print(f"trained: {out}; next: rs-biformer evaluate --checkpoint {out}/best.ckpt --help", file=sys.stderr)
