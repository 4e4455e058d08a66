"""Upkeep, by timers.

chores            retention, partitions, expiry; by one node at a time
audit_sealer      signs the head of the audit log
metrics_sampler   gauges, sampled each second
"""
