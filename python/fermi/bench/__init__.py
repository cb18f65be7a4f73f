"""How fast a model runs on this machine, and what share of the machine's limits that is: behind ``fermi bench``."""
