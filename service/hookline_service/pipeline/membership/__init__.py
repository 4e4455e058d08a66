"""Cluster membership: this node's lease, and the buckets that it owns.

ownership         heartbeats, takeovers, and until when this node may send
"""
