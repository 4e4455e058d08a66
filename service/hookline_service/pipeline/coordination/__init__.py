"""Coordination between nodes. Notifications only hasten what polling finds.

changes           the change log: pauses, deletions, cancellations, retries
notifications     something is due, something was changed, a node joined or left
"""
