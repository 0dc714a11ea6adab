"""The model card beside an adapter: the metadata that the Hub reads, above what a person wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from adapterkit.files import write_text

CARD_NAME = "README.md"

_TEXT = """# Adapter

A {method} adapter for {base}.

```python
from adapterkit import PeftModel  # or: from peft import PeftModel

model = PeftModel.from_pretrained(base_model, "path/to/this/adapter")
```
"""


def write_card(directory: Path, model: Any) -> None:
    """Write or update ``README.md``: ``library_name``, ``base_model``, ``pipeline_tag`` and tags.

    Args:
        directory: the adapter's directory.
        model: a `PeftModel`.
    """
    path = directory / CARD_NAME
    metadata, text = _read(path)
    config = next(iter(model.peft_config.values()))
    base = config.base_model_name_or_path or getattr(getattr(model.get_base_model(), "config", None), "name_or_path", "")
    metadata["library_name"] = "peft"
    tags = [f"base_model:adapter:{base}"] if base else []
    tags += [c.peft_type.lower() for c in model.peft_config.values()]
    if base:
        metadata["base_model"] = base
    if config.task_type == "CAUSAL_LM":
        metadata["pipeline_tag"] = "text-generation"
    metadata["tags"] = list(dict.fromkeys([*metadata.get("tags", []), *tags]))
    text = text or _TEXT.format(method=config.peft_type, base=base or "a custom model")
    write_text(path, f"---\n{_dump(metadata)}---\n{text}")


def _read(path: Path) -> tuple[dict[str, Any], str]:
    """A card's metadata and text; nothing of either where there is no card."""
    if not path.is_file():
        return {}, ""
    content = path.read_text(encoding="utf-8")
    if not content.startswith("---\n"):
        return {}, content
    head, _, text = content[4:].partition("\n---\n")
    from omegaconf import OmegaConf

    loaded = OmegaConf.to_container(OmegaConf.create(head))
    return ({str(k): v for k, v in loaded.items()} if isinstance(loaded, dict) else {}), text


def _dump(metadata: dict[str, Any]) -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(metadata), sort_keys=True)
