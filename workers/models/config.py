"""config.json as the decoder needs it. What we would compute wrongly is refused by name."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from workers.models.architecture import ModelConfig
from workers.models.fields import Fields, read_json
from workers.models.quantisation import read_quantisation
from workers.models.registry import FAMILIES
from workers.models.shapes import SHAPES


def load_config(directory: Path) -> ModelConfig:
    """Read config.json and, where there is one, generation_config.json (more EOS ids)."""
    path = directory / "config.json"
    fields = Fields(path, read_json(path))
    eos_token_ids = _eos_token_ids(fields, directory / "generation_config.json")
    return replace(read_config(fields), eos_token_ids=eos_token_ids)


def read_config(fields: Fields) -> ModelConfig:
    """From config.json alone, so without EOS ids."""
    architecture = _architecture(fields)
    read_quantisation(fields.values, fields.path)  # one that we cannot read is refused here
    return replace(FAMILIES[architecture](fields), architecture=architecture)


def read_shape(name: str) -> ModelConfig:
    """Of a known model, by its short name in SHAPES."""
    return read_config(Fields(Path(name), SHAPES[name]))


def _architecture(fields: Fields) -> str:
    names = fields.values.get("architectures")
    names = [str(name) for name in names] if isinstance(names, list) else []
    for name in names:
        if name in FAMILIES:
            return name
    found = f"architecture {', '.join(names)} is not supported" if names else "no architectures"
    raise fields.fail(f"{found}; supported are {', '.join(FAMILIES)}")


def _eos_token_ids(fields: Fields, generation: Path) -> tuple[int, ...]:
    """Sorted union of eos_token_id (an id or a list) in both files."""
    found: set[int] = set()
    files = [fields]
    if (text := fields.object("text_config")) is not None:
        files.append(text)
    if generation.exists():
        files.append(Fields(generation, read_json(generation)))
    for file in files:
        value = file.values.get("eos_token_id")
        ids = value if isinstance(value, list) else [] if value is None else [value]
        if any(type(i) is not int for i in ids):
            raise file.fail(f"eos_token_id must be an integer or a list of them, not {value!r}")
        found.update(i for i in ids if i >= 0)
    return tuple(sorted(found))
