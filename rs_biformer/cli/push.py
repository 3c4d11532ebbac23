import argparse

from rs_biformer.cli import console

HELP = "put a model into a repository of the Hugging Face hub: safetensors, cards for people and for programs"
EXAMPLE = """rs-biformer push runs/first/best.ckpt owner/name --private --license CC-BY-4.0
  rs-biformer predict SCENE --checkpoint hf://owner/name --out maps

Writes model.safetensors (the weights with all that the checkpoint carries), model.json (its card), model.stac.json (the
card as a STAC Item) and README.md in one commit. Of a repository model.safetensors alone is read. Who you are, the hub
knows by `hf auth login` or HF_TOKEN. Needs: pip install 'rs_biformer[hub]'"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-biformer push`."""
    add = parser.add_argument
    add("model", metavar="MODEL", help="a checkpoint (.ckpt, .safetensors)")
    add("repository", metavar="REPO", help="owner/name; made if there is none")
    add("--private", action="store_true", help="a repository that is made is not for everybody")
    add("--revision", metavar="BRANCH", help="the branch to put it on (main)")
    add("--license", default="", metavar="SPDX", help="of the model, such as CC-BY-4.0 (not told)")


def run(args: argparse.Namespace) -> None:
    """Write the files, push them, say where they are."""
    from rs_biformer.jobs import push_model

    console.show(
        push_model(args.model, args.repository, private=args.private, revision=args.revision, licence=args.license)
    )
    revision = f"@{args.revision}" if args.revision else ""
    console.show(f"next: rs-biformer predict SCENE --checkpoint hf://{args.repository}{revision} --out DIR")
