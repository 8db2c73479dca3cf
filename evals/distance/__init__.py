"""Retrieval by distance: what a model with summary tokens finds inside and outside its window of text."""
