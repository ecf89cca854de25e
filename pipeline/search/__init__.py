"""Process rewards and tree search, which R1's authors tried and dropped: step labels, and a search with a value model.

Only the stage kinds `step_labels` and `tree_search` import this room (`pyproject.toml` has the contract): nothing of
the recipe's main path depends on it.
"""
