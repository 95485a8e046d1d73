"""Write model cards: what a model is, how it was made, how good it is, and how to use it."""

from __future__ import annotations

import html
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["Card"]


@dataclass(frozen=True)
class Card:
    """Hold what a card says of a kind of model."""

    tag: str
    """What the Hugging Face hub calls such models."""
    title: str
    """What it is."""
    commands: str
    """How it is used."""

    def filled(self, facts: Mapping[str, object], figures: Mapping[str, float]) -> str:
        """Write the card of one model."""
        told = "\n".join(f"| {name} | {_cell(str(value))} |" for name, value in facts.items())
        shown = "\n".join(f"| {name} | {value:.4f} |" for name, value in figures.items())
        return _CARD.format(tag=self.tag, title=self.title, commands=self.commands, facts=told, figures=shown)


def _cell(text: str) -> str:
    """Escape what Markdown would take for a cell's end or for HTML."""
    return html.escape(text, quote=False).replace("|", "\\|")


_CARD = """---
library_name: headwise
pipeline_tag: {tag}
---

# {title}

| | |
| --- | --- |
{facts}

Every setting stands in `run.json`.

| on the dev texts | |
| --- | ---: |
{figures}

The dev texts have chosen this model among its kind; on others expect a little less. Nothing is known of texts of
another kind or language than those it was trained on.

```sh
{commands}
```
"""
