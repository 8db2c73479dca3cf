"""One layer's paged cache, whatever kernel wrote it, and what is remembered of the requests in it."""
