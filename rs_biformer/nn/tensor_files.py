"""Files of safetensors: tensors by name and a line of text, nothing that could be executed.

The format (huggingface/safetensors): eight bytes with the length of a JSON header, the header, the tensors. It has no
checksum, so ours stands in the text: a digest of all else, which tells bytes that have changed.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from rs_biformer.documents import build, parse_json
from rs_biformer.errors import CheckpointError, ConfigError
from rs_biformer.files import replacing

SUFFIX = ".safetensors"

_MAX_HEADER = 16 << 20
"""Bytes of a header: names and places of some 100,000 tensors."""
_TEXTS = "__metadata__"
_DIGEST = "sha256"


def write_tensors(path: Path, tensors: Mapping[str, Tensor], key: str, document: Mapping[str, Any]) -> None:
    """Write tensors with a document of plain values, as JSON under `key` in the header.

    One key alone: the library writes several in an order that changes from process to process. The file appears under
    its name complete or not at all, and the same tensors and document give the same bytes.
    """
    own = {name: value.detach().cpu().clone().contiguous() for name, value in tensors.items()}  # none shares memory
    digest = _digest(save(own, {key: _text(document)}))
    with replacing(path) as partial:
        partial.write_bytes(save(own, {key: _text({**document, _DIGEST: digest})}))


def read_tensors(path: Path, key: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors of a file, and the document that it has under `key`; an empty one where it has none.

    Raises CheckpointError, in one line that begins with the path, for a file that is none or was changed.
    """
    content = path.read_bytes()
    try:
        header = _header(content, str(path))
        texts: dict[str, str] = build(dict[str, str], header.get(_TEXTS, {}), f"{path}: its metadata")
        document: dict[str, Any] = build(
            dict[str, Any], parse_json(texts.get(key, "{}"), f"{path}: its card"), f"{path}: its card"
        )
    except ConfigError as error:
        raise CheckpointError(str(error)) from None
    told = document.pop(_DIGEST, None)
    try:
        tensors = load(content)
    except Exception as error:  # the library's own, and torch's about shapes that cannot be
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise CheckpointError(f"{path} is no file of safetensors, or a damaged one ({reason})") from None
    if told is not None:
        header[_TEXTS] = {**texts, key: _text(document)}
        if told != _digest(content, header):
            raise CheckpointError(
                f"{path} is damaged: its digest is another, so some bytes have changed since it was written; nothing "
                "was loaded"
            )
    return tensors, document


def _text(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def _header(content: bytes, where: str) -> dict[str, Any]:
    """The header as plain values. Raises ConfigError."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ConfigError(f"{where} is no file of safetensors, or a torn one: its header would be larger than the file")
    if length > _MAX_HEADER:
        raise ConfigError(f"{where} has a header of {length:,} bytes; it may have {_MAX_HEADER:,}")
    header: dict[str, Any] = build(dict[str, Any], parse_json(content[8 : 8 + length], f"{where}: its header"), where)
    return header


def _digest(content: bytes, header: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of a file's header, in one spelling, and of its tensors. header: to take instead of the file's own."""
    length = int.from_bytes(content[:8], "little")
    spelt = _text(parse_json(content[8 : 8 + length], "a header") if header is None else header)
    found = hashlib.sha256(spelt.encode())
    found.update(memoryview(content)[8 + length :])
    return found.hexdigest()
