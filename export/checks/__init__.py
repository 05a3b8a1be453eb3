"""Comparisons with torch: every exported component, a finished bundle, and the first tensor where two graphs part."""
