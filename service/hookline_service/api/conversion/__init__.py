"""Conversions shared by all resources: names, text, values, update_mask, paging."""
