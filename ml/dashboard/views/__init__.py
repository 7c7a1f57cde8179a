"""One module a page, each with ``render(page)``. A page asks, words and places; it computes nothing."""
