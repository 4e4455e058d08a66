"""Publishing: checks events, matches them in memory, stores them in a group commit, hands them off.

In reading order:

publish           the entry: checks a call, queues it, commits groups
catalog           event types in memory: whether an event is accepted and its data valid
matching          the subscriptions of each event, from an index of each tenant in memory
quota             a bound on the pending deliveries of a tenant
publish_queue     calls that wait to be stored, in fair order
group             calls that share one commit, and their rows
commit            one group's statement, its failures, and the hand-off to the lanes of this node
contended         commits for tenants that another transaction has locked, apart from the others
byte_cache        a cache with a bound in bytes
"""
