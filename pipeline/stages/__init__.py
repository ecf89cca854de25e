"""Stage kinds, one module each with a config class and `run`; none imports another. `registry` names them."""
