"""EventService: events are published, and found again."""
