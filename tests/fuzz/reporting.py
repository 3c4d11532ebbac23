"""Where the seeds of a run begin (RS_BIFORMER_FUZZ_FROM), and the file that is told what was found.

RS_BIFORMER_FUZZ_REPORT names a file that gets a few lines of YAML for each kind: outcomes and findings.
"""

import os

import yaml

FROM = int(os.environ.get("RS_BIFORMER_FUZZ_FROM", "0"))


def report(name: str, counts: dict[str, int], findings: list[str]) -> None:
    """Append what became of the files of a kind to the report, where one is wanted."""
    if place := os.environ.get("RS_BIFORMER_FUZZ_REPORT"):
        with open(place, "a") as file:
            file.write(yaml.safe_dump({name: {"outcomes": counts, "findings": findings}}, width=10**6))
