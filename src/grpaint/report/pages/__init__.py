"""Self-contained HTML pages: the comparison of methods, the evaluation of models, and what both share."""
