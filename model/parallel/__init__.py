"""Several processes for one model, by torch's and transformers' own pieces; and torchtitan's checkpoint layout."""
