"""Targets: one package for each kind, behind one seam.

sender    the seam: `TargetSender`, and how a kind is added
payload   an event as bytes, in the formats of all kinds
http      signed HTTP requests
"""
