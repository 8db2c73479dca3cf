"""The policies' pages in docs/policies: generated from the classes, hand-written sections and measured figures."""
