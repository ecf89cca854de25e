"""Judged samples of a model, and scores of them: what evaluation and rejection sampling share."""
