"""Plugins that cheat, each in its own way; the checks have to catch every one by name."""
