"""The contract `hookline.v1`, generated; import what is needed from its modules.

Regenerate with `make generate`; edit the protos, never these files.
"""
