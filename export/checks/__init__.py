"""Comparisons with torch: of every exported component, of a finished bundle, and of two graphs tensor by tensor."""
