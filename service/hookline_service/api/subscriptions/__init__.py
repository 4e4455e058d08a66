"""SubscriptionService: subscriptions, their targets and their secrets."""
