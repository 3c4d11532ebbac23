"""Which encoders there are and what they cost: ours counted, those of the libraries by name."""

from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatch

from rs_biformer.errors import ConfigError
from rs_biformer.nn.count import Figures, count_model
from rs_biformer.nn.encoders.library import library_names, weights_of
from rs_biformer.nn.model import list_encoders


def count_architectures(
    encoders: Sequence[str] | None = None,
    decoder: str = "unet_fusion",
    *,
    size: int = 256,
    bands: int = 3,
    classes: int = 6,
    progress: Callable[[int, int], None] | None = None,
) -> list[Figures]:
    """Parameters and multiply-adds of encoders with a decoder, on an image of `size` x `size` pixels.

    encoders: by name, ours or one of smp or timm; all of ours unless given. progress: told models done and in all.
    Raises ConfigError for a name that none has, and for a size below 1.
    """
    names = encoders or list_encoders()
    found = []
    for done, name in enumerate(names, 1):
        found.append(count_model(name, decoder, size, bands, classes))
        if progress is not None:
            progress(done, len(names))
    return found


def library_encoders(patterns: Sequence[str] = ("*",)) -> Mapping[str, Sequence[str]]:
    """The encoders of smp and timm whose names match a pattern, as models take them, with the weights of each.

    Raises ConfigError where none matches.
    """
    names = [name for name in library_names() if any(fnmatch(name, pattern) for pattern in patterns)]
    if not names:
        raise ConfigError(
            f"smp and timm have no encoder called {', '.join(patterns)}; patterns take *, such as '*dinov3*'"
        )
    ours = set(list_encoders())  # which come first: timm's of the same name has a prefix
    return {f"tu-{name}" if name in ours else name: weights_of(name) for name in names}
