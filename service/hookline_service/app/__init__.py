"""The composition root: the only package that constructs, starts and stops the parts of a node.

`engine` constructs the data path, `servicers` the API, `node` the whole node. All other packages
receive their collaborators through constructors.
"""

from hookline_service.app.keys import create_api_key
from hookline_service.app.node import App, StartError, migrate_database

__all__ = ["App", "StartError", "create_api_key", "migrate_database"]
