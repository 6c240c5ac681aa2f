"""Query to results: the query is described and encoded by the functions that built the gallery."""
