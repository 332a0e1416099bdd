"""Each file says how the config.json of one family becomes a ModelConfig (docs/families.md)."""
