"""The living: long-lived actors, each a thin shell around one engine object, and what drives them."""
