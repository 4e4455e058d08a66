"""Publishing: check events, match them in memory, store them in a group commit, hand them off.

publish           the entry: checks a call, queues it, commits groups
catalog           event types in memory: accepted or not, and whether the data is valid
matching          which subscriptions an event goes to
tenant_index      one tenant's subscriptions, by event type
index_cache       the tenants' indexes in memory, up to a number of bytes
quota             how much a tenant may have pending
publish_queue     calls that wait to be stored, in fair order
group             calls that share one commit, and their rows
commit            one group's statement, and each of its failures
contended         tenants whose rows another transaction has locked, apart from the others
hand_off          stored deliveries go to the lanes of this node
"""
