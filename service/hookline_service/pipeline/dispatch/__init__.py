"""Dispatching: a queue for each subscription, fair turns, the request, its outcome recorded.

lane              the queue of one subscription, and its target's health
lanes             all lanes of a node, and how complete a copy of the hot table each is
lane_configs      what lanes need of their subscriptions: targets, secrets, limits
lane_views        the state of lanes, for an operator
dispatcher        which lane may send now
fair_scheduler    which lane is next: tenants take turns, and lanes within a tenant
queue_budget      how much of the node's memory each lane may take
delay_queue       retries of the next minute
key_order         the ordering keys of an ordered lane
sweep             which lanes lack something that is due
refill_queue      which lane is read next: tenants take turns
refill, ordered   lanes are filled from the hot table; ordered ones by the head of each key
intake            rows that were read become queued messages
deliver           sign and send
record            many outcomes, one statement
db_errors         what delays a batch of outcomes, and for how long
outcome_log       what is logged and counted of outcomes
"""
