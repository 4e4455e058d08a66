"""Who this service is and who calls it: certificates, tokens, and the files that say so.

Knows X.509, JOSE and files; neither gRPC nor Postgres. What is read from outside is followed:
read again when it changes, and kept as it was where the new one is no good.
"""
