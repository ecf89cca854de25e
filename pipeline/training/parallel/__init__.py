"""Several processes that train one model: sharded weights (FSDP2), divided experts, and what they tell each other."""
