"""Actions of operators and tenants on single deliveries and targets.

delivery_actions   retry and cancel
test_events        one event to one subscription, now
target_handshakes  the request that asks a target whether it accepts webhooks
"""
