"""Models for where the code of this project is not: StableHLO, and parameters by name."""
