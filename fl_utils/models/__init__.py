"""The papers' networks: plain torch modules that know nothing of the rest of this package."""
