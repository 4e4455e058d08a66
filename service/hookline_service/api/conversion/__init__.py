"""Conversions that all resources share: names, text, values, field masks, pages."""
