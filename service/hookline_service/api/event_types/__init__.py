"""EventTypeService: the contracts of events."""
