"""What can be set from outside: HOOKLINE_*, read once, checked, and frozen."""

from service.config.reading import ListenAddress
from service.config.settings import Role, Settings, SettingsError

__all__ = ["ListenAddress", "Role", "Settings", "SettingsError"]
