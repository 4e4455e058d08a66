"""Dispatch: a queue for each subscription, fair turns, the request, the record of its outcome.

lane           the queue of one subscription, and the health of its target
key_order      the ordering keys of an ordered lane
refill_queue   the queue of lanes that are to be read; tenants take turns
dispatcher     which lane sends next, how much memory its queue may take, retries of the next minute
lanes          all lanes of a node, and how complete a cache of the hot table each is
lane_configs   lanes are configured: targets, secrets, limits
lane_views     the condition of lanes, for operators
sweep          finds lanes that lack due deliveries
refill         reads due deliveries into lanes; of an ordered lane the earliest of each key
deliver        sign and send
record         many outcomes, one statement
outcome_log    logs and metrics of outcomes
"""
