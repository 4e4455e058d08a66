"""Upkeep, by timers.

chores            retention, partitions, expiry; by one node at a time
audit_sealer      signs the head of the audit log
audit_pruner      deletes audit entries past their retention, and signs where the log then begins
metrics_sampler   gauges, sampled each second
"""
