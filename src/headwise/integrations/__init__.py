"""Bring headwise into models that others wrote."""

__all__: list[str] = []
