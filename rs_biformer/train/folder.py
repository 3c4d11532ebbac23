"""The folder of a training run: who is at work in it, what it holds, and whether the run in it goes on.

config.yaml says what is trained, metrics.csv how it went, best.ckpt and last.ckpt hold the weights. `.unfinished` is
there from the first step until the run has ended by itself, so that the same command goes on after whatever ended it
otherwise, and a run that has ended is not continued by mistake.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from pytorch_lightning.utilities import rank_zero_only

from rs_biformer.documents import parse_yaml, read_yaml
from rs_biformer.errors import CheckpointError, ConfigError, RsBiformerError
from rs_biformer.files import write_text
from rs_biformer.train.config import TrainConfig

CONFIG_NAME, BEST_NAME, LAST_NAME, METRICS_NAME = "config.yaml", "best.ckpt", "last.ckpt", "metrics.csv"
UNFINISHED_NAME, LOCK_NAME = ".unfinished", ".lock"

_PATIENCE = 6.0
"""Seconds to wait for the lock: a killed run's workers hold it until they notice, after five."""


@contextmanager
def held(out: Path) -> Iterator[None]:
    """Make the folder and keep other runs out of it. One that is refused before its first step leaves no new folder.

    Raises ConfigError where the folder cannot be made, or another process trains into it.
    """
    if getattr(rank_zero_only, "rank", 0):  # the first process of the run has done all this
        yield
        return
    made = [folder for folder in (out, *out.parents) if not folder.exists()]
    try:
        out.mkdir(parents=True, exist_ok=True)
        if (out / LOCK_NAME).is_symlink():
            raise ConfigError(f"{out / LOCK_NAME} is a link, and would be written through; remove it")
        lock = FileLock(out / LOCK_NAME)
        lock.acquire(timeout=_PATIENCE, poll_interval=0.2)
    except Timeout:
        raise ConfigError(
            f"another process is training into {out}; wait until it has ended, or give another --out"
        ) from None
    except OSError as error:
        raise ConfigError(f"cannot write the run folder {out}: {error.strerror or error}; give another --out") from None
    try:
        yield
    except RsBiformerError:
        if made and not (out / UNFINISHED_NAME).exists():
            shutil.rmtree(out, ignore_errors=True)
            with suppress(OSError):  # one that somebody else uses by now
                for above in made[1:]:
                    above.rmdir()
        raise
    finally:
        lock.release()  # the file stays: who waits for it may have it open


def checkpoint_to_resume(config: TrainConfig) -> Path | None:
    """The checkpoint that config.resume means. Raises ConfigError where the folder holds a run that must not go on."""
    out, last = Path(config.out), Path(config.out) / LAST_NAME
    if config.resume == "auto":
        return last if last.is_file() else None
    if config.resume is not None:
        path = Path(config.resume)
        if not path.is_file():
            raise CheckpointError(f"no checkpoint {path} to resume from; --resume auto continues the run in --out")
        return path
    if (out / UNFINISHED_NAME).exists() and _says(out / CONFIG_NAME, config):
        return last if last.is_file() else None
    taken = [name for name in (LAST_NAME, BEST_NAME, METRICS_NAME) if (out / name).exists()]
    if not taken:
        return None
    state = "an unfinished run of another config" if (out / UNFINISHED_NAME).exists() else "another run"
    raise ConfigError(f"{out} holds {state} ({taken[0]}); continue it with --resume auto, or give another --out")


def begin(out: Path, config: TrainConfig) -> None:
    """Write config.yaml, unless the one that is there says the same, and mark the run as unfinished.

    A config.yaml that says something else is kept as config.1.yaml, config.2.yaml, ...: it may have been written by
    hand. A link is replaced and not written through.
    """
    path = out / CONFIG_NAME
    if not _says(path, config):
        if path.exists():
            number = next(n for n in range(1, 10**6) if not (out / f"config.{n}.yaml").exists())
            shutil.copyfile(path, out / f"config.{number}.yaml")
        write_text(path, config.to_yaml())
    (out / UNFINISHED_NAME).touch()


def finish(out: Path) -> None:
    """The run has ended by itself."""
    (out / UNFINISHED_NAME).unlink(missing_ok=True)


def _says(path: Path, config: TrainConfig) -> bool:
    """Whether a config file describes this run, wherever it lies and however it is begun."""
    try:
        found = read_yaml(path)
    except ConfigError:
        return False
    return isinstance(found, dict) and _meaning(found) == _meaning(parse_yaml(config.to_yaml(), CONFIG_NAME))


def _meaning(plain: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in plain.items() if key not in ("out", "resume")}
