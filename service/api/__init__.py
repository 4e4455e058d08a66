"""The gRPC frame and the services: convert, call, convert. What the engine does is decided below.

Read `server.py` for the whole, `errors.py` for every refusal, one `*_service.py` for each service.
"""
