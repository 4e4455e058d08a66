"""The contract `hookline.v1`, generated from `protos/hookline/v1`; import what is needed from its modules.

Regenerate with `make generate`; edit the protos, never these files.
"""
