"""Which distribution brought this package, its version, and what to install where a package is missing.

There are two with the same files: the toolkit, rs_biformer, and prediction without torch, rs_biformer_predict, which
leaves out what only training, exporting and checkpoints need, and what mapping and measuring maps can do without unless
its extra is asked for. An environment has the one or the other.
"""

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec


def _find() -> tuple[str, str]:
    for name in ("rs_biformer", "rs_biformer_predict"):
        try:
            return name, version(name)
        except PackageNotFoundError:
            continue
    return "", "0+unknown"  # a checkout that was never installed


NAME, __version__ = _find()

SPARED = ("matplotlib", "scipy")
"""Packages that come with the whole toolkit, and with the extra `all` of rs_biformer_predict."""


def require(package: str) -> None:
    """Raise ModuleNotFoundError unless a package of others is installed, without loading it."""
    if find_spec(package) is None:
        raise ModuleNotFoundError(f"no package {package}", name=package)


def describe_missing(package: str) -> str:
    """One line: that this package of others is not here, and the command that brings it."""
    if NAME == "rs_biformer_predict" and package in SPARED:
        return f"this needs {package}; get it with: pip install 'rs_biformer_predict[all]'"
    if NAME == "rs_biformer_predict":
        return (
            f"this needs {package}, which rs-biformer-predict leaves out; install the whole toolkit, in an environment "
            "of its own: pip install rs_biformer"
        )
    return f"{package} is not installed; get it with: pip install rs_biformer"
