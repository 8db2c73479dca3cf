"""The generated blocks of docs/policies and docs/models.md: from the classes and from measured figures."""
