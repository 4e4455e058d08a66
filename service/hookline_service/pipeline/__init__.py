"""The data path, package by package, in the order in which to read it.

    clock             time: durations by this node's clock, instants by the database's
    timers            what is due within the next minute
    batch_queue       group commit: which items share a statement, and how long they wait
    publishing        an event is checked, matched, stored and handed off
    membership        which buckets this node owns, and until when it may act on that
    dispatch          deliveries wait in lanes, are sent, and their outcomes recorded
    coordination      what other nodes changed, and the notifications between nodes
    actions           retries, cancellations, test events, handshakes with targets
    upkeep            retention, the audit log's seal, metrics sampled each second

Publishing has no dependency on HTTP, and sending has none on SQL.
"""
