"""Serve trained runs over HTTP, with a page to try them and to see their heads."""

from headwise.web.app import application
from headwise.web.config import Limits, ServeConfig
from headwise.web.serving import served
from headwise.web.workers import serve

__all__ = ["Limits", "ServeConfig", "application", "serve", "served"]
