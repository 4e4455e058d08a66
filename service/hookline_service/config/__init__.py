"""What can be set from outside: HOOKLINE_*, read once, checked, and frozen."""

from hookline_service.config.reading import ListenAddress
from hookline_service.config.settings import Role, Settings, SettingsError

__all__ = ["ListenAddress", "Role", "Settings", "SettingsError"]
