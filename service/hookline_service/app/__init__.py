"""The composition root: the one place where things are constructed, started and stopped.

`engine` puts the data path together, `servicers` the API, `node` the whole. Everything else takes
what it needs through its constructor and makes nothing.
"""

from hookline_service.app.keys import create_api_key
from hookline_service.app.node import App, StartError, migrate_database

__all__ = ["App", "StartError", "create_api_key", "migrate_database"]
