import argparse

from rs_biformer.cli import console

HELP = "print a script with which a shell completes commands, options, choices and files"
EXAMPLE = """rs-biformer completion bash > ~/.local/share/bash-completion/completions/rs-biformer
  rs-biformer completion zsh > ~/.zfunc/_rs-biformer          (a folder of $fpath, before compinit)
  rs-biformer completion fish > ~/.config/fish/completions/rs-biformer.fish"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer completion`."""
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="which shell the script is for")


def run(args: argparse.Namespace) -> None:
    """Print the script. It is a fixed text: what it completes is what this version takes."""
    import shtab

    from rs_biformer.cli import build_parser

    parser = build_parser()
    commands = next(action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    _add_keys_of_the_config(commands.choices["train"])
    for command in commands.choices.values():
        for action in command._actions:
            if action.nargs != 0 and not action.choices and action.type not in (int, float):
                files = shtab.DIRECTORY if action.metavar == "DIR" else shtab.FILE
                vars(action)["complete"] = files  # what is no number may be a file, as the shell itself takes it
    console.document(shtab.complete(parser, args.shell))


def _add_keys_of_the_config(train: argparse.ArgumentParser) -> None:
    """`--data.index` and the like, which the command reads by itself; without torch there are none."""
    try:
        from rs_biformer.train.config import known_keys
    except ModuleNotFoundError:
        return
    for key in known_keys():
        train.add_argument(f"--{key}")
